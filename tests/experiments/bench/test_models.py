"""Both sides of a row compute the same, and its operations are counted as XLA counts them."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import jaxvit
from experiments.bench import models
from experiments.bench.rows import Size
from experiments.features.conditions import overwriting
from jaxvit.vit import abstract

SMALLEST = Size(small=True)


@pytest.mark.parametrize("build", [models.layer_sweep, models.attention_flow, models.attention_divergence])
def test_both_sides_of_a_row_compute_the_same(build):
    """Hooks on transformers' blocks and its eager attention, against ablations and captures."""
    case = build(SMALLEST)
    differences = case.check(case.ours(), case.theirs())
    assert next(iter(differences.values())) < 1e-5


def test_both_sides_run_the_conditions_of_the_study_to_the_same_results():
    """Random draws differ between the sides and are not compared."""
    case = models.all_conditions(SMALLEST)
    ours, theirs = case.ours(), case.theirs()
    assert case.check(ours, theirs)["max_difference_constant"] < 1e-5
    assert len(ours) == len(theirs) == case.facts["conditions"] == len(overwriting(jaxvit.MODELS[models.VIT_S])) == 16
    assert case.facts["programs"] == 5  # constant values, at block outputs and at block inputs; random patches; noise; shuffle
    (row,) = [row for row in models.rows() if row.name == "conditions"]
    assert row.what.startswith("16 conditions")


def test_operations_are_those_that_xla_counts():
    """The blocks of a scan are counted once by XLA, so one block; XLA also counts additions, which are few."""
    config = jaxvit.ViTConfig(14, 64, 1, 2, 256, registers=4, image_size=140)
    images = jax.ShapeDtypeStruct((2, 140, 140, 3), np.float32)
    lowered = jax.jit(lambda model, images: jaxvit.forward(model, images).tokens).trace(abstract(config), images)
    counted = lowered.lower(lowering_platforms=("tpu",)).cost_analysis()["flops"]
    assert 0.85 < 2 * models.flop_per_image(config, 140) / counted < 1
