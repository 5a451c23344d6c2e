"""Attention: a plain reference with float32 softmax, and what is read off its probabilities."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def probabilities(
    q: Float[Array, "*batch tokens heads head_width"],
    k: Float[Array, "*batch tokens heads head_width"],
    hidden: Bool[Array, "*batch tokens tokens"] | None = None,
) -> Float[Array, "*batch heads tokens tokens"]:
    """Softmax attention of every query over all keys, float32 whatever the input's dtype.

    Where `hidden` is true, a query (second last axis) does not see a key (last axis); every query must see one.
    """
    q_THK, k_SHK = q * q.shape[-1] ** -0.5, k
    logits_HTS = jnp.einsum("...thk,...shk->...hts", q_THK, k_SHK, preferred_element_type=jnp.float32)
    if hidden is not None:
        logits_HTS = jnp.where(hidden[..., None, :, :], -jnp.inf, logits_HTS)
    return jax.nn.softmax(logits_HTS, axis=-1)


def attend(
    q: Float[Array, "*batch tokens heads head_width"],
    k: Float[Array, "*batch tokens heads head_width"],
    v: Float[Array, "*batch tokens heads head_width"],
    hidden: Bool[Array, "*batch tokens tokens"] | None = None,
) -> Float[Array, "*batch tokens heads head_width"]:
    """Values averaged under `probabilities`. A capture that asks for the same probabilities shares their computation."""
    weights_HTS = probabilities(q, k, hidden).astype(v.dtype)
    return jnp.einsum("...hts,...shk->...thk", weights_HTS, v)
