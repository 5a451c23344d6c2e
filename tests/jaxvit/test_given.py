"""Arrays of a call: patches from another run, tokens that differ between examples, and what is refused."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxvit
from jaxvit import Positions, per_layer
from jaxvit.apply import apply
from jaxvit.forward import sweep_layers
from jaxvit.ops import BlockContext
from jaxvit.sites import HEAD_SITES, SITES, width_at
from tests.draws import normal
from tests.jaxvit import tiny
from tests.jaxvit.ablations import run

forward = importlib.import_module("jaxvit.forward")  # the attribute of the package is the function
LAYER, TOKENS = 1, tiny.LAYOUT.tokens
SINK = np.array([[3, -1], [14, 0]], np.int32)
READ = {site: (lambda state, site=site: getattr(state.trace, site)) for site in SITES}


def runs():
    """A run of two images, and one of two others: every site of it [L, B, T, ...]."""
    model, other = tiny.model(), tiny.images(2, seed=5)
    return model, tiny.images(2), jaxvit.forward(model, other, capture=READ)


def op_and_tokens(ablation, site):
    """The op of one block, and tokens at its site."""
    (op,) = jax.tree.map(lambda leaf: leaf[LAYER], jaxvit.lower(ablation, tiny.CONFIG, tiny.SIZE).ops[site])
    return op, normal(3, 2, TOKENS, *((3, 8) if site in HEAD_SITES else (width_at(site, tiny.CONFIG),)))


def context(**given):
    return BlockContext(jnp.asarray(LAYER), jnp.asarray(tiny.ids(2)), None, None, tiny.LAYOUT, given)


@functools.partial(jax.jit, static_argnames="site")
def applied(ops, x, given, site):
    return apply(ops, x, context(**given), site)


def test_the_input_of_another_run_makes_the_rest_of_it_that_run():
    model, images, other = runs()
    ablation = jaxvit.patch(["cls", "registers", "patches"], "donor", layers=[1], at="block_input")
    out = jaxvit.forward(model, images, ablation, given={"donor": other.captured["block_input"][1]})
    np.testing.assert_allclose(out.tokens, other.tokens, atol=5e-6)


def test_rows_follow_the_order_in_which_tokens_are_given():
    donor = normal(1, 2, 3, 24)
    out = run(jaxvit.patch(["patches[2]", "cls", 4], "donor", [2]), 2, given={"donor": donor}).prenorm
    np.testing.assert_array_equal(out[:, [5, 0, 4]], donor)
    by_group = run(jaxvit.patch(["registers", "cls"], "donor", [2]), 2, given={"donor": donor}).prenorm
    np.testing.assert_array_equal(by_group[:, [1, 2, 0]], donor)


@pytest.mark.parametrize("site", SITES)
def test_per_layer_gives_every_block_its_own_at_every_site(site):
    model, images, other = runs()
    donors = other.captured[site][:, :, 1:3]
    out = jaxvit.forward(model, images, jaxvit.patch("registers", "donor", at=site), capture=READ, given={"donor": per_layer(donors)})
    np.testing.assert_array_equal(out.captured[site][:, :, 1:3], donors)
    assert np.abs(out.captured[site][1, :, 0] - other.captured[site][1, :, 0]).max() > 0.1


def test_positions_are_those_of_each_example_and_rows_follow_their_order():
    donor = normal(1, 2, 2, 24)
    clean = np.asarray(run(None, 2).prenorm)
    out = np.asarray(run(jaxvit.patch(Positions("sink"), "donor", [2]), 2, given={"sink": SINK, "donor": donor}).prenorm)
    want = clean.copy()
    want[0, 3], want[1, 14], want[1, 0] = donor[0, 0], donor[1, 0], donor[1, 1]
    np.testing.assert_array_equal(out, want)
    by_layer = np.stack([np.full_like(SINK, -1), np.full_like(SINK, -1), SINK])
    zeroed = np.asarray(run(jaxvit.zero(Positions("sink")), 2, given={"sink": per_layer(by_layer)}).prenorm)
    np.testing.assert_array_equal(zeroed, np.where(want == clean, clean, 0))


def test_positions_of_every_kind_are_that_kind_at_those_tokens():
    """Example by example: the numbers of an example as positions of the ablation."""
    moments = tiny.statistics()
    kinds = {
        "constant": lambda tokens: jaxvit.constant(tokens, np.arange(24), [LAYER]),
        "mean": lambda tokens: jaxvit.mean(tokens, moments, [LAYER]),
        "noise": lambda tokens: jaxvit.noise(tokens, moments, 3, [LAYER]),
        "shuffle": lambda tokens: jaxvit.shuffle(tokens, 3, [LAYER]),
    }
    ablations = [make(tokens) for make in kinds.values() for tokens in (Positions("sink"), [3], [0, 14])]
    edits = jaxvit.stack(ablations, tiny.model(), tiny.SIZE)
    ids = tiny.ids(2)
    model, images, given = tiny.model(), tiny.images(2), {"sink": SINK}
    out = jax.vmap(lambda e: jaxvit.forward(model, images, e, "block_output", ids, given=given))(edits)
    after = np.asarray(out.captured["block_output"])[:, LAYER].reshape(len(kinds), 3, 2, TOKENS, 24)
    for kind, (chosen, first, second) in zip(kinds, after, strict=True):
        np.testing.assert_allclose(chosen, [first[0], second[1]], atol=5e-6, err_msg=kind)


@pytest.mark.parametrize("site", ["query", "head_output"])
def test_positions_per_head_are_other_tokens_in_every_head(site):
    numbers = np.array([[[3, -1], [0, 5], [-1, -1]], [[14, 0], [1, -1], [2, 2]]], np.int32)
    donor = normal(1, 2, 2, 24)
    ablation = jaxvit.patch(Positions("sink", per="head"), "donor", at=site)
    op, x = op_and_tokens(ablation, site)
    want = np.array(x)
    for example, head, number in np.ndindex(2, 3, 2):
        if (token := numbers[example, head, number]) >= 0 and token not in numbers[example, head, :number]:
            want[example, token, head] = np.asarray(donor).reshape(2, 2, 3, 8)[example, number, head]
    got = applied((op,), x, {"sink": numbers, "donor": donor}, site)
    np.testing.assert_array_equal(got, want)


def test_a_donor_is_an_argument_of_one_program_that_can_be_differentiated_and_mapped():
    model, images = tiny.model(), tiny.images(3, seed=79)
    forward._forward.clear_cache()
    for number, tokens in enumerate((["cls", "registers[0]"], [3, 4], ["patches[7]", 0])):
        for layers in ("all", [1]):
            jaxvit.forward(model, images, jaxvit.patch(tokens, "donor", layers), given={"donor": normal(number, 3, 2, 24)})
    assert forward._forward._cache_size() == 1
    ablation, weight = jaxvit.patch("registers", "donor", [0]), normal(9, 3, TOKENS, 24)

    def loss(donor):
        return (jaxvit.forward(model, images, ablation, given={"donor": donor}).tokens * weight).sum()

    donors = normal(2, 4, 3, 2, 24)
    gradient = jax.jit(jax.grad(loss))(donors[0])
    direction = normal(3, 3, 2, 24)
    quotient = (loss(donors[0] + 1e-2 * direction) - loss(donors[0] - 1e-2 * direction)) / 2e-2
    np.testing.assert_allclose((gradient * direction).sum(), quotient, rtol=0.01)
    np.testing.assert_allclose(jax.vmap(loss)(donors), [loss(donor) for donor in donors], rtol=1e-4)


def test_stacked_conditions_share_the_arrays_of_a_call():
    model, images, donor = tiny.model(), tiny.images(2), normal(1, 2, 1, 24)
    ablations = [
        jaxvit.patch("cls", "donor"),
        jaxvit.Ablation(),
        jaxvit.zero(Positions("sink"), [0]) & jaxvit.patch("registers[1]", "donor", [1]),
        jaxvit.zero("registers"),
    ]
    given = {"donor": donor, "sink": SINK}
    reads = [{"donor"}, set(), {"donor", "sink"}, set()]
    edits = jaxvit.stack(ablations, model, tiny.SIZE)
    out = jax.vmap(lambda e: jaxvit.forward(model, images, e, given=given).tokens)(edits)
    for got, ablation, names in zip(out, ablations, reads, strict=True):
        alone = jaxvit.forward(model, images, ablation, given={name: given[name] for name in names}).tokens
        np.testing.assert_allclose(got, alone, atol=5e-6)


def test_a_sweep_and_a_contrast_read_the_same_arrays():
    model, images, other = runs()
    given = {"donor": per_layer(other.captured["block_output"][:, :, :1]), "sink": SINK}

    def ablation(**where):
        return jaxvit.patch("cls", "donor", **where) & jaxvit.zero(Positions("sink"), at="value", **where)

    swept = sweep_layers(model, images, ablation(), given=given)
    for layer in range(3):
        alone = jaxvit.forward(model, images, ablation(layers=[layer]), given=given)
        np.testing.assert_allclose(swept.prenorm[layer], alone.prenorm, atol=5e-6)
    pair = jaxvit.contrast(model, images, ablation(), given=given)
    np.testing.assert_allclose(pair.ablated.tokens, jaxvit.forward(model, images, ablation(), given=given).tokens, atol=5e-6)
    np.testing.assert_allclose(pair.clean.tokens, jaxvit.forward(model, images).tokens, atol=5e-6)


@pytest.mark.parametrize("site", ["block_output", "value"])
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_the_gradient_of_the_mask_of_a_patch_is_donor_minus_token(site, strength):
    op, x = op_and_tokens(jaxvit.patch(["patches[2]", "cls"], "donor", at=site), site)
    donor, weight = normal(1, 2, 2, 24), normal(4, *x.shape)

    def loss(mask):
        return (apply((dataclasses.replace(op, mask=mask),), x, context(donor=donor), site) * weight).sum()

    gradient = np.asarray(jax.jit(jax.grad(loss))(np.asarray(op.mask) * np.float32(strength)))
    flat_x, flat_weight = (np.asarray(a, np.float64).reshape(2, TOKENS, 24)[:, [5, 0]] for a in (x, weight))
    want = (flat_weight * (np.asarray(donor, np.float64) - flat_x)).sum(axis=(0, 2))
    np.testing.assert_allclose(gradient[[5, 0]], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("site", ["block_output", "value"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_and_not_used_of_a_donor_reaches_neither_result_nor_gradient(site, bad):
    op, x = op_and_tokens(jaxvit.patch(Positions("sink"), "donor", at=site), site)
    donor, flat = np.ones((2, 2, 24), np.float32), np.array(x).reshape(2, TOKENS, 24)
    donor[0, 1], flat[0, 3] = bad, bad  # the number of that row is -1

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1), has_aux=True)
    def of_sum(flat, donor):
        y = apply((op,), flat.reshape(x.shape), context(sink=jnp.asarray(SINK), donor=donor), site)
        return y.sum(), y

    (to_x, to_donor), got = of_sum(flat, donor)
    want, donor_counts, x_counts = flat.copy(), np.ones_like(donor), np.ones_like(flat)
    want[0, 3], want[1, [14, 0]] = 1, 1
    donor_counts[0, 1], x_counts[0, 3], x_counts[1, [14, 0]] = 0, 0, 0
    np.testing.assert_array_equal(np.asarray(got).reshape(want.shape), want)
    np.testing.assert_array_equal(to_donor, donor_counts)
    np.testing.assert_array_equal(to_x, x_counts)


def test_json_and_print_name_arrays_and_hold_none():
    ablation = jaxvit.patch(["registers[1]", 0], "donor", [1], "value", heads=[2]) & jaxvit.zero(Positions("sink", per="head"), at="key")
    assert jaxvit.Ablation.from_json(ablation.to_json()) == ablation
    assert not ablation.arrays
    assert str(ablation) == (
        'patch([registers[1], 0], "donor", heads=[2]) at value of block 1 & zero(tokens of "sink" per head) at key of all blocks'
    )
    assert jaxvit.zero(Positions("sink")) != jaxvit.zero(Positions("peak"))


PATCH, ZERO = jaxvit.patch(["cls", 3], "donor"), jaxvit.zero(Positions("sink"))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: run(PATCH, 2), r'reads "donor", but nothing was given; pass given={"donor": array}: .*\[batch 2, tokens 2, channels 24\]'),
        (lambda: run(PATCH, 2, given={"doner": 0}), 'reads "donor", but given has only "doner"'),
        (lambda: run(None, 2, given={"donor": 0}), 'given has "donor", but the ablation reads nothing that is given; leave it out'),
        (lambda: run(PATCH, 2, given={"donor": np.ones((2, 2, 24)), "b": 1}), 'given has "b", but the ablation reads only "donor"'),
        (
            lambda: run(PATCH, 2, given={"donor": np.ones((2, 3, 24))}),
            r"has shape \[2, 3, 24\] .* takes \[batch 2, tokens 2, channels 24\]",
        ),
        (lambda: run(PATCH, 2, given={"donor": np.ones((3, 2, 2, 24))}), r"or per_layer\(array\) with the blocks in front"),
        (lambda: run(PATCH, 2, given={"donor": per_layer(np.ones((2, 2, 24)))}), r"per layer .* \(3 blocks\)"),
        (lambda: run(PATCH, 2, given={"donor": "donor"}), 'given\\["donor"\\] is no array but str'),
        (lambda: run(PATCH, 2, given=np.ones((2, 2, 24))), "given is a dictionary"),
        (lambda: run(ZERO, 2, given={"sink": np.ones((2, 2))}), "type float32, but Positions .* takes whole numbers"),
        (lambda: run(ZERO, 2, given={"sink": np.ones((2, 0), int)}), r"shape \[2, 0\]"),
        (lambda: run(ZERO, 2, given={"sink": np.full((2, 1), 15)}), "has number 15; tokens are numbered 0 to 14, and -1 selects none"),
        (lambda: run(ZERO, 2, given={"sink": np.full((2, 1), -2)}), "has number -2"),
        (
            lambda: run(jaxvit.patch(Positions("s"), "d"), 2, given={"s": SINK, "d": np.ones((2, 1, 24))}),
            'given\\["d"\\] has 1 tokens, given\\["s"\\] 2 numbers',
        ),
        (lambda: run(jaxvit.zero(Positions("s", per="head"), at="key"), 2, given={"s": SINK}), r"\[batch 2, heads 3, tokens\]"),
        (lambda: jaxvit.zero(Positions("sink", per="head")), r'not possible at "block_output"; heads are apart at query'),
        (lambda: Positions("sink", per="layer"), 'per="head" reads numbers'),
        (lambda: Positions(["sink"]), "Positions takes the name of an array of the call"),
        (lambda: jaxvit.patch("cls", np.ones((2, 1, 24))), 'patch takes the name of an array of the call, such as "donor"'),
        (lambda: jaxvit.lower(jaxvit.patch(["cls", 0], "donor"), tiny.CONFIG, 16), "position 0 is selected twice"),
        (lambda: jaxvit.lower(jaxvit.patch([], "donor"), tiny.CONFIG, 16), "select at least one token"),
        (lambda: jaxvit.patch(jaxvit.random_patches(2), "donor"), "2 random patches is not possible: they have no order"),
        (lambda: jaxvit.lower(jaxvit.constant(Positions("s"), np.ones((2, 24))), tiny.CONFIG, 16), r"shape \(2, 24\) does not fit"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_that_says_what_to_do(make, says):
    with pytest.raises(ValueError, match=says) as error:
        make()
    assert "\n" not in str(error.value)


def test_two_devices_give_the_results_of_one_and_keep_the_batch_split():
    """In a process of its own, which has two devices."""
    script = """
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 2)
from jax.sharding import NamedSharding, PartitionSpec as P
import jaxvit
from jaxvit import Positions, per_layer
from jaxvit.sharding import batch_mesh, replicate, split
from tests.draws import normal
from tests.jaxvit import tiny
mesh = batch_mesh()
assert mesh.size == 2
model, images, donor = tiny.model(), tiny.images(4), normal(1, 3, 4, 2, 24)
sink = np.array([[3, -1], [14, 0], [1, 2], [-1, 5]], np.int32)
ablation = jaxvit.patch("registers", "donor") & jaxvit.patch(Positions("sink"), "own", at="value") & jaxvit.zero(Positions("sink"), [2])
one = jaxvit.forward(model, images, ablation, given={"donor": per_layer(donor), "own": donor[0], "sink": sink}, capture="block_output")
halves = {"own": split(donor[0], mesh), "sink": split(sink, mesh)}
halves["donor"] = per_layer(jax.device_put(donor, NamedSharding(mesh, P(None, "batch"))))
two = jaxvit.forward(replicate(model, mesh), split(images, mesh), ablation, given=halves, capture="block_output")
assert two.tokens.sharding.spec[0] == "batch", two.tokens.sharding
np.testing.assert_allclose(two.tokens, one.tokens, atol=5e-6)
np.testing.assert_array_equal(two.captured["block_output"][:2, :, 1:3], donor[:2])
program = jax.jit(lambda m, x, g: jaxvit.forward(m, x, ablation, given=g).tokens)
text = program.lower(replicate(model, mesh), split(images, mesh), halves).compile().as_text()
assert not any(word in text for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute")), "devices exchange something"
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
