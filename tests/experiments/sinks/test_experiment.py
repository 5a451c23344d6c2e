"""The experiment on a tiny model: what its rows are, against scikit-learn and against one another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

import jaxvit
from experiments.analyses import content_or_sink
from experiments.rows import check_rows, select
from experiments.sinks import rules
from experiments.sinks.experiment import ATTENTION, METER, compute, questions
from experiments.sinks.readings import PENALTY
from experiments.sinks.rows import edits_of, largest_channel
from experiments.sinks.verdicts import all_verdicts, reasons_of
from experiments.study.cells import Store
from experiments.study.compare import add_holm, mark_repeats
from experiments.study.results import StudyResults
from tests.experiments import tiny_study


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    target = tiny_study.targets(tiny_study.save_models(tmp_path_factory.mktemp("models"))[:1])[0]
    return {question.group.name: question for question in questions(target)}


@pytest.fixture(scope="module")
def rows(asked):
    jobs = list(content_or_sink.jobs(asked["registers"].target))
    texts = {name: text for job in jobs for name, text in job.ablations.items()}
    found = [row for name in ("registers", "cls") for row in compute(asked[name])[0]]
    return add_holm(mark_repeats(found, texts))


def row_of(rows, condition, feature="cls", readout="refitted"):
    (row,) = select(rows, condition=condition, feature=feature, readout=readout)
    return row


def test_all_groups_are_asked_about(asked):
    assert list(asked) == ["registers", "cls", "random_patches", "r1", "r2"]


def test_a_refitted_score_is_that_of_scikit_learn(asked, rows):
    question = asked["registers"]
    target, model = question.target, question.target.model
    features = []
    for part, count in (("train", 20), ("test", 20)):
        images = jaxvit.normalise(target.data.parts[part].images[:count], model.config)
        features.append(np.asarray(jaxvit.forward(model, images, jaxvit.cut(["cls", "patches"], "registers", mass="lost")).cls))
    train, test = (target.data.labels[part][:20] for part in ("train", "test"))
    scaler = StandardScaler().fit(features[0])
    probe = Ridge(alpha=PENALTY * 20).fit(scaler.transform(features[0]), np.eye(10)[train])
    accuracy = (probe.predict(scaler.transform(features[1])).argmax(axis=1) == test).mean()
    assert row_of(rows, "registers.cut_lost")["value"] == pytest.approx(accuracy)


def test_a_contrast_is_the_difference_of_two_rows(rows):
    for name, row, against in ((rules.CONSTANT, rules.LOST, rules.VALUE_MEAN), (rules.SINK, rules.RENORMALISED, rules.LOST)):
        for feature in ("cls", "patches"):
            contrast, ours, theirs = (row_of(rows, f"registers.{edit}", feature) for edit in (name, row, against))
            assert contrast["delta"] == pytest.approx(ours["delta"] - theirs["delta"])
            assert contrast["reference"]["condition"] == f"registers.{against}"
    both, one, other = (row_of(rows, f"registers.{edit}")["delta"] for edit in ("both_cut_lost", "cut_lost", "other_cut_lost"))
    assert row_of(rows, "registers.joint")["delta"] == pytest.approx(both - one - other)


def test_what_is_written_where_it_is_read_decides_nothing(rows):
    assert row_of(rows, "cls.zero")["by_construction"]
    assert not row_of(rows, "cls.zero", "patches")["by_construction"]
    assert not row_of(rows, "cls.value_mean")["by_construction"]


def test_rows_are_rows_and_give_every_group_its_words(rows):
    check_rows([row | {"quick": False, "cell": "", "scores_cell": None} for row in rows])
    found = all_verdicts(rows)["with_registers"]
    assert set(found) == {"registers", "cls"}
    for of_group in found.values():
        assert set(of_group) == {"cls", "patches"}
        assert all(verdict.words[0].startswith(rules.WORDS) for verdict in of_group.values())
    assert len(select(rows, metric=ATTENTION)) == 2
    assert len(select(rows, condition="registers.cut_lost", metric=METER)) == 1


def test_the_section_begins_with_the_verdicts_and_has_every_row(rows):
    results = StudyResults(rows, {}, Path("nowhere"), ["with_registers"])
    page, said = content_or_sink.section(results), content_or_sink.verdict_words(results)["with_registers"]
    assert page.startswith("<ul><li>")
    assert said["registers"]["cls"] in page[: page.index("</ul>")]
    reasons = page[page.index("What they rest on") : page.index("cannot decide")]
    found = all_verdicts(rows)["with_registers"]
    asked = [(group, target, verdict) for group, of_group in found.items() for target, verdict in of_group.items()]
    decided = [why for group, target, verdict in asked if (why := reasons_of(rows, "with_registers", group, target, verdict))]
    assert reasons.count("<li>") == len(decided)
    assert page.index("</ul>") < page.index("cannot decide") < page.index("<svg") < page.index("<table")
    assert '<th scope="row">cut, weight lost</th>' in page
    assert len(content_or_sink.verdicts(results)) == 2
    assert "<script" not in page


def test_one_cut_under_two_names_is_one_test(rows):
    """CLS is cut for the registers' contrast too, on twice as many images here: other numbers, another test."""
    assert row_of(rows, "cls.cut_lost")["repeats"] is None
    assert row_of(rows, "registers.mean_input")["repeats"] == "registers.mean"


def test_the_largest_channel_is_the_one_that_was_made_large(asked):
    question = asked["registers"]
    moments = question.moments
    mean = moments.mean["block_output"].copy()
    mean[1, 2, 5] = 1e4  # block 1, register 2
    channel, times = largest_channel(
        question.group, jaxvit.Moments(moments.mean | {"block_output": mean}, moments.variance, 1, None), question.config
    )
    assert (channel, times > 100) == (5, True)


def test_under_rope_patches_have_no_mean_key(asked):
    config = jaxvit.ViTConfig(8, 24, 2, 3, 48, registers=2, position="rope", image_size=64)
    assert "key_mean" not in edits_of(asked["random_patches"].group, config)
    assert "key_mean" in edits_of(asked["registers"].group, config)


def test_a_cell_holds_rows_and_scores(asked, tmp_path):
    (job,) = [job for job in content_or_sink.jobs(asked["r1"].target) if job.key["group"] == "r1"]
    found, arrays = job.compute(Store(tmp_path))
    assert {row["readout"] for row in found if row["feature"] == "cls"} == {"frozen"}
    assert {row["scores_array"] for row in found} <= set(arrays)
