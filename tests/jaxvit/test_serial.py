"""Ablations go to JSON and back; arrays are named by their hash and checked."""

from __future__ import annotations

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
