"""Geometry of features: effective rank, cosine similarity, Mahalanobis distance, principal components as colours."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

_exact_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


@functools.partial(jax.jit, static_argnames="centred")
def effective_rank(features: Shaped[Array, "*batch rows width"], *, centred: bool = False) -> Float[Array, "*batch"]:
    """Effective rank: exp of the entropy of the squared singular values (the Gram matrix's eigenvalues), normalised to sum 1.

    Between 1 and min(rows, width); 0 where all features are 0.

    Args:
        features: the patches of one image, say.
        centred: subtract the mean over rows first.
    """
    return _entropy_rank(singular_values(features, centred=centred) ** 2)


@functools.partial(jax.jit, static_argnames="centred")
def effective_rank_roy_vetterli(features: Shaped[Array, "*batch rows width"], *, centred: bool = False) -> Float[Array, "*batch"]:
    """`effective_rank` of the singular values themselves, not their squares, as Roy & Vetterli (2007) define it."""
    return _entropy_rank(singular_values(features, centred=centred))


@functools.partial(jax.jit, static_argnames="centred")
def singular_values(features: Shaped[Array, "*batch rows width"], *, centred: bool = False) -> Float[Array, "*batch side"]:
    """The min(rows, width) singular values, smallest first, float32.

    Computed without the Gram matrix, whose eigenvalues in float32 lose those below 3e-4 of the largest. Measured on patches of the
    demo models, also with a mean that is up to 300 times as long: off by at most 4e-7 of the largest, and the effective rank of Roy &
    Vetterli by 5e-7 of itself (from Gram matrices 1e-3 to 2e-2). For patches [256, 384] a CPU takes 1.3 times as long.
    """
    values: Array = jnp.linalg.svd(_float32(features, centred), compute_uv=False)
    return values[..., ::-1]


@functools.partial(jax.jit, static_argnames="centred")
def participation_ratio(features: Shaped[Array, "*batch rows width"], *, centred: bool = False) -> Float[Array, "*batch"]:
    """Participation ratio: (sum of Gram eigenvalues)^2 / sum of their squares. Never above `effective_rank`; 0 where all features are 0."""
    spectrum = singular_values(features, centred=centred) ** 2
    squares = (spectrum**2).sum(axis=-1)
    ratio: Array = spectrum.sum(axis=-1) ** 2 / jnp.where(squares > 0, squares, 1)
    return ratio


@jax.jit
def mahalanobis(
    tokens: Shaped[Array, "*batch width"], mean: Float[Array, "*#batch width"], variance: Float[Array, "*#batch width"]
) -> Float[Array, "*batch"]:
    """Mahalanobis distance under a diagonal covariance, per channel: the root of the mean over channels of (x - mean)^2 / variance.

    With the moments of `jaxvit.calibrate` it is about 1 for the images of the calibration. Channels of variance 0 do not count.
    """
    varies = variance > 0
    squares = jnp.where(varies, (tokens.astype(jnp.float32) - mean) ** 2 / jnp.where(varies, variance, 1), 0)
    return jnp.sqrt(squares.sum(axis=-1) / jnp.maximum(varies.sum(axis=-1), 1))


@jax.jit
def pairwise_cosine(tokens: Shaped[Array, "*batch tokens width"]) -> Float[Array, "*batch tokens tokens"]:
    """Cosine similarity of every pair of tokens of an image (its registers, say); 0 for pairs with a zero token."""
    return _exact_einsum("...rd,...sd->...rs", unit(tokens), unit(tokens))


@jax.jit
def pca_rgb(features: Shaped[Array, "rows width"], clip: float | Float[Array, ""] = 0.0) -> Float[Array, "rows 3"]:
    """The first three principal components as red, green, blue in [0, 1], each scaled over all rows.

    The sign of a component is such that its largest loading is positive: the same features give the same colours. Pass the
    patches of all images of a figure at once for comparable colours.

    Args:
        clip: fraction of rows clipped at either end of the scale; 0 is min-max scaling. A component without variance is 0.

    Raises:
        ValueError: fewer than three rows or channels.
    """
    rows, width = features.shape
    if min(rows, width) < 3:
        raise ValueError(f"features have shape {features.shape}; three components need at least three rows and three channels")
    features = _float32(features, centred=True)
    loadings = jnp.linalg.eigh(_smaller_gram(features))[1][:, :-4:-1]
    if rows <= width:
        loadings = unit(_exact_einsum("nd,nk->kd", features, loadings)).T
    largest = jnp.take_along_axis(loadings, jnp.argmax(jnp.abs(loadings), axis=0)[None], axis=0)
    components = _exact_einsum("nd,dk->nk", features, loadings * jnp.where(largest < 0, -1, 1))
    low, high = jnp.quantile(components, clip, axis=0), jnp.quantile(components, 1 - clip, axis=0)
    return jnp.clip((components - low) / jnp.where(high > low, high - low, 1), 0, 1)


def unit(vectors: Shaped[Array, "*batch width"]) -> Float[Array, "*batch width"]:
    """Vectors scaled to length 1 in float32; a zero vector stays zero."""
    vectors = vectors.astype(jnp.float32)
    norm = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / jnp.where(norm > 0, norm, 1)


def _float32(features: Shaped[Array, "*batch rows width"], centred: bool) -> Float[Array, "*batch rows width"]:
    """Features in float32, without their mean over rows where `centred`."""
    features = features.astype(jnp.float32)
    return features - features.mean(axis=-2, keepdims=True) if centred else features


def _smaller_gram(features: Float[Array, "*batch rows width"]) -> Float[Array, "*batch side side"]:
    """Gram matrix of the rows, or of the channels where those are fewer; both have the same eigenvalues above 0."""
    rows, width = features.shape[-2:]
    return _exact_einsum("...nd,...md->...nm" if rows <= width else "...nd,...ne->...de", features, features)


def _entropy_rank(spectrum: Float[Array, "*batch values"]) -> Float[Array, "*batch"]:
    """exp of the entropy of a non-negative spectrum normalised to sum 1; 0 where it is all 0."""
    total = spectrum.sum(axis=-1)
    fractions = spectrum / jnp.where(total > 0, total, 1)[..., None]
    entropy = -jnp.sum(fractions * jnp.log(jnp.where(fractions > 0, fractions, 1)), axis=-1)
    return jnp.where(total > 0, jnp.exp(entropy), 0)
