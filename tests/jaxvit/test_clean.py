"""Patches from the clean stream of `contrast`: those of a second run, without it; attention held while streams differ."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxvit
from jaxvit import Positions, per_layer
from jaxvit.apply import apply
from jaxvit.forward import sweep_layers
from jaxvit.ops import BlockContext
from jaxvit.sites import HEAD_SITES, SITES
from tests.draws import normal
from tests.jaxvit import tiny
from tests.jaxvit.ablations import run

ALL = ["cls", "registers", "patches"]


def held(layers="all"):
    """Attention as in the clean run."""
    return jaxvit.patch(ALL, "clean", layers, "query") & jaxvit.patch(ALL, "clean", layers, "key")


@pytest.mark.parametrize("config", [tiny.CONFIG, tiny.ROPE], ids=["table", "rope"])
def test_attention_of_clean_queries_and_keys_does_not_diverge_at_all(config):
    model, images = tiny.model(config), tiny.images(2)
    values = jaxvit.scale("patches", 3, at="value") & jaxvit.zero("registers")
    free = jaxvit.contrast(model, images, values, "attention_divergence")
    fixed = jaxvit.contrast(model, images, values & held(), "attention_divergence")
    np.testing.assert_array_equal(fixed.captured["attention_divergence"], 0)
    assert np.all(np.asarray(free.captured["attention_divergence"][1:]) > 1e-5)
    assert np.abs(fixed.ablated.tokens - fixed.clean.tokens).max() > 0.1
    assert np.abs(fixed.ablated.tokens - free.ablated.tokens).max() > 1e-3


def test_at_every_site_it_is_a_patch_with_arrays_of_a_clean_run():
    model, images = tiny.model(), tiny.images(2)
    zeroed = jaxvit.zero("registers", [0]) & jaxvit.zero("patches[3]", [1], at="value")
    clean = jaxvit.forward(model, images, capture={site: (lambda state, site=site: getattr(state.trace, site)) for site in SITES})
    given = {site: per_layer(clean.captured[site][:, :, 5:0:-4]) for site in SITES}
    where = {site: {"heads": [1]} if site in HEAD_SITES else {"channels": [0, 7]} for site in SITES}
    ours = [zeroed & jaxvit.patch([5, 1], "clean", [1, 2], site, **where[site]) for site in SITES]
    theirs = [zeroed & jaxvit.patch([5, 1], site, [1, 2], site, **where[site]) for site in SITES]
    got = jax.vmap(lambda e: jaxvit.contrast(model, images, e).ablated.tokens)(jaxvit.stack(ours, model, tiny.SIZE))
    want = jax.vmap(lambda e: jaxvit.forward(model, images, e, given=given).tokens)(jaxvit.stack(theirs, model, tiny.SIZE))
    np.testing.assert_allclose(got, want, atol=5e-6)
    assert np.abs(np.asarray(want) - np.asarray(run(zeroed, 2).tokens)).max(axis=(1, 2, 3)).min() > 1e-4


def test_clean_streams_everywhere_are_the_clean_run():
    model, images = tiny.model(), tiny.images(2)
    pair = jaxvit.contrast(model, images, jaxvit.zero("registers") & jaxvit.patch(ALL, "clean"))
    np.testing.assert_array_equal(pair.ablated.tokens, pair.clean.tokens)
    np.testing.assert_allclose(pair.clean.tokens, run(None, 2).tokens, atol=2e-6)


def test_tokens_may_differ_between_examples():
    model, images, ids = tiny.model(), tiny.images(2), tiny.ids(2)
    sink = np.array([[3], [-1]])
    ablation = jaxvit.zero(["patches", "registers"], [2]) & jaxvit.patch(Positions("sink"), "clean")
    pair = jaxvit.contrast(model, images, ablation, given={"sink": sink})
    kept = np.any(np.asarray(pair.ablated.prenorm[:, 1:]), axis=-1)
    np.testing.assert_array_equal(np.argwhere(kept), [[0, 2]])
    drawn = jaxvit.zero("patches", [2]) & jaxvit.patch(jaxvit.random_patches(2), "clean")
    pair = jaxvit.contrast(model, images, drawn, example_ids=ids)
    assert np.any(np.asarray(pair.ablated.prenorm[:, 3:]), axis=-1).sum(axis=1).tolist() == [2, 2]


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_the_gradient_of_its_mask_is_clean_minus_token_and_bad_values_under_the_mask_reach_nothing(strength):
    ops = jaxvit.lower(jaxvit.patch([4, 0], "clean", at="value", heads=[1]), tiny.CONFIG, tiny.SIZE).ops["value"]
    (op,) = jax.tree.map(lambda leaf: leaf[1], ops)
    x, clean, weight = (normal(seed, 2, tiny.LAYOUT.tokens, 3, 8) for seed in (1, 2, 3))
    context = BlockContext(jnp.asarray(1), None, None, None, tiny.LAYOUT)

    def loss(mask, clean, x=x):
        return (apply((dataclasses.replace(op, mask=mask),), x, context, "value", clean) * weight).sum()

    slope, _ = jax.grad(loss, argnums=(0, 1))(op.mask * strength, clean)
    want = (np.asarray(weight, np.float64) * (np.asarray(clean, np.float64) - np.asarray(x, np.float64)))[:, [0, 4], 1].sum(axis=(0, 2))
    np.testing.assert_allclose(slope[np.array([0, 4])], want, rtol=1e-4, atol=1e-5)
    to_mask, to_clean = jax.grad(loss, argnums=(0, 1))(op.mask * strength, clean.at[:, :, 0].set(np.nan).at[:, 7].set(np.inf))
    np.testing.assert_allclose(to_mask[np.array([0, 4])], want, rtol=1e-4, atol=1e-5)
    assert np.all(np.isfinite(to_clean))


def test_only_contrast_has_a_clean_stream():
    model, images, ablation = tiny.model(), tiny.images(2), jaxvit.patch("cls", "clean")
    for call in (jaxvit.forward, sweep_layers):
        with pytest.raises(ValueError, match=r"which only contrast runs along; call jaxvit\.contrast\(model, images, ablation\)") as error:
            call(model, images, ablation)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match='given has "clean", but the ablation reads nothing that is given'):
        jaxvit.contrast(model, images, ablation, given={"clean": images})
    with pytest.raises(
        ValueError, match='"clean" names the clean stream of `contrast` and cannot name an array; Positions needs another name'
    ):
        Positions("clean")
    assert str(ablation) == 'patch(cls, "clean") at block_output of all blocks'
    assert jaxvit.Ablation.from_json(ablation.to_json()) == ablation
