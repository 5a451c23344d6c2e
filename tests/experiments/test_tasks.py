"""Tasks on hand-made features: what they count, against plain statements of it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from experiments import dense, probing, tasks
from experiments.data import Keypoints, Part
from experiments.features import Features
from experiments.measures import Context, Readouts, joined, protocol_id
from jaxvit.sharding import batch_mesh
from jaxvit.statistics import value


def features(images: int = 5, registers: int = 2, patches: int = 16, width: int = 8, seed: int = 0) -> Features:
    def draw(*shape: int) -> np.ndarray:
        return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)

    tokens = draw(images, patches, width)
    norms = 100 + 40 * draw(images, patches)
    return Features(draw(images, width), draw(images, registers, width), tokens.mean(1), tokens, norms, draw(images, 4, width), {})


def context(**data: object) -> Context:
    return Context(SimpleNamespace(**data), Readouts(), (0, 1), batch_mesh())


class Reading(dict):
    """Parts by name; the first test images."""

    def sample(self, count: int) -> Features:
        return Features(*(array[:count] for array in self["test"][:-1]), {})


def test_features_that_probes_read_are_the_tokens_they_name():
    part = features()
    found = probing.tokens(part)
    assert list(found) == [
        *("cls", "patch_mean", "register_mean", "registers[0]", "registers[1]", "cls+patch_mean", "cls+registers"),
    ]
    np.testing.assert_array_equal(found["registers[1]"], part.registers[:, 1])
    np.testing.assert_allclose(found["register_mean"], part.registers.mean(axis=1))
    np.testing.assert_array_equal(found["cls+patch_mean"], np.hstack([part.cls, part.patches.mean(axis=1)]))
    np.testing.assert_array_equal(found["cls+registers"], np.hstack([part.cls, part.registers[:, 0], part.registers[:, 1]]))
    assert list(probing.tokens(features(registers=0))) == ["cls", "patch_mean", "cls+patch_mean"]
    assert list(probing.tokens(part, ("registers",))) == ["registers[0]", "registers[1]"]


def test_norms_outliers_and_cosines_of_registers():
    part = features()
    given = context(size={"flow": 4})
    norms = {m.metric: value(m.scores[0]) for m in tasks.patch_norms(Reading(test=part), given, {})}
    assert norms["norm_before_final"] == pytest.approx(part.patch_norms[:4].mean(), rel=1e-6)
    assert norms["norm"] == pytest.approx(np.linalg.norm(part.patches[:4], axis=-1).mean(), rel=1e-6)
    assert norms["outlier_share"] == pytest.approx((part.patch_norms[:4] > 150).mean())
    assert 0 < norms["outlier_share"] < 1
    (cosine,) = tasks.register_cosine(Reading(test=part), given, {})
    a, b = part.registers[:4, 0], part.registers[:4, 1]
    expected = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    assert (cosine.metric, cosine.feature) == ("registers[0]", "registers[1]")
    np.testing.assert_allclose(cosine.scores[0].contributions[:, 0], expected, atol=1e-6)


def test_the_effective_rank_of_the_table_is_the_median_over_images():
    part = features(images=5)
    found = {m.metric: value(m.scores[0]) for m in tasks.effective_rank(Reading(test=part), context(size={"flow": 5}), {})}
    shares = np.linalg.svd(part.patches, compute_uv=False) ** 2
    shares /= shares.sum(axis=1, keepdims=True)
    ranks = np.exp(-(shares * np.log(shares)).sum(axis=1))
    assert found["gram_eigenvalues"] == pytest.approx(np.median(ranks), rel=1e-4)
    assert found["gram_eigenvalues_mean"] == pytest.approx(ranks.mean(), rel=1e-4)
    assert found["spectrum[0]"] == pytest.approx(shares[:, 0].mean(), rel=1e-4)
    assert sum(found[f"spectrum[{k}]"] for k in range(8)) == pytest.approx(1, rel=1e-5)


def one_hot_patches(images: int) -> Features:
    """Every patch of a 2 x 2 grid has a feature of its own, the same in all images: patch i is found at patch i."""
    patches = np.broadcast_to(np.eye(4, dtype=np.float32), (images, 4, 4))
    return features(images)._replace(patches=patches)


def test_pck_is_over_points_over_pairs_and_over_categories_with_source_images_as_units():
    """Images of 20 x 20 pixels seen as 8 x 8, patches of 4: centres at 2 and 6, that is at 5 and 15 of the original's pixels."""
    true = np.array([[[2.0, 2], [6, 6]], [[2, 2], [0, 0]], [[6, 2], [2, 2]]])
    true[2, 0, 1] += 2  # found 2 seen pixels away: 5 of the original's
    keypoints = Keypoints(
        source=np.array([0, 0, 1]),
        target=np.array([1, 2, 2]),
        source_points=np.array([[[2.0, 2], [6, 6]], [[2, 2], [0, 0]], [[6, 2], [2, 2]]]),
        target_points=true,
        valid=np.array([[True, True], [True, False], [True, True]]),
        scale=np.full((3, 2), 2.5),
        box=np.array([20.0, 20, 40]),
        size=np.array([20.0, 20, 100]),
        category=np.array([0, 0, 1]),
        categories=("car", "dog"),
    )
    images = np.zeros((3, 8, 8, 3), np.uint8)
    given = context(keypoints=keypoints, parts={"keypoints": Part(images)}, protocols={"keypoints": "stretch 8"})
    found = {(m.metric, m.feature): m.scores[0] for m in dense.keypoints({"keypoints": one_hot_patches(3)}, given, {})}
    assert value(found["pck_0.1", "patches"]) == pytest.approx(4 / 5), "5 pixels are more than 0.1 x 40"
    assert value(found["pck_0.15", "patches"]) == 1
    assert value(found["pck_0.05_image_size", "patches"]) == 1, "5 pixels are 0.05 x 100"
    assert value(found["pck_0.1_per_image", "patches"]) == pytest.approx((1 + 1 + 1 / 2) / 3)
    assert value(found["pck_0.1", "patches: car"]) == 1
    assert value(found["pck_0.1", "patches: dog"]) == pytest.approx(1 / 2)
    assert value(found["pck_0.1_mean_of_categories", "patches"]) == pytest.approx((1 + 1 / 2) / 2)
    assert value(found["pck_0.1_per_image", "patches: dog"]) == pytest.approx(1 / 2)
    assert len(found["pck_0.1", "patches: dog"].contributions) == 1, "of the source images that show one"
    assert len(found["pck_0.1", "patches"].contributions) == 2, "two source images"


def test_the_memory_is_drawn_from_usable_patches_with_the_seed():
    usable = np.arange(50) % 2 == 0
    drawn = dense._memory(usable, 10, 0)
    assert len(set(drawn)) == 10
    assert usable[drawn].all()
    assert (dense._memory(usable, 10, 0) == drawn).all()
    assert (dense._memory(usable, 10, 1) != drawn).any()
    assert len(dense._memory(usable, 99, 0)) == 25


def test_raw_pixels_are_means_of_cells_and_pixels_of_patches():
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    found = tasks.raw_pixels(images)
    scaled = images / np.float32(255)
    np.testing.assert_allclose(found.cls[1, :3], scaled[1, :2, :2].mean(axis=(0, 1)), rtol=1e-5)
    np.testing.assert_allclose(found.patches[1, 5].reshape(8, 8, 3), scaled[1, 8:16, 8:16])
    np.testing.assert_allclose(found.patch_mean, found.patches.mean(axis=1))
    assert dense.grid_of(found.patches, images) == (4, 4, 8)


def test_draws_are_joined_measure_by_measure():
    draws = [tasks.patch_norms(Reading(test=features(seed=s)), context(size={"flow": 5}), {}) for s in (0, 1)]
    together = joined(draws)
    assert [m.metric for m in together] == [m.metric for m in draws[0]]
    assert [len(m.scores) for m in together] == [2, 2, 2]
    assert together[1].scores == [draws[0][1].scores[0], draws[1][1].scores[0]]


def test_a_protocol_id_says_everything_in_one_line():
    told = protocol_id("logistic", C=(0.1, 1.0, 10.0), lambdas=tuple(10.0**e for e in range(-3, 3)), norm="final", standardised=True)
    assert told == "logistic(C=0.1+1+10, lambdas=0.001..100x6, norm=final, standardised=True)"


def test_a_flag_of_any_draw_is_kept():
    measures = tasks.patch_norms(Reading(test=features()), context(size={"flow": 5}), {})
    flagged = [m._replace(flag="at the edge") for m in measures]
    assert [m.flag for m in joined([measures, flagged])] == ["at the edge"] * 3


def test_layers_are_probed_a_few_at_a_time_with_the_same_outcome(monkeypatch):
    generator = np.random.default_rng(0)
    labels = {part: generator.integers(0, 2, 12) for part in probing.PARTS}
    parts = []
    for part in probing.PARTS:
        tokens = generator.normal(size=(3, 12, 3, 4)).astype(np.float32) + labels[part][:, None, None]
        parts.append({"cls": tokens[:, :, 0], "patch_mean": tokens[:, :, 1], "registers": tokens[:, :, 2:]})
    given = context(labels=labels, classes=("a", "b"), protocols={"labels": "none"})
    given = given._replace(readouts=Readouts(solvers=("ridge",), lambdas=(0.1, 1.0)))
    whole = list(probing.layer_probes(parts, given))
    monkeypatch.setattr(probing, "_LAYER_BYTES", 1)
    single = list(probing.layer_probes(parts, given))
    assert [(layer, m.feature) for layer, m in whole] == [
        (layer, feature) for layer in range(3) for feature in ("cls", "patch_mean", "registers[0]", "register_mean")
    ]
    for (layer, one), (other_layer, other) in zip(whole, single, strict=True):
        assert (layer, one.feature, one.flag, one.detail) == (other_layer, other.feature, other.flag, other.detail)
        np.testing.assert_array_equal(one.scores[0].contributions, other.scores[0].contributions)
