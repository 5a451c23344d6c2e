"""`calibrate`: mean and variance of activations per site, layer and token slot, in one pass over a data set."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxvit.calls import as_batches, as_pair, check_images, check_model, per_image
from jaxvit.capture import BlockState, Capture
from jaxvit.forward import forward
from jaxvit.moments import Moments
from jaxvit.sites import SITES, check_site
from jaxvit.vit import ViT


def calibrate(
    model: ViT,
    batches: Iterable[tuple[Float[Array, "batch height width 3"], Bool[Array, "batch"] | None]],
    sites: str | Sequence[str] = ("block_output",),
) -> Moments:
    """The mean and variance of activations over batches of (normalised images, valid).

    Each batch is reduced on the device inside the scan over blocks, by two passes over its activations; batches are merged in
    float64 by Chan's rule (Chan, Golub & LeVeque 1979). Padding (`valid` False) is excluded.

    Args:
        batches: read once; `valid` may be None where nothing is padding.
        sites: a name or names of `jaxvit.sites.SITES`.

    Raises:
        ValueError: an unknown site, no valid image, or batches of different image sizes.
    """
    check_model(model)
    sites = (sites,) if isinstance(sites, str) else tuple(sites)
    for site in sites:
        check_site(site)
    merged: dict[str, PartialMoments] | None = None
    size, examples = None, 0
    for images, valid in map(as_pair, as_batches(batches)):
        check_images(images, valid)
        if size is not None and images.shape[1:3] != size:
            raise ValueError(f"calibration images changed from {size} to {tuple(images.shape[1:3])}; use one size")
        size = (images.shape[1], images.shape[2])
        valid = jnp.ones(images.shape[0], bool) if valid is None else jnp.asarray(per_image("valid", valid, len(images)))
        count = int(valid.sum())
        if count:
            examples += count
            merged = _merge_sites(merged, partial_moments(model, images, valid, sites))
    if size is None or merged is None:
        raise ValueError("calibration saw no valid image; pass batches of (images, valid)")
    return _moments_of(merged, examples, size)


def partial_moments(
    model: ViT, images: Float[Array, "batch height width 3"], valid: Bool[Array, "batch"], sites: tuple[str, ...]
) -> dict[str, PartialMoments]:
    """Moments of the activations of one batch by site, with a leading axis of layers; `valid` must not be False everywhere.

    Raises:
        ValueError: an unknown site.
    """
    for site in sites:
        check_site(site)
    captures: dict[str, str | Capture] = {site: SITE_MOMENTS[site] for site in sites}
    return forward(model, images, capture=captures, valid=valid).captured


def merged_moments(partials: Iterable[dict[str, PartialMoments]], examples: int, image_size: Sequence[int]) -> Moments:
    """The moments of all batches together, from those of each, merged in their order in float64."""
    merged: dict[str, PartialMoments] | None = functools.reduce(_merge_sites, partials, None)
    assert merged is not None
    return _moments_of(merged, examples, image_size)


def _merge_sites(merged: dict[str, PartialMoments] | None, partial: dict[str, PartialMoments]) -> dict[str, PartialMoments]:
    in_float64 = jax.tree.map(lambda array: np.asarray(array, np.float64), partial)
    return in_float64 if merged is None else {site: _merge(merged[site], moments) for site, moments in in_float64.items()}


def _moments_of(merged: dict[str, PartialMoments], examples: int, image_size: Sequence[int]) -> Moments:
    mean = {site: partial.mean.astype(np.float32) for site, partial in merged.items()}
    variance = {site: (partial.squares / partial.count[..., None]).astype(np.float32) for site, partial in merged.items()}
    return Moments(mean, variance, examples, (image_size[0], image_size[1]))


class PartialMoments(NamedTuple):
    """Moments of a part of the activations, at one site; with a leading axis of layers after the scan.

    Attributes:
        count: [slots], number of activations.
        mean: [slots, width].
        squares: [slots, width], sum of squared deviations from the mean.
    """

    count: Any
    mean: Any
    squares: Any


def _merge(a: PartialMoments, b: PartialMoments) -> PartialMoments:
    """The moments of two sets of activations together (Chan's rule)."""
    count, delta = a.count + b.count, b.mean - a.mean
    mean = a.mean + delta * (b.count / count)[..., None]
    return PartialMoments(count, mean, a.squares + b.squares + delta**2 * (a.count * b.count / count)[..., None])


def _moments(x: Float[Array, "batch tokens width"], state: BlockState) -> PartialMoments:
    """Moments of every token slot over the valid examples of a batch."""
    prefix, patches = state.layout.prefix, state.layout.patches
    weight = jnp.ones(x.shape[0]) if state.valid is None else state.valid.astype(jnp.float32)
    x, examples = x.astype(jnp.float32), weight.sum()
    weight = weight[:, None, None]
    head, tail = x[:, :prefix], x[:, prefix:]
    mean = jnp.concatenate([(weight * head).sum(axis=0), (weight * tail).sum(axis=(0, 1))[None] / patches]) / examples
    head_squares = (weight * (head - mean[:prefix]) ** 2).sum(axis=0)
    tail_squares = (weight * (tail - mean[prefix]) ** 2).sum(axis=(0, 1))[None]
    count = jnp.concatenate([jnp.full(prefix, 1.0), jnp.full(1, float(patches))]) * examples
    return PartialMoments(count, mean, jnp.concatenate([head_squares, tail_squares]))


def _moments_at(site: str, state: BlockState) -> PartialMoments:
    """Moments at a site, where heads are apart of all their channels."""
    x: Array = getattr(state.trace, site)
    return _moments(x.reshape(*x.shape[:2], -1), state)


SITE_MOMENTS: dict[str, Capture] = {site: functools.partial(_moments_at, site) for site in SITES}
"""Captures of the moments at each site; made once, so that a program is compiled only once."""
