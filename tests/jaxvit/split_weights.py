"""What `test_weight_shards` runs in a process of eight CPU devices: the 7B at 1/64 of its width, copied to all and split over them."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import sys
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxvit
from jaxvit.sharding import batch_mesh, replicate, shard_weights, split, weight_specs
from jaxvit.vit import cast, truncated

LARGE = dataclasses.replace(jaxvit.MODELS["dinov3_vit7b16"], width=64, heads=4, mlp_dim=128)
SIDE, COUNT, DEPTH = 32, 8, 3


def first_channel(output: jaxvit.Output) -> jax.Array:
    return output.cls[:, 0]


def runs(images: jax.Array, pixels: np.ndarray) -> dict[str, Any]:
    """Every function that runs blocks, by a title, from a model to its results."""
    zero = jaxvit.zero("registers")
    cut = jaxvit.cut("cls", "registers", layers=[1], mass="renormalise")
    config = dataclasses.replace(LARGE, depth=DEPTH)
    edits = jaxvit.stack([zero, jaxvit.zero("cls")], config, SIDE)
    stream = np.asarray(np.random.default_rng(1).normal(size=(COUNT, 9, LARGE.width)), np.float32)

    def by_shares(model: jaxvit.ViT, specs: Any) -> Any:
        """In a `jax.shard_map` of the user's own."""
        batch = jax.sharding.PartitionSpec("batch")
        program = jax.shard_map(
            lambda model, images: jaxvit.forward(model, images).tokens,
            mesh=batch_mesh(), in_specs=(specs, batch), out_specs=batch, check_vma=False,
        )  # fmt: skip
        return jax.jit(program)(model, images)

    return {
        "forward": lambda model: jaxvit.forward(model, images, zero, ("attention_flow", "block_output")),
        "bfloat16": lambda model: jaxvit.forward(cast(model, jnp.bfloat16), images).tokens,
        "contrast": lambda model: jaxvit.contrast(model, images, zero, "attention_divergence"),
        "sweep": lambda model: jaxvit.sweep_layers(model, images, zero),
        "resume": lambda model: jaxvit.resume(truncated(model, 2), stream, SIDE, 1, cut),
        "attribution": lambda model: jaxvit.attribution(model, images, first_channel, zero),
        "gradient": lambda model: slope(model, images),
        "vmap": lambda model: jax.jit(jax.vmap(lambda edits: jaxvit.forward(model, images, edits).tokens))(edits),
        "calibrate": lambda model: jaxvit.calibrate(model, [(images, None)]).mean,
        "extract": lambda model: jaxvit.extract(model, pixels, cut, COUNT, "attention_flow", "cls").captured,
        "shares": lambda model: by_shares(model, weight_specs(model)),
        "whole in shares": lambda model: by_shares(model, jax.sharding.PartitionSpec()),
    }


@jax.jit
def slope(model: jaxvit.ViT, images: jax.Array) -> jax.Array:
    """The gradient of CLS with respect to pixels."""
    gradient: jax.Array = jax.grad(lambda images: jaxvit.forward(model, images).cls.sum())(images)
    return gradient


def compiled(model: jaxvit.ViT, images: jax.Array) -> dict[str, Any]:
    """What the compiler says of a forward pass and of a gradient."""
    forward = importlib.import_module("jaxvit.forward")  # the attribute of the package is the function
    programs = {
        "forward": forward._forward.lower(model, images, None, None, None, None, ()),
        "gradient": slope.lower(model, images),
    }
    facts = {}
    for name, lowered in programs.items():
        program = lowered.compile()
        text, memory = program.as_text(), program.memory_analysis()
        kinds = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
        collectives = [kind for kind in kinds if re.search(rf" {kind}(-start)?\(", text)]
        facts[name] = {"collectives": collectives, "arguments": memory.argument_size_in_bytes, "temporary": memory.temp_size_in_bytes}
    return facts


FEW = ("forward", "extract", "gradient")


def main(names: tuple[str, ...] = ()) -> None:
    """Print, as JSON, of which runs every bit is the same (by default all), what the compiler says, and the bytes of all blocks."""
    mesh, pixels = batch_mesh(), np.random.default_rng(0).integers(0, 256, (COUNT, SIDE, SIDE, 3), np.uint8)
    images = split(jaxvit.normalise(pixels, LARGE), mesh)
    small = jaxvit.create(dataclasses.replace(LARGE, depth=DEPTH))
    pair = replicate(small, mesh), shard_weights(small, mesh)
    same = {}
    every = runs(images, pixels)
    for name in names or every:
        run = every[name]
        copied, divided = (jax.tree.leaves(run(model)) for model in pair)
        same[name] = all(np.array_equal(one, other) for one, other in zip(copied, divided, strict=True))
    deep = jaxvit.create(LARGE)
    facts = {name: compiled(model, images) for name, model in (("copied", replicate(deep, mesh)), ("split", shard_weights(deep, mesh)))}
    made = jaxvit.create(LARGE, 0, mesh)
    same["random weights"] = all(
        np.array_equal(one, other) and one.sharding == other.sharding
        for one, other in zip(jax.tree.leaves(made), jax.tree.leaves(shard_weights(deep, mesh)), strict=True)
    )
    blocks = sum(leaf.nbytes for leaf in jax.tree.leaves(deep.blocks))
    print(json.dumps({"same": same, "facts": facts, "blocks": blocks}))


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    warnings.simplefilter("error")
    main(FEW if sys.argv[1] == "few" else ())
