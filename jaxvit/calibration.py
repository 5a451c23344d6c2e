"""Streaming mean and variance of activations per site, layer and token slot."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxvit.capture import BlockState, Capture
from jaxvit.forward import forward
from jaxvit.vit import SITES, ViT


@dataclass(frozen=True)
class Statistics:
    """Moments of activations over a set of images.

    One slot for CLS, one for each register, ONE for all patches together (`TokenLayout.groups`). "block_input" of
    block 0 holds the embeddings; the input of block l is the output of block l - 1.

    Attributes:
        mean, variance: site -> float32 [layers, slots, width]; the variance is the population's (divided by n).
        examples: number of valid images.
        image_size: height and width in pixels.
    """

    mean: dict[str, Float[np.ndarray, "layers slots width"]]
    variance: dict[str, Float[np.ndarray, "layers slots width"]]
    examples: int
    image_size: tuple[int, int]


def calibrate(
    model: ViT,
    batches: Iterable[tuple[Float[Array, "batch height width 3"], Bool[Array, "batch"] | None]],
    sites: tuple[str, ...] = ("block_output",),
) -> Statistics:
    """Mean and variance over batches of (normalised images, valid), in one pass.

    Each batch is reduced on the device inside the scan (two passes over the batch); batches are merged in float64 by
    Chan's rule (Chan, Golub & LeVeque 1979). Padding (valid false) is excluded.

    Raises:
        ValueError: an unknown site, no valid image, or batches of different image sizes.
    """
    for site in sites:
        if site not in SITES:
            raise ValueError(f'unknown site "{site}"; sites are {", ".join(SITES)}')
    captures: dict[str, str | Capture] = {site: _MOMENTS[site] for site in sites}
    total: dict[str, tuple[Any, Any, Any]] = {}
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
            n, m, m2 = (np.asarray(a, np.float64) for a in captured[site])
            total[site] = _chan(total[site], (n, m, m2)) if site in total else (n, m, m2)
    if size is None or not examples:
        raise ValueError("calibration saw no valid image; pass batches of (images, valid)")
    moments = {site: (m.astype(np.float32), (m2 / n[..., None]).astype(np.float32)) for site, (n, m, m2) in total.items()}
    return Statistics({s: m for s, (m, _) in moments.items()}, {s: v for s, (_, v) in moments.items()}, examples, size)


def _chan(a: tuple[Any, Any, Any], b: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
    """Moments (count, mean, sum of squared deviations) of two sets together."""
    (na, ma, sa), (nb, mb, sb) = a, b
    n, delta = na + nb, mb - ma
    return n, ma + delta * (nb / n)[..., None], sa + sb + delta**2 * (na * nb / n)[..., None]


def _moments(x: Float[Array, "batch tokens width"], state: BlockState) -> tuple[Array, Array, Array]:
    """Count [slots], mean [slots, D] and sum of squared deviations [slots, D] over the valid examples of a batch."""
    prefix, patches = state.layout.prefix, state.layout.patches
    weight = jnp.ones(x.shape[0]) if state.valid is None else state.valid.astype(jnp.float32)
    x, count = x.astype(jnp.float32), weight.sum()
    weight = weight[:, None, None]
    head, tail = x[:, :prefix], x[:, prefix:]
    means = jnp.concatenate([(weight * head).sum(axis=0), (weight * tail).sum(axis=(0, 1))[None] / patches]) / count
    spread_head = (weight * (head - means[:prefix]) ** 2).sum(axis=0)
    spread_tail = (weight * (tail - means[prefix]) ** 2).sum(axis=(0, 1))[None]
    counts = jnp.concatenate([jnp.full(prefix, 1.0), jnp.full(1, float(patches))]) * count
    return counts, means, jnp.concatenate([spread_head, spread_tail])


def _block_input(state: BlockState) -> tuple[Array, Array, Array]:
    return _moments(state.trace.block_input, state)


def _attention_output(state: BlockState) -> tuple[Array, Array, Array]:
    return _moments(state.trace.attention_output, state)


def _mlp_output(state: BlockState) -> tuple[Array, Array, Array]:
    return _moments(state.trace.mlp_output, state)


def _block_output(state: BlockState) -> tuple[Array, Array, Array]:
    return _moments(state.trace.block_output, state)


_MOMENTS: dict[str, Capture] = dict(zip(SITES, (_block_input, _attention_output, _mlp_output, _block_output), strict=True))
