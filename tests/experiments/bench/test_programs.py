"""Shapes and functions of the programs of a study fit each other."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import jaxvit
from experiments.bench import programs
from experiments.bench.rows import Size
from experiments.features.conditions import conditions

SMALLEST = Size(small=True)


def test_every_program_of_a_study_traces_for_a_mesh():
    """What a compiler makes of them is for machines with one."""
    shapes = programs.Shapes(jax.sharding.Mesh(np.asarray(jax.devices()[:1]), ("batch",)))
    of_models = programs.model_programs(programs.NAMES[0], jnp.bfloat16, shapes, SMALLEST)
    every = [*of_models, *programs.readout_programs(shapes, SMALLEST)]
    names = " ".join(program.name for program in every)
    for part in (
        "noise",
        "shuffle",
        "random_patches",
        "fix_reg_mean",
        "calibration",
        "meter",
        "sweep",
        "ridge",
        "k-NN",
        "retrieval",
        "rank",
    ):
        assert part in names
    for program in every:
        function, arguments = program.call
        jax.eval_shape(function, *arguments)
        assert program.dtype in ("bfloat16", "float32")


def test_every_condition_is_in_a_program_and_those_of_one_structure_share_it():
    config = jaxvit.MODELS[programs.NAMES[0]]
    titles = list(programs._condition_edits(config))
    assert len(titles) == 7, "no edits; constants at block outputs and at block inputs; random patches; noise; shuffle; cuts"
    shared = sum(int(title.split(" and ")[1].split()[0]) for title in titles if " and " in title)
    assert len(titles) + shared == len(conditions(config))
