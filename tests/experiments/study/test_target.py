"""Features of a target: what they must not depend on, and their precision."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxvit
from experiments import planning
from experiments.datasets.digits import digit_scenes
from experiments.features.conditions import conditions
from experiments.features.extraction import Runner
from experiments.study import grid
from experiments.tasks.base import pack, unpack
from experiments.tasks.table import TASKS
from jaxvit.sharding import batch_mesh
from tests.experiments.tiny_study import SIZE, save_models, study, targets


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[str, ...]:
    return save_models(tmp_path_factory.mktemp("models"))


def test_a_frozen_read_out_of_unchanged_features_is_the_refitted_one(models):
    (target,) = targets(models[:1])
    features = target.features("full", 0)
    for task in ("linear_probe", "segmentation"):
        run = TASKS[task].run
        readouts = {name: array for result in run(features, target.context, {}) for name, array in result.readouts.items()}
        by_name = {(r.metric, r.feature, r.readout): np.asarray(r.scores[0].contributions) for r in run(features, target.context, readouts)}
        frozen = [name for name in by_name if name[2] == "frozen"]
        assert frozen
        for metric, feature, _ in frozen:
            np.testing.assert_array_equal(by_name[metric, feature, "frozen"], by_name[metric, feature, "refitted"])


def test_results_of_a_task_survive_the_cell(models):
    (target,) = targets(models[:1])
    results = TASKS["segmentation"].run(target.features("full", 0), target.context, {})
    again = unpack(pack(results), TASKS["segmentation"])
    for one, other in zip(results, again, strict=True):
        assert one._replace(scores=[], readouts={}) == other._replace(scores=[], fields=dict(other.fields))
        assert len(one.scores) == len(other.scores)
        for a, b in zip(one.scores, other.scores, strict=True):
            assert a.finish is b.finish
            np.testing.assert_array_equal(a.contributions, b.contributions)


def test_features_do_not_depend_on_batch_size_where_they_must_not(models):
    model = jaxvit.load(models[0])
    images = np.random.default_rng(0).integers(0, 256, (19, 64, 64, 3), np.uint8)
    runners = [Runner.on(batch_mesh(), model, size) for size in (4, 16)]
    statistics = [runner.calibrate(images) for runner in runners]
    np.testing.assert_allclose(statistics[0].mean["block_output"], statistics[1].mean["block_output"], atol=1e-5)
    for name in ("full", "zero_registers", "noise_registers", "random_patches"):
        ablation = conditions(model.config)[name](model.config, statistics[0], 0)
        one, other = (runner.extract(images, ablation, 50, "cls") for runner in runners)
        assert one.patches.shape == (19, 64, 24)
        np.testing.assert_allclose(one.patches, other.patches, atol=1e-5)
        np.testing.assert_allclose(one.captured["cls"], other.captured["cls"], atol=1e-5)


def test_a_study_in_bfloat16_has_bfloat16_models_and_float32_features(models):
    chosen = dataclasses.replace(study(Path("nowhere"), models), dtype="bfloat16")
    data, mesh = digit_scenes(SIZE, 0), batch_mesh()
    half, full = (planning.load_models(c)["with_registers"] for c in (chosen, study(Path("nowhere"), models)))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(half)} == {"bfloat16"}
    assert planning.settings(chosen).precision.startswith("bfloat16")
    found, reference = (
        Runner.on(mesh, m, 16).extract(data.analysis_images, jaxvit.zero("registers[0]"), 0, "attention_flow") for m in (half, full)
    )
    for name, values in (*found._asdict().items(), *found.captured.items()):
        if name != "captured":
            expected = reference.captured[name] if name in reference.captured else getattr(reference, name)
            assert values.dtype == expected.dtype == np.float32
            assert 0 < np.linalg.norm(values - expected) < 0.02 * np.linalg.norm(expected)


def test_a_shuffle_does_not_depend_on_how_far_its_group_is_padded(models):
    model = jaxvit.load(models[0])
    images = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
    one, other = (Runner.on(batch_mesh(), model, size).extract(images, jaxvit.shuffle("registers", 3), 0) for size in (8, 128))
    np.testing.assert_allclose(one.cls, other.cls, atol=1e-5)
    assert not np.allclose(one.cls, Runner.on(batch_mesh(), model, 8).extract(images, jaxvit.Ablation(), 0).cls, atol=1e-3)


def test_a_drawn_read_out_has_as_many_draws_as_a_random_condition_or_its_share(models):
    """From five seeds on each has one, so that draws of both together are independent; with fewer all eight are shared out."""
    (target,) = targets(models[:1])
    for seeds, shares in ((2, [[0, 2, 4, 6], [1, 3, 5, 7]]), (5, [[0], [1], [2], [3], [4]]), (9, [[i] for i in range(9)])):
        many = dataclasses.replace(target, settings=dataclasses.replace(target.settings, seeds=seeds))
        assert [list(grid._task_draws(many, "noise_registers", seed)) for seed in range(seeds)] == shares
        assert list(grid._task_draws(many, "zero_cls", 0)) == list(range(max(8, seeds)))
