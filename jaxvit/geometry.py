"""Geometry of features: effective rank, cosine, principal components as colours."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

exact_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


@functools.partial(jax.jit, static_argnames="centred")
def effective_rank(features: Shaped[Array, "*batch rows width"], *, centred: bool = False) -> Float[Array, "*batch"]:
    """exp of the entropy of the squared singular values normalised to sum 1 (the eigenvalues of the Gram matrix).

    Features are the patches of one image; `centred` takes their mean away first. Between 1 and min(rows, width); 0 where
    all features are 0.
    """
    return _entropy_rank(singular_values(features, centred=centred) ** 2)


@functools.partial(jax.jit, static_argnames="centred")
def effective_rank_roy_vetterli(features: Shaped[Array, "*batch rows width"], *, centred: bool = False) -> Float[Array, "*batch"]:
    """exp of the entropy of the singular values normalised to sum 1 (Roy & Vetterli 2007); otherwise as `effective_rank`."""
    return _entropy_rank(singular_values(features, centred=centred))


@functools.partial(jax.jit, static_argnames="centred")
def singular_values(features: Shaped[Array, "*batch rows width"], *, centred: bool = False) -> Float[Array, "*batch side"]:
    """The min(rows, width) singular values, smallest first, float32.

    They are the lengths of the projections on the eigenvectors of the smaller Gram matrix: exact to about 1e-6 of the
    largest in features of low rank, and to 1e-4 in a spectrum that falls off slowly. Roots of the Gram matrix's eigenvalues
    would be off by 3e-4 in every dimension, and a decomposition without it takes ten times as long.
    """
    features = _prepared(features, centred)
    rows, width = features.shape[-2:]
    _, vectors = jnp.linalg.eigh(_smaller_gram(features))
    projections = exact_einsum("...nd,...nk->...dk" if rows <= width else "...nd,...dk->...nk", features, vectors)
    return jnp.linalg.norm(projections, axis=-2)


@functools.partial(jax.jit, static_argnames="centred")
def participation_ratio(features: Shaped[Array, "*batch rows width"], *, centred: bool = False) -> Float[Array, "*batch"]:
    """(sum of Gram eigenvalues)^2 / sum of their squares: otherwise as `effective_rank`, and never above it."""
    spectrum = singular_values(features, centred=centred) ** 2
    squares = (spectrum**2).sum(axis=-1)
    return spectrum.sum(axis=-1) ** 2 / jnp.where(squares > 0, squares, 1)


@jax.jit
def mahalanobis(
    tokens: Shaped[Array, "*batch width"], mean: Float[Array, "*#batch width"], variance: Float[Array, "*#batch width"]
) -> Float[Array, "*batch"]:
    """Distance from a mean in standard deviations of each channel: the root of the mean over channels of (x - mean)^2 / variance.

    With the moments of `jaxvit.calibrate`, whose covariance is diagonal, about 1 for what calibration saw. Channels that did not
    vary in calibration do not count.
    """
    varies = variance > 0
    squares = jnp.where(varies, (tokens.astype(jnp.float32) - mean) ** 2 / jnp.where(varies, variance, 1), 0)
    return jnp.sqrt(squares.sum(axis=-1) / jnp.maximum(varies.sum(axis=-1), 1))


@jax.jit
def pairwise_cosine(tokens: Shaped[Array, "*batch tokens width"]) -> Float[Array, "*batch tokens tokens"]:
    """Cosine of every pair of tokens (registers, say) of an image. A zero token has cosine 0 with all."""
    return exact_einsum("...rd,...sd->...rs", unit(tokens), unit(tokens))


@jax.jit
def pca_rgb(features: Shaped[Array, "rows width"], clip: float | Float[Array, ""] = 0.0) -> Float[Array, "rows 3"]:
    """The first three principal components as red, green, blue in [0, 1], scaled jointly over all rows given.

    The sign of a component is such that its largest loading is positive: the same features give the same colours. Give
    the patches of all images of a figure at once for comparable colours.

    Args:
        clip: share of rows cut off at either end of the scale; 0 is min-max scaling. A component without variance is 0.

    Raises:
        ValueError: fewer than three rows or channels.
    """
    rows, width = features.shape
    if min(rows, width) < 3:
        raise ValueError(f"features have shape {features.shape}; three components need at least three rows and three channels")
    features = _prepared(features, True)
    loadings = jnp.linalg.eigh(_smaller_gram(features))[1][:, :-4:-1]
    if rows <= width:
        loadings = unit(exact_einsum("nd,nk->kd", features, loadings)).T
    largest = jnp.take_along_axis(loadings, jnp.argmax(jnp.abs(loadings), axis=0)[None], axis=0)
    components = exact_einsum("nd,dk->nk", features, loadings * jnp.where(largest < 0, -1, 1))
    low, high = jnp.quantile(components, clip, axis=0), jnp.quantile(components, 1 - clip, axis=0)
    return jnp.clip((components - low) / jnp.where(high > low, high - low, 1), 0, 1)


def unit(vectors: Shaped[Array, "*batch width"]) -> Float[Array, "*batch width"]:
    """Vectors scaled to length 1 in float32; a zero vector stays zero."""
    vectors = vectors.astype(jnp.float32)
    norm = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / jnp.where(norm > 0, norm, 1)


def _prepared(features: Shaped[Array, "*batch rows width"], centred: bool) -> Float[Array, "*batch rows width"]:
    features = features.astype(jnp.float32)
    return features - features.mean(axis=-2, keepdims=True) if centred else features


def _smaller_gram(features: Float[Array, "*batch rows width"]) -> Float[Array, "*batch side side"]:
    """Products of all pairs of rows, or of channels where those are fewer; the eigenvalues above 0 are the same."""
    rows, width = features.shape[-2:]
    return exact_einsum("...nd,...md->...nm" if rows <= width else "...nd,...ne->...de", features, features)


def _entropy_rank(spectrum: Float[Array, "*batch values"]) -> Float[Array, "*batch"]:
    """exp(entropy) of a non-negative spectrum normalised to sum 1."""
    total = spectrum.sum(axis=-1)
    share = spectrum / jnp.where(total > 0, total, 1)[..., None]
    entropy = -jnp.sum(share * jnp.log(jnp.where(share > 0, share, 1)), axis=-1)
    return jnp.where(total > 0, jnp.exp(entropy), 0)
