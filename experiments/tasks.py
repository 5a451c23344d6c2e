"""The tasks of the study: features of one condition in, metrics taken apart by example out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import CLASSES, MASK_CLASSES, StudyData, first_id
from experiments.features import Features, Runner
from jaxvit import Ablation, geometry, metrics
from jaxvit.probes import knn, logistic, ridge, segmentation
from jaxvit.statistics import Scores, mean_scores, ratio_scores

NEIGHBOURS = (10, 20)
_CONSTANT = "constant by construction"
Readout = TypeVar("Readout", ridge.Ridge, logistic.Logistic)
RECALL_TOLERANCE = 1.0


class Measure(NamedTuple):
    """One metric of one feature.

    Attributes:
        metric: name of the number.
        feature: which tokens it reads.
        scores: by independent unit (image or pair).
        note: what a reader must know about it.
        full: metric of the full condition that it is compared with, by default the same.
        kept: read-outs that other conditions are to be read with, unchanged.
    """

    metric: str
    feature: str
    scores: Scores
    note: str = ""
    full: str = ""
    kept: Mapping[str, np.ndarray] = {}


class ConditionFeatures(NamedTuple):
    """Features of all data under one condition."""

    bank: Features
    choose: Features
    test: Features
    first: Features
    second: Features


Kept = Mapping[str, np.ndarray]
"""What a task kept in the full condition, by name; empty in the full condition itself."""


class Task(NamedTuple):
    """A task: its protocol (what determines the number beside data and model) and how it is run."""

    protocol: str
    run: Callable[[ConditionFeatures, StudyData, Kept], list[Measure]]


def extract(runner: Runner, data: StudyData, ablation: Ablation) -> ConditionFeatures:
    """Everything that the tasks read, one pass over the data."""
    images = {"bank": data.bank.images, "choose": data.choose.images, "test": data.test.images}
    images |= {"first": data.pairs.first, "second": data.pairs.second}
    return ConditionFeatures(**{part: runner.extract(images[part], ablation, first_id(part)) for part in images})


def raw_pixels(data: StudyData, patch_size: int) -> ConditionFeatures:
    """The baseline without a model: pixels, averaged over 4 x 4, in the place of CLS; the pixels of each patch as patches."""

    def features(images: np.ndarray) -> Features:
        pixels = images.astype(np.float32) / 255
        n, height, width, _ = pixels.shape
        small = pixels.reshape(n, height // 4, 4, width // 4, 4, 3).mean(axis=(2, 4)).reshape(n, -1)
        p = patch_size
        patches = pixels.reshape(n, height // p, p, width // p, p, 3).swapaxes(2, 3).reshape(n, -1, p * p * 3)
        return Features(small, np.zeros((n, 0, small.shape[1]), np.float32), patches, {})

    parts = (data.bank.images, data.choose.images, data.test.images, data.pairs.first, data.pairs.second)
    return ConditionFeatures(*(features(images) for images in parts))


def linear_probe(f: ConditionFeatures, data: StudyData, kept: Kept) -> list[Measure]:
    """Top-1 of a ridge read-out; lambda chosen on digits that are not reported. Refitted for the condition and, beside it, the
    read-out of the full condition as it is."""

    def readout(feature: str, part: Features) -> np.ndarray:
        if feature == "cls":
            return part.cls
        return (part.patches if feature == "patch_mean" else part.registers).mean(axis=1)

    features = ["cls", "patch_mean"] + (["register_mean"] if f.test.registers.shape[1] else [])
    measures = []
    for feature in features:
        bank, choose, test = (readout(feature, part) for part in (f.bank, f.choose, f.test))
        found = ridge.probe(bank, data.bank.labels, choose, data.choose.labels, test, data.test.labels, CLASSES)
        note = "" if np.ptp(bank, axis=0).any() else _CONSTANT
        measures.append(Measure("top1", feature, mean_scores(found.correct), note, kept=_pack(feature, found.readout)))
        if kept:
            frozen = metrics.top1(ridge.predict(_unpack(feature, kept, ridge.Ridge), test), jnp.asarray(data.test.labels))
            measures.append(Measure("top1_frozen", feature, mean_scores(frozen), note, full="top1"))
    return measures


def _pack(name: str, readout: ridge.Ridge | logistic.Logistic) -> dict[str, np.ndarray]:
    return {f"{name}.{field}": np.asarray(value) for field, value in readout._asdict().items()}


def _unpack(name: str, kept: Kept, kind: type[Readout]) -> Readout:
    return kind(*(jnp.asarray(kept[f"{name}.{field}"]) for field in kind._fields))


def nearest_neighbours(f: ConditionFeatures, data: StudyData, kept: Kept) -> list[Measure]:
    """Top-1 of DINO's weighted k-NN on CLS; the bank is bank and choose together."""
    bank = np.concatenate([f.bank.cls, f.choose.cls])
    labels = np.concatenate([data.bank.labels, data.choose.labels])
    found = knn.classify(bank, labels, f.test.cls, CLASSES, NEIGHBOURS)
    note = "" if np.ptp(bank, axis=0).any() else _CONSTANT
    correct = knn.correct(found, jnp.asarray(data.test.labels))
    return [Measure(f"top1_k{k}", "cls", mean_scores(row), note) for k, row in zip(NEIGHBOURS, correct, strict=True)]


def retrieval(f: ConditionFeatures, data: StudyData, kept: Kept) -> list[Measure]:
    """Instance Recall@1 over the pairs of views."""
    note = "" if np.ptp(f.second.cls, axis=0).any() else _CONSTANT
    return [Measure("recall_at_1", "cls", mean_scores(metrics.recall_at_1(jnp.asarray(f.first.cls), jnp.asarray(f.second.cls))), note)]


def correspondence(f: ConditionFeatures, data: StudyData, kept: Kept) -> list[Measure]:
    """Share of patches whose nearest patch in the other view is the true one within a tolerance of one patch."""
    side = data.pairs.first.shape[1]
    rows = round(f.first.patches.shape[1] ** 0.5)
    patch = side // rows
    shares = data.pairs.digit.reshape(-1, rows, patch, rows, patch).mean(axis=(2, 4)).reshape(len(data.pairs.digit), -1)
    measures = []
    for name, mask in (("patches", None), ("digit_patches", shares > 0.25)):
        found = metrics.correspondence(f.first.patches, f.second.patches, data.pairs.warp, (rows, rows), patch, RECALL_TOLERANCE, mask)
        measures.append(Measure("accuracy", name, ratio_scores(found.hits, found.points)))
        measures.append(Measure("cycle_consistency", name, ratio_scores(found.cycles, found.points)))
    return measures


def segment(f: ConditionFeatures, data: StudyData, kept: Kept) -> list[Measure]:
    """mIoU over ground and ten digit classes: softmax regression of patches, logits upsampled to pixels before the argmax.
    Refitted for the condition and, beside it, the read-out of the full condition as it is."""
    height, width = data.test.masks.shape[1:]
    rows = round(f.test.patches.shape[1] ** 0.5)
    patch, count = height // rows, data.size.segmentation

    def targets(masks: np.ndarray) -> np.ndarray:
        return np.asarray(segmentation.class_shares(masks, MASK_CLASSES, patch)[0]).reshape(-1, MASK_CLASSES)

    def rowwise(patches: np.ndarray) -> np.ndarray:
        return patches.reshape(-1, patches.shape[-1])

    def read(readout: logistic.Logistic) -> Scores:
        scores = logistic.predict(readout, rowwise(f.test.patches)).reshape(-1, rows, rows, MASK_CLASSES)
        predicted = segmentation.predict_pixels(scores, (height, width))
        return Scores(np.asarray(metrics.confusion(predicted, data.test.masks, MASK_CLASSES)), metrics.mean_iou)

    readout = logistic.fit(rowwise(f.bank.patches[:count]), targets(data.bank.masks[:count]))
    measures = [Measure("miou", "patches", read(readout), kept=_pack("patches", readout))]
    if kept:
        measures.append(Measure("miou_frozen", "patches", read(_unpack("patches", kept, logistic.Logistic)), full="miou"))
    return measures


def effective_rank(f: ConditionFeatures, data: StudyData, kept: Kept) -> list[Measure]:
    """Mean over images of the effective rank of the patches, by Gram eigenvalues, by singular values, and as participation ratio."""
    patches = f.test.patches[: data.size.flow]
    forms = (
        ("gram_eigenvalues", geometry.effective_rank),
        ("singular_values", geometry.effective_rank_roy_vetterli),
        ("participation_ratio", geometry.participation_ratio),
    )
    return [Measure(name, "patches", mean_scores(rank(patches))) for name, rank in forms]


TASKS = {
    "linear_probe": Task(
        "ridge on standardised final-norm features, lambda chosen on held-out digits; refitted, or frozen: that of full", linear_probe
    ),
    "knn": Task("DINO weighted k-NN, cosine, temperature 0.07, final norm", nearest_neighbours),
    "retrieval": Task("instance Recall@1 over pairs of views, cosine, final norm", retrieval),
    "correspondence": Task("known affine warps, cosine, tolerance 1 patch, final norm; units are pairs", correspondence),
    "segmentation": Task(
        "softmax regression of patches on class shares, L2 1e-4, 11 classes, bilinear to pixels before argmax, summed confusion; "
        "refitted, or frozen: that of full",
        segment,
    ),
    "effective_rank": Task("exp of entropy (or participation ratio), not centred, final norm, mean over images", effective_rank),
}


def probe_layers(captured: list[dict[str, np.ndarray]], data: StudyData) -> tuple[list[tuple[int, str]], np.ndarray]:
    """Ridge probes of CLS and of each register at every layer, all in one program.

    Args:
        captured: "cls" [L, n, D] and "registers" [L, n, R, D] of bank, choose and test, raw block outputs.

    Returns:
        (layer, feature) of each probe, and its per-example hits [probes, test].
    """

    def rows(part: dict[str, np.ndarray]) -> np.ndarray:
        tokens = np.concatenate([part["cls"][:, :, None], part["registers"]], axis=2)
        return tokens.transpose(0, 2, 1, 3).reshape(-1, tokens.shape[1], tokens.shape[3])

    bank, choose, test = (jnp.asarray(rows(part)) for part in captured)

    def one(part: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        found = ridge.probe(part[0], data.bank.labels, part[1], data.choose.labels, part[2], data.test.labels, CLASSES)
        return found.correct

    depth, registers = captured[0]["registers"].shape[0], captured[0]["registers"].shape[2]
    names = [(layer, f"registers[{r - 1}]" if r else "cls") for layer in range(depth) for r in range(1 + registers)]
    return names, np.asarray(jax.lax.map(one, (bank, choose, test)))
