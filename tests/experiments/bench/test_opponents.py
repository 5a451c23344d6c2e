"""The opponents: a missing package is named, and every condition of the study has a hook."""

from __future__ import annotations

import pytest

import jaxvit
from experiments.bench import opponents
from experiments.features.conditions import CALIBRATED_SITES, overwriting
from tests.draws import normal


def test_a_missing_package_is_named_with_what_installs_it():
    with pytest.raises(ValueError, match=r"pip install -e '.\[test\]'"):
        opponents.optional("no_such_package")


def test_every_condition_of_the_study_has_a_hook():
    model = jaxvit.create(opponents.SMALL)
    images = normal(0, 2, 70, 70, 3)
    statistics = jaxvit.calibrate(model, [(images, None)], CALIBRATED_SITES)
    assert opponents.condition_hooks(opponents.SMALL, statistics, 2).keys() == overwriting(opponents.SMALL).keys()


def test_the_small_model_has_a_grid_of_its_own():
    assert opponents.SMALL.grid(70, 70) == (5, 5)
