"""`add`, `scale`, `swap`, and edits that keep a token's own norm: against NumPy in float64 at every site, and their gradients."""

from __future__ import annotations

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxvit
from jaxvit.apply import apply
from jaxvit.ops import BlockContext
from jaxvit.sites import HEAD_SITES, SITES, width_at
from tests.draws import normal
from tests.jaxvit import tiny
from tests.jaxvit.ablations import run, statistics

forward = importlib.import_module("jaxvit.forward")  # the attribute of the package is the function
LAYER, TOKENS = 1, tiny.LAYOUT.tokens
CHOSEN = {"heads": [1]}, {"channels": [0, 5, 7]}
ORDER = ["registers[1]", "cls", "patches[2]"]
ROWS = [2, 0, 5]  # their positions


def of_block(ablation, site):
    return jax.tree.map(lambda leaf: leaf[LAYER], jaxvit.lower(ablation, tiny.CONFIG, tiny.SIZE).ops[site])


def context(**given):
    return BlockContext(jnp.asarray(LAYER), jnp.asarray(tiny.ids(2)), None, None, tiny.LAYOUT, given)


@functools.partial(jax.jit, static_argnames="site")
def applied(ops, x, site="block_output", given=None):
    return apply(ops, x, context(**(given or {})), site)


def tokens_at(site, seed=3):
    return normal(seed, 2, TOKENS, *((3, 8) if site in HEAD_SITES else (width_at(site, tiny.CONFIG),)))


def double(x):
    """[B, T, C] in float64."""
    return np.asarray(x, np.float64).reshape(2, TOKENS, -1)


def chosen_at(site, width):
    return np.isin(np.arange(width), range(8, 16) if site in HEAD_SITES else [0, 5, 7])


def edits(site, norm=None):
    """Every kind at a site: (ablation, what the tokens become before any rescaling, as a function of them in float64)."""
    width = width_at(site, tiny.CONFIG)
    (where,) = [where for where in CHOSEN if ("heads" in where) == (site in HEAD_SITES)]
    where = {"at": site, "norm": norm, **where}
    vectors, donor = np.asarray(normal(8, 3, width)), np.asarray(normal(9, 2, 3, width))
    rows = [0, 2, 5]  # constants follow positions

    def at(rows, values):
        def changed(x):
            y = x.copy()
            y[:, rows] = values(x) if callable(values) else values
            return y

        return changed

    found = {
        "constant": (jaxvit.constant(ORDER, vectors, **where), at(rows, vectors)),
        "add": (jaxvit.add(ORDER, vectors, -1.5, **where), at(rows, lambda x: x[:, rows] - 1.5 * vectors)),
        "swap": (jaxvit.swap(["registers[1]", 0], ["patches[2]", 4], **where), at([2, 0, 5, 4], lambda x: x[:, [5, 4, 2, 0]])),
        "shuffle": (jaxvit.shuffle(ORDER, **where), at(rows, lambda x: x[::-1, rows])),
        "patch": (jaxvit.patch(ORDER, "donor", **where), at(ROWS, donor)),
    }
    if norm is None:
        del where["norm"]
        found["scale"] = (jaxvit.scale(ORDER, -0.5, **where), at(rows, lambda x: -0.5 * x[:, rows]))
    return found, {"donor": jnp.asarray(donor)}


def rescaled(new, x, chosen, heads):
    """Tokens `new` in the norm of `x`, head by head over the chosen channels."""
    y = new.copy()
    width = x.shape[-1] // heads
    for head in range(heads):
        part = chosen & (np.arange(x.shape[-1]) // width == head)
        if part.any():
            old, own = (np.linalg.norm(a[..., part], axis=-1, keepdims=True) for a in (x, new))
            y[..., part] = np.where(own > 0, new[..., part] / np.where(own > 0, own, 1) * old, 0)
    return y


@functools.partial(jax.jit, static_argnames="site")
def by_strength(ops, strengths, x, weight, site, given):
    """For every kind of edit, at every strength: the gradient of the mask, and the tokens."""

    def one(strength, op):
        def loss(mask):
            y = apply((dataclasses.replace(op, mask=mask),), x, context(**given), site)
            return (y * weight).sum(), y

        return jax.grad(loss, has_aux=True)(op.mask * strength)

    return {kind: jax.vmap(one, (0, None))(strengths, op) for kind, op in ops.items()}


@pytest.mark.parametrize("norm", [None, "own"])
@pytest.mark.parametrize("site", SITES)
def test_every_kind_at_every_site_is_numpys_and_so_is_the_gradient_of_its_mask(site, norm):
    x, weight = tokens_at(site), tokens_at(site, seed=4)
    chosen = chosen_at(site, width_at(site, tiny.CONFIG))
    table, given = edits(site, norm)
    ops = {kind: of_block(ablation, site)[0] for kind, (ablation, _) in table.items()}
    strengths = np.array([0.0, 0.5, 1.0], np.float32)
    found = by_strength(ops, strengths, x, weight, site, given)
    for kind, (_, changed) in table.items():
        touched = np.asarray(ops[kind].mask) > 0
        target = changed(double(x))
        if norm:
            target = rescaled(target, double(x), chosen, 3 if site in HEAD_SITES else 1)
        difference = chosen * (target - double(x))
        slope = (double(weight) * difference).sum(axis=(0, 2))
        for strength, gradient, y in zip(strengths, *map(np.asarray, found[kind]), strict=True):
            np.testing.assert_allclose(double(y), double(x) + strength * difference, atol=2e-6, err_msg=kind)
            np.testing.assert_allclose(gradient[touched], slope[touched], rtol=1e-4, atol=2e-5, err_msg=kind)


def test_noise_of_a_tokens_own_norm_is_another_direction_at_its_length():
    moments, x = statistics(), tokens_at("block_output")
    drawn = [double(applied(of_block(jaxvit.noise("cls", moments, seed, norm="own"), "block_output"), x)) for seed in (1, 2)]
    for after in drawn:
        np.testing.assert_allclose(np.linalg.norm(after[:, 0], axis=-1), np.linalg.norm(double(x)[:, 0], axis=-1), rtol=1e-5)
        np.testing.assert_array_equal(after[:, 1:], double(x)[:, 1:])
    plain = double(applied(of_block(jaxvit.noise("cls", moments, 1), "block_output"), x))[:, 0]
    cosine = (plain * drawn[0][:, 0]).sum(-1) / np.linalg.norm(plain, axis=-1) / np.linalg.norm(drawn[0][:, 0], axis=-1)
    np.testing.assert_allclose(cosine, 1, rtol=1e-6)
    assert np.abs(drawn[0] - drawn[1]).max() > 0.1


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_norms_are_right_at_any_scale(scale):
    x, vector = np.asarray(tokens_at("block_output")) * np.float32(scale), np.asarray(normal(8, 24))
    ops = of_block(jaxvit.constant("cls", vector, norm="own"), "block_output")
    want = rescaled(np.broadcast_to(vector.astype(np.float64), (2, TOKENS, 24)), double(x), True, 1)
    np.testing.assert_allclose(double(applied(ops, x))[:, 0], want[:, 0], rtol=1e-5)


def test_what_is_zero_or_replaces_zero_is_zero_with_a_finite_gradient():
    ops = of_block(jaxvit.patch(["cls", "registers[0]"], "donor", norm="own"), "block_output")
    x, donor = np.array(tokens_at("block_output")), np.array(normal(9, 2, 2, 24))
    x[:, 0], donor[:, 1] = 0, 0

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1), has_aux=True)
    def of_sum(x, donor):
        y = apply(ops, x, context(donor=donor))
        return y.sum(), y

    gradients, y = of_sum(x, donor)
    np.testing.assert_array_equal(y[:, :2], 0)
    for gradient in gradients:
        assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("site", ["block_output", "value"])
def test_the_gradient_of_a_rescaled_token_is_a_difference_quotient(site):
    (op,) = of_block(jaxvit.patch(ORDER, "donor", at=site, norm="own"), site)
    arguments, weight = (np.asarray(tokens_at(site)), np.asarray(normal(9, 2, 3, 24))), tokens_at(site, seed=4)

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def loss_and_gradients(x, donor):
        return (apply((op,), x, context(donor=donor), site) * weight).sum()

    directions = [np.asarray(normal(20 + i, *a.shape)) for i, a in enumerate(arguments)]
    _, gradients = loss_and_gradients(*arguments)
    up, down = (
        loss_and_gradients(*(a + np.float32(step) * d for a, d in zip(arguments, directions, strict=True))) for step in (1e-2, -1e-2)
    )
    slope = sum(float((np.asarray(g) * d).sum()) for g, d in zip(gradients, directions, strict=True))
    np.testing.assert_allclose(slope, (float(up[0]) - float(down[0])) / 2e-2, rtol=0.01)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("norm", [None, "own"])
def test_what_is_not_finite_and_not_used_reaches_neither_result_nor_gradient(bad, norm):
    x, donor = np.array(tokens_at("block_output")), np.ones((2, 2, 24), np.float32)
    x[:, 0, 0], donor[:, :, 3] = bad, bad  # a token that is left alone, and a channel that is not chosen
    for ablation in (
        jaxvit.patch(["registers[0]", 4], "donor", channels=[1, 2], norm=norm),
        jaxvit.swap("registers[0]", 4, channels=[1, 2], norm=norm),
        jaxvit.add("registers[0]", donor[0, 0], channels=[1, 2], norm=norm),
    ):
        (op,) = of_block(ablation, "block_output")

        @jax.jit
        @functools.partial(jax.value_and_grad, argnums=(0, 1, 2))
        def total(x, donor, mask, op=op):
            y = apply((dataclasses.replace(op, mask=mask),), x, context(donor=donor))
            return y[:, 1:].sum()

        value, gradients = total(x, donor, op.mask)
        to_x, to_donor, to_mask = map(np.asarray, gradients)
        assert np.isfinite(value)
        assert all(np.all(np.isfinite(gradient)) for gradient in (to_x[:, 1:], to_donor, to_mask[1:]))
        assert not to_x[:, 0].any()


def test_masks_vectors_and_strengths_of_one_structure_are_one_program():
    model, images = tiny.model(), tiny.images(3, seed=80)
    forward._forward.clear_cache()
    for make in (
        lambda tokens, layers, n: jaxvit.add(tokens, np.full(24, n), n, layers),
        lambda tokens, layers, n: jaxvit.scale(tokens, n, layers),
        lambda tokens, layers, n: jaxvit.swap(tokens, [5 + n], layers, at="value"),
        lambda tokens, layers, n: jaxvit.constant(tokens, np.full(24, n), layers, norm="own"),
    ):
        before = forward._forward._cache_size()
        for n, (tokens, layers) in enumerate(((["cls"], "all"), ([2], [1]), (["registers[0]"], "0-1"))):
            jaxvit.forward(model, images, make(tokens, layers, n))
        assert forward._forward._cache_size() == before + 1


def test_stacked_conditions_are_the_single_ones_and_edits_apply_in_turn():
    vector = np.linspace(-1, 1, 24)
    ablations = [
        jaxvit.scale("cls", 2) & jaxvit.add("cls", vector),
        jaxvit.add("cls", vector) & jaxvit.scale("cls", 2),
        jaxvit.zero("cls") & jaxvit.swap("cls", "registers[0]", [1]) & jaxvit.constant("cls", vector, [0], norm="own"),
        jaxvit.constant("cls", vector, norm="own", channels=[3]),
        jaxvit.Ablation(),
    ]
    edits = jaxvit.stack(ablations, tiny.model(), tiny.SIZE)
    out = jax.vmap(lambda e: jaxvit.forward(tiny.model(), tiny.images(), e).tokens)(edits)
    for got, ablation in zip(out, ablations, strict=True):
        np.testing.assert_allclose(got, run(ablation).tokens, atol=5e-6)
    last = jaxvit.add("cls", vector, layers=[2]) & jaxvit.scale("cls", 2, [2]) & jaxvit.swap("cls", 1, [2])
    clean = np.asarray(run(None).prenorm)
    np.testing.assert_allclose(run(last).prenorm[:, 1], 2 * (clean[:, 0] + vector), atol=5e-6)


def test_json_and_print_say_all_of_it():
    ablation = jaxvit.add("cls", np.ones(24), -2.5, [1]) & jaxvit.scale("registers", 0.5, at="value", heads=[1])
    ablation = ablation & jaxvit.swap(["registers[1]", 0], [5, "patches[4]"]) & jaxvit.constant(3, np.ones(24), norm="own")
    assert jaxvit.Ablation.from_json(ablation.to_json(), ablation.arrays) == ablation
    assert str(ablation) == (
        "add(cls, strength=-2.5) at block_output of block 1 & scale(registers, factor=0.5, heads=[1]) at value of all blocks & "
        "swap([registers[1], 0], [5, patches[4]]) at block_output of all blocks & "
        'constant(3, norm="own") at block_output of all blocks'
    )
    different = [jaxvit.swap([1, 2], [5, 6]), jaxvit.swap([2, 1], [5, 6]), jaxvit.scale(1, 2), jaxvit.scale(1, 3)]
    assert len({a.to_json() for a in different}) == len(set(different)) == 4


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: jaxvit.zero("cls", norm="own"), 'zero has no direction that norm="own" could give a length; use constant'),
        (lambda: jaxvit.scale("cls", 2, norm="own"), "would take back what it does; leave norm out"),
        (lambda: jaxvit.mean("cls", statistics(), norm="l2"), "norm='l2' is not possible; norm=\"own\" gives"),
        (lambda: jaxvit.add("cls", np.ones(24), "2"), "strength is a finite number, such as strength=2; got '2'"),
        (lambda: jaxvit.scale("cls", np.nan), "factor is a finite number"),
        (lambda: jaxvit.scale("cls", np.ones(24)), "factor is a finite number"),
        (lambda: jaxvit.lower(jaxvit.add("cls", np.ones(5)), tiny.CONFIG, 16), r"an added vector of shape \(5,\) does not fit 1 tokens"),
        (lambda: jaxvit.lower(jaxvit.swap("cls", "registers"), tiny.CONFIG, 16), "as many tokens as partners, got 1 and 2"),
        (lambda: jaxvit.lower(jaxvit.swap([0, 1], [2, 0]), tiny.CONFIG, 16), "position 0 is on both sides of a swap"),
        (lambda: jaxvit.lower(jaxvit.swap([0, "cls"], [2, 3]), tiny.CONFIG, 16), "position 0 is selected twice"),
        (lambda: jaxvit.swap("cls", "registre"), "unknown token name"),
        (lambda: jaxvit.swap("cls", jaxvit.random_patches(1)), "swap of 1 random patches is not possible; select tokens"),
        (lambda: jaxvit.swap(jaxvit.Positions("sink"), "cls"), 'swap of tokens of "sink" is not possible'),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_that_says_what_to_do(make, says):
    with pytest.raises(ValueError, match=says) as error:
        make()
    assert "\n" not in str(error.value)
