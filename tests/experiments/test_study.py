"""The study end to end on a few scenes: its rows, its resumption, its page, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxvit
from experiments import figures, manifold, presets, report, reproduce, study, tasks
from experiments.cells import cell_hash
from experiments.conditions import conditions
from experiments.data import DataSize, digit_scenes
from experiments.features import Runner
from experiments.measures import Feature, Readouts, pack, unpack
from jaxvit.sharding import batch_mesh

SIZE = DataSize(bank=60, choose=20, test=30, pairs=20, segmentation=20, segmentation_test=20, calibration=32, flow=10, gallery=10)
FEATURES: tuple[Feature, ...] = ("cls", "patch_mean", "register_mean", "registers")
READOUTS = Readouts(features=FEATURES, solvers=("ridge",), lambdas=(0.01, 1.0), neighbours=(5, 20), shots=(1,), memory=200)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[str, ...]:
    """A tiny model with registers and its twin without, for 64-pixel scenes."""
    folder = tmp_path_factory.mktemp("models")
    for name, registers in (("with_registers", 2), ("without", 0)):
        config = jaxvit.ViTConfig(8, 24, 2, 3, 48, registers=registers, position="antialias", image_size=64)
        jaxvit.save(jaxvit.create(config, 1), folder / name)
    return tuple(str(folder / name) for name in ("with_registers", "without"))


def settings(out: Path, models: tuple[str, ...]) -> reproduce.Reproduce:
    return reproduce.Reproduce(out=out, models=models, data=SIZE, batch_size=16, resamples=200, seeds=2, readouts=READOUTS)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, models) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    reproduce.reproduce(settings(out, models))
    return out


def subjects(models: tuple[str, ...]) -> list[study.Subject]:
    chosen, mesh = settings(Path("nowhere"), models), batch_mesh()
    data = digit_scenes(SIZE, 0)
    loaded = reproduce.load_models(chosen)
    return [study.Subject(name, model, mesh, data, reproduce.settings(chosen, data, mesh)) for name, model in loaded.items()]


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_every_row_has_what_a_reader_needs(finished):
    rows = rows_of(finished)
    fields = ["model", "condition", "task", "metric", "protocol", "layer", "feature", "value", "ci_low", "ci_high"]
    fields += ["n", "seed", "seeds", "by_seed", "delta", "p_value", "p_holm", "cell"]
    alone = ("off_manifold", "instrument_check")
    for row in rows:
        assert all(field in row for field in fields)
        # the bootstrap of a mean of ratios is not centred on it, and that of few images less so
        assert row["ci_low"] <= row["value"] + 1e-9 <= row["ci_high"] + 2e-9 or row["task"] in ("segmentation", "effective_rank")
        assert row["protocol"]
        assert len(row["by_seed"]) == row["seeds"] >= 1
        assert np.mean(row["by_seed"]) == pytest.approx(row["value"])
        compared = row["condition"] != "full" and row["task"] not in alone
        assert (row["delta"] is None) == (row["p_value"] is None) != compared
        assert (finished / "cells" / f"{row['cell']}.json").exists()
    seen = {(r["model"], r["condition"]) for r in rows if r["task"] == "knn"}
    base = {"full", "zero_cls", "mean_cls", "random_patches"}
    registers = {"zero_registers", "zero_r1", "zero_r2", "zero_single_mean", "mean_registers", "noise_registers", "shuffle_registers"}
    registers |= {"fix_reg_mean"}
    assert {c for m, c in seen if m == "with_registers"} == base | registers
    assert {c for m, c in seen if m == "without"} == base
    assert {m for m, _ in seen} == {"with_registers", "without", "with_registers_random", "without_random", "raw_pixels"}
    probes = {(r["model"], r["layer"], r["feature"]) for r in rows if r["task"] == "layer_probe"}
    assert len(probes) == 2 * 5 + 2 * 2


def test_no_number_stands_twice(finished):
    names = [(r["model"], r["condition"], r["task"], r["metric"], r["feature"], r["layer"]) for r in rows_of(finished)]
    assert len(names) == len(set(names))


def test_random_conditions_and_read_outs_are_means_over_seeds(finished):
    rows = rows_of(finished)
    seeds = {(r["condition"], r["task"], r["metric"]): r["seeds"] for r in rows if r["model"] == "with_registers" and r["feature"] != "x"}
    assert seeds["random_patches", "knn", "top1_k20"] == seeds["noise_registers", "off_manifold", "patch_cosine"] == 2
    assert seeds["zero_registers", "knn", "top1_k20"] == 1
    assert seeds["full", "segmentation", "miou_retrieval"] == seeds["full", "few_shot", "top1_1_shot"] == 2
    assert seeds["shuffle_registers", "segmentation", "miou_retrieval"] == 2, "a draw of the condition goes with the seed of the memory"
    noisy = [r for r in rows if r["condition"] == "noise_registers" and r["task"] == "off_manifold"]
    assert any(len(set(r["by_seed"])) == 2 for r in noisy)


def test_the_mean_of_single_lesions_is_their_mean(finished):
    rows = figures.select(rows_of(finished), model="with_registers", task="knn", metric="top1_k20", feature="cls")
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


def test_the_mean_at_every_input_is_for_other_tokens_the_mean_at_every_output(finished):
    """The registers entering block 0 are the same in all images, and what leaves the last block is read by none."""
    rows = {(r["condition"], r["metric"], r["feature"]): r["value"] for r in rows_of(finished) if r["model"] == "with_registers"}
    for metric, feature in (("top1_k20", "cls"), ("accuracy", "patches"), ("gram_eigenvalues", "patches")):
        assert rows["fix_reg_mean", metric, feature] == pytest.approx(rows["mean_registers", metric, feature], abs=1e-6)


def test_a_read_out_of_a_constant_token_is_marked_as_by_construction(finished):
    notes = {(r["condition"], r["task"], r["feature"]) for r in rows_of(finished) if r.get("note")}
    of_cls = {(c, t, "cls") for c in ("zero_cls", "mean_cls") for t in ("linear_probe", "few_shot", "knn", "retrieval")}
    of_mean = {(c, t, "register_mean") for c in ("zero_registers", "mean_registers") for t in ("linear_probe", "knn")}
    zeroed = {"zero_registers": (0, 1), "mean_registers": (0, 1), "zero_r1": (0,), "zero_r2": (1,)}
    notes = {n for n in notes if n[0] != "zero_single_mean"}
    of_one = {(c, "linear_probe", f"registers[{r}]") for c, registers in zeroed.items() for r in registers}
    assert notes == of_cls | of_mean | of_one


def test_frozen_read_outs_are_compared_with_the_full_condition(finished):
    """Of every condition but full; and on features that have not changed they are the refitted ones."""
    rows = rows_of(finished)
    for task, metric, feature in (("linear_probe", "top1", "cls"), ("segmentation", "miou", "patches")):
        read = [r for r in rows if r["task"] == task and r["feature"] == feature]
        refitted, frozen = ([r for r in read if r["metric"] == m] for m in (metric, f"{metric}_frozen"))
        ablated = {(r["model"], r["condition"]) for r in refitted if r["condition"] != "full"}
        assert {(r["model"], r["condition"]) for r in frozen} == ablated
        full = {r["model"]: r["value"] for r in refitted if r["condition"] == "full"}
        for row in frozen:
            assert row["delta"] == pytest.approx(row["value"] - full[row["model"]])
        assert any(r["value"] != f["value"] for r, f in zip([r for r in refitted if r["delta"] is not None], frozen, strict=False))


def test_a_frozen_read_out_of_unchanged_features_is_the_refitted_one(models):
    (subject,) = subjects(models[:1])
    reader = subject.reader("full", 0)
    for task in ("linear_probe", "segmentation"):
        run = tasks.TASKS[task].run
        kept = {name: array for measure in run(reader, subject.context, {}) for name, array in measure.kept.items()}
        by_name = {(m.metric, m.feature): np.asarray(m.scores[0].contributions) for m in run(reader, subject.context, kept)}
        frozen = [name for name in by_name if name[0].endswith("_frozen")]
        assert frozen
        for metric, feature in frozen:
            np.testing.assert_array_equal(by_name[metric, feature], by_name[metric.removesuffix("_frozen"), feature])


def test_measures_survive_the_cell(models):
    (subject,) = subjects(models[:1])
    measures = tasks.TASKS["segmentation"].run(subject.reader("full", 0), subject.context, {})
    again = unpack(pack(measures))
    for one, other in zip(measures, again, strict=True):
        assert one._replace(scores=[], kept={}) == other._replace(scores=[])
        assert len(one.scores) == len(other.scores)
        for a, b in zip(one.scores, other.scores, strict=True):
            assert a.finish is b.finish
            np.testing.assert_array_equal(a.contributions, b.contributions)


def test_p_values_are_corrected_over_all_comparisons_of_a_model(finished):
    """By arithmetic: the smallest of a table times their number, and never below what it was."""
    rows = rows_of(finished)
    for model in ("with_registers", "without"):
        for task, metric in (("knn", "top1_k20"), ("correspondence", "accuracy"), ("linear_probe", "top1_frozen")):
            tested = [r for r in figures.select(rows, model=model, task=task, metric=metric) if r["p_value"] and not r.get("note")]
            assert all(r["p_holm"] >= r["p_value"] for r in tested)
            assert {r["holm_tests"] for r in tested} == {len(tested)}
            least = min(tested, key=lambda r: r["p_value"])
            assert least["p_holm"] == pytest.approx(min(1, least["p_value"] * len(tested)))
    assert all(r["p_holm"] is None for r in rows if r["p_value"] is None or r.get("note"))


def test_the_meter_stands_beside_every_condition_at_every_block(finished):
    rows = [r for r in rows_of(finished) if r["task"] == "off_manifold"]
    tested = {(r["model"], r["condition"]) for r in rows_of(finished) if r["delta"] is not None} - {("with_registers", "zero_single_mean")}
    assert {(r["model"], r["condition"], r["metric"], r["layer"]) for r in rows} == {
        (*who, metric, layer) for who in tested for metric in manifold.METRICS for layer in (0, 1)
    }
    page = (finished / "report.html").read_text()
    assert page.count("off manifold, last block: attention divergence") >= len(tested)


def test_the_meter_measures_what_it_says(models):
    """Against the same numbers from two plain runs: the last block's output is what `prenorm` returns."""
    model = jaxvit.load(models[0])
    images = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), np.uint8)
    runner = Runner.on(batch_mesh(), model, 4)
    statistics = runner.calibrate(images)
    ablation = jaxvit.zero("registers")
    found = manifold.measure(runner, images, ablation, statistics, 0)
    pixels = jaxvit.normalise(images, model.config)
    clean, ablated = (np.asarray(jaxvit.forward(model, pixels, a).prenorm[:, 3:], np.float64) for a in (None, ablation))
    norms = [np.linalg.norm(x, axis=-1) for x in (clean, ablated)]
    cosine = (clean * ablated).sum(axis=-1) / (norms[0] * norms[1])
    np.testing.assert_allclose(found["patch_cosine"][-1], cosine.mean(axis=1), atol=1e-5)
    np.testing.assert_allclose(found["patch_norm_ratio"][-1], (norms[1] / norms[0]).mean(axis=1), atol=1e-5)
    moments = (part["block_output"][-1, -1].astype(np.float64) for part in (statistics.mean, statistics.variance))
    mean, variance = moments
    distance = np.sqrt(((ablated - mean) ** 2 / variance).mean(axis=-1)).mean(axis=1)
    np.testing.assert_allclose(found["patch_mahalanobis"][-1], distance, rtol=1e-4)
    assert not found["attention_divergence"][0].any(), "block 0 attends before anything is replaced"
    assert (found["attention_divergence"][1] > 0).all()
    usual = manifold.measure(runner, images, jaxvit.Ablation(), statistics, 0)
    assert not usual["attention_divergence"].any()
    np.testing.assert_allclose(usual["patch_cosine"], 1, atol=1e-5)
    assert 0.8 < usual["patch_mahalanobis"].mean() < 1.05


def test_flow_rows_sum_to_one(finished):
    """Over single registers, and over the registers together."""
    flow = [r for r in rows_of(finished) if r["task"] == "attention_flow"]
    for source in {(r["model"], r["layer"], r["metric"]) for r in flow}:
        targets = {r["feature"]: r["value"] for r in flow if (r["model"], r["layer"], r["metric"]) == source}
        together = targets.pop("registers", 0)
        assert abs(sum(targets.values()) - 1) < 1e-5
        assert abs(sum(v for name, v in targets.items() if name.startswith("registers[")) - together) < 1e-5


def test_an_interrupted_study_resumes_and_ends_with_the_same_numbers(finished, models, tmp_path, monkeypatch):
    chosen, run_job, done = settings(tmp_path / "again", models), study.run_job, []

    def dying(job, store):
        if len(done) == 97:
            raise RuntimeError("the machine goes away")
        done.append(cell_hash(job.key))
        return run_job(job, store)

    monkeypatch.setattr(reproduce, "run_job", dying)
    with pytest.raises(RuntimeError, match="goes away"):
        reproduce.reproduce(chosen)
    assert json.loads((chosen.out / "run.json").read_text())["finished"] is False
    first = set(done)
    done.clear()
    done.extend([""] * 1000)  # never 97 again
    reproduce.reproduce(chosen)
    second = set(done) - {""}
    assert first
    assert second
    assert not first & second, "no cell runs twice"
    assert rows_of(chosen.out) == rows_of(finished)
    done.clear()
    reproduce.reproduce(chosen)
    assert not done, "a finished study runs nothing"


def test_another_study_is_refused_and_nothing_is_written(finished, models, tmp_path):
    before = sorted((p, p.stat().st_mtime_ns) for p in finished.rglob("*"))
    with pytest.raises(ValueError, match=r"differs in seed.*choose another --out"):
        reproduce.reproduce(dataclasses.replace(settings(finished, models), seed=1))
    assert sorted((p, p.stat().st_mtime_ns) for p in finished.rglob("*")) == before
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter1.tex").write_text("...")
    with pytest.raises(ValueError, match="holds no study"):
        reproduce.reproduce(settings(foreign, models))
    assert [p.name for p in foreign.iterdir()] == ["chapter1.tex"]


def test_a_batch_size_that_leaves_one_image_alone_is_refused_before_anything_runs(models, tmp_path):
    with pytest.raises(ValueError, match=r"one image alone in bank \(60\).*change --batch-size"):
        reproduce.reproduce(dataclasses.replace(settings(tmp_path / "new", models), batch_size=59))
    assert not (tmp_path / "new").exists()


def test_an_unknown_model_is_refused_before_the_folder_is_made(tmp_path):
    with pytest.raises(ValueError, match="nonesuch"):
        reproduce.reproduce(settings(tmp_path / "new", ("nonesuch",)))
    assert not (tmp_path / "new").exists()


def test_the_page_is_whole_and_needs_no_network(finished):
    page = (finished / "report.html").read_text()
    outside = re.sub(r"<script>.*?</script>", "", page, count=1, flags=re.DOTALL)  # plotly itself, inlined
    assert not re.findall(r"(?:src|href)=[\"'](?!data:)", outside)
    maps = 6 * (1 + 4 + 4 + 2) + 6 * (1 + 2 + 2 + 1)  # image, components and norms under each condition, attention
    assert outside.count("data:image/png;base64,") == maps + 2 * 5  # the patches nearest to each register
    wanted = [e.TITLE for e in presets.EXPERIMENTS if e.TITLE != "Small against base"]
    assert [heading for heading in wanted if heading not in page] == []
    written = page
    assert report.write(finished).read_text().count("<h2>") == written.count("<h2>")


def test_the_readme_table_is_made_of_the_rows(finished, tmp_path):
    rows = rows_of(finished)
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- demo table: begin -->\nold\n<!-- demo table: end -->\nafter\n")
    report.fill_readme(readme, rows)
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    knn = next(r for r in rows if r["model"] == "raw_pixels" and r["metric"] == "top1_k20")
    assert f"{100 * knn['value']:.1f} [{100 * knn['ci_low']:.1f}, {100 * knn['ci_high']:.1f}]" in text
    readme.write_text("no marks")
    with pytest.raises(ValueError, match="lacks the marks"):
        report.fill_readme(readme, rows)


def test_a_study_in_bfloat16_has_bfloat16_models_and_float32_features(models):
    chosen = dataclasses.replace(settings(Path("nowhere"), models), dtype="bfloat16")
    data, mesh = digit_scenes(SIZE, 0), batch_mesh()
    half, full = (reproduce.load_models(c)["with_registers"] for c in (chosen, settings(Path("nowhere"), models)))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(half)} == {"bfloat16"}
    assert reproduce.settings(chosen, data, mesh).precision.startswith("bfloat16")
    found, reference = (Runner.on(mesh, m, 16).extract(data.sample, jaxvit.zero("registers[0]"), 0, "attention_flow") for m in (half, full))
    for name, values in (*found._asdict().items(), *found.captured.items()):
        if name != "captured":
            expected = reference.captured[name] if name in reference.captured else getattr(reference, name)
            assert values.dtype == expected.dtype == np.float32
            assert 0 < np.linalg.norm(values - expected) < 0.02 * np.linalg.norm(expected)


def test_features_do_not_depend_on_batch_size_where_they_must_not(models):
    model = jaxvit.load(models[0])
    images = np.random.default_rng(0).integers(0, 256, (21, 64, 64, 3), np.uint8)
    runners = [Runner.on(batch_mesh(), model, size) for size in (4, 16)]
    statistics = [runner.calibrate(images) for runner in runners]
    np.testing.assert_allclose(statistics[0].mean["block_output"], statistics[1].mean["block_output"], atol=1e-5)
    for name in ("full", "zero_registers", "noise_registers", "random_patches"):
        ablation = conditions(model.config)[name].build(statistics[0], 0)
        one, other = (runner.extract(images, ablation, 50, "cls") for runner in runners)
        assert one.patches.shape == (21, 64, 24)
        np.testing.assert_allclose(one.patches, other.patches, atol=1e-5)
        np.testing.assert_allclose(one.captured["cls"], other.captured["cls"], atol=1e-5)
