"""The 7B on one host's chips: what was compiled fits, and the compiler says so again where it is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.bench import large, results, tpu

COMPILING = """
import itertools, json, os
from experiments.bench import tpu
topology, accelerator, _ = tpu.SLICES["v4"]
os.environ |= tpu.ENVIRONMENT | {"TPU_ACCELERATOR_TYPE": accelerator}
import jax.numpy as jnp
from experiments.bench.large import NAME
from experiments.bench.programs import Shapes, large_programs
from experiments.bench.rows import Size
shapes = Shapes(tpu.mesh_of_slice(topology))
first = itertools.islice(large_programs(NAME, jnp.bfloat16, shapes, Size(small=True)), 1)
print(json.dumps({"chips": shapes.mesh.size} | next(tpu.estimates(first))))
"""


@pytest.mark.parametrize("name", tpu.SLICES)
def test_every_program_of_the_7b_fits_and_exchanges_weights_alone(name):
    row = results.read(results.results_file("cpu"))["rows"][f"large_{name}"]
    chips = row["facts"]["chips"]
    assert chips == {"v5e": 8, "v4": 4}[name]
    programs = row["facts"]["programs"]
    assert {(p["program"], p["dtype"]) for p in programs} == {
        (program, dtype)
        for program in ("forward", "attention flow", "cut of registers from CLS", "features under the cut")
        for dtype in ("float32", "bfloat16")
    }
    for program in programs:
        assert program["model"] == large.NAME
        assert program["fits"]
        assert program["collectives"] == ["all-gather"]
        whole = 6.716e9 * (4 if program["dtype"] == "float32" else 2)
        assert whole / chips < program["weight_bytes"] < 1.02 * whole / chips
        assert program["weight_bytes"] < program["bytes"] < tpu.SLICES[name][2]
    assert row["met"]


@pytest.mark.slow
@pytest.mark.skipif(not tpu.available(), reason="needs the TPU compiler (pip install libtpu)")
def test_chips_exchange_weights_alone():
    done = subprocess.run([sys.executable, "-c", COMPILING], capture_output=True, text=True, cwd=Path(__file__).parents[3], timeout=300)
    assert done.returncode == 0, done.stderr
    entry = json.loads(done.stdout.splitlines()[-1])
    assert (entry["chips"], entry["collectives"]) == (4, ["all-gather"])
