"""Read-outs and metrics refuse what would give a number that means nothing: one line that names the argument and says what to do."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvit import metrics
from jaxvit.inference import mean_scores, ratio_scores, value
from jaxvit.neighbours import nearest
from jaxvit.probes import few_shot, knn, logistic, ridge, segmentation, selection, sgd

CLASSES = 3
GENERATOR = np.random.default_rng(0)
FEATURES = {name: GENERATOR.normal(size=(rows, 4)).astype(np.float32) for name, rows in (("train", 12), ("validation", 9), ("test", 6))}
LABELS = {name: np.arange(len(features)) % CLASSES for name, features in FEATURES.items()}
SPLITS = {**FEATURES, **{f"{name}_labels": labels for name, labels in LABELS.items()}, "classes": CLASSES}
SETTINGS = sgd.SGD(learning_rates=(0.1,), batch=4, iterations=2)
READOUT = ridge.Ridge(np.zeros((4, CLASSES)), np.zeros(CLASSES), np.zeros(4), np.ones(4), np.ones(()))
PATCHES = GENERATOR.normal(size=(2, 6, 4)).astype(np.float32)
MAPS = np.arange(2 * 4 * 6).reshape(2, 4, 6) % CLASSES
ROWS = {"features": FEATURES["train"], "targets": np.eye(CLASSES)[LABELS["train"]].astype(np.float32)}


def in_lists(**splits):
    """`sgd.probe` of one feature set."""
    return sgd.probe(**{name: [value] if name in FEATURES else value for name, value in splits.items()}, settings=SETTINGS)


def in_problems(function, **settings):
    """A function of many problems, with one problem."""
    return lambda **splits: function(**{n: v[None] if n in FEATURES and hasattr(v, "ndim") else v for n, v in splits.items()}, **settings)


PROBES = {
    "ridge.probe": lambda **splits: ridge.probe(**splits, lambdas=(1.0,)),
    "ridge.probe_many": in_problems(ridge.probe_many, lambdas=(1.0,)),
    "logistic.probe": lambda **splits: logistic.probe(**splits, cs=(1.0,), iterations=2),
    "logistic.probe_many": in_problems(logistic.probe_many, cs=(1.0,), iterations=2),
    "sgd.probe": in_lists,
    "few_shot": lambda **splits: few_shot.few_shot(**splits, shots=(1,), seeds=(0,)),
}


def changed(name, position, number):
    array = SPLITS[name].astype(np.float32 if np.isnan(number) or np.isinf(number) else SPLITS[name].dtype)
    array[position] = number
    return array


BAD_SPLITS = {
    "a label that is no class": (
        {"train_labels": changed("train_labels", 5, 3)},
        "3 in train_labels at index 5 is no class: 3 classes have",
    ),
    "a negative label": ({"test_labels": changed("test_labels", 1, -2)}, "-2 in test_labels at index 1 is no class"),
    "labels as text": (
        {"train_labels": np.array(["cat", "dog", "cow"] * 4)},
        "train_labels are strings, not integers; number them: np.unique",
    ),
    "labels as objects": ({"test_labels": LABELS["test"].astype(object)}, "test_labels are objects, not integers"),
    "labels as floats": (
        {"validation_labels": LABELS["validation"] * 1.0},
        r"validation_labels are float.., not integers; .*\.astype\(int\)",
    ),
    "labels in a list": ({"train_labels": LABELS["train"].tolist()}, r"train_labels is a list, not an array; .*np.asarray\(train_labels\)"),
    "too few labels": ({"train_labels": LABELS["train"][:-1]}, r"train_labels has the shape \(11,\).*one label for each row"),
    "one class": (
        {"train_labels": LABELS["train"] * 0 + 2},
        "all train_labels are 2; a probe of one class is always right: add rows of others",
    ),
    "one class possible": ({"classes": 1}, "classes is 1; give the number of classes, at least 2"),
    "padding only": ({"test_labels": LABELS["test"] * 0 - 1}, "all test_labels are -1, which is padding; give rows with a class"),
    "NaN": ({"train": changed("train", (2, 1), np.nan)}, r"NaN or infinity in train.* at index (0, )?2 of \(.*rows\), 1 of 12 in all"),
    "infinity": ({"validation": changed("validation", (8, 0), -np.inf)}, r"NaN or infinity in validation.* at index (0, )?8 of"),
    "no rows": ({"validation": FEATURES["validation"][:0], "validation_labels": LABELS["validation"][:0]}, "validation.* no rows; give"),
    "another width": ({"test": FEATURES["test"][:, :3]}, "test.* (has 3 channels and train 4|differ in number or width)"),
    "features as text": ({"train": FEATURES["train"].astype(str)}, "train.* are strings, not real numbers"),
    "features in a list": ({"train": FEATURES["train"].tolist()}, "train.* is a list, not an array"),
    "complex features": ({"test": FEATURES["test"] * 1j}, "test.* are complex64, not real numbers"),
}


@pytest.mark.parametrize("case", BAD_SPLITS)
@pytest.mark.parametrize("probe", PROBES)
def test_a_probe_refuses_splits_that_cannot_be_meant(probe, case):
    change, message = BAD_SPLITS[case]
    refused(lambda: PROBES[probe](**{**SPLITS, **change}), message)
    refused(lambda: PROBES[probe](**{**SPLITS, **{name: on_device(value) for name, value in change.items()}}), message)


BANK = {"bank": FEATURES["train"], "labels": LABELS["train"], "queries": FEATURES["test"], "classes": CLASSES, "ks": (1, 3)}
MEMORY = {"bank": FEATURES["train"], "targets": ROWS["targets"], "queries": FEATURES["test"], "k": 3}
PAIRS = {"first": PATCHES, "second": PATCHES, "warps": np.tile(np.eye(2, 3, dtype=np.float32), (2, 1, 1)), "grid": (2, 3), "patch_size": 4}
PLACES = np.ones((2, 5, 2))
POINTS = {"predicted": PLACES, "true": PLACES, "valid": np.ones((2, 5), bool), "length": np.ones(2), "alphas": (0.1,)}
NAN = np.full_like(FEATURES["train"], np.nan)
BAD = {
    "k above the bank": (knn.classify, {**BANK, "ks": (1, 13)}, "k is 13, but the bank has 12 rows; choose k from 1 to 12"),
    "k above what is no padding": (
        knn.classify,
        {**BANK, "labels": np.r_[LABELS["train"][:2], [-1] * 10]},
        "3, but the bank has 2 rows that",
    ),
    "no k": (knn.classify, {**BANK, "ks": ()}, r"ks are \(\); give a tuple of at least one"),
    "temperature 0": (knn.classify, {**BANK, "temperature": 0.0}, "temperature is 0.0; give a positive number"),
    "bank of one class": (knn.classify, {**BANK, "labels": LABELS["train"] * 0}, "all labels are 0; a probe of one class"),
    "queries of another width": (knn.classify, {**BANK, "queries": FEATURES["test"][:, :2]}, "queries has 2 channels and bank 4"),
    "predictions of other queries": (
        knn.correct,
        {"predicted": np.ones((2, 5), int), "labels": LABELS["test"]},
        "one label for each query",
    ),
    "no neighbour": (knn.retrieve, {**MEMORY, "k": 0}, "k is 0; give an integer of at least 1"),
    "k above the memory": (knn.retrieve, {**MEMORY, "valid": np.arange(12) < 2}, "k is 3, but the bank has 2 rows that are no padding"),
    "targets of other rows": (knn.retrieve, {**MEMORY, "targets": ROWS["targets"][1:]}, "targets has 11 rows and bank 12"),
    "NaN in a query": (nearest, {"queries": NAN, "bank": FEATURES["train"], "k": 1}, "NaN or infinity in queries at index 0"),
    "flags of other rows": (
        nearest,
        {"queries": NAN, "bank": FEATURES["train"], "k": 1, "valid": np.ones(3, bool)},
        "valid has 3 rows and bank 12",
    ),
    "a penalty of 0": (logistic.fit, {**ROWS, "penalty": 0.0}, "penalty is 0.0; give a positive number"),
    "a penalty that is NaN": (logistic.fit_path, {**ROWS, "penalties": np.array([1, np.nan])}, "penalties are .*nan.*all positive"),
    "no iteration": (logistic.fit, {**ROWS, "iterations": 0}, "iterations is 0; give an integer of at least 1"),
    "a lambda that is NaN": (ridge.fit, {**ROWS, "lambdas": (float("nan"), 1.0)}, "lambdas are .*give at least one, all positive"),
    "a target that is NaN": (ridge.fit, {**ROWS, "targets": NAN[:, :3]}, "NaN or infinity in targets"),
    "weights of 0": (ridge.fit, {**ROWS, "weights": np.zeros(12)}, "weights are all 0; give 0 for padding and positive numbers"),
    "a negative weight": (ridge.standardisation, {"features": ROWS["features"], "weights": np.arange(12) - 1}, "weights are as low as -1"),
    "targets of one class": (ridge.fit, {**ROWS, "targets": ROWS["targets"][:, :1]}, "targets have one class"),
    "features of another model": (
        ridge.predict,
        {"ridge": READOUT, "features": PATCHES[0, :, :3]},
        "features has 3 channels and those of the",
    ),
    "NaN that is read": (ridge.predict, {"ridge": READOUT, "features": NAN}, "NaN or infinity in features"),
    "labels of no class": (
        selection.one_hot,
        {"labels": np.array([0, 3]), "classes": CLASSES},
        "3 in labels is no class: 3 classes are 0 to 2",
    ),
    "shots of text": (few_shot.draw, {"labels": np.array(["a"]), "classes": 2, "shots": 1, "seed": 0}, "labels are strings, not integers"),
    "features that are no sets": (
        sgd.fit,
        {"features": FEATURES["train"], "labels": LABELS["train"], "classes": CLASSES, "settings": SETTINGS},
        r"an array of the shape \(12, 4\), not feature sets; give a list of at least one, each \[rows, width\]",
    ),
    "a rate that is NaN": (sgd.SGD, {"learning_rates": (float("nan"),)}, "learning_rates are .*all positive"),
    "a mask of no class": (
        segmentation.class_shares,
        {"labels": MAPS + 1, "classes": CLASSES, "patch_size": 2},
        "3 in labels is no class.*255",
    ),
    "patches of 0 pixels": (segmentation.class_shares, {"labels": MAPS, "classes": CLASSES, "patch_size": 0}, "patch_size is 0; give"),
    "scores that are NaN": (
        segmentation.predict_pixels,
        {"scores": np.full((2, 2, 3, 3), np.nan), "size": (4, 6)},
        "NaN or infinity in scores",
    ),
    "an image above the canvas": (
        segmentation.predict_padded,
        {"scores": np.zeros((2, 2, 3, 3)), "sizes": np.array([[4, 6], [9, 6]]), "canvas": (4, 6)},
        r"an image of \(9, 6\) pixels does not fit a canvas of \(4, 6\)",
    ),
    "scores of one class": (
        metrics.top1,
        {"scores": np.zeros((6, 1)), "labels": LABELS["test"]},
        "scores are of one class.*give a column for each",
    ),
    "a label above the scores": (
        metrics.top1,
        {"scores": np.zeros((6, 2)), "labels": LABELS["test"]},
        "2 in labels at index 2 is no class",
    ),
    "scores without labels": (metrics.top1, {"scores": np.zeros((5, 3)), "labels": LABELS["test"]}, "give one label for each row"),
    "views of one example": (metrics.recall_at_1, {"first": PATCHES[0, :1], "second": PATCHES[0, :1]}, "give at least 2"),
    "other views": (metrics.recall_at_1, {"first": FEATURES["train"], "second": FEATURES["test"]}, "second has 6 rows and first 12"),
    "warps of other pairs": (metrics.correspondence, {**PAIRS, "warps": PAIRS["warps"][:1]}, "warps has 1 rows and first 2"),
    "a negative tolerance": (metrics.correspondence, {**PAIRS, "tolerance": -1.0}, "tolerance is -1.0; give patch sides, at least 0"),
    "points of other pairs": (
        metrics.match_keypoints,
        {"source": PATCHES, "target": PATCHES, "points": PLACES[:1], "grid": (2, 3), "patch_size": 4},
        r"points have the shape \(1, 5, 2\), for 2 pairs",
    ),
    "a place that is NaN": (metrics.pck, {**POINTS, "predicted": PLACES * np.nan}, "NaN or infinite; leave it out: valid False"),
    "no alpha": (metrics.pck, {**POINTS, "alphas": ()}, r"alphas are \(\); give at least one, all positive"),
    "a pixel of no class": (
        metrics.confusion,
        {"predicted": MAPS, "target": MAPS - 1, "classes": CLASSES},
        "-1 in target is no class.*255",
    ),
    "a map of another size": (metrics.confusion, {"predicted": MAPS[:, :2], "target": MAPS, "classes": CLASSES}, "to the target's size"),
    "no square": (metrics.mean_iou, {"confusion": np.zeros((3, 2))}, r"confusion has the shape \(3, 2\); give matrices"),
    "a score that is NaN": (
        lambda: value(mean_scores(np.array([1, np.nan]))),
        {},
        "the score of unit 1 is NaN or infinite; leave the unit out",
    ),
    "points of other units": (
        ratio_scores,
        {"numerators": np.ones(3), "denominators": np.ones(2)},
        r"shapes \(3,\), \(2,\); give one number",
    ),
    "flags of other units": (mean_scores, {"scores": np.ones(3), "valid": np.ones(2, bool)}, r"\(2,\); give one number for each unit"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_meant_is_refused(case):
    function, arguments, message = BAD[case]
    refused(lambda: function(**arguments), message)


def test_padding_may_hold_anything():
    padded = {name: np.concatenate([features, np.full((2, 4), np.nan, np.float32)]) for name, features in FEATURES.items()}
    labels = {f"{name}_labels": np.r_[labels, -1, -1] for name, labels in LABELS.items()}
    for name in ("ridge.probe", "logistic.probe"):
        whole = PROBES[name](**SPLITS).correct
        np.testing.assert_array_equal(PROBES[name](**padded, **labels, classes=CLASSES).correct, np.r_[whole, 0, 0])


def test_inside_a_program_only_shapes_are_checked():
    scores, labels = np.zeros((6, 2), np.float32), LABELS["test"]
    np.testing.assert_array_equal(jax.jit(metrics.top1)(scores, labels), labels == 0)
    np.testing.assert_array_equal(jax.vmap(metrics.top1)(scores[None], labels[None])[0], labels == 0)
    refused(lambda: jax.jit(metrics.top1)(scores[1:], labels), "one label for each row")


def on_device(value):
    """An array of JAX, where it takes such values."""
    numeric = isinstance(value, np.ndarray) and value.dtype.kind in "fic"
    narrow = {"f": np.float32, "i": np.int32, "c": np.complex64}
    return jnp.asarray(value, narrow[value.dtype.kind]) if numeric else value


def refused(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
    assert re.search(r"[;:] ", str(error.value)), "no remedy"
