"""How do patches and registers lie in feature space? Effective rank, norms, cosines; no labels are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.datasets.base import StudyData
from experiments.features.extraction import Features
from experiments.tasks.base import Context, FeatureSource, FrozenReadouts, MetricResult, Task, Unit, protocol_id
from jaxvit import geometry
from jaxvit.config import MODELS, ViTConfig
from jaxvit.inference import mean_scores, median_scores

OUTLIER_NORM = 150.0
"""Patches longer than this before the final norm are outliers in `OUTLIER_MODELS`: the cut-off that Darcet et al. 2024 read off DINOv2
ViT-g (section 2.1). Other models have norms of other sizes."""
OUTLIER_MODELS = tuple(f"dinov2_vit{size}14{registers}" for size in "lg" for registers in ("", "_reg"))
"""The released models to which that cut-off belongs: DINOv2 of the sizes in which the publication finds outliers, without registers and
with them (section 2.1: the three largest; its H was not released)."""
OUTLIER_MADS = 6
"""In any model a patch is an outlier if its norm is above the median by more than this many times the median absolute deviation, both
over the patches of all analysis images under the condition. Of normally distributed norms those are 0.003 percent (4 s.d.)."""
_SPECTRUM = 10  # leading eigenvalues that are reported


def effective_rank(features: FeatureSource, context: Context, frozen_readouts: FrozenReadouts) -> list[MetricResult]:
    """Effective rank and spectrum of an image's patches."""
    return list(_ranks(jnp.asarray(_analysis(features, context).patches), context.readouts.where))


def patch_norms(features: FeatureSource, context: Context, frozen_readouts: FrozenReadouts) -> list[MetricResult]:
    """Lengths of patches before and after the final norm, and the share of outliers."""
    part = _analysis(features, context)
    lengths = np.linalg.norm(part.patches, axis=-1)
    return list(_norms(part.patch_norms, lengths, context.readouts.where, has_outlier_norm(context.config)))


def has_outlier_norm(config: ViTConfig | None) -> bool:
    """Whether a model is one of `OUTLIER_MODELS`, by its architecture, whatever implementation its weights were converted from; None is
    raw pixels."""

    def architecture(config: ViTConfig) -> dict[str, Any]:
        return {name: value for name, value in asdict(config).items() if name not in ("position", "image_size", "norm_eps")}

    return config is not None and any(architecture(config) == architecture(MODELS[name]) for name in OUTLIER_MODELS)


def register_cosine(features: FeatureSource, context: Context, frozen_readouts: FrozenReadouts) -> list[MetricResult]:
    """Cosine of every pair of registers of an image."""
    cosine = np.asarray(geometry.pairwise_cosine(jnp.asarray(_analysis(features, context).registers)))
    protocol = protocol_id("register_cosine", average="mean", **context.readouts.where)
    pairs = [(a, b) for a in range(cosine.shape[1]) for b in range(a + 1, cosine.shape[1])]
    return [
        MetricResult(
            "cosine", None, protocol, [mean_scores(cosine[:, a, b])], Unit(), fields={"register_a": f"r{a + 1}", "register_b": f"r{b + 1}"}
        )
        for a, b in pairs
    ]


def _analysis(features: FeatureSource, context: Context) -> Features:
    """Features of the test images for measures without labels."""
    return features.first_test(context.data.size["analysis_images"])


@jax.jit
def _spectra(
    patches: Float[Array, "images patches width"],
) -> tuple[Float[Array, "images side"], Float[Array, "images"], Float[Array, "images"], Float[Array, "images"]]:
    """Singular values, and three ranks made of them: by Gram eigenvalues, by singular values (Roy & Vetterli), participation ratio. In
    one program, so that it decomposes once."""
    ranks = (geometry.effective_rank, geometry.effective_rank_roy_vetterli, geometry.participation_ratio)
    return geometry.singular_values(patches), *(rank(patches) for rank in ranks)


def _ranks(patches: Float[Array, "images patches width"], where: dict[str, Any]) -> Iterator[MetricResult]:
    singular_values, gram, roy_vetterli, participation = _spectra(patches)
    descending = np.asarray(singular_values).astype(np.float64)[:, ::-1]
    shares = descending**2 / np.maximum((descending**2).sum(axis=1, keepdims=True), 1e-300)
    for metric, form, average, scores in (
        ("gram_eigenvalues", "gram_eigenvalues", "median", median_scores(np.asarray(gram))),
        ("gram_eigenvalues_mean", "gram_eigenvalues", "mean", mean_scores(gram)),
        ("singular_values_mean", "singular_values", "mean", mean_scores(roy_vetterli)),
        ("participation_ratio_mean", "participation_ratio", "mean", mean_scores(participation)),
    ):
        protocol = protocol_id("effective_rank", form=form, centred=False, average=average, **where)
        yield MetricResult(metric, "patches", protocol, [scores], Unit())
    protocol = protocol_id("spectrum", of="Gram eigenvalues, shares", centred=False, average="mean", **where)
    for k in range(min(_SPECTRUM, shares.shape[1])):
        yield MetricResult("spectrum", "patches", protocol, [mean_scores(shares[:, k])], Unit(), fields={"index": k})


def _norms(
    before: Float[np.ndarray, "images patches"], after: Float[np.ndarray, "images patches"], where: dict[str, Any], has_outlier_norm: bool
) -> Iterator[MetricResult]:
    """Norms before the final norm, as the features are read, and outliers among the former."""
    for metric, norms, norm in (("norm_before_final", before, "none"), ("norm", after, where["norm"])):
        protocol = protocol_id("patch_norm", average="mean over patches, then images", **(where | {"norm": norm}))
        yield MetricResult(metric, "patches", protocol, [mean_scores(norms.mean(axis=1))], Unit())
    median = np.median(before)
    deviation = np.median(np.abs(before - median))
    over = f"{OUTLIER_MADS} MAD above the median of all patches"
    thresholds: list[tuple[str, str | float, float]] = [(f"outlier_share_{OUTLIER_MADS}_mad", over, median + OUTLIER_MADS * deviation)]
    if has_outlier_norm:
        thresholds.append((f"outlier_share_above_{OUTLIER_NORM:g}", OUTLIER_NORM, OUTLIER_NORM))
    for metric, above, threshold in thresholds:
        protocol = protocol_id("outliers", above=above, **(where | {"norm": "none"}))
        yield MetricResult(metric, "patches", protocol, [mean_scores((before > threshold).mean(axis=1))], Unit("%", 100.0))


def _parts(data: StudyData) -> Sequence[str]:
    return ("analysis",)


EFFECTIVE_RANK = Task(effective_rank, _parts, possible=lambda data: True, version=2, settings=lambda readouts: {"spectrum": _SPECTRUM})
PATCH_NORMS = Task(
    patch_norms,
    _parts,
    possible=lambda data: True,
    version=2,
    settings=lambda readouts: {"outlier_norm": OUTLIER_NORM, "outlier_mads": OUTLIER_MADS},
)
REGISTER_COSINE = Task(register_cosine, _parts, possible=lambda data: True)
