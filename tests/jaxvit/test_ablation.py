"""Claims about ablations as a whole: what they change, what they leave alone, and that every route to them agrees."""

from __future__ import annotations

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxvit
from tests.jaxvit import tiny
from tests.jaxvit.ablations import ANY_SITE, SELECTORS, any_ablations, constant_ablations, run, statistics

forward = importlib.import_module("jaxvit.forward")  # the attribute of the package is the function


def by_hand(ablation: jaxvit.Ablation, images: jax.Array) -> np.ndarray:
    """Constant-valued replacements written one after the other by a plain Python hook, block by block, without scan."""
    model = tiny.model()
    x = model.add_prefix(model.embed_patches(images), (tiny.LAYOUT.rows, tiny.LAYOUT.columns))
    for number in range(model.config.depth):

        def hook(site, stream, number=number):
            shape = stream.shape
            stream = np.array(stream).reshape(*shape[:2], -1)
            for r in ablation.replacements:
                if r.at != site or (r.layers != "all" and number not in r.layers):
                    continue
                for order, position in enumerate(tiny.LAYOUT.positions(r.tokens)):
                    value = 0 if r.value is None else r.value.array
                    if r.kind == "mean":
                        value = value[number, min(position, tiny.LAYOUT.prefix)]
                    elif r.kind == "constant" and value.ndim == 2:
                        value = value[order]
                    chosen = np.ones(stream.shape[-1], bool)
                    if r.heads is not None:
                        chosen = np.repeat(np.isin(np.arange(3), r.heads), 8)
                    elif r.channels is not None:
                        chosen = np.isin(np.arange(len(chosen)), r.channels)
                    stream[:, position, chosen] = np.broadcast_to(value, chosen.shape)[chosen]
            return jnp.asarray(stream.reshape(shape))

        block = jax.tree.map(lambda leaf, number=number: leaf[number], model.blocks)
        x = block(x, None, hook).block_output
    return np.asarray(x)


@given(st.one_of(st.just(jaxvit.Ablation()), st.builds(jaxvit.zero, SELECTORS, st.just([]), ANY_SITE)))
def test_an_identity_ablation_is_bitwise_no_ablation(ablation):
    clean, same = run(None), run(ablation)
    np.testing.assert_array_equal(clean.tokens, same.tokens)
    np.testing.assert_array_equal(clean.prenorm, same.prenorm)


@given(st.integers(0, 2), SELECTORS)
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


@given(any_ablations(), st.integers(1, 3))
def test_nothing_depends_on_padding(ablation, padding):
    valid = np.array([True] * 4 + [False] * padding)
    images = jnp.concatenate([tiny.images(4), tiny.images(padding, seed=5)])
    ids = np.concatenate([tiny.ids(4), tiny.ids(padding, start=7)])
    padded = jaxvit.forward(tiny.model(), images, ablation=ablation, example_ids=ids, valid=valid)
    np.testing.assert_allclose(padded.tokens[:4], run(ablation).tokens, atol=5e-6)


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
    forward._forward.clear_cache()
    for ablation in (
        jaxvit.zero("cls"),
        jaxvit.zero("registers"),
        jaxvit.zero("patches", [1]),
        jaxvit.mean("registers", statistics()),
        jaxvit.constant([1, 2], np.ones(24), [0]),
        jaxvit.zero("cls") & jaxvit.mean("registers", statistics()),
    ):
        jaxvit.forward(model, images, ablation=ablation)
    assert forward._forward._cache_size() == 1


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: jaxvit.lower(jaxvit.zero("registers"), tiny.PLAIN, 16), "this model has none"),
        (lambda: jaxvit.lower(jaxvit.zero("registers[2]"), tiny.CONFIG, 16), "numbered 0 to 1"),
        (lambda: jaxvit.zero("register"), "unknown token name"),
        (lambda: jaxvit.zero(["cls", "registers[a]"]), "unknown token name"),
        (lambda: jaxvit.lower(jaxvit.zero("cls"), tiny.CONFIG, 16).layout.positions("register"), "unknown token name"),
        (lambda: jaxvit.lower(jaxvit.zero([99]), tiny.CONFIG, 16), "position 99"),
        (lambda: jaxvit.lower(jaxvit.zero("cls", [3]), tiny.CONFIG, 16), "blocks 0 to 2"),
        (lambda: jaxvit.zero("cls", "last"), "a block number or a list of them"),
        (lambda: jaxvit.zero("cls", at="output"), "unknown site"),
        (lambda: jaxvit.lower(jaxvit.constant("cls", np.ones(5)), tiny.CONFIG, 16), "does not fit"),
        (lambda: jaxvit.lower(jaxvit.constant("cls", np.ones(24), at="mlp_hidden"), tiny.CONFIG, 16), r"pass \[48\]"),
        (lambda: jaxvit.zero("cls", heads=[1]), r'heads=\[1\] is not possible at "block_output"; heads are apart at query, key'),
        (lambda: jaxvit.zero("cls", at="key", channels=[1]), r"channels are chosen at block_input, attention_output, mlp_hidden"),
        (lambda: jaxvit.zero("cls", at="key", heads=1), r"such as heads=\[3\]; got heads=1"),
        (lambda: jaxvit.zero("cls", channels="1"), "got channels='1'"),
        (lambda: jaxvit.zero("cls", channels=[True]), "a list of whole numbers"),
        (lambda: jaxvit.zero("cls", channels=[1.0]), "a list of whole numbers"),
        (lambda: jaxvit.zero("cls", channels=np.ones((2, 2), int)), "a list of whole numbers"),
        (lambda: jaxvit.zero("cls", channels=[3, -1]), "channel -1 does not exist; channels are numbered from 0"),
        (lambda: jaxvit.lower(jaxvit.zero("cls", at="value", heads=[3]), tiny.CONFIG, 16), "this model has heads 0 to 2"),
        (lambda: jaxvit.lower(jaxvit.zero("cls", at="mlp_hidden", channels=[48]), tiny.CONFIG, 16), "this model has channels 0 to 47"),
        (lambda: jaxvit.lower(jaxvit.mean("patches[1]", statistics(), at="query"), tiny.ROPE, tiny.SIZE), "rotated by its own angles"),
        (lambda: jaxvit.lower(jaxvit.noise([0, 3], statistics(), at="key"), tiny.ROPE, tiny.SIZE), "noise of patches is not possible"),
        (
            lambda: jaxvit.lower(jaxvit.mean(jaxvit.random_patches(1), statistics(), at="key"), tiny.ROPE, tiny.SIZE),
            'choose "cls" or "registers", at="value", or zero, constant or shuffle',
        ),
        (lambda: jaxvit.random_patches(0), "count is 0; give an integer of at least 1"),
        (lambda: jaxvit.lower(jaxvit.zero(jaxvit.random_patches(99)), tiny.CONFIG, 16), "99 random patches"),
        (lambda: jaxvit.mean("cls", statistics(), at="nowhere"), "no site"),
        (lambda: jaxvit.lower(jaxvit.mean("cls", statistics()), tiny.CONFIG, 16), "statistics were made at 16x12"),
        (lambda: jaxvit.lower(jaxvit.mean("cls", statistics()), tiny.PLAIN, tiny.SIZE), "do not fit this model"),
        (lambda: jaxvit.lower(jaxvit.zero("cls"), tiny.CONFIG, 15), "no multiple of the patch size 4"),
        (lambda: run(jaxvit.shuffle("cls"), example_ids=None), "pass example_ids"),
        (lambda: run(jaxvit.zero(jaxvit.random_patches(2)), example_ids=None), "pass example_ids"),
        (lambda: run(jaxvit.noise("cls", statistics()), example_ids=None), "pass example_ids"),
        (lambda: run(jaxvit.shuffle("cls"), batch=1), "at least 2 valid examples"),
        (lambda: run(jaxvit.shuffle("cls"), groups=np.array([4, 4, 4, 9])), "in each of its groups, got 1 in group 9"),
        (lambda: run(jaxvit.shuffle("cls"), groups=np.array([4, 4, 4])), "groups must have one entry per image"),
        (lambda: run(jaxvit.shuffle("cls"), valid=np.array([True, False, False, False])), "at least 2 valid examples"),
        (lambda: run(jaxvit.lower(jaxvit.zero("cls"), tiny.CONFIG, 16)), "lower the ablation for this model and size"),
        (lambda: jaxvit.stack([], tiny.CONFIG, 16), "at least one"),
    ],
)
def test_bad_ablations_say_what_is_wrong_in_one_line(make, says):
    with pytest.raises(ValueError, match=says) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("6-11", [6, 7, 8, 9, 10, 11]),
        ("3", [3]),
        ("0-2,5,8-11", [0, 1, 2, 5, 8, 9, 10, 11]),
        (" 8 - 9 , 0 ", [0, 8, 9]),
        ("5,3-6,5-5", [3, 4, 5, 6]),
        ("all", "all"),
    ],
)
def test_a_string_of_layers_equals_the_list(text, blocks):
    makers = (
        jaxvit.zero,
        jaxvit.shuffle,
        lambda tokens, layers: jaxvit.constant(tokens, np.ones(24), layers=layers),
        lambda tokens, layers: jaxvit.mean(tokens, statistics(), layers=layers),
        lambda tokens, layers: jaxvit.noise(tokens, statistics(), layers=layers),
    )
    for make in makers:
        from_text, from_list = make("cls", layers=text), make("cls", layers=blocks)
        assert from_text == from_list
        assert hash(from_text) == hash(from_list)
        assert from_text.to_json() == from_list.to_json()


@pytest.mark.parametrize(
    ("layers", "blocks"), [(1, [1]), (-1, [2]), ([-1], [2]), ([-3, 1], [0, 1]), ([2, -1], [2]), (np.int64(-2), [1]), (np.arange(2), [0, 1])]
)
def test_a_bare_number_is_that_block_and_negative_ones_count_from_the_end(layers, blocks):
    ablation, want = (jaxvit.lower(jaxvit.zero("cls", layers=numbers), tiny.CONFIG, 16) for numbers in (layers, blocks))
    jax.tree.map(np.testing.assert_array_equal, ablation, want)
    made = jaxvit.zero("cls", layers=layers)
    assert jaxvit.Ablation.from_json(made.to_json()) == made


def test_blocks_that_count_from_the_end_are_resolved_by_the_model_and_printed_as_written():
    last = jaxvit.zero("cls", layers=-1) & jaxvit.zero("cls", layers=[-1, -2, 0])
    assert str(last) == "zero(cls) at block_output of block -1 & zero(cls) at block_output of blocks -2,-1,0"
    with pytest.raises(ValueError, match="layer -4 does not exist; this model has blocks 0 to 2, or -3 to -1 from its end"):
        jaxvit.lower(jaxvit.zero("cls", layers=-4), tiny.CONFIG, 16)


@pytest.mark.parametrize("layers", [1.5, [1.5], True, [True], None, [[1]], ["1"]])
def test_layers_that_are_no_blocks_are_refused_in_one_line(layers):
    with pytest.raises(ValueError, match='layers is "all", a block number, -1 for the last, a list of them, or a string') as error:
        jaxvit.zero("cls", layers=layers)
    assert "\n" not in str(error.value)


@given(st.sets(st.integers(0, 9999), min_size=1, max_size=5))
def test_any_block_numbers_can_be_written_as_a_string(blocks):
    assert jaxvit.zero("cls", layers=",".join(map(str, blocks))) == jaxvit.zero("cls", layers=list(blocks))


@pytest.mark.parametrize(
    "text", ["", " ", ",", "11-6", "a-b", "-1", "6-", "1,,2", "1,", "0-2,all", "1-2-3", "1.5", "²", "12345", "0-99999", "1\n,x"]
)
def test_a_bad_string_of_layers_is_refused_in_one_line(text):
    with pytest.raises(ValueError, match="a string of numbers from 0 to 9999 and ranges") as error:
        jaxvit.zero("cls", layers=text)
    assert "\n" not in str(error.value)
    assert repr(text) in str(error.value)


def test_the_entry_of_a_string_of_layers_that_is_wrong_is_named():
    with pytest.raises(ValueError, match="got '0-2,11-6', where '11-6' runs backwards"):
        jaxvit.zero("cls", layers="0-2,11-6")
    with pytest.raises(ValueError, match="where 'x' is no number and no range"):
        jaxvit.zero("cls", layers="0-2,x")


def test_statistics_of_another_size_are_taken_when_allowed():
    ablation = jaxvit.mean("registers", statistics(), any_size=True)
    jaxvit.forward(tiny.model(), tiny.images(2, size=(8, 8)), ablation=ablation)
