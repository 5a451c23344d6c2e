"""`rollout`: attention of all blocks multiplied into one map from the last block's tokens to those of the input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvit.calls import check_numpy
from jaxvit.checks import values


def rollout(attention: Float[Array, "layers batch *heads tokens tokens"]) -> Float[Array, "batch tokens tokens"]:
    """Attention rollout (Abnar & Zuidema 2020, arXiv 2005.00928, section 3).

    In every block the mean over heads, A, becomes 0.5 A + 0.5 I for the residual stream, with rows renormalised to sum to 1; the result
    is the product over blocks, the last one on the left. Row t tells from which tokens of the input token t of the last block is mixed;
    rows sum to 1. `rollout(maps)[:, 0, layout.prefix:]` is the usual picture of CLS over patches, `rollout(maps[:k])` stops after k blocks.

    It takes all mixing to be attention: it knows neither values nor feed-forward layers. The capture "attention_flow" is something
    else, the attention between token groups inside each block; and what Abnar & Zuidema call attention flow, a maximum flow through the
    graph of all blocks, is neither.

    Args:
        attention: the maps of the capture "attention" [L, B, heads, T, T], or their means over heads [L, B, T, T], which a capture
            `lambda state: state.attention.mean(axis=1)` keeps at a fraction of the memory. Under an ablation whose cuts lose mass rows
            may sum to less than 1.

    Raises:
        ValueError: another shape, or rows that are no attention after the softmax.
    """
    check_numpy("attention", attention)
    shape = tuple(attention.shape)
    if len(shape) not in (4, 5) or shape[-1] != shape[-2] or 0 in shape:
        raise ValueError(
            f"rollout takes maps [layers, batch, heads, tokens, tokens] or their means over heads [layers, batch, tokens, tokens], "
            f'got {shape}; capture "attention"'
        )
    maps = values(attention[0], fetch=False)
    if maps is not None and not (maps.min() >= 0 and maps.sum(axis=-1).max() < 1.1):
        lowest, highest = maps.min(), maps.sum(axis=-1).max()
        raise ValueError(
            f"rollout takes attention after the softmax, in rows of at least 0 that sum to 1; got entries from {lowest:.3g} and rows that "
            f'sum to {highest:.3g}; capture "attention"'
        )
    result: Array = _rollout(jnp.asarray(attention))
    return result


@jax.jit
def _rollout(attention: Array) -> Array:
    identity = jnp.eye(attention.shape[-1])

    def through(result: Array, maps: Array) -> tuple[Array, None]:
        mean = maps.astype(jnp.float32).mean(axis=1) if maps.ndim == 4 else maps.astype(jnp.float32)
        mixed = 0.5 * mean + 0.5 * identity
        mixed = mixed / mixed.sum(axis=-1, keepdims=True)
        return jnp.matmul(mixed, result, precision=jax.lax.Precision.HIGHEST), None

    start = jnp.broadcast_to(identity, (attention.shape[1], *identity.shape))
    result: Array = jax.lax.scan(through, start, attention)[0]
    return result
