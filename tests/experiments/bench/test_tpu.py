"""The TPU compiler's estimates: a time only where it has one for everything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.bench import tpu
from experiments.bench.rows import Size

COMPILING = """
import json, os, sys
from experiments.bench import tpu
topology, accelerator, _ = tpu.SLICES["v5e"]
os.environ |= tpu.ENVIRONMENT | {"TPU_ACCELERATOR_TYPE": accelerator}
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from experiments.bench.programs import Program, Shapes
mesh = jax.sharding.Mesh(np.asarray(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices), ("batch",))
x, square = Shapes(mesh).one(512, 512), Shapes(mesh).one(64, 64)
looped = lambda x: jax.lax.while_loop(lambda x: x.sum() > 0, lambda x: x @ x, x)
calls = {"product": (jnp.matmul, (x, x)), "loop": (looped, (x,)), "eigenvalues": (jnp.linalg.eigvalsh, (square,))}
print(json.dumps(list(tpu.estimates(Program(name, "", "float32", call) for name, call in calls.items()))))
"""


@pytest.mark.skipif(not tpu.available(), reason="needs the TPU compiler (pip install libtpu)")
def test_there_are_seconds_only_of_what_the_compiler_can_price():
    done = subprocess.run([sys.executable, "-c", COMPILING], capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr
    product, loop, eigenvalues = json.loads(done.stdout.splitlines()[-1])
    assert 0 < product["seconds"] < 1e-3
    assert product["bytes"] == 3 * 4 * 512**2
    assert "seconds" not in loop
    assert loop["loops"] == 1
    assert "seconds" not in eigenvalues
    assert eigenvalues["without_estimate"]


def test_a_missing_compiler_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setattr(tpu.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install -e '.\[tpu\]'"):
        tpu.compiled("v5e", Size(small=True))
