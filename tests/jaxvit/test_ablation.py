"""Claims about ablations: what they change, what they leave alone, and that every route to them agrees."""

from __future__ import annotations

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxvit
from tests.jaxvit import tiny

engine = importlib.import_module("jaxvit.forward")


@functools.cache
def statistics() -> jaxvit.Statistics:
    return tiny.statistics(sites=("block_input", "attention_output", "mlp_output", "block_output"))


def run(ablation, batch=4, **more):
    more = {"example_ids": tiny.ids(batch)} | more
    return jaxvit.forward(tiny.model(), tiny.images(batch), ablation=ablation, **more)


selectors = st.sampled_from(["cls", "registers", "registers[1]", "patches", "patches[3]", ["cls", "registers[0]"], [0, 5], 2])
layers = st.one_of(st.just("all"), st.lists(st.integers(0, 2), unique=True))
sites = st.sampled_from(["block_output", "block_input", "attention_output", "mlp_output"])


@st.composite
def constant_ablations(draw):
    tokens, where, at = draw(selectors), draw(layers), draw(sites)
    kind = draw(st.sampled_from(["zero", "mean", "constant"]))
    if kind == "zero":
        return jaxvit.zero(tokens, where, at)
    if kind == "mean":
        return jaxvit.mean(tokens, statistics(), where, at)
    return jaxvit.constant(tokens, np.linspace(-1, draw(st.floats(-2, 2)), tiny.CONFIG.width), where, at)


@st.composite
def any_ablations(draw):
    if draw(st.booleans()):
        return draw(constant_ablations())
    tokens, where, at, seed = draw(selectors), draw(layers), draw(sites), draw(st.integers(0, 2**32 - 1))
    kind = draw(st.sampled_from(["noise", "shuffle", "random"]))
    if kind == "noise":
        return jaxvit.noise(tokens, statistics(), seed, where, at)
    if kind == "shuffle":
        return jaxvit.shuffle(tokens, seed, where, at)
    return jaxvit.zero(jaxvit.random_patches(draw(st.integers(1, 12)), seed), where, at)


def by_hand(ablation: jaxvit.Ablation, images: jax.Array) -> np.ndarray:
    """Constant-valued replacements written one after the other by a plain Python hook, block by block, without scan."""
    model = tiny.model()
    x = model.add_prefix(model.embed_patches(images), (tiny.LAYOUT.rows, tiny.LAYOUT.columns))
    for number in range(model.config.depth):

        def hook(site, stream, number=number):
            stream = np.array(stream)
            for r in ablation.replacements:
                if r.at != site or (r.layers != "all" and number not in r.layers):
                    continue
                for order, position in enumerate(tiny.LAYOUT.positions(r.tokens)):
                    value = 0 if r.value is None else r.value.array
                    if r.kind == "mean":
                        value = value[number, min(position, tiny.LAYOUT.prefix)]
                    elif r.kind == "constant" and value.ndim == 2:
                        value = value[order]
                    stream[:, position] = value
            return jnp.asarray(stream)

        block = jax.tree.map(lambda leaf, number=number: leaf[number], model.blocks)
        x = block(x, None, hook).block_output
    return np.asarray(x)


@given(st.one_of(st.just(jaxvit.Ablation()), st.builds(jaxvit.zero, selectors, st.just([]), sites)))
def test_an_identity_ablation_is_bitwise_no_ablation(ablation):
    clean, same = run(None), run(ablation)
    np.testing.assert_array_equal(clean.tokens, same.tokens)
    np.testing.assert_array_equal(clean.prenorm, same.prenorm)


@given(st.lists(any_ablations(), min_size=1, max_size=3))
def test_full_in_a_stack_is_bitwise_no_ablation(others):
    edits = jaxvit.stack([jaxvit.Ablation(), *others], tiny.model(), tiny.SIZE)
    edits = jax.tree.map(lambda leaf: leaf[0], edits)
    np.testing.assert_array_equal(run(None).tokens, run(edits).tokens)


@given(st.integers(0, 2), selectors)
def test_zero_at_block_output_leaves_the_layers_below_untouched(layer, tokens):
    capture = "block_output"
    clean = run(None, capture=capture).captured[capture]
    ablated = run(jaxvit.zero(tokens, [layer]), capture=capture).captured[capture]
    positions = list(tiny.LAYOUT.positions(tokens))
    others = [p for p in range(tiny.LAYOUT.tokens) if p not in positions]
    np.testing.assert_array_equal(clean[:layer], ablated[:layer])
    np.testing.assert_array_equal(clean[layer][:, others], ablated[layer][:, others])
    assert not np.any(ablated[layer][:, positions])


def test_zeroed_registers_at_the_last_output_change_no_other_token():
    clean, ablated = run(None), run(jaxvit.zero("registers", [2]))
    np.testing.assert_array_equal(clean.cls, ablated.cls)
    np.testing.assert_array_equal(clean.patches, ablated.patches)
    assert np.abs(clean.registers - ablated.registers).max() > 0.1


@given(st.lists(constant_ablations(), min_size=1, max_size=3))
def test_composed_constants_equal_a_python_hook_applied_in_order(parts):
    together = parts[0]
    for part in parts[1:]:
        together = together & part
    np.testing.assert_allclose(run(together).prenorm, by_hand(together, tiny.images()), atol=5e-6)


@given(any_ablations(), any_ablations())
def test_composition_applies_the_second_after_the_first(first, second):
    """At the last block's output nothing runs afterwards, so applying in order can be done by two calls."""
    first, second = (jaxvit.Ablation(tuple(_at_the_end(r) for r in a.replacements)) for a in (first, second))
    both = run(first & second).prenorm
    one = run(first).prenorm
    edits = jaxvit.lower(second, tiny.model(), tiny.SIZE).stages["block_output"]
    place = engine.Place(jnp.asarray(2), jnp.asarray(tiny.ids()), None, tiny.LAYOUT)
    in_order = engine.editing.apply(jax.tree.map(lambda leaf: leaf[2], edits), one, place)
    np.testing.assert_allclose(both, in_order, atol=1e-6)


def _at_the_end(r):
    moved = dataclasses.replace(r, layers=(2,), at="block_output")
    if r.kind in ("mean", "noise"):
        source = jaxvit.noise(r.tokens, statistics()).replacements[0]
        moved = dataclasses.replace(moved, value=source.value, deviation=source.deviation if r.kind == "noise" else None)
    return moved


@given(st.lists(any_ablations(), min_size=1, max_size=4))
def test_vmap_over_stacked_conditions_equals_the_loop(ablations):
    model, images, ids = tiny.model(), tiny.images(), tiny.ids()
    edits = jaxvit.stack(ablations, model, tiny.SIZE)
    out = jax.vmap(lambda e: jaxvit.forward(model, images, ablation=e, example_ids=ids))(edits)
    assert out.registers.shape == (len(ablations), 4, 2, 24)
    for got, ablation in zip(out.tokens, ablations, strict=True):
        np.testing.assert_allclose(got, run(ablation).tokens, atol=5e-6)


@given(any_ablations(), st.integers(1, 3))
def test_nothing_depends_on_padding(ablation, padding):
    valid = np.array([True] * 4 + [False] * padding)
    images = jnp.concatenate([tiny.images(4), tiny.images(padding, seed=5)])
    ids = np.concatenate([tiny.ids(4), tiny.ids(padding, start=7)])
    padded = jaxvit.forward(tiny.model(), images, ablation=ablation, example_ids=ids, valid=valid)
    np.testing.assert_allclose(padded.tokens[:4], run(ablation).tokens, atol=5e-6)


@given(st.integers(0, 2**32 - 1), st.sampled_from(["cls", "registers", "patches[0]", [1, 4]]), st.integers(2, 6))
def test_shuffle_moves_only_the_chosen_tokens_and_never_onto_themselves(seed, tokens, batch):
    clean, moved = run(None, batch).prenorm, run(jaxvit.shuffle(tokens, seed, [2]), batch).prenorm
    chosen = list(tiny.LAYOUT.positions(tokens))
    others = [p for p in range(tiny.LAYOUT.tokens) if p not in chosen]
    np.testing.assert_array_equal(clean[:, others], moved[:, others])
    donors = [int(np.argmin(np.abs(clean[:, chosen] - moved[i, chosen]).max(axis=(1, 2)))) for i in range(batch)]
    np.testing.assert_array_equal(moved[:, chosen], clean[np.array(donors)][:, chosen])
    assert all(d != i for i, d in enumerate(donors))
    assert sorted(donors) == list(range(batch)), "one cycle: everybody donates once"


def test_shuffle_draws_another_order_at_each_layer():
    capture = {"in": lambda s: s.trace.block_input, "out": lambda s: s.stream_out}
    out = run(jaxvit.shuffle("cls", seed=3), 6, capture=capture)
    x = tiny.model()
    orders = []
    for layer in range(3):
        block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], x.blocks)
        unshuffled = block(out.captured["in"][layer], None).block_output[:, 0]
        distance = np.abs(out.captured["out"][layer][:, None, 0] - unshuffled[None]).max(axis=-1)
        orders.append(tuple(np.argmin(distance, axis=1)))
    assert len(set(orders)) > 1


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


def test_gradient_with_respect_to_a_mask_is_finite_and_points_somewhere():
    model, images = tiny.model(), tiny.images()
    edits = jaxvit.lower(jaxvit.zero(["cls", "registers"]), model, tiny.SIZE)

    def loss(scale):
        scaled = jax.tree.map(lambda leaf: leaf * scale if leaf.ndim == 2 and leaf.dtype == jnp.float32 else leaf, edits)
        return (jaxvit.forward(model, images, ablation=scaled).patches * jnp.linspace(-1, 1, 24)).sum()

    for at in (0.0, 0.5, 1.0):
        gradient = jax.grad(loss)(at)
        assert np.isfinite(gradient)
        assert abs(gradient) > 1e-6
    step = 1e-2
    np.testing.assert_allclose(jax.grad(loss)(0.5), (loss(0.5 + step) - loss(0.5 - step)) / (2 * step), rtol=0.02)


def test_constant_valued_conditions_of_different_sizes_share_one_compile():
    model, images = tiny.model(), tiny.images(3, seed=77)
    engine._forward.clear_cache()
    for ablation in (
        jaxvit.zero("cls"),
        jaxvit.zero("registers"),
        jaxvit.zero("patches", [1]),
        jaxvit.mean("registers", statistics()),
        jaxvit.constant([1, 2], np.ones(24), [0]),
        jaxvit.zero("cls") & jaxvit.mean("registers", statistics()),
    ):
        jaxvit.forward(model, images, ablation=ablation)
    assert engine._forward._cache_size() == 1


@given(st.lists(any_ablations(), min_size=0, max_size=3))
def test_json_round_trip(parts):
    ablation = jaxvit.Ablation()
    for part in parts:
        ablation = ablation & part
    assert jaxvit.Ablation.from_json(ablation.to_json(), ablation.arrays) == ablation
    assert hash(jaxvit.Ablation.from_json(ablation.to_json(), ablation.arrays)) == hash(ablation)


def test_json_names_arrays_and_checks_them():
    ablation = jaxvit.constant("cls", np.ones(24))
    (sha256,) = ablation.arrays
    assert sha256 in ablation.to_json()
    with pytest.raises(ValueError, match="which was not given"):
        jaxvit.Ablation.from_json(ablation.to_json())
    with pytest.raises(ValueError, match="has hash"):
        jaxvit.Ablation.from_json(ablation.to_json(), {sha256: np.zeros(24)})
    with pytest.raises(ValueError, match="not an ablation"):
        jaxvit.Ablation.from_json("{}")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: jaxvit.lower(jaxvit.zero("registers"), tiny.PLAIN, 16), "this model has none"),
        (lambda: jaxvit.lower(jaxvit.zero("registers[2]"), tiny.CONFIG, 16), "numbered 0 to 1"),
        (lambda: jaxvit.lower(jaxvit.zero("register"), tiny.CONFIG, 16), "unknown token name"),
        (lambda: jaxvit.lower(jaxvit.zero([99]), tiny.CONFIG, 16), "position 99"),
        (lambda: jaxvit.lower(jaxvit.zero("cls", [3]), tiny.CONFIG, 16), "blocks 0 to 2"),
        (lambda: jaxvit.zero("cls", "last"), "list of block numbers"),
        (lambda: jaxvit.zero("cls", at="output"), "unknown site"),
        (lambda: jaxvit.lower(jaxvit.constant("cls", np.ones(5)), tiny.CONFIG, 16), "does not fit"),
        (lambda: jaxvit.random_patches(0), "positive count"),
        (lambda: jaxvit.lower(jaxvit.zero(jaxvit.random_patches(99)), tiny.CONFIG, 16), "99 random patches"),
        (lambda: jaxvit.mean("cls", statistics(), at="nowhere"), "no site"),
        (lambda: jaxvit.lower(jaxvit.mean("cls", statistics()), tiny.CONFIG, 16), "statistics were made at 16x12"),
        (lambda: jaxvit.lower(jaxvit.mean("cls", statistics()), tiny.PLAIN, tiny.SIZE), "do not fit this model"),
        (lambda: jaxvit.lower(jaxvit.zero("cls"), tiny.CONFIG, 15), "no multiple of the patch size 4"),
        (lambda: run(jaxvit.shuffle("cls"), example_ids=None), "pass example_ids"),
        (lambda: run(jaxvit.zero(jaxvit.random_patches(2)), example_ids=None), "pass example_ids"),
        (lambda: run(jaxvit.noise("cls", statistics()), example_ids=None), "pass example_ids"),
        (lambda: run(jaxvit.shuffle("cls"), batch=1), "at least 2 valid examples"),
        (lambda: run(jaxvit.shuffle("cls"), valid=np.array([True, False, False, False])), "at least 2 valid examples"),
        (lambda: run(jaxvit.lower(jaxvit.zero("cls"), tiny.CONFIG, 16)), "lower the ablation for this model and size"),
        (lambda: jaxvit.stack([], tiny.CONFIG, 16), "at least one"),
    ],
)
def test_bad_ablations_say_what_is_wrong_in_one_line(make, says):
    with pytest.raises(ValueError, match=says) as error:
        make()
    assert "\n" not in str(error.value)


def test_statistics_of_another_size_are_taken_when_allowed():
    ablation = jaxvit.mean("registers", statistics(), any_size=True)
    jaxvit.forward(tiny.model(), tiny.images(2, size=(8, 8)), ablation=ablation)
