"""The parts of the objective do what they claim."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from experiments.pretrain import objective


def test_masks_are_drawn_as_documented() -> None:
    masks = objective.draw_masks(jax.random.key(0), 200, 8, 8, (0.0, 0.95))
    assert masks.patches[:80].any(axis=1).all()
    assert not masks.patches[80:].any()
    share = np.asarray(masks.hidden_keys.mean(axis=1))
    assert 0.4 < share.mean() < 0.55
    assert share.max() > 0.85
    assert share.min() < 0.05
    assert not objective.draw_masks(jax.random.key(0), 200, 8, 8, (0.0, 0.0)).hidden_keys.any()


def test_sinkhorn_balances_the_prototypes() -> None:
    scores = jax.random.uniform(jax.random.key(0), (256, 16), minval=-0.2, maxval=0.2)
    assigned = objective.sinkhorn(scores)
    np.testing.assert_allclose(assigned.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(assigned.sum(axis=0), 16, rtol=0.3)


def test_blobs_cover_a_tenth_to_two_fifths() -> None:
    share = objective.blobs(jax.random.key(0), 64, 8, 8).mean(axis=1)
    assert 0.08 < share.min() < 0.2
    assert 0.3 < share.max() <= 0.42


def test_info_nce_is_smallest_for_the_right_target() -> None:
    vectors = objective.unit(jax.random.normal(jax.random.key(0), (8, 32)))
    queue = objective.unit(jax.random.normal(jax.random.key(1), (16, 32)))
    assert objective.info_nce(vectors, vectors, queue) < objective.info_nce(vectors, jnp.roll(vectors, 1, axis=0), queue)
