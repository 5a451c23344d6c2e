"""Ablations go to JSON and back; arrays are named by their hash and checked."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxvit
from tests.jaxvit.ablations import any_ablations


@given(st.lists(any_ablations(), min_size=0, max_size=3))
def test_json_round_trip(parts):
    ablation = jaxvit.Ablation()
    for part in parts:
        ablation = ablation & part
    assert jaxvit.Ablation.from_json(ablation.to_json(), ablation.arrays) == ablation
    assert hash(jaxvit.Ablation.from_json(ablation.to_json(), ablation.arrays)) == hash(ablation)


def test_heads_and_channels_are_written_only_where_they_are_chosen():
    plain, partly = jaxvit.zero("cls", at="key"), jaxvit.zero("cls", at="key", heads=[2, 0]) & jaxvit.zero("cls", channels=[])
    assert json.loads(plain.to_json())["format"] == 1
    assert not {"heads", "channels"} & set(json.loads(plain.to_json())["replacements"][0])
    text = json.loads(partly.to_json())
    assert (text["format"], text["replacements"][0]["heads"], text["replacements"][1]["channels"]) == (3, [0, 2], [])
    assert jaxvit.Ablation.from_json(partly.to_json()) == partly
    assert len({plain, jaxvit.zero("cls", at="key", heads=[0, 2]), jaxvit.zero("cls", at="key", heads=[0]), jaxvit.zero("cls")}) == 4
    assert jaxvit.zero("cls", at="key", heads=np.array([2, 0, 2])) == jaxvit.zero("cls", at="key", heads=range(0, 3, 2))
    with pytest.raises(ValueError, match="reads formats 1 to 5"):
        jaxvit.Ablation.from_json(partly.to_json().replace('"format": 3', '"format": 6'))


def test_new_kinds_and_cuts_stand_in_one_text():
    ablation = jaxvit.cut("cls", "registers", layers=-1) & jaxvit.scale("cls", 2) & jaxvit.zero("cls", heads=[1], at="value")
    assert json.loads(ablation.to_json())["format"] == 5
    assert jaxvit.Ablation.from_json(ablation.to_json()) == ablation
    assert str(ablation).startswith("cut(cls -> registers) of block -1 & scale(cls, factor=2) at block_output of all blocks & zero(")


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


def test_an_ablation_prints_what_it_does():
    late = jaxvit.zero("registers", layers="6-11")
    assert str(late) == "zero(registers) at block_output of blocks 6-11"
    assert repr(late) == "<Ablation: zero(registers) at block_output of blocks 6-11>"
    both = jaxvit.shuffle(["cls", 3], seed=2, layers=[4], same_donor=True) & jaxvit.constant("registers[1]", np.ones(8), [0, 1, 5])
    assert str(both) == (
        "shuffle([cls, 3], seed=2, same_donor=True) at block_output of block 4 & constant(registers[1]) at block_output of blocks 0-1,5"
    )
    assert str(jaxvit.zero(jaxvit.random_patches(4), at="value", heads=[3])) == "zero(4 random patches, heads=[3]) at value of all blocks"
    neurons = jaxvit.zero("cls", at="mlp_hidden", channels=range(100))
    assert str(neurons) == "zero(cls, channels=[0, 1, 2, 3, 4, 5, ...; 100 of them]) at mlp_hidden of all blocks"
    assert str(jaxvit.Ablation()) == "nothing"
