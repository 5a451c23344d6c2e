"""Weights that are split over devices: the numbers of copied ones to the bit, an eighth of the memory, one block gathered at a time."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

import jaxvit
from jaxvit.sharding import batch_mesh, shard_weights, weight_shardings, with_weight_shards
from jaxvit.vit import abstract
from tests.jaxvit import tiny


def run(which: str) -> dict:
    """In a process of its own, which has eight devices."""
    command = [sys.executable, "-m", "tests.jaxvit.split_weights", which]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def seen():
    return run("few")


def test_outputs_have_the_bits_of_copied_weights(seen):
    assert seen["same"] == dict.fromkeys(("forward", "extract", "gradient", "random weights"), True)


@pytest.mark.slow
def test_whatever_runs_blocks_gives_the_bits_of_copied_weights():
    same = run("all")["same"]
    assert len(same) == 13
    assert [name for name, is_same in same.items() if not is_same] == []


def test_devices_exchange_weights_and_nothing_else(seen):
    for program in ("forward", "gradient"):
        assert seen["facts"]["split"][program]["collectives"] == ["all-gather"]
        assert seen["facts"]["copied"][program]["collectives"] == []


def test_a_device_holds_its_share_and_one_block(seen):
    """Also where a gradient keeps what a block computed: were the gathered weights kept with it, all 40 blocks would be."""
    for program in ("forward", "gradient"):
        copied, split = (seen["facts"][kind][program] for kind in ("copied", "split"))
        others = seen["blocks"] * 7 / 8
        assert others * 0.95 < copied["arguments"] - split["arguments"] < others, "vectors stay whole"
        assert split["temporary"] - copied["temporary"] < seen["blocks"] / 40


def test_matrices_are_split_on_the_first_side_that_can_be_shared_out():
    mesh = jax.sharding.AbstractMesh((5,), ("batch",))
    config = dataclasses.replace(tiny.CONFIG, mlp_dim=50)
    model = with_weight_shards(abstract(config), mesh)
    feed_forward = weight_shardings(model, mesh).blocks.feed_forward
    assert feed_forward.up.kernel.get_raw_value().spec == jax.sharding.PartitionSpec(None, None, "batch")
    assert feed_forward.down.kernel.get_raw_value().spec == jax.sharding.PartitionSpec(None, "batch")
    assert feed_forward.up.bias.get_raw_value().spec == jax.sharding.PartitionSpec()


def test_what_cannot_be_split_is_refused_with_what_can():
    with pytest.raises(ValueError, match=r"7 devices divide none of 24, 48, 72, .* over 6: .*\[:6\]\)"):
        with_weight_shards(tiny.model(), jax.sharding.AbstractMesh((7,), ("batch",)))
    with pytest.raises(ValueError, match=r'model is "dinov3_vit7b16", a name or path; open it: '):
        shard_weights("dinov3_vit7b16", batch_mesh())
    with pytest.raises(ValueError, match=r"mesh is int; give a mesh of the devices .*batch_mesh\(\)"):
        jaxvit.create(tiny.CONFIG, mesh=8)
    with pytest.raises(ValueError, match=r"one axis, batch, and this one has model; use jaxvit\.sharding\.batch_mesh\(\)"):
        shard_weights(tiny.model(), jax.make_mesh((1,), ("model",)))


def test_a_model_says_that_its_weights_are_split():
    model = with_weight_shards(tiny.model(), jax.sharding.AbstractMesh((8,), ("batch",)))
    assert str(model) == str(tiny.model()).removesuffix(")") + ", those of blocks split over 8 devices)"


def test_one_device_is_a_mesh_too():
    model, images = shard_weights(tiny.model(), batch_mesh(jax.devices()[:1])), tiny.images(2)
    assert np.array_equal(jaxvit.forward(model, images).tokens, jaxvit.forward(tiny.model(), images).tokens)
