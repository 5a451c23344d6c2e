"""Attention cuts against a plain statement in float64, and what every run of a cut model reports."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxvit
from jaxvit import attention
from jaxvit.apply import cuts_of
from jaxvit.attention import attend, attention_with_divergence, attention_with_groups
from jaxvit.cuts import both_streams
from jaxvit.forward import sweep_layers
from jaxvit.ops import BlockContext
from tests.draws import normal
from tests.jaxvit import tiny

forward = importlib.import_module("jaxvit.forward")  # the attribute of the package is the function
LAYER, HEADS, WIDTH = 1, tiny.CONFIG.heads, 8
CONTEXT = BlockContext(jnp.asarray(LAYER), jnp.asarray(tiny.ids(2)), None, None, tiny.LAYOUT)
TOKENS = tiny.LAYOUT.tokens
SELECTORS = st.sampled_from(["cls", "registers", "registers[1]", "patches", "patches[3]", ["cls", "registers"], [0, 5], 2])


probabilities = jax.jit(attention.probabilities)


@jax.jit
def of_block(cuts):
    return cuts_of(jax.tree.map(lambda leaf: leaf[LAYER], cuts), CONTEXT, 2)


def stages(ablation):
    """The cuts of one block."""
    return of_block(jaxvit.lower(ablation, tiny.CONFIG, tiny.SIZE).cuts)


@jax.jit
def slopes(q, k, v, cuts):
    """Gradients of the squared values, and the values."""

    def loss(q, k, v):
        values = attend(q, k, v, cuts=cuts)
        return (values**2).sum(), values

    return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(q, k, v)


@functools.cache
def projected():
    return np.asarray(2 * normal(0, 3, 2, TOKENS, HEADS, WIDTH))


def exact(q, k, added=0.0):
    """Attention as it is [batch, heads, queries, keys], in float64; or with something added to the logits."""
    logits = np.einsum("bthd,bshd->bhts", *(np.asarray(x, np.float64) for x in (q, k))) / np.sqrt(q.shape[-1]) + added
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def plain(weights, queries, keys, heads=None, mass="renormalise", itself=True, strength=1.0):
    """A cut by its definition, of attention in float64."""
    positions = tiny.LAYOUT.positions
    cut = np.zeros((HEADS, TOKENS, TOKENS))
    for head in range(HEADS) if heads is None else heads:
        cut[head, np.array(positions(queries))[:, None], positions(keys)] = strength
    if not itself:
        cut[:, np.arange(TOKENS), np.arange(TOKENS)] = 0
    left = weights * (1 - cut)
    if mass == "renormalise":
        before, after = (x.sum(axis=-1, keepdims=True) for x in (weights, left))
        return np.where(cut.any(axis=-1, keepdims=True), left * before / np.where(after > 0, after, np.nan), left)
    if mass != "lost":
        receivers = list(positions(mass))
        left[..., receivers] += (weights * cut).sum(axis=-1, keepdims=True) / len(receivers)
    return left


@st.composite
def one_cut(draw):
    """Arguments of `cut`, of which no row loses all its keys and no receiver is cut."""
    queries, keys = draw(SELECTORS), draw(SELECTORS)
    cut = tiny.LAYOUT.positions(keys)
    receivers = [s for s in ("cls", "registers", [0, 5], "patches[7]") if not set(tiny.LAYOUT.positions(s)) & set(cut)]
    mass = draw(st.sampled_from(["renormalise", "lost", *receivers]))
    heads = draw(st.one_of(st.none(), st.lists(st.integers(0, HEADS - 1), unique=True)))
    return {"queries": queries, "keys": keys, "heads": heads, "mass": mass, "itself": draw(st.booleans())}


@given(st.lists(one_cut(), min_size=1, max_size=3))
@settings(max_examples=60)
def test_cuts_in_turn_are_their_definition_in_float64(drawn):
    q, k, _ = projected()
    want = functools.reduce(lambda weights, cut: plain(weights, **cut), drawn, exact(q, k))
    ablation = functools.reduce(lambda a, b: a & b, (jaxvit.cut(**cut) for cut in drawn))
    if np.isnan(want).any():
        with pytest.raises(ValueError, match="no key is left for query"):
            stages(ablation)
    else:
        np.testing.assert_allclose(probabilities(q, k, cuts=stages(ablation)), want, atol=2e-6)


CUTS = {
    "renormalised": jaxvit.cut(["cls", "patches"], "registers"),
    "lost": jaxvit.cut("cls", "registers[1]", mass="lost"),
    "received": jaxvit.cut(["registers", "patches"], "registers[0]", mass=["cls", "patches[2]"], itself=False),
    "by head": jaxvit.cut("patches", "cls", heads=[0, 2]) & jaxvit.cut("cls", "patches[3]", heads=[1]),
    "composed": jaxvit.cut("patches", "registers") & jaxvit.cut("cls", "cls", mass="lost") & jaxvit.cut("cls", "patches", mass="cls"),
}


@pytest.mark.parametrize("mass", ["renormalise", "lost", "cls"])
@pytest.mark.parametrize("gap", [10, 60, 120, 1000])
def test_a_sink_far_above_the_other_keys_is_cut_exactly(mass, gap):
    """Against the maximum of all keys the others' exponentials would vanish, from a gap of about 90."""
    q, k, v = projected().copy()
    q[..., 0], k[..., 0], k[:, 1] = 1, 0, gap * WIDTH**0.5 * np.eye(WIDTH)[0]
    cut = jaxvit.cut("patches", "registers[0]", mass=mass)
    added = np.zeros((TOKENS, TOKENS))
    added[tiny.LAYOUT.prefix :, 1] = -np.inf
    want = exact(q, k, added) if mass == "renormalise" else plain(exact(q, k), "patches", "registers[0]", mass=mass)
    np.testing.assert_allclose(probabilities(q, k, cuts=stages(cut)), want, atol=2e-6)
    gradients, _ = slopes(q, k, v, stages(cut))
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)


def test_where_every_key_is_cut_rows_are_zero_or_the_receivers():
    q, k, v = projected()
    lost = stages(jaxvit.cut("cls", ["cls", "registers", "patches"], mass="lost"))
    got, (gradients, values) = np.asarray(probabilities(q, k, cuts=lost)), slopes(q, k, v, lost)
    assert not got[:, :, 0].any()
    assert not np.asarray(values)[:, 0].any()
    np.testing.assert_allclose(got[:, :, 1:], exact(q, k)[:, :, 1:], atol=2e-6)
    received = np.asarray(probabilities(q, k, cuts=stages(jaxvit.cut("cls", ["registers", "patches"], mass="cls"))))
    np.testing.assert_allclose(received[:, :, 0, 0], 1, atol=2e-6)
    assert np.all(np.isfinite(gradients[0]))


def test_where_every_key_is_cut_by_one_of_two_cuts_their_shares_are_those_of_the_weights():
    """Keys of patches are lost; the rest, far below or above them, goes to a patch."""
    q, k, _ = projected()
    for factor in (1, 30):
        want = plain(exact(factor * q, k), "cls", "patches", mass="lost")
        want = plain(want, "cls", ["cls", "registers"], mass="patches[1]")
        cuts = stages(jaxvit.cut("cls", "patches", mass="lost") & jaxvit.cut("cls", ["cls", "registers"], mass="patches[1]"))
        np.testing.assert_allclose(probabilities(factor * q, k, cuts=cuts), want, atol=2e-5 if factor > 1 else 2e-6)


def test_random_patches_are_those_that_the_same_draw_overwrites():
    q, k, _ = projected()
    drawn = jaxvit.random_patches(3, seed=7)
    moved = jaxvit.forward(tiny.model(), tiny.images(2), jaxvit.zero(drawn, layers=[2]), example_ids=tiny.ids(2)).prenorm
    chosen = ~np.asarray(moved).any(axis=-1)  # [batch, tokens]
    assert (chosen.sum(axis=1) == 3).all()
    assert (chosen[0] != chosen[1]).any()
    for cut, of_keys in ((jaxvit.cut("cls", drawn, mass="lost"), True), (jaxvit.cut(drawn, "cls", mass="lost"), False)):
        got, clean = np.asarray(probabilities(q, k, cuts=stages(cut))), np.asarray(probabilities(q, k))
        is_cut = (clean > 0) & (got == 0)
        want = chosen[:, None] * np.ones((HEADS, 1), bool)
        np.testing.assert_array_equal(is_cut[:, :, 0] if of_keys else is_cut[..., 0], want)
        assert is_cut.sum() == want.sum()


@pytest.mark.parametrize("name", CUTS)
def test_all_orders_of_computation_give_the_same_cut_attention(name, monkeypatch):
    """By chunks of queries, a few images at a time, together with group sums or a divergence, in several streams."""
    q, k, v = projected()
    cuts = stages(CUTS[name])
    clean, maps = np.asarray(probabilities(q, k)), np.asarray(probabilities(q, k, cuts=cuts))
    values = np.einsum("bhts,bshd->bthd", maps, v)
    columns = np.eye(len(tiny.LAYOUT.groups), dtype=np.float32)[tiny.LAYOUT.group_of()]
    streams = [np.stack([x, x]) for x in (q, k, v)]
    monkeypatch.setattr(attention, "QUERY_CHUNK", 4)

    @jax.jit
    def by_chunks():
        divergence = attention_with_divergence(*streams, cuts=tuple(both_streams(stage) for stage in cuts))
        return attend(q, k, v, cuts=cuts), attend(q, k, v), attention_with_groups(q, k, v, columns, cuts=cuts), divergence

    alone, uncut, (grouped, sums), (both, divergence) = by_chunks()
    np.testing.assert_allclose(alone, values, atol=2e-6)
    np.testing.assert_allclose(grouped, values, atol=2e-6)
    np.testing.assert_allclose(sums, np.einsum("bhts,sg->bthg", maps, columns), atol=2e-6)
    np.testing.assert_allclose(both[1], values, atol=2e-6)
    np.testing.assert_allclose(both[0], uncut, atol=2e-6)
    np.testing.assert_allclose(divergence[0], np.asarray(attention.jensen_shannon(clean, maps)).mean(axis=-1), atol=2e-6)


def test_the_divergence_of_renormalised_attention_is_scipys():
    q, k, v = projected()
    cuts = stages(CUTS["renormalised"])
    streams = [np.stack([x, x]) for x in (q, k, v)]
    _, got = jax.jit(attention_with_divergence)(*streams, cuts=tuple(both_streams(stage) for stage in cuts))
    maps = [np.asarray(x, np.float64) for x in (probabilities(q, k), probabilities(q, k, cuts=cuts))]
    want = (scipy.spatial.distance.jensenshannon(*maps, base=2, axis=-1) ** 2).mean(axis=-1)
    np.testing.assert_allclose(got[1], want, atol=5e-6)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("mass", ["renormalise", "lost", "cls"])
def test_the_gradient_of_a_strength_is_a_difference_quotient_in_float64(mass, strength):
    q, k, v = projected()
    (stage,) = stages(jaxvit.cut(["registers", "patches"], "registers[0]", heads=[0, 2], mass=mass))
    weight = np.asarray(normal(9, *v.shape))

    def reference(strength):
        maps = plain(exact(q, k), ["registers", "patches"], "registers[0]", [0, 2], mass, strength=strength)
        return (np.einsum("bhts,bshd->bthd", maps, v.astype(np.float64)) * weight).sum()

    quotient = (reference(strength + 1e-5) - reference(strength - 1e-5)) / 2e-5
    np.testing.assert_allclose(slope_of_strength(strength, stage, q, k, v, weight), quotient, rtol=1e-4, atol=1e-4)


@jax.jit
@jax.grad
def slope_of_strength(strength, stage, q, k, v, weight):
    return (attend(q, k, v, cuts=(stage._replace(queries=stage.queries * strength),)) * weight).sum()


def test_all_cuts_of_one_count_are_one_program():
    model, images = tiny.model(), tiny.images(3, seed=78)
    forward._forward.clear_cache()
    for ablation in (
        jaxvit.cut("cls", "registers"),
        jaxvit.cut("patches", "patches[3]", [1], heads=[0], mass="lost"),
        jaxvit.cut(["cls", "registers"], "patches", "0-1", mass="cls"),
        jaxvit.cut([], [], mass="lost"),
    ):
        jaxvit.forward(model, images, ablation)
    assert forward._forward._cache_size() == 1
    assert len(jaxvit.lower(jaxvit.cut("cls", "registers") & jaxvit.cut("patches", "cls"), model, tiny.SIZE).cuts) == 1
    assert len(jaxvit.lower(jaxvit.cut("cls", "registers") & jaxvit.cut("patches", "cls", mass="lost"), model, tiny.SIZE).cuts) == 2


def test_losing_what_all_queries_read_of_a_token_is_zeroing_its_values():
    model, images = tiny.model(), tiny.images(2)
    everyone = ["cls", "registers", "patches"]
    cut = jaxvit.forward(model, images, jaxvit.cut(everyone, "registers[1]", "1-2", heads=[0, 1], mass="lost"))
    zeroed = jaxvit.forward(model, images, jaxvit.zero("registers[1]", "1-2", at="value", heads=[0, 1]))
    np.testing.assert_allclose(cut.tokens, zeroed.tokens, atol=2e-6)
    assert np.abs(np.asarray(cut.tokens - jaxvit.forward(model, images).tokens)).max() > 1e-3


@pytest.mark.parametrize("name", CUTS)
def test_whatever_is_read_off_attention_reports_the_cut(name):
    model, images, ablation = tiny.model(), tiny.images(2), CUTS[name]
    captures = ["attention", "attention_flow"]
    run = jaxvit.forward(model, images, ablation, capture={**dict(zip(captures, captures, strict=True)), "own": own_group_attention})
    maps = np.asarray(run.captured["attention"])
    columns = np.eye(len(tiny.LAYOUT.groups))[tiny.LAYOUT.group_of()]
    np.testing.assert_allclose(run.captured["own"], np.einsum("lbhts,sg->lbthg", maps, columns), atol=2e-6)
    flow = np.einsum("lbhts,sg,tr->lbhrg", maps, columns, columns / columns.sum(axis=0))
    np.testing.assert_allclose(run.captured["attention_flow"], flow, atol=2e-6)
    clean = jaxvit.forward(model, images, capture="attention").captured["attention"]
    assert np.abs(maps - np.asarray(clean)).max() > 1e-3
    captures = {"divergence": "attention_divergence", "maps": both_maps, "again": divergence_again}
    pair = jaxvit.contrast(model, images, ablation, capture=captures)
    uncut = jaxvit.contrast(model, images, jaxvit.Ablation(), capture=captures)
    np.testing.assert_array_equal(pair.clean.tokens, uncut.clean.tokens, "the clean half is that of a contrast without cuts, bit for bit")
    np.testing.assert_allclose(pair.captured["maps"][1], maps, atol=2e-6)
    want = attention.jensen_shannon(pair.captured["maps"][0], pair.captured["maps"][1]).mean(axis=-1)
    np.testing.assert_allclose(pair.captured["divergence"], want, atol=2e-6)
    np.testing.assert_allclose(pair.captured["again"], want, atol=2e-6)
    np.testing.assert_allclose(pair.ablated.tokens, run.tokens, atol=2e-6)
    swept = sweep_layers(model, images, ablation)
    for layer in range(tiny.CONFIG.depth):
        alone = jaxvit.Ablation(tuple(dataclasses.replace(part, layers=(layer,)) for part in ablation.replacements))
        tokens = jaxvit.forward(model, images, alone, example_ids=tiny.ids(2)).tokens
        np.testing.assert_allclose(swept.tokens[layer], tokens, atol=2e-6)


def own_group_attention(state):
    return state.group_attention


def both_maps(clean, ablated):
    return clean.attention, ablated.attention


def divergence_again(clean, ablated):
    return attention.jensen_shannon(clean.attention, ablated.attention).mean(axis=-1)


def test_stacked_conditions_are_their_runs_also_where_some_cut_nothing():
    model, images = tiny.model(), tiny.images(2)
    drawn = jaxvit.cut(jaxvit.random_patches(2, 5), "cls", itself=False) & jaxvit.zero("cls", at="value")
    ablations = [jaxvit.Ablation(), *CUTS.values(), drawn, jaxvit.zero("registers")]
    stacked = jaxvit.stack(ablations, model, tiny.SIZE)
    got = jax.jit(jax.vmap(lambda edits: jaxvit.forward(model, images, edits, example_ids=tiny.ids(2)).tokens))(stacked)
    for tokens, ablation in zip(got, ablations, strict=True):
        np.testing.assert_allclose(tokens, jaxvit.forward(model, images, ablation, example_ids=tiny.ids(2)).tokens, atol=3e-6)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: jaxvit.cut("cls", ["cls", "registers", "patches"]), "no key is left for query 0 in head 0 of block 0"),
        (lambda: jaxvit.cut("cls", "patches", mass="patches[2]"), "is among the keys"),
        (lambda: jaxvit.cut("cls", "patches", mass=jaxvit.random_patches(2)), "random patches receive nothing"),
        (lambda: jaxvit.cut("cls", "registers", mass="normalise"), 'unknown token name "normalise"'),
        (lambda: jaxvit.cut("cls", "registers", heads=[3]), "this model has heads 0 to 2"),
        (lambda: jaxvit.cut("cls", "registers", layers=[3]), "this model has blocks 0 to 2"),
        (lambda: jaxvit.cut("cls", jaxvit.random_patches(99)), "99 random patches asked for"),
        (lambda: jaxvit.cut("class", "registers"), "unknown token name"),
        (lambda: jaxvit.cut("cls", "registers[2]"), "registers are numbered 0 to 1"),
    ],
)
def test_a_cut_that_is_not_possible_is_refused_in_one_line(make, says):
    with pytest.raises(ValueError, match=says.replace("[", r"\[")) as error:
        jaxvit.lower(make(), tiny.CONFIG, tiny.SIZE)
    assert "\n" not in str(error.value)


def test_random_patches_need_example_ids():
    with pytest.raises(ValueError, match="pass example_ids"):
        jaxvit.forward(tiny.model(), tiny.images(2), jaxvit.cut("cls", jaxvit.random_patches(2)))


def test_a_cut_prints_and_goes_through_json():
    ablation = (
        jaxvit.zero("registers", "1-2")
        & jaxvit.cut("cls", "registers")
        & jaxvit.cut(["cls", "patches"], jaxvit.random_patches(2, 9), "1-2", heads=[1], mass=["registers"], itself=False)
    )
    assert str(ablation) == (
        "zero(registers) at block_output of blocks 1-2 & cut(cls -> registers) of all blocks & "
        "cut([cls, patches] -> 2 random patches, heads=[1], mass=[registers], itself=False) of blocks 1-2"
    )
    assert jaxvit.Ablation.from_json(ablation.to_json()) == ablation
    assert json.loads(ablation.to_json())["format"] == 4


@pytest.mark.parametrize("per", [None, "head"])
def test_positions_of_a_call_are_cut_in_every_example(per):
    """One key each, -1 for none; by head, by layer and stacked beside another cut."""
    model, images = tiny.model(), tiny.images(2)
    shape = (3, 2, HEADS, 2) if per else (3, 2, 2)
    numbers = np.random.default_rng(0).integers(-1, TOKENS, shape)
    cut = jaxvit.cut("patches", jaxvit.Positions("sink", per=per), mass="lost", heads=[0, 2])
    given = {"sink": jaxvit.per_layer(numbers)}
    run = jaxvit.forward(model, images, cut, capture="attention", given=given)
    maps = np.asarray(run.captured["attention"])[:, :, :, tiny.LAYOUT.prefix :]  # [L, B, H, patches, S]
    by_head = numbers if per else np.broadcast_to(numbers[:, :, None], (3, 2, HEADS, 2))
    want = np.stack([(by_head == s).any(axis=-1) for s in range(TOKENS)], axis=-1) & np.array([True, False, True])[:, None]
    np.testing.assert_array_equal((maps == 0).all(axis=3), want)
    assert not (maps == 0).any(axis=3)[~want].any()
    other = jaxvit.cut("cls", "registers")
    stacked = jaxvit.stack([cut, other, jaxvit.Ablation()], model, tiny.SIZE)
    got = jax.vmap(lambda edits: jaxvit.forward(model, images, edits, given=given).tokens)(stacked)
    for tokens, ablation, arrays in zip(got, (cut, other, jaxvit.Ablation()), (given, None, None), strict=True):
        np.testing.assert_allclose(tokens, jaxvit.forward(model, images, ablation, given=arrays).tokens, atol=3e-6)
    assert jaxvit.Ablation.from_json(cut.to_json()) == cut
    assert json.loads(cut.to_json())["format"] == 5


def test_positions_of_a_cut_are_checked():
    cut = jaxvit.cut(jaxvit.Positions("readers"), "cls")
    with pytest.raises(ValueError, match='the ablation reads "readers", but nothing was given'):
        jaxvit.forward(tiny.model(), tiny.images(2), cut)
    with pytest.raises(ValueError, match="has number 15; tokens are numbered 0 to 14"):
        jaxvit.forward(tiny.model(), tiny.images(2), cut, given={"readers": [[15], [0]]})
