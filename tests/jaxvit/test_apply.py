"""What ops do to tokens: their order, and the draws of shuffle, noise and random patches."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxvit
from jaxvit.apply import apply
from jaxvit.ops import BlockContext
from tests.jaxvit import tiny
from tests.jaxvit.ablations import STREAM_SITE, any_ablations, run, statistics


@settings(max_examples=10)  # nearly each is a program of its own
@given(any_ablations(STREAM_SITE), any_ablations(STREAM_SITE))
def test_composition_applies_the_second_after_the_first(first, second):
    """At the last block's output nothing runs afterwards, so applying in order can be done by two calls."""
    first, second = (jaxvit.Ablation(tuple(_at_the_end(r) for r in a.replacements)) for a in (first, second))
    both = run(first & second).prenorm
    one = run(first).prenorm
    ops = jaxvit.lower(second, tiny.model(), tiny.SIZE).ops["block_output"]
    context = BlockContext(jnp.asarray(2), jnp.asarray(tiny.ids()), None, None, tiny.LAYOUT)
    in_order = jax.jit(apply)(jax.tree.map(lambda leaf: leaf[2], ops), one, context)
    np.testing.assert_allclose(both, in_order, atol=1e-6)


def _at_the_end(r):
    moved = dataclasses.replace(r, layers=(2,), at="block_output")
    if r.kind in ("mean", "noise"):
        source = jaxvit.noise(r.tokens, statistics()).replacements[0]
        moved = dataclasses.replace(moved, value=source.value, deviation=source.deviation if r.kind == "noise" else None)
    return moved


@given(st.integers(0, 2**32 - 1), st.sampled_from(["cls", "registers", "patches[0]", [1, 4]]), st.sampled_from([2, 3, 6]))
def test_shuffle_moves_only_the_chosen_tokens_and_never_onto_themselves(seed, tokens, batch):
    clean, moved = run(None, batch).prenorm, run(jaxvit.shuffle(tokens, seed, [2]), batch).prenorm
    chosen = list(tiny.LAYOUT.positions(tokens))
    others = [p for p in range(tiny.LAYOUT.tokens) if p not in chosen]
    np.testing.assert_array_equal(clean[:, others], moved[:, others])
    donors = [int(np.argmin(np.abs(clean[:, chosen] - moved[i, chosen]).max(axis=(1, 2)))) for i in range(batch)]
    np.testing.assert_array_equal(moved[:, chosen], clean[np.array(donors)][:, chosen])
    assert all(d != i for i, d in enumerate(donors))
    assert sorted(donors) == list(range(batch)), "one cycle: everybody donates once"


def _donors(clean, moved):
    """Whose CLS an example has at the last block's output."""
    return [int(np.argmin(np.abs(clean[:, 0] - moved[i, 0]).max(axis=-1))) for i in range(len(moved))]


@given(st.integers(0, 2**32 - 1), st.permutations([7, 7, 7, -2, -2, 3, 3, 3]))
def test_shuffle_stays_within_groups_whatever_else_is_in_the_batch(seed, groups):
    """A group is shuffled as it is when it is the whole batch: by the examples' ids alone."""
    groups = np.array(groups)
    ablation = jaxvit.shuffle("cls", seed, [2])
    clean, moved = run(None, 8).prenorm, run(ablation, 8, groups=groups).prenorm
    donors = np.array(_donors(clean, moved))
    assert (groups[donors] == groups).all()
    assert sorted(donors) == list(range(8))
    assert (donors != np.arange(8)).all()
    ids = jaxvit.forward(tiny.model(), tiny.images(8)[groups == 7], ablation, example_ids=tiny.ids(8)[groups == 7]).prenorm
    np.testing.assert_array_equal(np.flatnonzero(groups == 7)[_donors(clean[groups == 7], ids)], donors[groups == 7])


def test_padding_donates_in_no_group():
    valid = np.array([True, True, False, True, True, True, False, True])
    groups = np.array([0, 0, 0, 1, 1, 1, 1, 0])
    ablation = jaxvit.shuffle("cls", 5, [2])
    clean, moved = run(None, 8).prenorm, run(ablation, 8, groups=groups, valid=valid).prenorm
    donors = np.array(_donors(clean, moved))
    assert (donors[~valid] == np.flatnonzero(~valid)).all()
    assert valid[donors[valid]].all()
    assert (groups[donors] == groups).all()


def test_one_donor_gives_its_tokens_at_all_layers():
    orders = {same: [tuple(order) for order in _orders(jaxvit.shuffle("cls", seed=3, same_donor=same))] for same in (False, True)}
    assert len(set(orders[False])) > 1
    assert len(set(orders[True])) == 1


def _orders(ablation):
    """Whose CLS an example has after each block."""
    capture = {"in": lambda s: s.trace.block_input, "out": lambda s: s.stream_out}
    out = run(ablation, 6, capture=capture)
    model = tiny.model()
    orders = []
    for layer in range(3):
        block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], model.blocks)
        unshuffled = block(out.captured["in"][layer], None).block_output[:, 0]
        distance = np.abs(out.captured["out"][layer][:, None, 0] - unshuffled[None]).max(axis=-1)
        orders.append(np.argmin(distance, axis=1))
    return orders


def test_noise_is_drawn_by_example_and_layer_with_the_calibrated_moments():
    at = [0, 2]
    noisy = run(jaxvit.noise("registers", statistics(), seed=1, layers=at), 64, capture="registers").captured["registers"]
    again = jaxvit.forward(
        tiny.model(),
        tiny.images(64)[::-1],
        ablation=jaxvit.noise("registers", statistics(), seed=1, layers=at),
        example_ids=tiny.ids(64)[::-1],
        capture="registers",
    ).captured["registers"][:, ::-1]
    np.testing.assert_array_equal(noisy[0], again[0])
    mean, variance = (getattr(statistics(), m)["block_output"][at, 1:3] for m in ("mean", "variance"))
    standard = (noisy[jnp.asarray(at)] - mean[:, None]) / np.sqrt(variance)[:, None]
    assert abs(float(standard.mean())) < 4 / np.sqrt(standard.size)
    assert abs(float(standard.std()) - 1) < 4 / np.sqrt(2 * standard.size)
    assert np.abs(np.corrcoef(standard[0].ravel(), standard[1].ravel())[0, 1]) < 0.06


@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_random_patches_are_as_many_as_asked_and_the_same_at_all_layers(count, seed):
    out = run(jaxvit.zero(jaxvit.random_patches(count, seed)), capture="block_output").captured["block_output"]
    zeroed = ~np.any(np.asarray(out), axis=-1)
    assert np.all(zeroed[:, :, : tiny.LAYOUT.prefix] == 0)
    assert np.all(zeroed.sum(axis=-1) == count)
    assert np.all(zeroed == zeroed[0])


def test_random_patches_differ_between_examples_and_seeds():
    def zeroed(seed):
        out = run(jaxvit.zero(jaxvit.random_patches(3, seed), [2]), 16)
        return ~np.any(np.asarray(out.prenorm), axis=-1)

    assert len({tuple(row) for row in zeroed(0)}) > 8
    assert np.any(zeroed(0) != zeroed(1))
