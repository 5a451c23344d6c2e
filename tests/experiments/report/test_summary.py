"""The rules of the summary, on rows in which each of them fires, on rows in which none does, and on the published numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.plotting.columns import Column
from experiments.report.summary import MARGIN, Change, Finding, Score, Verdict, changes_of, falls, spared, summarise, verdict, zeroing
from experiments.report.wording import reach_text, signed
from experiments.rows import Row
from experiments.study.published import published
from experiments.study.results import StudyResults
from experiments.tasks.table import score_columns
from tests.experiments.plotting.made_rows import PLAIN, made_row

KEYS = {
    "probe": {"task": "linear_probe", "metric": "top1", "feature": "cls", "readout": "refitted"},
    "patch mean": {"task": "linear_probe", "metric": "top1", "feature": "patch_mean", "readout": "refitted"},
    "correspondence": {"task": "correspondence", "metric": "accuracy", "feature": "patches", "readout": None},
    "mIoU": {"task": "segmentation", "metric": "miou", "feature": "patches", "readout": "refitted"},
    "retrieval mIoU": {"task": "segmentation", "metric": "miou_retrieval", "feature": "patches", "readout": "refitted"},
}
"""What identifies some main scores."""


def changed(score: str, points: float, half: float = 1.0, p: float | None = 0.001, **fields: Any) -> Row:
    """A row of a change in points with an interval of `half` on each side."""
    delta = {"delta": points / 100, "delta_ci_low": (points - half) / 100, "delta_ci_high": (points + half) / 100}
    return made_row(**{"condition": "zero_registers", "primary": True, **KEYS[score], **delta, "p_holm": p, **fields})


def results(rows: Sequence[Row], models: Sequence[str] = ("model",), columns: Sequence[Column] = ()) -> StudyResults:
    shown = [list(column) for column in (*score_columns(), *columns)]
    return StudyResults(list(rows), {"cells": [], "columns": shown}, Path("nowhere"), list(models))


def findings(rows: Sequence[Row], *models: str) -> dict[str, Finding]:
    chosen = models or ("model",)
    return {finding.title: finding for finding in summarise(results(rows, chosen), chosen)}


def published_rows(**names: str) -> list[Row]:
    """The post's numbers of some models, with an interval of a point on each side of every change; what is read from a zeroed CLS holds by
    construction."""
    values: dict[tuple[str, ...], float] = {}
    for entry in (e for e in published() if e.layer == 11):  # the data of the post come first, and later versions of a number after them
        values.setdefault((entry.model, entry.condition, entry.task, entry.metric, entry.feature), entry.value)
    rows = []
    for (model, condition, task, metric, feature), value in values.items():
        full = values.get((model, "full", task, metric, feature))
        if model in names.values() and full is not None and condition != "full":
            points, constructed = 100 * (value - full), (condition, feature) == ("zero_cls", "cls")
            key = {
                "task": task,
                "metric": metric,
                "feature": feature,
                "readout": None if task in ("retrieval", "correspondence") else "refitted",
            }
            p = None if constructed else 0.001 if abs(points) > 1 else 1.0
            rows.append(changed("probe", points, p=p, model=model, condition=condition, by_construction=constructed, **key))
    return rows


V2, V2_REG, V3 = "dinov2_vits14", "dinov2_vits14_reg", "dinov3_vits16"


def test_the_published_changes_announce_the_double_dissociation_of_both_models_with_registers():
    """And nothing of the kind for the model without, whose dense scores fall with CLS: -15.9 and -37.1 in the post's table."""
    found = findings(published_rows(a=V2, b=V2_REG, c=V3), V2, V2_REG, V3)
    dissociation = found["Double dissociation"]
    assert dissociation.lead.startswith("Dense scores are spared without CLS and fall without registers in 2 of 2 models with registers")
    assert dict(dissociation.lines) == {
        V2_REG: "yes: zeroing CLS lowers no dense score by more than 1.8 points; zeroing registers costs 2 of 2 (worst −9.6 [−10.6, −8.6] "
        "in mIoU linear head)",
        V3: "yes: zeroing CLS lowers no dense score by more than 1.7 points; zeroing registers costs 2 of 2 (worst −30.9 [−31.9, −29.9] "
        "in mIoU linear head)",
    }
    cls = dict(found["Zeroing CLS"].lines)
    assert cls[V2] == "costs 2 of 2 scores (worst −37.1 [−38.1, −36.1] in mIoU linear head)"
    assert cls[V3] == "makes no difference larger than ± 1.7 points in 2 of 2 scores"
    assert "fall by construction" in found["Zeroing CLS"].lead, "0.1 percent of a constant CLS is no finding"
    registers = dict(found["Zeroing all registers"].lines)
    assert registers[V2_REG] == (
        "costs 3 of 4 scores (worst −18.9 [−19.9, −17.9] in linear probe CLS) and makes no difference larger than ± 1.6 points in 1"
    )
    assert V2 not in registers
    assert found["Replacing registers instead of zeroing them"].lines == (
        (V2_REG, "3 fall with zeros; their mean spares 3 of 3, noise spares 3 of 3 and registers of other images spares 3 of 3"),
        (V3, "4 fall with zeros; their mean spares 3 of 3, noise spares 3 of 3 and registers of other images spares 3 of 3"),
    )


def test_where_nothing_is_compared_no_rule_fires():
    alone = {"delta": None, "delta_ci_low": None, "delta_ci_high": None, "p_value": None, "p_holm": None}
    assert findings([]) == {}
    assert findings([made_row(**KEYS["mIoU"], condition="full", **alone)]) == {}
    assert findings([changed("mIoU", -9, condition="mine"), changed("mIoU", -9, model="raw_pixels")]) == {}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([changed("probe", -9), changed("mIoU", -3)], "costs 2 of 2 scores (worst −9.0 [−10.0, −8.0] in linear probe CLS)"),
        ([changed("probe", 0.25, 1.01, p=1)], "makes no difference larger than ± 1.3 points in 1 of 1 scores"),
        ([changed("probe", 4)], "raises 1 of 1 scores (largest +4.0 [+3.0, +5.0] in linear probe CLS)"),
        ([changed("probe", -5, 6, p=0.3)], "leaves 1 of 1 scores open (intervals reach ± 11.0 points)"),
        (
            [changed("probe", -9), changed("patch mean", 0, 1, p=1), changed("correspondence", 3), changed("mIoU", 0, 3, p=1)],
            "costs 1 of 4 scores (worst −9.0 [−10.0, −8.0] in linear probe CLS), makes no difference larger than ± 1.0 points in 1, raises "
            "1 (largest +3.0 [+2.0, +4.0] in correspondence all patches) and leaves 1 open (intervals reach ± 3.0 points)",
        ),
        ([changed("probe", -80, p=None, by_construction=True)], "nothing is counted: every main score that was run holds by construction"),
        (
            [changed("probe", -80, p=None, by_construction=True), changed("mIoU", -9)],
            "costs 1 of 1 scores (worst −9.0 [−10.0, −8.0] in mIoU",
        ),
    ],
)
@pytest.mark.parametrize("condition", ["zero_registers", "zero_cls"])
def test_scores_are_counted_by_what_their_intervals_allow(rows, said, condition):
    title = {"zero_registers": "Zeroing all registers", "zero_cls": "Zeroing CLS"}[condition]
    finding = findings([{**row, "condition": condition} for row in rows])[title]
    ((model, text),) = finding.lines
    assert model == "model"
    assert text.startswith(said)
    assert ("by construction" in finding.lead) == any(row["by_construction"] for row in rows)


@pytest.mark.parametrize(
    ("cls", "registers", "said"),
    [
        ((0, 1, 1), (-9, 1, 0.01), "yes: zeroing CLS lowers no dense score by more than 1.0 points; zeroing registers costs 1 of 1"),
        ((0, 1, 1), (-0.5, 1, 1), "no: zeroing registers spares every dense score (none lower by more than 1.5 points)"),
        (
            (0, 1, 1),
            (-3, 4, 0.4),
            "open: zeroing registers is not shown to cost a dense score 2 points, and may cost 1 of 1 that much (worst −3",
        ),
        ((-9, 1, 0.01), (-9, 1, 0.01), "no: zeroing CLS costs dense scores too (worst −9.0 [−10.0, −8.0] in mIoU linear head)"),
        (
            (-2, 3, 0.5),
            (-9, 1, 0.01),
            "open: zeroing registers costs dense scores, and zeroing CLS may cost them 2 points or more too (worst −2",
        ),
    ],
)
def test_a_double_dissociation_is_announced_or_the_first_reason_why_not(cls, registers, said):
    changes = {"zero_cls": cls, "zero_registers": registers}
    rows = [changed("mIoU", points, half, p, condition=name) for name, (points, half, p) in changes.items()]
    finding = findings(rows)["Double dissociation"]
    assert finding.lines[0][1].startswith(said)
    assert f"in {int(said.startswith('yes'))} of 1 model with registers" in finding.lead
    assert "Double dissociation" not in findings(rows[:1]), "a model without registers is not asked"
    assert "Double dissociation" not in findings([{**row, **KEYS["probe"]} for row in rows]), "nor one without dense scores"


def test_replacements_are_asked_what_they_spare_and_what_falls_with_them_alone_and_prove_nothing_about_content():
    fallen = [changed("probe", -9), changed("mIoU", -9), changed("retrieval mIoU", -9), changed("patch mean", 0, p=1)]
    means = {"probe": (0, 1, 1.0), "mIoU": (-3, 4, 0.4), "retrieval mIoU": (-20, 1, 0.001), "patch mean": (-30, 1, 0.001)}
    rows = [changed(name, *numbers, condition="mean_registers") for name, numbers in means.items()]
    finding = findings([*fallen, *rows])["Replacing registers instead of zeroing them"]
    spares, alone = finding.lines[0][1].split("; scores ")
    assert spares == "3 fall with zeros; their mean spares 1 of 3 (open in 1). More than zeros, in at least one score, costs: their mean"
    assert alone == "fall that do not fall with zeros: 1 of 4 with their mean (worst −30.0 [−31.0, −29.0] in linear probe patch mean)"
    assert "proves nothing about content" in finding.lead
    (line,) = findings([fallen[-1], rows[-1]])["Replacing registers instead of zeroing them"].lines
    assert line[1].startswith("scores fall that do not fall with zeros: 1 of 1 with their mean"), "nothing falls with zeros"
    assert "Replacing registers instead of zeroing them" not in findings([fallen[-1], rows[0]]), "nothing fell"
    assert "Replacing registers instead of zeroing them" not in findings(fallen), "nothing replaced it"


def difference(first: str, second: str, points: float, half: float, p: float, score: str = "mIoU", **fields: Any) -> Row:
    """A row of the difference of two models' changes."""
    key: Mapping[str, Any] = {**KEYS[score], "metric": f"{KEYS[score]['metric']}_change"}
    reference = {"model": second, "condition": fields.get("condition", "zero_registers"), "value": -0.08}
    values = {"value": points / 100 - 0.08, "reference": reference, "analysis": "model_differences"}
    return changed(score, points, half, p) | key | {"model": first, "p_holm": p} | values | {"primary": False} | fields


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ((6, 1, 0.01), "by −2.0 points in a and by −8.0 in b: the changes differ by +6.0 points [+5.0, +7.0]"),
        ((0.5, 1, 0.9), "by −7.5 points in a and by −8.0 in b: the changes do not differ by more than ± 1.5 points"),
        ((3, 4, 0.4), "by −5.0 points in a and by −8.0 in b: whether the changes differ is open (+3.0 points [−1.0, +7.0])"),
    ],
)
def test_two_models_are_compared_by_the_difference_of_their_changes(numbers, said):
    others = [difference("a", "b", 50, 1, 0.001, "correspondence"), difference("a", "c", 50, 1, 0.001)]
    early = difference("a", "b", 50, 1, 0.001, condition="zero_cls")
    finding = findings([early, *others, difference("a", "b", *numbers)], "a", "b", "c")["Between models"]
    assert finding.lines == (("", f"Zeroing all registers changes mIoU linear head {said}"),)


def test_a_model_with_an_induced_effect_is_compared_among_the_findings_on_it():
    rows = [difference("demo_reg", "demo_reg_read", 8, 1, 0.01), difference("demo_reg", "demo", 0, 1, 1.0, condition="zero_cls")]
    ((_, natural),) = findings(rows, "demo_reg", "demo")["Between models"].lines
    ((_, induced),) = findings(rows, "demo_reg_read")["Between models"].lines
    assert natural.startswith("Zeroing CLS")
    assert "demo_reg_read" not in natural
    assert "demo_reg_read (induced)" in induced


def test_what_repeats_another_condition_has_its_p_value_and_secondary_scores_are_not_counted():
    rows = [
        changed("mIoU", -9, p=0.001, condition="mean_registers"),
        changed("mIoU", -9, p=None, condition="zero_registers", repeats="mean_registers"),
        changed("probe", -50, readout="frozen"),
        changed("correspondence", -50, feature="digit_patches"),
        changed("patch mean", -50, **PLAIN),
        changed("probe", -50, **{**KEYS["probe"], "task": "mine", "higher_is_better": False}),
    ]
    mine = Column("top1", "cls", "error", "refitted", primary=True, task="mine")
    changes = changes_of(results(rows, columns=[mine]), ["model"])
    assert {(c.condition, c.score.name, verdict(c)) for c in changes} == {
        ("mean_registers", "mIoU linear head", Verdict.COSTS),
        ("zero_registers", "mIoU linear head", Verdict.COSTS),
    }


POINTS = st.floats(-50, 50)
CHANGES = st.builds(
    lambda ends, share, p, constructed: Change(
        "model", "zero_cls", Score("score", True), min(ends) + share * (max(ends) - min(ends)), min(ends), max(ends), p, constructed
    ),
    st.tuples(POINTS, POINTS),
    st.floats(0, 1),
    st.none() | st.floats(0, 1),
    st.booleans(),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(CHANGES, min_size=1, max_size=8))
def test_no_sentence_claims_more_than_its_intervals(changes):
    """Whatever the numbers: a bound holds every interval that it speaks of, a cost or a gain has its interval on its side."""
    for change in changes:
        said = verdict(change)
        assert said is not Verdict.COSTS or (change.high < 0 and change.p_holm < 0.05)
        assert said is not Verdict.GAINS or (change.low > 0 and change.p_holm < 0.05)
        assert not (falls(change) and change.high >= 0)
        assert not (falls(change) and spared(change)) or change.low == change.delta == -MARGIN
    finding = zeroing(changes, ["model"], "zero_cls")
    assert finding is not None
    ((_, text),) = finding.lines
    bounds = {"larger than ± ": Verdict.NO_DIFFERENCE, "intervals reach ± ": Verdict.OPEN}
    for words, kind in bounds.items():
        ends = [abs(end) for change in changes if verdict(change) is kind for end in (change.low, change.high)]
        stated = re.findall(rf"{words}([\d.]+)", text)
        assert len(stated) == bool(ends)
        assert not ends or float(stated[0]) >= max(ends) - 1e-6


def test_numbers_are_signed_and_bounds_are_rounded_up():
    assert [signed(points) for points in (-3.14, 0.04, -0.04, 2)] == ["−3.1", "0.0", "0.0", "+2.0"]
    assert [reach_text(points) for points in (1.3, 1.31, 1.4 - 1e-9, 0)] == ["1.3", "1.4", "1.4", "0.0"]
