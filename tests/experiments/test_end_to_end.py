"""A study end to end on a few scenes: its rows, its resumption, its page, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import jaxvit
from experiments import open_study, reproduce, results
from experiments.analyses import feature_maps, nearest_patches
from experiments.analyses.presets import ANALYSES
from experiments.datasets.scenes import scenes
from experiments.features.conditions import REPLACEMENTS
from experiments.numerics import pinned_numerics
from experiments.report import __main__ as report_program
from experiments.report import page, tables
from experiments.rows import check_rows, select
from experiments.study import run
from experiments.study.cells import cell_hash
from experiments.tasks import off_manifold
from experiments.tasks.overwritten import LEFT_OUT
from tests.experiments.tiny_study import CONFIG, SIZE, save_models, study


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[str, ...]:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, models) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    reproduce.reproduce(study(out, models))
    return out


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_every_row_has_what_a_reader_needs(finished):
    rows = rows_of(finished)
    check_rows(rows)
    uncompared = ("off_manifold", "instrument_check")
    for row in rows:
        # the bootstrap of a mean of ratios is not centred on it, and that of few images less so
        assert row["ci_low"] <= row["value"] + 1e-9 <= row["ci_high"] + 2e-9 or row["task"] in ("segmentation", "effective_rank")
        assert row["protocol"]
        assert len(row["by_seed"]) == row["seeds"] >= 1
        assert np.mean(row["by_seed"]) == pytest.approx(row["value"])
        compared = row["condition"] != "full" and row["task"] not in uncompared and row["metric"] != "largest_attention"
        assert (row["delta"] is None) == (row["p_value"] is None) != compared
        assert (finished / "cells" / f"{row['cell']}.json").exists()
    seen = {(r["model"], r["condition"]) for r in rows if r["task"] == "knn"}
    base = {"full", "zero_cls", "mean_cls", "random_patches"}
    registers = {"zero_registers", "zero_r1", "zero_r2", "zero_single_mean"}
    assert {c for m, c in seen if m == "with_registers"} == base | registers | set(REPLACEMENTS)
    assert {c for m, c in seen if m == "without"} == base
    assert {m for m, _ in seen} == {"with_registers", "without", "with_registers_random", "without_random", "raw_pixels"}
    probes = {(r["model"], r["layer"], r["feature"]) for r in rows if r["task"] == "layer_probe"}
    assert len(probes) == 2 * 5 + 2 * 2


def test_rows_say_which_tokens_a_condition_ablates_and_count_registers_from_one(finished):
    rows = rows_of(finished)
    tokens = {r["condition"]: r["tokens"] for r in rows if r["model"] == "with_registers" and r["task"] != "content_or_sink"}
    assert tokens == {
        "full": "",
        "zero_cls": "cls",
        "mean_cls": "cls",
        "zero_cls_last": "cls",
        "random_patches": "random patches",
        "zero_r1": "r1",
        "zero_r2": "r2",
        "zero_single_mean": "each register alone",
        **dict.fromkeys((*REPLACEMENTS, "zero_registers_last"), "registers"),
    }
    assert {"r1", "r2"} <= {row["feature"] for row in rows}
    assert "registers[" not in json.dumps(rows)


def test_scores_of_single_units_are_found_from_a_row(finished):
    opened = open_study(finished)
    own = [row for row in opened.rows if row["analysis"] != "model_differences"]
    for row in own:
        scores = opened.scores(row)
        assert scores.shape[0] >= row["n"], "images or pairs, of which several show one digit"
        assert scores.shape[1] == row["seeds"] or row["condition"] == "zero_single_mean", "whose draws are conditions of their own"
    knn = select(opened.rows, condition="noise_registers", task="knn", metric="top1_k20", feature="cls")[0]
    hits, counts = np.moveaxis(opened.scores(knn), -1, 0)
    assert (hits.sum(axis=0) / counts.sum(axis=0)).tolist() == knn["by_seed"]


def test_ablations_are_written_out_once_under_the_hash_that_rows_name(finished):
    opened = open_study(finished)
    named = {name for row in opened.rows for name in row["ablation"] or ()}
    assert named == set(opened.manifest["ablations"])
    noisy = select(opened.rows, model="with_registers", condition="noise_registers", task="knn")[0]
    texts = [json.loads(opened.manifest["ablations"][name]) for name in noisy["ablation"]]
    assert [text["replacements"][0]["seed"] for text in texts] == [0, 1]
    assert {r["ablation"] is None for r in opened.rows if r["model"] == "raw_pixels" or r["condition"] == "zero_single_mean"} == {True}


def test_results_are_rows_or_a_frame_of_them(finished, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)  # as where it is not installed
    assert results(finished) == rows_of(finished)
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=lambda rows: ("a frame of", rows)))
    assert results(finished) == ("a frame of", rows_of(finished))


def test_no_number_stands_twice(finished):
    identity = (
        "model",
        "condition",
        "task",
        "metric",
        "feature",
        "readout",
        "layer",
        "index",
        "source",
        "target",
        "register_a",
        "register_b",
    )
    names = [tuple(r[name] for name in identity) for r in rows_of(finished)]
    assert len(names) == len(set(names))


def test_random_conditions_and_read_outs_are_means_over_seeds(finished):
    rows = rows_of(finished)
    seeds = {(r["condition"], r["task"], r["metric"]): r["seeds"] for r in rows if r["model"] == "with_registers" and r["feature"] != "x"}
    assert seeds["random_patches", "knn", "top1_k20"] == seeds["noise_registers", "off_manifold", "patch_cosine"] == 2
    assert seeds["zero_registers", "knn", "top1_k20"] == 1
    assert seeds["full", "segmentation", "miou_retrieval"] == seeds["full", "few_shot", "top1_1_shot"] == 8
    assert seeds["shuffle_registers", "segmentation", "miou_retrieval"] == 8, "four draws of the memory under each of two of the condition"
    covers = {(r["condition"], r["metric"]): r["ci_covers"] for r in rows}
    assert covers["full", "miou_retrieval"] == covers["zero_registers", "top1_1_shot"] == "units and draws"
    assert covers["shuffle_registers", "miou_retrieval"] == "units and draws of the read-out"
    assert covers["zero_registers", "miou"] == covers["shuffle_registers", "top1_k20"] == "units"
    assert {r["n_unit"] for r in rows} == {"digits"}
    shuffled = {r["protocol"] for r in rows if r["condition"].startswith("shuffle") and r["task"] in ("knn", "off_manifold")}
    assert all("shuffle=groups of 8 over the part" in protocol for protocol in shuffled)
    noisy = [r for r in rows if r["condition"] == "noise_registers" and r["task"] == "off_manifold"]
    assert any(len(set(r["by_seed"])) == 2 for r in noisy)


def test_the_mean_of_single_lesions_is_their_mean(finished):
    rows = select(rows_of(finished), model="with_registers", task="knn", metric="top1_k20", feature="cls")
    by_condition = {r["condition"]: r for r in rows}
    single = [by_condition[name]["value"] for name in ("zero_r1", "zero_r2")]
    assert by_condition["zero_single_mean"]["value"] == pytest.approx(np.mean(single))
    assert by_condition["zero_single_mean"]["delta"] == pytest.approx(np.mean(single) - by_condition["full"]["value"])


def test_overwriting_the_last_block_changes_no_other_token(finished):
    rows = [r for r in rows_of(finished) if r["task"] == "instrument_check"]
    assert {(r["model"], r["condition"]) for r in rows} == {
        ("with_registers", "zero_cls_last"),
        ("with_registers", "zero_registers_last"),
        ("without", "zero_cls_last"),
    }
    assert all(r["value"] == 0 for r in rows)


def test_one_intervention_of_two_names_is_marked_and_one_test(models, tmp_path):
    """Where both are asked for: for CLS and patches the mean at every input is the mean at every output, for registers it is not."""
    few = {"analyses": ("ablation_table",), "tasks": ("knn", "correspondence", "register_cosine"), "seeds": 1}
    both = dataclasses.replace(study(tmp_path / "both", models[:1]), conditions=("fix_reg_mean", "mean_registers", "zero_r1"), **few)
    reproduce.reproduce(both)
    rows = [r for r in rows_of(both.out) if r["condition"] != "full" and r["model"] == "with_registers"]
    assert {(r["condition"], r["repeats"], r["feature"] in (None, "register_mean")) for r in rows} == {
        *((condition, None, registers) for condition in ("mean_registers", "zero_r1") for registers in (False, True)),
        ("fix_reg_mean", "mean_registers", False),
        ("fix_reg_mean", None, True),
    }
    value = {(r["condition"], r["metric"], r["feature"]): r["value"] for r in rows}
    for row in rows:
        if row["repeats"]:
            assert row["value"] == pytest.approx(value["mean_registers", row["metric"], row["feature"]], abs=1e-6)
            assert (row["p_holm"], row["holm_tests"]) == (None, None)
    tests = {(r["feature"], r["holm_tests"]) for r in rows if r["metric"] == "accuracy" and not r["repeats"]}
    assert tests == {("patches", 2 * 2), ("digit_patches", 2)}, "two interventions: with the k-NN of CLS, the other main score; alone"
    assert "One intervention with mean_registers" in (both.out / "report.html").read_text()


def test_a_read_out_of_a_constant_token_is_marked_as_by_construction(finished):
    rows = [r for r in rows_of(finished) if r["task"] != "content_or_sink"]
    notes = {(r["condition"], r["task"], r["feature"]) for r in rows if r["by_construction"]}
    of_cls = {(c, t, "cls") for c in ("zero_cls", "mean_cls") for t in ("linear_probe", "few_shot", "knn", "retrieval")}
    constant = ("zero_registers", "mean_registers", "optimal_registers")
    of_mean = {(c, t, "register_mean") for c in constant for t in ("linear_probe", "knn")}
    zeroed = {**dict.fromkeys(constant, (0, 1)), "zero_r1": (0,), "zero_r2": (1,)}
    notes = {n for n in notes if n[0] not in ("zero_single_mean", "random_patches")}
    of_one = {(c, "linear_probe", f"r{r + 1}") for c, registers in zeroed.items() for r in registers}
    assert notes == of_cls | of_mean | of_one


def test_scores_of_patches_leave_overwritten_ones_out_and_stand_beside_the_raw_ones(finished):
    rows = select(rows_of(finished), analysis=None)
    rows = [r for r in rows if r["task"] in ("correspondence", "segmentation") and r["condition"] != "full"]
    raw = {(r["model"], r["metric"], r["feature"], r["readout"]): r for r in rows if r["metric"].endswith("_raw")}
    assert {r["condition"] for r in raw.values()} == {"random_patches"}
    whole = [r for task in ("correspondence", "segmentation") for r in select(rows_of(finished), task=task, condition="full")]
    full = {(r["model"], r["metric"], r["feature"], r["readout"] and "refitted"): r for r in whole}
    for row in rows:
        assert (LEFT_OUT in row["protocol"]) == (row["condition"] == "random_patches" and not row["by_construction"])
        if LEFT_OUT in row["protocol"]:
            of_raw = raw[row["model"], f"{row['metric']}_raw", row["feature"], row["readout"]]
            assert (of_raw["by_construction"], of_raw["p_holm"]) == (True, None)
            unablated = full[row["model"], row["metric"], row["feature"], row["readout"] and "refitted"]
            assert of_raw["reference"]["value"] == pytest.approx(unablated["value"])
            assert row["delta"] == pytest.approx(row["value"] - row["reference"]["value"])


def test_the_iou_of_classes_average_to_the_miou(finished):
    rows = select(rows_of(finished), task="segmentation", readout="refitted", condition="full")
    for model in {r["model"] for r in rows}:
        (miou,) = select(rows, model=model, metric="miou")
        of_classes = [r["value"] for r in select(rows, model=model, metric="iou")]
        assert miou["value"] == pytest.approx(np.mean(of_classes), rel=1e-12)


def test_frozen_read_outs_are_compared_with_the_full_condition(finished):
    """Of every condition but full; and on features that have not changed they are the refitted ones."""
    rows = rows_of(finished)
    for task, metric, feature in (("linear_probe", "top1", "cls"), ("segmentation", "miou", "patches")):
        read = [r for r in rows if r["task"] == task and r["feature"] == feature]
        refitted, frozen = ([r for r in read if (r["metric"], r["readout"]) == (metric, name)] for name in ("refitted", "frozen"))
        ablated = {(r["model"], r["condition"]) for r in refitted if r["condition"] != "full"}
        assert {(r["model"], r["condition"]) for r in frozen} == ablated
        full = {r["model"]: r["value"] for r in refitted if r["condition"] == "full"}
        for row in frozen:
            assert row["delta"] == pytest.approx(row["value"] - row["reference"]["value"])
            if row["condition"] != "random_patches":
                assert row["reference"]["value"] == pytest.approx(full[row["model"]])
        assert any(r["value"] != f["value"] for r, f in zip([r for r in refitted if r["delta"] is not None], frozen, strict=False))


def test_p_values_are_corrected_within_their_family(finished):
    """By arithmetic: the smallest of a family times their number, and never below what it was. Main scores are one family."""
    rows = rows_of(finished)
    families: dict[str, list[dict]] = {}
    for row in rows:
        if row["p_value"] is None or row["by_construction"] or row["repeats"]:
            assert row["p_holm"] is row["holm_family"] is None
        else:
            families.setdefault(row["holm_family"], []).append(row)
    for tested in families.values():
        assert all(r["p_holm"] >= r["p_value"] for r in tested)
        assert {r["holm_tests"] for r in tested} == {len(tested)}
        least = min(tested, key=lambda r: r["p_value"])
        assert least["p_holm"] == pytest.approx(min(1, least["p_value"] * len(tested)))
    (main,) = [tested for family, tested in families.items() if family.startswith("primary")]
    assert {r["model"] for r in main} == {"with_registers", "without"}
    assert {r["metric"] for r in main} == {"top1", "top1_k20", "recall_at_1", "accuracy", "miou", "miou_retrieval"}
    assert all(r["primary"] and r["readout"] != "frozen" for r in main)


def test_models_are_compared_by_how_much_a_condition_changes_them(finished):
    """Under the conditions that both have; the difference of the two differences that stand in the rows."""
    rows = rows_of(finished)
    deltas = {(r["model"], r["condition"], r["task"], r["metric"], r["feature"], r["readout"]): r["delta"] for r in rows}
    compared = select(rows, analysis="model_differences")
    assert {(r["model"], r["reference"]["model"]) for r in compared} == {("with_registers", "without")}
    assert {r["condition"] for r in compared} == {"zero_cls", "random_patches"}
    for row in compared:
        key = row["condition"], row["task"], row["metric"].removesuffix("_change"), row["feature"], row["readout"]
        assert row["value"] == pytest.approx(deltas["with_registers", *key])
        assert row["reference"]["value"] == pytest.approx(deltas["without", *key])
        assert row["delta"] == pytest.approx(row["value"] - row["reference"]["value"])
    assert "Differences between models" in (finished / "report.html").read_text()


def test_the_meter_stands_beside_every_condition_at_every_block(finished):
    rows = [r for r in rows_of(finished) if r["task"] == "off_manifold"]
    compared = [r for r in rows_of(finished) if r["delta"] is not None and r["task"] != "content_or_sink"]  # which has a meter of its own
    tested = {(r["model"], r["condition"]) for r in compared} - {("with_registers", "zero_single_mean")}
    assert {(r["model"], r["condition"], r["metric"], r["layer"]) for r in rows} == {
        (*who, metric, layer) for who in tested for metric in off_manifold.METRICS for layer in (0, 1)
    }
    page = (finished / "report.html").read_text()
    assert page.count("off manifold, last block: attention divergence") >= len(tested)


def test_flow_rows_sum_to_one(finished):
    """Over single registers, and over the registers together."""
    flow = [r for r in rows_of(finished) if r["task"] == "attention_flow"]
    for source in {(r["model"], r["layer"], r["source"]) for r in flow}:
        targets = {r["target"]: r["value"] for r in flow if (r["model"], r["layer"], r["source"]) == source}
        together = targets.pop("registers", 0)
        assert abs(sum(targets.values()) - 1) < 1e-5
        assert abs(sum(v for name, v in targets.items() if name.startswith("r")) - together) < 1e-5


@pytest.fixture(scope="module")
def gallery() -> np.ndarray:
    """The images of the gallery, of which those of pictures are the first. A program compiled otherwise rounds single pixels otherwise."""
    with pinned_numerics():
        return scenes("test", SIZE.gallery).images


@pytest.fixture(scope="module")
def seen(models, gallery) -> jaxvit.Output:
    """What the tiny model with registers makes of the gallery."""
    model = jaxvit.load(models[0])
    return jaxvit.forward(model, jaxvit.normalise(gallery, model.config), capture="attention")


def test_pictures_hold_the_attention_of_every_block_with_their_photographs(finished, seen, gallery):
    (arrays,) = [cell.arrays for cell in open_study(finished).cells("maps") if cell.key["name"] == "with_registers"]
    count, prefix = feature_maps.IMAGES, 1 + CONFIG.registers
    np.testing.assert_array_equal(arrays["images"], gallery[:count])
    expected = np.asarray(seen.captured["attention"])[:, :count, :, :prefix, prefix:].mean(axis=2)
    assert arrays["attention"].shape == (CONFIG.depth, count, prefix, 8, 8)
    np.testing.assert_allclose(arrays["attention"].reshape(expected.shape), expected, atol=1e-5)


def test_the_nearest_patches_are_those_of_a_search_through_all(finished, seen, gallery):
    (cell,) = open_study(finished).cells("nearest_patches")
    tokens, arrays, prefix = np.asarray(seen.tokens, np.float64), cell.arrays, 1 + CONFIG.registers
    patches = tokens[:, prefix:] / np.linalg.norm(tokens[:, prefix:], axis=-1, keepdims=True)
    for r in range(CONFIG.registers):
        mean = tokens[:, 1 + r].mean(axis=0)
        cosines = patches @ (mean / np.linalg.norm(mean))
        order = np.argsort(-cosines.max(axis=1))[: nearest_patches.SHOWN]
        np.testing.assert_array_equal(arrays["numbers"][r], order)
        np.testing.assert_array_equal(arrays["patches"][r], cosines[order].argmax(axis=1))
        np.testing.assert_allclose(arrays["cosines"][r], cosines[order].max(axis=1), atol=1e-5)
        np.testing.assert_array_equal(arrays["images"][arrays["places"][r]], gallery[order])
        assert cell.rows[r]["value"] == pytest.approx(cosines.max(axis=1).mean(), abs=1e-5)
    assert arrays["grid"].tolist() == [8, 8]


def test_an_interrupted_study_resumes_and_ends_with_the_same_numbers(finished, models, tmp_path, monkeypatch):
    chosen, run_job, begun, done = study(tmp_path / "again", models), run.run_job, [], []

    def dying(job, store):
        if len(begun) == 97:
            raise RuntimeError("the machine goes away")
        begun.append(job)
        cell = run_job(job, store)  # one that runs beside the others may be discarded
        done.append(cell_hash(job.key))
        return cell

    monkeypatch.setattr(run, "run_job", dying)
    with pytest.raises(RuntimeError, match="goes away"):
        reproduce.reproduce(chosen)
    assert json.loads((chosen.out / "run.json").read_text())["finished"] is False
    first = set(done)
    done.clear()
    begun.extend([None] * 1000)  # never 97 again
    reproduce.reproduce(chosen)
    second = set(done)
    assert first
    assert second
    assert not first & second, "no cell runs twice"
    assert rows_of(chosen.out) == rows_of(finished)
    done.clear()
    reproduce.reproduce(chosen)
    assert not done, "a finished study runs nothing"


def counting(monkeypatch) -> list[str]:
    """Hashes of the cells that are computed from here on."""
    computed, run_job = [], run.run_job

    def count(job, store):
        computed.append(cell_hash(job.key))
        return run_job(job, store)

    monkeypatch.setattr(run, "run_job", count)
    return computed


def test_some_analyses_share_cells_with_the_whole_study(finished, models, tmp_path, monkeypatch):
    """A part first, then the whole: no cell twice, and the folder ends as if the whole had been run at once."""
    computed = counting(monkeypatch)
    part = dataclasses.replace(study(tmp_path / "part", models), analyses=("register_lesions", "attention_flow"))
    reproduce.reproduce(part)
    first = list(computed)
    assert first
    assert {row["condition"] for row in rows_of(part.out)} == {"full", "zero_r1", "zero_r2", "zero_single_mean", "zero_registers"}
    shown = (part.out / "report.html").read_text()
    assert ANALYSES["attention_flow"].TITLE in shown
    assert ANALYSES["feature_maps"].TITLE not in shown
    reproduce.reproduce(dataclasses.replace(part, analyses=()))
    assert len(set(computed)) == len(computed), "no cell runs twice"
    assert rows_of(part.out) == rows_of(finished)
    headings = re.findall(r"<h2.*?</h2>", (part.out / "report.html").read_text())
    del computed[:]
    reproduce.reproduce(part)
    assert not computed
    assert rows_of(part.out) == rows_of(finished), "nothing that was run is lost from the results"
    assert re.findall(r"<h2.*?</h2>", (part.out / "report.html").read_text()) == headings
    runs = json.loads((part.out / "run.json").read_text())["runs"]
    assert [entry["only"] for entry in runs] == [[*part.analyses], list(ANALYSES), [*part.analyses]]


def test_models_tasks_and_conditions_can_be_chosen(models, tmp_path, monkeypatch):
    computed = counting(monkeypatch)
    chosen = dataclasses.replace(study(tmp_path / "x", models[:1]), analyses=("ablation_table",), tasks=("knn",), conditions=("zero_cls",))
    reproduce.reproduce(chosen)
    rows = rows_of(chosen.out)
    assert {row["task"] for row in rows} == {"knn"}
    assert {row["condition"] for row in rows} == {"full", "zero_cls"}
    first = list(computed)
    reproduce.reproduce(dataclasses.replace(chosen, models=models, tasks=("knn", "retrieval")))
    assert not set(first) & set(computed[len(first) :])
    assert {row["model"] for row in rows_of(chosen.out)} >= {"with_registers", "without"}
    assert list(open_study(chosen.out).models) == ["with_registers", "without"]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"analyses": ("lesions",)}, "--only lesions is unknown; possible are token_microscope, ablation_table, .*register_lesions"),
        ({"tasks": ("depth",)}, "--tasks depth is unknown; possible are linear_probe"),
        ({"conditions": ("zero_r9",)}, "--conditions zero_r9 is unknown; possible are full, zero_cls"),
    ],
)
def test_an_unknown_choice_is_refused_with_what_is_possible(models, tmp_path, choice, message):
    with pytest.raises(ValueError, match=message):
        reproduce.reproduce(dataclasses.replace(study(tmp_path / "new", models), **choice))
    assert not (tmp_path / "new").exists()


def test_a_quick_look_says_so_on_its_page_and_in_its_rows(models, tmp_path):
    quick = dataclasses.replace(study(tmp_path / "quick", models[:1]), quick=True, analyses=("instrument_check",))
    reproduce.reproduce(quick)
    assert all(row["quick"] is True for row in rows_of(quick.out))
    assert "A quick look" in (quick.out / "report.html").read_text()
    readme = tmp_path / "README.md"
    readme.write_text("<!-- demo table: begin -->\n<!-- demo table: end -->\n")
    with pytest.raises(ValueError, match="is a quick look, and a README shows a whole study"):
        report_program.write(report_program.Report(quick.out, readme))
    assert not (tmp_path / "experiments").exists()


def test_another_model_of_the_same_name_is_refused(finished, models, tmp_path):
    other = tmp_path / "with_registers"
    jaxvit.save(jaxvit.create(jaxvit.load(models[0]).config, 2), other)
    with pytest.raises(ValueError, match="holds numbers of another model named with_registers; choose another --out"):
        reproduce.reproduce(study(finished, (str(other),)))


def test_a_folder_of_another_version_is_refused(finished, models, tmp_path):
    """Such as one from before conditions, parts and tokens were renamed."""
    folder = tmp_path / "old"
    shutil.copytree(finished, folder)
    manifest = json.loads((folder / "run.json").read_text())
    for old in (manifest | {"format": 3}, {name: value for name, value in manifest.items() if name != "format"}):
        (folder / "run.json").write_text(json.dumps(old))
        for attempt in (lambda: reproduce.reproduce(study(folder, models)), lambda: page.write(folder)):
            with pytest.raises(ValueError, match=r"was written by another version .*choose another folder, or remove this one"):
                attempt()


def test_another_study_is_refused_and_nothing_is_written(finished, models, tmp_path):
    before = sorted((p, p.stat().st_mtime_ns) for p in finished.rglob("*"))
    with pytest.raises(ValueError, match=r"differs in data, seed.*choose another --out"):
        reproduce.reproduce(dataclasses.replace(study(finished, models), seed=1))
    assert sorted((p, p.stat().st_mtime_ns) for p in finished.rglob("*")) == before
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter1.tex").write_text("...")
    with pytest.raises(ValueError, match="holds no study"):
        reproduce.reproduce(study(foreign, models))
    assert [p.name for p in foreign.iterdir()] == ["chapter1.tex"]


def test_an_unknown_model_is_refused_before_the_folder_is_made(tmp_path):
    with pytest.raises(ValueError, match="nonesuch"):
        reproduce.reproduce(study(tmp_path / "new", ("nonesuch",)))
    assert not (tmp_path / "new").exists()


def test_the_page_is_whole_and_needs_no_network(finished):
    written = (finished / "report.html").read_text()
    shown = re.sub(r'<script type="application/json".*?</script>', "", written, flags=re.DOTALL)  # images of the microscope
    assert not re.findall(r"(?:src|href)=[\"'](?!data:|#)", shown)
    features = 6 * (1 + 4) + 6 * (1 + 2)  # image, and components and norms under each condition
    attention = 2 * 6 * (4 + 1)  # of CLS, mean and single registers, at each block
    assert shown.count('<div class="tile">') == features + attention + 2 * 5  # the patches nearest to each register
    assert shown.count("data:image/png;base64,") == 2 * 3 + 1  # components, norms and attention of each model; the ramp of colours
    (gallery,) = [cell.arrays["images"] for cell in open_study(finished).cells("nearest_patches")]
    assert shown.count("data:image/webp;base64,") == 6 + len(gallery), "a photograph is once on the page, or once in each section"
    wanted = [e.TITLE for e in ANALYSES.values() if e.TITLE != "Model size within a family"]
    assert [heading for heading in wanted if heading not in written] == []
    assert page.write(finished).read_text().count("<h2>") == written.count("<h2>")


def test_the_readme_table_is_made_of_the_rows(finished, tmp_path):
    rows = rows_of(finished)
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- demo table: begin -->\nold\n<!-- demo table: end -->\nafter\n")
    tables.fill_readme(readme, rows)
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    knn = next(r for r in rows if r["model"] == "raw_pixels" and r["metric"] == "top1_k20")
    assert f"{100 * knn['value']:.1f} [{100 * knn['ci_low']:.1f}, {100 * knn['ci_high']:.1f}]" in text
    readme.write_text("no marks")
    with pytest.raises(ValueError, match="lacks the marks"):
        tables.fill_readme(readme, rows)
