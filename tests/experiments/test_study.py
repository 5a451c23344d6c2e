"""The study end to end on a few scenes: its rows, its resumption, its page, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

import jaxvit
from experiments import report, reproduce, study
from experiments.conditions import conditions
from experiments.data import DataSize
from experiments.features import Runner
from jaxvit.sharding import batch_mesh

SIZE = DataSize(bank=60, choose=20, test=30, pairs=20, segmentation=20, calibration=32, flow=10)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[str, ...]:
    """A tiny model with registers and its twin without, for 64-pixel scenes."""
    folder = tmp_path_factory.mktemp("models")
    for name, registers in (("with_registers", 2), ("without", 0)):
        config = jaxvit.ViTConfig(8, 24, 2, 3, 48, registers=registers, position="antialias", image_size=64)
        jaxvit.save(jaxvit.create(config, 1), folder / name)
    return tuple(str(folder / name) for name in ("with_registers", "without"))


def settings(out: Path, models: tuple[str, ...]) -> reproduce.Reproduce:
    return reproduce.Reproduce(out=out, models=models, data=SIZE, batch_size=16, resamples=200)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, models) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    reproduce.reproduce(settings(out, models))
    return out


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_every_row_has_what_a_reader_needs(finished):
    rows = rows_of(finished)
    fields = ["model", "condition", "task", "metric", "protocol", "layer", "feature", "value", "ci_low", "ci_high"]
    fields += ["n", "seed", "delta", "p_value", "cell"]
    for row in rows:
        assert all(field in row for field in fields)
        assert row["ci_low"] <= row["value"] <= row["ci_high"] or row["task"] == "segmentation"
        assert (row["delta"] is None) == (row["p_value"] is None) == (row["condition"] == "full")
        assert (finished / "cells" / f"{row['cell']}.json").exists()
    seen = {(r["model"], r["condition"]) for r in rows if r["task"] == "knn"}
    base = {"full", "zero_cls", "mean_cls", "random_patches"}
    registers = {"zero_registers", "zero_r1", "zero_r2", "mean_registers", "noise_registers", "shuffle_registers"}
    assert {c for m, c in seen if m == "with_registers"} == base | registers
    assert {c for m, c in seen if m == "without"} == base
    assert {m for m, _ in seen} == {"with_registers", "without", "with_registers_random", "without_random", "raw_pixels"}
    probes = {(r["model"], r["layer"], r["feature"]) for r in rows if r["task"] == "layer_probe"}
    assert len(probes) == 2 * 3 + 2 * 1


def test_a_read_out_of_a_constant_token_is_marked_as_by_construction(finished):
    notes = {(r["condition"], r["task"], r["feature"]) for r in rows_of(finished) if r.get("note")}
    of_cls = {(c, t, "cls") for c in ("zero_cls", "mean_cls") for t in ("linear_probe", "knn", "retrieval")}
    of_registers = {(c, "linear_probe", "register_mean") for c in ("zero_registers", "mean_registers")}
    assert notes == of_cls | of_registers


def test_flow_rows_sum_to_one(finished):
    flow = [r for r in rows_of(finished) if r["task"] == "attention_flow"]
    for source in {(r["model"], r["layer"], r["metric"]) for r in flow}:
        assert abs(sum(r["value"] for r in flow if (r["model"], r["layer"], r["metric"]) == source) - 1) < 1e-5


def test_an_interrupted_study_resumes_and_ends_with_the_same_numbers(finished, models, tmp_path, monkeypatch):
    chosen, run_job, done = settings(tmp_path / "again", models), study.run_job, []

    def dying(job, store):
        if len(done) == 37:
            raise RuntimeError("the machine goes away")
        done.append(job.label)
        return run_job(job, store)

    monkeypatch.setattr(reproduce, "run_job", dying)
    with pytest.raises(RuntimeError, match="goes away"):
        reproduce.reproduce(chosen)
    assert json.loads((chosen.out / "run.json").read_text())["finished"] is False
    first = set(done)
    done.clear()
    done.extend([""] * 1000)  # never 37 again
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
    assert outside.count("data:image/png;base64,") == 6 * (4 + 3)
    for heading in ("What an ablation costs", "Where attention flows", "layer by layer", "Patch features as colours"):
        assert heading in page
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


def test_features_do_not_depend_on_batch_size_where_they_must_not(models):
    model = jaxvit.load(models[0])
    images = np.random.default_rng(0).integers(0, 256, (21, 64, 64, 3), np.uint8)
    runners = [Runner.on(batch_mesh(), model, size) for size in (4, 16)]
    statistics = [runner.calibrate(images) for runner in runners]
    np.testing.assert_allclose(statistics[0].mean["block_output"], statistics[1].mean["block_output"], atol=1e-5)
    for name in ("full", "zero_registers", "noise_registers", "random_patches"):
        ablation = conditions(model.config)[name](statistics[0], 0)
        one, other = (runner.extract(images, ablation, 50, "cls") for runner in runners)
        assert one.patches.shape == (21, 64, 24)
        np.testing.assert_allclose(one.patches, other.patches, atol=1e-5)
        np.testing.assert_allclose(one.captured["cls"], other.captured["cls"], atol=1e-5)
