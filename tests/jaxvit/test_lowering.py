"""Stacked edits are the single ones, condition by condition."""

from __future__ import annotations

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxvit
from tests.jaxvit import tiny
from tests.jaxvit.ablations import any_ablations, run


@settings(max_examples=10)  # nearly each is a program of its own
@given(st.lists(any_ablations(), min_size=1, max_size=3))
def test_full_in_a_stack_is_bitwise_no_ablation(others):
    edits = jaxvit.stack([jaxvit.Ablation(), *others], tiny.model(), tiny.SIZE)
    edits = jax.tree.map(lambda leaf: leaf[0], edits)
    np.testing.assert_array_equal(run(None).tokens, run(edits).tokens)


@given(st.lists(any_ablations(), min_size=1, max_size=4))
def test_vmap_over_stacked_conditions_equals_the_loop(ablations):
    model, images, ids = tiny.model(), tiny.images(), tiny.ids()
    edits = jaxvit.stack(ablations, model, tiny.SIZE)
    out = jax.vmap(lambda e: jaxvit.forward(model, images, ablation=e, example_ids=ids))(edits)
    assert out.registers.shape == (len(ablations), 4, 2, 24)
    for got, ablation in zip(out.tokens, ablations, strict=True):
        np.testing.assert_allclose(got, run(ablation).tokens, atol=5e-6)
