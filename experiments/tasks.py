"""The tasks of the study, by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments import dense, probing
from experiments.conditions import RANDOM_PATCHES
from experiments.data import StudyData
from experiments.features import Features
from experiments.measures import Context, Kept, Measure, Reader, Task, protocol_id
from jaxvit import geometry
from jaxvit.probes import sgd
from jaxvit.probes.few_shot import BIG_VISION_PENALTY
from jaxvit.statistics import mean_scores, median_scores

OUTLIER_NORM = 150.0
"""Patches longer than this before the final norm are outliers (Darcet et al. 2024, section 2.1, where DINOv2 ViT-g is looked at; other
models have norms of other sizes)."""
_SPECTRUM = 10


def effective_rank(f: Reader, context: Context, kept: Kept) -> list[Measure]:
    """Effective rank and spectrum of an image's patches."""
    return list(_ranks(jnp.asarray(f.sample(context.data.size["flow"]).patches), context.readouts.where))


def patch_norms(f: Reader, context: Context, kept: Kept) -> list[Measure]:
    """Lengths of patches before and after the final norm, and the share of outliers."""
    part = f.sample(context.data.size["flow"])
    return list(_norms(part.patch_norms, np.linalg.norm(part.patches, axis=-1), context.readouts.where))


def register_cosine(f: Reader, context: Context, kept: Kept) -> list[Measure]:
    """Cosine of every pair of registers of an image."""
    cosine = np.asarray(geometry.pairwise_cosine(jnp.asarray(f.sample(context.data.size["flow"]).registers)))
    told = protocol_id("register_cosine", average="mean", **context.readouts.where)
    pairs = [(a, b) for a in range(cosine.shape[1]) for b in range(a + 1, cosine.shape[1])]
    return [Measure(f"registers[{a}]", f"registers[{b}]", told, [mean_scores(cosine[:, a, b])]) for a, b in pairs]


@jax.jit
def _spectra(patches: jnp.ndarray) -> tuple[jnp.ndarray, ...]:
    """Singular values and the ranks made of them, in one program: it decomposes once."""
    ranks = (geometry.effective_rank, geometry.effective_rank_roy_vetterli, geometry.participation_ratio)
    return geometry.singular_values(patches), *(rank(patches) for rank in ranks)


def _ranks(patches: jnp.ndarray, where: dict) -> Iterator[Measure]:
    found, gram, roy_vetterli, participation = _spectra(patches)
    values = np.asarray(found).astype(np.float64)[:, ::-1]
    shares = values**2 / np.maximum((values**2).sum(axis=1, keepdims=True), 1e-300)
    for metric, form, average, scores in (
        ("gram_eigenvalues", "gram_eigenvalues", "median", median_scores(np.asarray(gram))),
        ("gram_eigenvalues_mean", "gram_eigenvalues", "mean", mean_scores(gram)),
        ("singular_values_mean", "singular_values", "mean", mean_scores(roy_vetterli)),
        ("participation_ratio_mean", "participation_ratio", "mean", mean_scores(participation)),
    ):
        yield Measure(metric, "patches", protocol_id("effective_rank", form=form, centred=False, average=average, **where), [scores])
    for k in range(min(_SPECTRUM, values.shape[1])):
        told = protocol_id("spectrum", of="Gram eigenvalues, shares", centred=False, average="mean", **where)
        yield Measure(f"spectrum[{k}]", "patches", told, [mean_scores(shares[:, k])])


def _norms(before: np.ndarray, after: np.ndarray, where: dict) -> Iterator[Measure]:
    for name, norms, norm in (("norm_before_final", before, "none"), ("norm", after, where["norm"])):
        told = protocol_id("patch_norm", average="mean over patches, then images", **(where | {"norm": norm}))
        yield Measure(name, "patches", told, [mean_scores(norms.mean(axis=1))])
    told = protocol_id("outliers", above=OUTLIER_NORM, **(where | {"norm": "none"}))
    yield Measure("outlier_share", "patches", told, [mean_scores((before > OUTLIER_NORM).mean(axis=1))])


CONSTANTS = {
    "outlier_norm": OUTLIER_NORM,
    "random_patches": RANDOM_PATCHES,
    "parodi": dataclasses.asdict(sgd.PARODI),
    "dinov2_grid": dataclasses.asdict(sgd.DINOV2_GRID),
    "big_vision_penalty": BIG_VISION_PENALTY,
    "dense": [dense.L2, dense.NEIGHBOURS, dense.TEMPERATURE, dense.FOREGROUND],
}
"""What the code alone determines of a number; in the key of every cell."""


def _always(data: StudyData) -> bool:
    return True


def _labelled(data: StudyData) -> Sequence[str]:
    return probing.PARTS


def _pairs(data: StudyData) -> Sequence[str]:
    return ("first", "second")


def _masked(data: StudyData) -> Sequence[str]:
    return (data.masks.bank_part, data.masks.test_part) if data.masks else ()


def _sample(data: StudyData) -> Sequence[str]:
    return ("sample",)


TASKS = {
    "linear_probe": Task(probing.linear_probe, _always, _labelled),
    "dinov2_grid": Task(probing.dinov2_grid, _always, _labelled),
    "few_shot": Task(probing.few_shot, _always, _labelled),
    "knn": Task(probing.nearest_neighbours, _always, _labelled),
    "retrieval": Task(probing.retrieval, lambda data: data.views is not None, _pairs),
    "correspondence": Task(dense.correspondence, lambda data: data.views is not None, _pairs),
    "spair": Task(dense.keypoints, lambda data: data.keypoints is not None, lambda data: ("keypoints",)),
    "segmentation": Task(dense.segment, lambda data: data.masks is not None, _masked),
    "effective_rank": Task(effective_rank, _always, _sample),
    "patch_norms": Task(patch_norms, _always, _sample),
    "register_cosine": Task(register_cosine, _always, _sample),
}
"""In the order in which they run; the first pays for most features."""


def raw_pixels(images: np.ndarray) -> Features:
    """The baseline without a model: pixels, averaged over 16 x 16 cells, in the place of CLS; the pixels of patches of side 8 (of a
    larger side in images that 8 does not divide) as patches."""
    n, height, width, _ = images.shape
    side = next(s for s in (8, 14, 16, 1) if height % s == 0 and width % s == 0)

    def cells(pixels: np.ndarray, rows: int, columns: int) -> np.ndarray:
        return pixels.reshape(n, rows, height // rows, columns, width // columns, 3)

    pixels = images.astype(np.float32) / 255
    small = cells(pixels, 16, 16).mean(axis=(2, 4)).reshape(n, -1)
    patches = cells(pixels, height // side, width // side).swapaxes(2, 3).reshape(n, -1, side * side * 3)
    none = np.zeros((n, 0, small.shape[1]), np.float32)
    return Features(small, none, patches.mean(axis=1), patches, np.linalg.norm(patches, axis=-1), small[:, None], {})
