"""Edits inside attention, at neurons and of some channels: what they write, what they cost, their gradients."""

from __future__ import annotations

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxvit
from jaxvit.apply import apply
from jaxvit.forward import sweep_layers
from jaxvit.ops import BlockContext
from jaxvit.sites import HEAD_SITES, SITES, STREAM_SITES, TRANSFORMER_LENS, width_at
from tests.draws import normal
from tests.jaxvit import tiny
from tests.jaxvit.ablations import ANY_SITE, constant_ablations, run, some_channels, statistics

forward = importlib.import_module("jaxvit.forward")  # the attribute of the package is the function
INNER_SITES = [site for site in SITES if site not in STREAM_SITES]
LAYER = 1
CONTEXT = BlockContext(jnp.asarray(LAYER), jnp.asarray(tiny.ids(2)), None, None, tiny.LAYOUT)


def tokens_at(site, seed=3):
    width = (3, 8) if site in HEAD_SITES else (width_at(site, tiny.CONFIG),)
    return normal(seed, 2, tiny.LAYOUT.tokens, *width)


def ops_of(ablation, site):
    """The ops at a site of one block."""
    return jax.tree.map(lambda leaf: leaf[LAYER], jaxvit.lower(ablation, tiny.CONFIG, tiny.SIZE).ops[site])


@st.composite
def constants_at_one_site(draw):
    """Two to four constant-valued edits of some channels of some tokens at one site, with a vector for every token."""
    site, parts = draw(ANY_SITE), []
    for number in range(draw(st.integers(2, 4))):
        tokens = draw(st.lists(st.integers(0, 5), unique=True, min_size=1, max_size=4))
        values = np.asarray(normal(number, 3, len(tokens), width_at(site, tiny.CONFIG)))
        layers = draw(st.sampled_from(["all", [LAYER], [0, LAYER]]))
        parts.append(jaxvit.constant(tokens, values, layers, site, **draw(some_channels(site))))
    return site, parts


@given(constants_at_one_site())
def test_merged_edits_are_one_op_and_equal_those_edits_in_turn(drawn):
    site, parts = drawn
    merged, x = parts[0], tokens_at(site)
    for part in parts[1:]:
        merged = merged & part
    in_turn = x
    for part in parts:
        in_turn = apply(ops_of(part, site), in_turn, CONTEXT, site)
    ops = ops_of(merged, site)
    assert len(ops) == 1
    np.testing.assert_array_equal(apply(ops, x, CONTEXT, site), in_turn)


def test_a_mask_is_kept_by_row_of_the_table_and_not_by_token():
    ablation = jaxvit.zero("patches", at="mlp_hidden", channels=[3]) & jaxvit.zero(["cls", "patches[2]"], at="mlp_hidden", channels=[5])
    (op,) = jaxvit.lower(ablation, tiny.CONFIG, 64).ops["mlp_hidden"]
    assert op.channels.shape == op.values.shape == (3, 8, 48)
    assert op.mask.shape == op.index.shape == (3, 1 + 2 + 256)


@pytest.mark.parametrize("site", INNER_SITES)
def test_all_masks_of_a_structure_are_one_program(site):
    model, images = tiny.model(), tiny.images(3, seed=78)
    count = 3 if site in HEAD_SITES else 48
    name = "heads" if site in HEAD_SITES else "channels"
    moments = statistics()
    forward._forward.clear_cache()
    for ablation in (
        jaxvit.zero("cls", at=site, **{name: [0]}),
        jaxvit.zero("patches", [1], at=site, **{name: [1, count - 1]}),
        jaxvit.mean("registers", moments, at=site, **{name: [2]}),
        jaxvit.constant([1, 2], np.ones((3, 2, width_at(site, tiny.CONFIG))), [0], at=site, **{name: []}),
        jaxvit.zero("cls", at=site) & jaxvit.mean(["cls", "registers"], moments, at=site, **{name: [2]}),
    ):
        jaxvit.forward(model, images, ablation=ablation)
    assert forward._forward._cache_size() == 1


@pytest.mark.parametrize("site", ["query", "mlp_hidden", "block_output"])
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_the_gradient_of_a_mask_is_target_minus_token(site, strength):
    """Closed form: d/dm of the sum of w ((1 - m c) x + m c t) is the sum over channels of w c (t - x)."""
    where = {"heads": [1]} if site in HEAD_SITES else {"channels": [0, 5]}
    vector = normal(8, width_at(site, tiny.CONFIG))
    (op,) = ops_of(jaxvit.constant(["cls", "patches[2]"], vector, at=site, **where), site)
    x, weight = tokens_at(site), tokens_at(site, seed=4)

    def loss(mask):
        return (apply((dataclasses.replace(op, mask=mask),), x, CONTEXT, site) * weight).sum()

    gradient = jax.grad(loss)(op.mask * strength)
    flat_x, flat_weight = (np.asarray(a, np.float64).reshape(2, tiny.LAYOUT.tokens, -1) for a in (x, weight))
    chosen = np.isin(np.arange(flat_x.shape[-1]), range(8, 16) if "heads" in where else [0, 5])
    want = (flat_weight * chosen * (np.asarray(vector, np.float64) - flat_x)).sum(axis=(0, 2))
    touched = np.asarray(op.mask) > 0
    np.testing.assert_allclose(gradient[touched], want[touched], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("site", ["query", "head_output", "mlp_hidden"])
def test_the_gradient_of_a_run_is_a_difference_quotient(site):
    model, images = tiny.model(), tiny.images(2)
    where = {"heads": [1]} if site in HEAD_SITES else {"channels": [0, 5]}
    edits = jaxvit.lower(
        jaxvit.constant(["cls", "registers", "patches"], np.ones(width_at(site, tiny.CONFIG)), at=site, **where), model, tiny.SIZE
    )

    def loss(strength):
        ops = tuple(dataclasses.replace(op, mask=op.mask * strength) for op in edits.ops[site])
        return (jaxvit.forward(model, images, jaxvit.Edits({site: ops}, edits.layout)).cls * jnp.linspace(-1, 1, 24)).sum()

    step, gradient = 1e-2, jax.jit(jax.grad(loss))
    for strength in (0.0, 0.5, 1.0):
        quotient = (loss(strength + step) - loss(strength - step)) / (2 * step)
        np.testing.assert_allclose(gradient(strength), quotient, rtol=0.02, atol=2e-3)


@pytest.mark.parametrize("site", ["value", "mlp_hidden", "block_input"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_and_not_used_reaches_neither_result_nor_gradient(site, bad):
    where = {"heads": [1]} if site in HEAD_SITES else {"channels": [0, 5]}
    x = tokens_at(site)
    shape = x.shape
    width = x[0, 0].size
    chosen = np.isin(np.arange(width), range(8, 16) if "heads" in where else [0, 5])
    vector = np.where(chosen, 2, bad)  # under a mask of 0
    (op,) = ops_of(jaxvit.constant(0, vector, at=site, **where), site)
    x = x.reshape(2, -1, width).at[:, 0, chosen].set(bad).reshape(shape)  # under a mask of 1

    def total(x, values, mask):
        return apply((dataclasses.replace(op, values=values, mask=mask),), x, CONTEXT, site).sum()

    out = np.asarray(apply((op,), x, CONTEXT, site)).reshape(2, -1, width)
    np.testing.assert_array_equal(out[:, 0, chosen], 2)
    np.testing.assert_array_equal(out[:, :, ~chosen], np.asarray(x).reshape(2, -1, width)[:, :, ~chosen])
    to_x, to_values, to_mask = jax.grad(total, argnums=(0, 1, 2))(x, op.values, op.mask)
    for gradient in (to_x, to_values, to_mask[:1]):
        assert np.all(np.isfinite(gradient))
    assert not to_x.reshape(2, -1, width)[:, 0, chosen].any()


def test_one_seed_at_two_inner_sites_is_two_draws_and_at_two_sites_of_the_stream_one():
    shape = (3, 4, 24)
    moments = jaxvit.Moments({s: np.zeros(shape) for s in SITES}, {s: np.ones(shape) for s in SITES}, 1, tiny.SIZE)
    draws = {
        site: np.asarray(apply(ops_of(jaxvit.noise(0, moments, 3, at=site), site), tokens_at(site), CONTEXT, site))[:, 0].ravel()
        for site in (*HEAD_SITES, "block_input", "block_output")
    }
    np.testing.assert_array_equal(draws["block_input"], draws["block_output"])
    assert len({draw.tobytes() for draw in draws.values()}) == 5


@pytest.mark.parametrize("site", ["key", "mlp_hidden"])
def test_a_sweep_with_an_edit_inside_a_block_is_a_run_for_every_layer(site):
    def ablation(**where):
        return jaxvit.zero("registers", at=site, **where) & jaxvit.zero("cls", channels=[3], **where)

    model, images = tiny.model(tiny.ROPE), tiny.images(2)
    swept = sweep_layers(model, images, ablation())
    runs = jaxvit.stack([ablation(layers=[layer]) for layer in range(3)], model, tiny.SIZE)
    single = jax.vmap(lambda edits: jaxvit.forward(model, images, edits))(runs)
    np.testing.assert_allclose(swept.prenorm, single.prenorm, atol=5e-6)


def test_contrast_edits_the_second_stream_alone_at_every_site():
    model, images = tiny.model(), tiny.images(2)
    ablation = jaxvit.Ablation()
    for site in SITES:
        ablation = ablation & jaxvit.zero("registers", at=site) & jaxvit.shuffle("cls", 2, at=site)
    pair = jaxvit.contrast(model, images, ablation, example_ids=tiny.ids(2))
    ablated = run(ablation, 2)
    np.testing.assert_allclose(pair.clean.tokens, run(None, 2).tokens, atol=2e-6)
    np.testing.assert_allclose(pair.ablated.tokens, ablated.tokens, atol=5e-6)
    assert np.abs(ablated.tokens - pair.clean.tokens).max() > 0.1


def test_captures_see_every_site_after_its_edit():
    capture = {site: (lambda state, site=site: getattr(state.trace, site)) for site in SITES}
    ablation = jaxvit.Ablation()
    for number, site in enumerate(SITES):
        where = {"heads": [1]} if site in HEAD_SITES else {"channels": [2]}
        ablation = ablation & jaxvit.constant("registers", np.full(width_at(site, tiny.CONFIG), 70 + number), at=site, **where)
    captured = run(ablation, 2, capture=capture).captured
    for number, site in enumerate(SITES):
        chosen = captured[site][..., 1:3, 1, :] if site in HEAD_SITES else captured[site][..., 1:3, 2]
        np.testing.assert_array_equal(chosen, 70 + number)
        assert (np.asarray(captured[site]) == 70 + number).sum() == chosen.size


@given(constant_ablations())
def test_an_ablation_with_all_channels_listed_is_the_one_of_whole_tokens(ablation):
    (whole,) = ablation.replacements
    whole = dataclasses.replace(whole, heads=None, channels=None)
    listed = {"heads": tuple(range(3))} if whole.at in HEAD_SITES else {"channels": tuple(range(width_at(whole.at, tiny.CONFIG)))}
    results = [
        apply(ops_of(jaxvit.Ablation((r,)), whole.at), tokens_at(whole.at), CONTEXT, whole.at)
        for r in (whole, dataclasses.replace(whole, **listed))
    ]
    np.testing.assert_array_equal(*results)


def test_every_site_has_a_name_in_transformer_lens():
    assert tuple(TRANSFORMER_LENS) == SITES
