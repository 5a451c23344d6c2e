"""How tokens are read under an edit: closed-form probes of CLS, and of patches or their mean, by what the data have labels for."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from experiments.datasets.base import StudyData
from experiments.tasks.base import PERCENT, MetricResult, protocol_id
from jaxvit.inference import Scores, ratio_scores
from jaxvit.probes import ridge
from jaxvit.probes.segmentation import class_shares

PENALTY = 0.1
"""Of the ridge regression, per example."""
PATCHES = 8
"""Patches of an image that are read: those of which the largest share shows an object."""
LEAST_SHARE = 0.25
"""Of a patch's pixels; one that shows less of an object is not read."""


class Labelled(NamedTuple):
    """Leading images of a part, and what is to be read of each.

    Attributes:
        part: of the data.
        images: their number.
        places: patches that are read, or None where the mean of all patches is, or CLS.
        labels: class of each place.
        counted: places that count.
    """

    part: str
    images: int
    places: Int[np.ndarray, "images places"] | None
    labels: Int[np.ndarray, "images places"]
    counted: Bool[np.ndarray, "images places"]


class Reading(NamedTuple):
    """One target: how it is read.

    Attributes:
        target: "cls" or "patches".
        metric, feature: names in rows.
        train, test: images that the probe is fitted on and scored on.
        classes: their number.
        prepared: how images were, for the protocol.
    """

    target: str
    metric: str
    feature: str
    train: Labelled
    test: Labelled
    classes: int
    prepared: str

    @property
    def chance(self) -> float:
        """The score of the most frequent class, in percent."""
        return 100 * float(np.bincount(self.test.labels[self.test.counted]).max() / self.test.counted.sum())

    def result(self, scores: Scores, readout: str) -> MetricResult:
        """Scores as a result under its protocol."""
        where = "the mean of all patches" if self.feature == "patch_mean" else f"{PATCHES} patches with most of an object"
        tokens = "CLS" if self.target == "cls" else where
        fit = "condition" if readout == "refitted" else "full"
        protocol = protocol_id(
            "ridge", tokens=tokens, penalty=PENALTY, train=self.train.images, images=self.prepared, fit=fit, layer="last", norm="final"
        )
        note = f"chance is {self.chance:.1f} %"
        return MetricResult(self.metric, self.feature, protocol, [scores], PERCENT, readout=readout, note=note, part=self.test.part)


def readings(data: StudyData, patch_size: int, part: int = 1) -> list[Reading]:
    """How CLS and patches are read; none where images have neither classes nor masks.

    Args:
        part: the numbers of images are divided by it.
    """
    train, test = (max(2, data.size[name] // part) for name in ("sink_train", "sink_test"))
    found = []
    if data.labelled:
        first, second = (_of_images(data, part, count) for part, count in (("train", train), ("test", test)))
        found.append(Reading("cls", "top1", "cls", first, second, len(data.classes), data.protocols["labels"]))
    if data.masks is not None:
        masks = data.masks
        parts = ((masks.train_part, masks.train[:train]), (masks.test_part, masks.test[:test]))
        whole = masks.train.shape[1:] == masks.test.shape[1:] and (masks.train_part, masks.test_part) == ("train", "test")
        if whole:  # else patches are read by their mean
            first, second = (_of_patches(part, labels, len(masks.classes), patch_size) for part, labels in parts)
            found.append(Reading("patches", "patch_top1", "patches", first, second, len(masks.classes), data.protocols["masks"]))
    if data.labelled and len(found) == 1:
        found.append(found[0]._replace(target="patches", feature="patch_mean"))
    return found


def fit(features: Float[np.ndarray, "images places width"], of: Labelled, classes: int) -> ridge.Ridge:
    """The probe of these features, ridge regression on standardised channels."""
    targets = jnp.eye(classes)[of.labels.ravel()]
    rows = features.reshape(-1, features.shape[-1])
    return ridge.fit(rows, targets, (PENALTY,), of.counted.ravel()).at(0)


def score(probe: ridge.Ridge, features: Float[np.ndarray, "images places width"], of: Labelled) -> Scores:
    """Places that are read right, of those that count, by image."""
    predicted = np.asarray(ridge.predict(probe, features.reshape(-1, features.shape[-1]))).argmax(axis=-1).reshape(of.labels.shape)
    right = (predicted == of.labels) & of.counted
    return ratio_scores(right.sum(axis=1), of.counted.sum(axis=1))


def _of_images(data: StudyData, part: str, count: int) -> Labelled:
    labels = data.labels[part][:count, None].astype(np.int32)
    return Labelled(part, len(labels), None, labels, np.ones(labels.shape, bool))


def _of_patches(part: str, masks: np.ndarray, classes: int, patch_size: int) -> Labelled:
    """The patches of every image that show most of any class but the first, which is the ground."""
    shares, labelled = map(np.asarray, class_shares(masks, classes, patch_size))
    objects = shares[..., 1:] * labelled[..., None]
    places = np.argsort(-objects.sum(axis=-1), axis=1, kind="stable")[:, :PATCHES].astype(np.int32)
    chosen = np.take_along_axis(objects, places[..., None], axis=1)
    return Labelled(part, len(masks), places, 1 + chosen.argmax(axis=-1).astype(np.int32), chosen.sum(axis=-1) >= LEAST_SHARE)
