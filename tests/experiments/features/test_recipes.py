"""Definitions of ablations: known before any model runs, and another one for every difference that matters."""

from __future__ import annotations

import json

import numpy as np
import pytest

import jaxvit
from experiments.features.conditions import Condition, conditions
from experiments.features.recipes import Recipe, Sourced, effect, is_random, made_up_moments, recipe_of, tokens_in_words, window_of
from jaxvit import Ablation, ViTConfig
from jaxvit.sites import SITES, STREAM_SITES, width_at

CONFIG = ViTConfig(8, 24, 12, 3, 48, registers=4, position="antialias", image_size=64)
SIZE = (64, 64)
PLAN = "100 leading images of train"


def recipe(condition: Condition, seed: int = 0, calibration: str = PLAN, config: ViTConfig = CONFIG) -> Recipe:
    return recipe_of(condition, config, SIZE, seed, calibration)


def noise(**changes: object) -> Condition:
    """Noise in two registers of two blocks, with some of its arguments changed."""
    arguments = {"tokens": ["registers[0]", "registers[1]"], "layers": [1, 2], "at": "block_output", "any_size": False} | changes
    return lambda config, moments, seed: jaxvit.noise(statistics=moments, seed=seed, **arguments)


@pytest.fixture(autouse=True)
def _no_model_runs(monkeypatch):
    def running(*arguments, **options):
        raise AssertionError("a model ran")

    for name in ("create", "forward", "calibrate", "load"):
        monkeypatch.setattr(jaxvit, name, running)


def test_arrays_that_are_made_from_moments_are_named_by_how_these_are_measured():
    (replacement,) = json.loads(recipe(noise()).text)["replacements"]
    assert replacement["value"] == {"calibration": PLAN, "site": "block_output", "moment": "mean"}
    assert replacement["deviation"] == {"calibration": PLAN, "site": "block_output", "moment": "deviation"}
    assert recipe(noise()).sites == ("block_output",)


def test_arrays_that_are_not_moments_are_named_by_their_values():
    vector = np.arange(24, dtype=np.float32)
    found = recipe(lambda config, moments, seed: jaxvit.constant("cls", vector))
    (replacement,) = json.loads(found.text)["replacements"]
    assert replacement["value"] in jaxvit.constant("cls", vector).arrays
    assert (found.sites, PLAN in found.text) == ((), False)


def test_sites_are_those_whose_moments_are_needed_each_once():
    def both(config, moments, seed):
        return (
            jaxvit.mean("cls", moments, at="mlp_output")
            & jaxvit.mean("registers", moments, at="block_input")
            & jaxvit.noise("patches[3]", moments, seed, at="block_input")
            & jaxvit.zero("patches[4]", at="attention_output")
        )

    assert recipe(both).sites == ("block_input", "mlp_output")


def test_the_text_has_no_moments_in_it_and_is_the_same_text_again():
    made = recipe(conditions(CONFIG)["noise_registers"])
    assert made == recipe(conditions(CONFIG)["noise_registers"])
    assert made.hash == recipe(conditions(CONFIG)["noise_registers"]).hash
    assert len(made.hash) == 20
    stored = jaxvit.noise("registers", made_up_moments(CONFIG, SIZE)).arrays
    assert not [name for name in stored if name in made.text], "made-up moments are nobody's"
    assert json.dumps(json.loads(made.text), sort_keys=True, separators=(",", ":")) == made.text


def test_the_same_definition_is_the_same_hash_however_it_is_written():
    one = recipe(lambda config, moments, seed: jaxvit.zero("cls", layers="6-8"))
    other = recipe(lambda config, moments, seed: jaxvit.zero("cls", layers=[8, 7, 6]))
    assert one.hash == other.hash


@pytest.mark.parametrize(
    "changed",
    [
        lambda config, moments, seed: jaxvit.mean(["registers[0]", "registers[1]"], moments, layers=[1, 2]),
        lambda config, moments, seed: jaxvit.shuffle(["registers[0]", "registers[1]"], seed, layers=[1, 2]),
        noise(tokens=["registers[0]"]),
        noise(tokens="registers"),
        noise(layers=[1]),
        noise(layers="all"),
        noise(at="block_input"),
        noise(at="query"),
        noise(channels=[3]),
        noise(at="query", heads=[1]),
        noise(at="query", heads=[]),
        noise(any_size=True),
        lambda config, moments, seed: noise()(config, moments, seed + 1),
        lambda config, moments, seed: noise()(config, moments, seed) & jaxvit.zero("cls"),
        lambda config, moments, seed: jaxvit.zero("cls") & noise()(config, moments, seed),
        Sourced(noise(), "a" * 64),
        Sourced(noise(), "b" * 64),
    ],
)
def test_every_changed_part_is_another_hash(changed):
    known = [recipe(noise()), recipe(noise(), seed=7), recipe(noise(), calibration="99 leading images of train")]
    assert len({r.hash for r in [*known, recipe(changed)]}) == 4


def test_an_edit_inside_attention_is_an_intervention_of_its_own():
    def mean(**where):
        return recipe(lambda config, moments, seed: jaxvit.mean("registers", moments, **where)).text

    texts = [mean(), mean(at="query"), mean(at="query", heads=[1]), mean(at="mlp_hidden"), mean(channels=[3])]
    assert len({effect(text, "cls") for text in texts}) == len(texts)
    assert effect(mean(at="block_input", channels=[3]), "cls") == effect(mean(channels=[3]), "cls"), "as for all channels"
    assert effect(mean(at="block_input", channels=[3]), "cls") != effect(mean(channels=[4]), "cls")


def test_the_order_of_replacements_matters():
    zero, mean = (
        lambda config, moments, seed: jaxvit.zero("cls") & jaxvit.shuffle("cls"),
        lambda *_: jaxvit.shuffle("cls") & jaxvit.zero("cls"),
    )
    assert recipe(zero).hash != recipe(mean).hash


def test_the_values_of_a_constant_are_part_of_its_definition():
    def constant(vector: list[float]) -> Condition:
        return lambda config, moments, seed: jaxvit.constant("cls", vector)

    hashes = [recipe(constant(vector)).hash for vector in ([1.0] * 24, [1.0] * 24, [1.5] * 24, [1.0] * 23 + [1.5])]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


def test_what_is_computed_from_moments_is_told_apart_by_what_it_makes_of_them():
    def times(factor: float) -> Condition:
        return lambda config, moments, seed: jaxvit.constant("cls", factor * moments.mean["block_output"][3, 0])

    assert recipe(times(2)).hash == recipe(times(2)).hash
    assert len({recipe(times(factor)).hash for factor in (1, 2, 3)}) == 3


def test_a_source_is_part_of_the_definition_and_an_unknown_one_is_not():
    plain = recipe(noise())
    assert recipe(Sourced(noise(), "")).hash == plain.hash
    assert json.loads(recipe(Sourced(noise(), "abc")).text)["source"] == "abc"
    assert recipe(Sourced(noise(), "abc"))[1:] == plain[1:], "tokens, window and sites are those of the condition"


def test_a_seed_that_a_condition_does_not_use_is_no_part_of_its_definition():
    assert recipe(conditions(CONFIG)["mean_registers"], seed=0) == recipe(conditions(CONFIG)["mean_registers"], seed=1)


def test_noise_shuffle_and_random_patches_are_random_and_nothing_else():
    assert {name for name, condition in conditions(CONFIG).items() if is_random(condition, CONFIG, SIZE)} == {
        "random_patches",
        "noise_registers",
        "shuffle_registers",
        "shuffle_registers_whole",
    }
    assert not is_random(lambda config, moments, seed: jaxvit.noise("registers", moments, 5), CONFIG, SIZE), "a seed of its own"
    assert is_random(Sourced(lambda config, moments, seed: jaxvit.shuffle("cls", seed), "abc"), CONFIG, SIZE)


def test_a_condition_that_refuses_a_model_says_so():
    def late(config, moments, seed):
        raise ValueError("needs 24 blocks")

    with pytest.raises(ValueError, match="needs 24 blocks"):
        recipe(late)


@pytest.mark.parametrize(
    ("ablation", "words"),
    [
        (Ablation(), ""),
        (jaxvit.zero("cls"), "cls"),
        (jaxvit.zero("registers"), "registers"),
        (jaxvit.zero("registers[0]"), "r1"),
        (jaxvit.zero(["registers[2]"]), "r3"),
        (jaxvit.zero([f"registers[{i}]" for i in range(3)]), "r1 to r3"),
        (jaxvit.zero([f"registers[{i}]" for i in range(9, 12)]), "r10 to r12"),
        (jaxvit.zero(["registers[0]", "registers[2]"]), "r1, r3"),
        (jaxvit.zero(["cls", "registers[1]"]), "cls, r2"),
        (jaxvit.zero(7), "token 7"),
        (jaxvit.zero([7, 9]), "token 7, token 9"),
        (jaxvit.zero("patches[3]"), "patches[3]"),
        (jaxvit.zero("registers") & jaxvit.zero("cls"), "registers & cls"),
        (jaxvit.zero("cls", layers="0-1") & jaxvit.shuffle("cls", layers="2"), "cls"),
        (jaxvit.zero(jaxvit.random_patches(4)) & jaxvit.zero("cls"), "random patches & cls"),
    ],
)
def test_tokens_are_named_in_words(ablation, words):
    assert tokens_in_words(ablation) == words


@pytest.mark.parametrize(
    ("ablation", "window"),
    [
        (Ablation(), None),
        (jaxvit.zero("cls"), "all"),
        (jaxvit.zero("cls", layers=[3]), "3"),
        (jaxvit.zero("cls", layers="6-11"), "6-11"),
        (jaxvit.zero("cls", layers=[5, 0, 1, 2]), "0-2,5"),
        (jaxvit.zero("cls", layers="0, 2, 4-5"), "0,2,4-5"),
        (jaxvit.zero("cls") & jaxvit.zero("registers"), "all"),
        (jaxvit.zero("cls", layers="0-3") & jaxvit.zero("registers", layers=[11]), "0-3 & 11"),
        (jaxvit.zero("cls", layers="0-3") & jaxvit.zero("registers", layers=[0, 1, 2, 3]), "0-3"),
        (jaxvit.zero("cls", layers=-1) & jaxvit.zero("registers", layers=[-3, 10, -1]), "11 & 9-11"),
    ],
)
def test_the_window_is_the_blocks_at_which_an_ablation_acts(ablation, window):
    assert window_of(ablation, depth=12) == window


def test_made_up_moments_fit_the_model_and_are_the_same_everywhere():
    moments = made_up_moments(CONFIG, SIZE)
    for part in (moments.mean, moments.variance):
        assert {site: array.shape for site, array in part.items()} == {site: (12, 6, width_at(site, CONFIG)) for site in SITES}
    assert moments.image_size == SIZE
    arrays = [array for part in (moments.mean, moments.variance) for array in part.values()]
    assert len({array.tobytes() for array in arrays}) == len(arrays), "no two are alike, so that each is known again"
    assert arrays[0][0, 0, 0] == pytest.approx(0.8506242, abs=1e-6)
    # at sites of the stream they are what they were when there were no others: keys of computed conditions depend on them
    generator = np.random.default_rng(0)
    for part in (moments.mean, moments.variance):
        for site in STREAM_SITES:
            np.testing.assert_array_equal(part[site], generator.random((12, 6, 24), np.float32))


def test_sites_are_those_whose_moments_are_read_whatever_is_made_of_them():
    computed = recipe(lambda config, moments, seed: jaxvit.constant("cls", 2 * moments.mean["mlp_output"][1, 0]))
    assert computed.sites == ("mlp_output",)
    assert recipe(lambda config, moments, seed: jaxvit.zero("cls")).sites == ()
