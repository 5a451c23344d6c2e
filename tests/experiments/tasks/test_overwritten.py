"""Tasks on single patches where a condition overwrites some: what stands there decides nothing, and what it would have decided is shown."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.datasets.base import Keypoints, Masks, Part, Views
from experiments.tasks.base import Context, MetricResult, Readouts, join_draws, pack, unpack
from experiments.tasks.correspondence import CORRESPONDENCE
from experiments.tasks.keypoints import KEYPOINTS
from experiments.tasks.overwritten import LEFT_OUT
from experiments.tasks.segmentation import SEGMENTATION
from jaxvit.inference import value
from tests.experiments.tasks.hand_made import FeaturesByPart, make_context, make_features

IMAGES, SIDE, GRID = 6, 4, (4, 4)
PATCHES = GRID[0] * GRID[1]
PIXELS = np.zeros((IMAGES, SIDE * GRID[0], SIDE * GRID[1], 3), np.uint8)
TASKS = {"correspondence": CORRESPONDENCE, "segmentation": SEGMENTATION, "spair": KEYPOINTS}
DENSE = pytest.mark.parametrize("name", TASKS)


def context_of() -> Context:
    """Views that do not move, masks of two classes, and keypoints at the centres of patches, the same in source and target."""
    labels = np.random.default_rng(0).integers(0, 2, (IMAGES, *GRID)).repeat(SIDE, axis=1).repeat(SIDE, axis=2).astype(np.uint8)
    centres = (np.stack(np.divmod(np.arange(PATCHES), GRID[1])[::-1], axis=-1) + 0.5) * SIDE
    still, points = np.broadcast_to(np.eye(2, 3, dtype=np.float32), (IMAGES, 2, 3)), np.broadcast_to(centres, (IMAGES, PATCHES, 2))
    pairs = np.arange(IMAGES)
    keypoints = Keypoints(
        pairs,
        np.roll(pairs, 1),
        points,
        points,
        np.ones((IMAGES, PATCHES), bool),
        np.ones((IMAGES, 2)),
        np.full(IMAGES, 4.0),
        np.full(IMAGES, 16.0),
        pairs % 2,
        ("car", "dog"),
    )
    parts = ("train", "test", "first", "second", "keypoints")
    data = {
        "masks": Masks("train", "test", labels, labels, np.full((IMAGES, 2), SIDE * GRID[0]), ("ground", "thing")),
        "views": Views(still, {"some": np.ones(PIXELS.shape[:3], bool)}),
        "keypoints": keypoints,
        "parts": dict.fromkeys(parts, Part(PIXELS, IMAGES)),
        "protocols": dict.fromkeys(("masks", "views", "keypoints"), "made"),
    }
    return make_context(**data)._replace(readouts=Readouts(memory=24))


def clean_features(context: Context) -> FeaturesByPart:
    """Patches that say where they are and of which class, all in the positive quadrant."""
    place = np.broadcast_to(np.eye(PATCHES, dtype=np.float32), (IMAGES, PATCHES, PATCHES))
    label = np.eye(2, dtype=np.float32)[context.data.masks.train[:, ::SIDE, ::SIDE].reshape(IMAGES, PATCHES)]
    noise = 0.05 * np.abs(make_features(IMAGES, patches=PATCHES, width=PATCHES + 2).patches)
    made = make_features(IMAGES)._replace(patches=np.concatenate([place, label], axis=-1) + noise)
    return FeaturesByPart(dict.fromkeys(context.data.parts, made))


def overwritten(clean: FeaturesByPart, marks: dict[str, np.ndarray], what: str = "zero") -> FeaturesByPart:
    """A condition that does nothing but overwrite the marked patches in what is read."""
    written = 0 if what == "zero" else 9 * make_features(IMAGES, patches=PATCHES, width=PATCHES + 2, seed=4).patches
    patches = {name: np.where(marks[name][..., None], written, part.patches) for name, part in clean.items()}
    found = FeaturesByPart({name: part._replace(patches=patches[name]) for name, part in clean.items()})
    found.marks, found.full = marks, clean
    return found


def some(context: Context, share: float = 0.3) -> dict[str, np.ndarray]:
    return {name: np.random.default_rng(i).random((IMAGES, PATCHES)) < share for i, name in enumerate(context.data.parts)}


def by_name(results: list[MetricResult]) -> dict[tuple, MetricResult]:
    return {(r.metric, r.feature, r.readout): r for r in results}


def run(task: str, features: FeaturesByPart, context: Context) -> list[MetricResult]:
    return TASKS[task].run(features, context, {})


@DENSE
@pytest.mark.parametrize("what", ["zero", "noise"])
def test_a_condition_that_changes_nothing_else_changes_no_score_and_by_construction_the_raw_one(name, what):
    context = context_of()
    clean = clean_features(context)
    results = by_name(run(name, overwritten(clean, some(context), what), context))
    raw = {key: r for key, r in results.items() if r.by_construction}
    assert {(r.counterpart, *key[1:]) for key, r in raw.items()} == results.keys() - raw.keys()
    for key, result in results.items():
        if key not in raw and np.isfinite(value(result.scores[0])):
            for ours, full in zip(result.scores, result.reference, strict=True):
                np.testing.assert_array_equal(ours.contributions, full.contributions)
            assert LEFT_OUT in result.protocol
    plain = by_name(run(name, clean, context))
    for metric, feature, readout in plain:
        of_raw = raw[f"{metric}_raw", feature, readout]
        assert of_raw.identity == plain[metric, feature, readout].identity, "it is compared with the full condition as it is"
        assert of_raw.protocol == plain[metric, feature, readout].protocol
    main = next(column.key[1:] for column in TASKS[name].columns if column.primary)
    assert value(raw[f"{main[0]}_raw", *main[1:]].scores[0]) < value(plain[main].scores[0]) - 0.05


@DENSE
def test_where_nothing_is_marked_the_scores_are_those_of_a_condition_that_overwrites_nothing(name):
    context = context_of()
    clean = clean_features(context)
    none = {part: np.zeros((IMAGES, PATCHES), bool) for part in clean}
    plain, marked = by_name(run(name, clean, context)), by_name(run(name, overwritten(clean, none), context))
    for key, result in plain.items():
        assert not result.reference
        for ours, others in zip(result.scores, marked[key].scores, strict=True):
            assert np.asarray(ours.contributions).tobytes() == np.asarray(others.contributions).tobytes()


@DENSE
def test_where_every_patch_is_overwritten_only_the_raw_numbers_are_defined(name):
    context = context_of()
    results = run(name, overwritten(clean_features(context), some(context, 1.1)), context)
    assert any(r.by_construction for r in results)
    assert not any(np.isfinite(value(s)) for r in results if not r.by_construction for s in r.scores)


def test_pixels_that_take_any_part_of_an_overwritten_patch_are_not_counted():
    """Patches of 4 pixels: the upsampling reaches 2 pixels into every neighbour, and no further."""
    context = context_of()
    marks = {part: np.zeros((IMAGES, PATCHES), bool) for part in context.data.parts}
    marks["test"][0, 5] = True  # second row and column
    result = by_name(run("segmentation", overwritten(clean_features(context), marks), context))["miou", "patches", "refitted"]
    counted = np.asarray(result.scores[0].contributions).sum(axis=(1, 2))
    assert counted.tolist() == [256 - 8 * 8, *[256] * (IMAGES - 1)]


def test_a_point_counts_where_neither_its_own_patch_nor_the_true_one_is_overwritten():
    context = context_of()
    for name, parts, metric in (("correspondence", ("first", "second"), "accuracy"), ("spair", ("keypoints",), "pck_0.1")):
        marks = {part: np.zeros((IMAGES, PATCHES), bool) for part in context.data.parts}
        for i, part in enumerate(parts):
            marks[part][0, 3 + i] = True
        result = next(r for r in run(name, overwritten(clean_features(context), marks), context) if r.metric == metric)
        points = np.asarray(result.scores[0].contributions)[:, 1]
        # as keypoints image 0 is a source and, of pair 1, a target
        assert points.tolist() == ([14, *[16] * 5] if name == "correspondence" else [15, 15, *[16] * 4])


def test_scores_that_it_is_compared_with_survive_storage_and_are_joined_over_draws():
    context = context_of()
    clean = clean_features(context)
    draws = [run("correspondence", overwritten(clean, some(context, share)), context) for share in (0.2, 0.4)]
    stored = [unpack(pack(results), CORRESPONDENCE) for results in draws]
    joined = join_draws(stored)[0]
    for i, results in enumerate(draws):
        for kind in ("scores", "reference"):
            (ours,) = getattr(results[0], kind)
            np.testing.assert_array_equal(ours.contributions, getattr(joined, kind)[i].contributions)
    raw = [r for r in stored[0] if r.by_construction]
    assert raw
    assert not any(r.reference for r in raw)
    assert [r.identity for r in raw] == [r.identity for r in draws[0] if not r.by_construction]
