"""`calibrate`: mean and variance of activations per site, layer and token slot, in one pass over a data set."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxvit.capture import BlockState, Capture
from jaxvit.forward import forward
from jaxvit.moments import Moments
from jaxvit.sites import SITES
from jaxvit.vit import ViT


def calibrate(
    model: ViT,
    batches: Iterable[tuple[Float[Array, "batch height width 3"], Bool[Array, "batch"] | None]],
    sites: tuple[str, ...] = ("block_output",),
) -> Moments:
    """The mean and variance of activations over batches of (normalised images, valid).

    Each batch is reduced on the device inside the scan over blocks, by two passes over its activations; batches are merged in
    float64 by Chan's rule (Chan, Golub & LeVeque 1979). Padding (`valid` False) is excluded.

    Args:
        batches: read once; `valid` may be None where nothing is padding.
        sites: names of `jaxvit.sites.SITES`.

    Raises:
        ValueError: an unknown site, no valid image, or batches of different image sizes.
    """
    for site in sites:
        if site not in SITES:
            raise ValueError(f'unknown site "{site}"; sites are {", ".join(SITES)}')
    captures: dict[str, str | Capture] = {site: SITE_MOMENTS[site] for site in sites}
    merged: dict[str, _Partial] = {}
    size, examples = None, 0
    for images, valid in batches:
        if size is not None and images.shape[1:3] != size:
            raise ValueError(f"calibration images changed from {size} to {tuple(images.shape[1:3])}; use one size")
        size = (images.shape[1], images.shape[2])
        valid = jnp.ones(images.shape[0], bool) if valid is None else jnp.asarray(valid)
        count = int(valid.sum())
        if not count:
            continue
        examples += count
        captured = forward(model, images, capture=captures, valid=valid).captured
        for site in sites:
            batch: _Partial = jax.tree.map(lambda array: np.asarray(array, np.float64), captured[site])
            merged[site] = _merge(merged[site], batch) if site in merged else batch
    if size is None or not examples:
        raise ValueError("calibration saw no valid image; pass batches of (images, valid)")
    mean = {site: partial.mean.astype(np.float32) for site, partial in merged.items()}
    variance = {site: (partial.squares / partial.count[..., None]).astype(np.float32) for site, partial in merged.items()}
    return Moments(mean, variance, examples, size)


class _Partial(NamedTuple):
    """Moments of a part of the activations; with a leading axis of layers after the scan.

    Attributes:
        count: [slots], number of activations.
        mean: [slots, width].
        squares: [slots, width], sum of squared deviations from the mean.
    """

    count: Any
    mean: Any
    squares: Any


def _merge(a: _Partial, b: _Partial) -> _Partial:
    """The moments of two sets of activations together (Chan's rule)."""
    count, delta = a.count + b.count, b.mean - a.mean
    mean = a.mean + delta * (b.count / count)[..., None]
    return _Partial(count, mean, a.squares + b.squares + delta**2 * (a.count * b.count / count)[..., None])


def _moments(x: Float[Array, "batch tokens width"], state: BlockState) -> _Partial:
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
    return _Partial(count, mean, jnp.concatenate([head_squares, tail_squares]))


def _block_input(state: BlockState) -> _Partial:
    return _moments(state.trace.block_input, state)


def _attention_output(state: BlockState) -> _Partial:
    return _moments(state.trace.attention_output, state)


def _mlp_output(state: BlockState) -> _Partial:
    return _moments(state.trace.mlp_output, state)


def _block_output(state: BlockState) -> _Partial:
    return _moments(state.trace.block_output, state)


SITE_MOMENTS: dict[str, Capture] = {
    "block_input": _block_input,
    "attention_output": _attention_output,
    "mlp_output": _mlp_output,
    "block_output": _block_output,
}
"""Captures of the moments at each site; module-level functions, so that a program is compiled only once."""
