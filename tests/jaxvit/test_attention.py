"""Attention with hidden keys, against torch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jaxvit.attention import attend, probabilities
from tests.jaxvit import tiny


def test_hidden_keys_agree_with_torch() -> None:
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 7, 3, 8))
    hidden = jax.random.bernoulli(jax.random.key(1), 0.4, (2, 7, 7)).at[..., 0].set(False)
    ours = attend(q, k, v, hidden)
    per_head = [torch.from_numpy(np.array(x).swapaxes(1, 2)) for x in (q, k, v)]
    mask = torch.from_numpy(~np.array(hidden)[:, None])
    theirs = torch.nn.functional.scaled_dot_product_attention(*per_head, attn_mask=mask).numpy().swapaxes(1, 2)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    weights = probabilities(q, k, hidden)
    assert not np.asarray(weights)[np.broadcast_to(hidden[:, None], weights.shape)].any()


def test_a_block_that_hides_nothing_is_the_block() -> None:
    block = jax.tree.map(lambda leaf: leaf[0], tiny.model().blocks)
    x = jax.random.normal(jax.random.key(0), (2, 5, tiny.CONFIG.width))
    np.testing.assert_array_equal(block(x, None).block_output, block(x, None, hidden=jnp.zeros((2, 5, 5), bool)).block_output)
