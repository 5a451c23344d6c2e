"""Types of arguments: what fits them, and what they are called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_type_hints

import pytest

import jaxvit
from experiments.features.argument_types import fits, in_words
from jaxvit.specs import RandomPatches

TOKENS = get_type_hints(jaxvit.zero)["tokens"]


@pytest.mark.parametrize(
    ("value", "hint", "does"),
    [
        (1, int, True),
        (True, int, False),
        (1.5, int, False),
        (1, float, True),
        (True, float, False),
        (True, bool, True),
        (1, bool, False),
        ("cls", str, True),
        ("cls", Sequence[str], False),
        (["cls"], Sequence[str], True),
        (["cls", 1], Sequence[str], False),
        ([], Sequence[int], True),
        ("all", Literal["all"] | Sequence[int], True),
        ("none", Literal["all"] | Sequence[int], False),
        (True, Literal[1], False),
        (["cls", 2], TOKENS, True),
        (RandomPatches(3), TOKENS, True),
        ([RandomPatches(3)], TOKENS, False),
        (jaxvit.Ablation(), TOKENS, False),
        (["cls", 1.5], Any, True),
        (1, int | None, True),
        (1, Sequence[int] | None, False),
    ],
)
def test_a_value_fits_the_type_that_a_function_asks_for(value, hint, does):
    assert fits(value, hint) is does


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "an integer"),
        (Literal["all"] | Sequence[int], '"all" or a list of integers'),
        (Sequence[int] | None, "a list of integers"),
        (float | Sequence[Sequence[float]], "a number or a list of lists of numbers"),
        (TOKENS, "a string, an integer, a list of strings or integers or random_patches(count)"),
    ],
)
def test_a_type_is_said_in_words(hint, words):
    assert in_words(hint) == words
