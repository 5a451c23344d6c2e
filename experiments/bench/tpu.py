"""Rows of TPUs without a TPU: every program of the study compiled ahead of time for a described slice, and the compiler's estimates.

XLA's compiler for TPUs is in the `libtpu` wheel (`pip install 'jaxvit[tpu]'`) and runs on any Linux machine. It reads its settings
from the environment when a process starts, so it works in one of its own: `python -m experiments.bench.tpu TOPOLOGY`.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxvit
from experiments.bench.rows import Goal, Row, Size
from jaxvit.attention import attend, attend_and_share, probabilities
from jaxvit.forward import sweep_layers
from jaxvit.vit import abstract

ENVIRONMENT = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
NAMES = ("dinov2_vits14_reg", "dinov2_vitb14_reg")
SLICES = {"v5e": ("v5e:2x4", "v5litepod-8", 16e9), "v4": ("v4:2x2x1", "v4-8", 32e9)}
"""Topology, accelerator type, and bytes of memory of a chip (Google Cloud's system architecture pages)."""


def rows() -> list[Row]:
    """The rows of this module: the ratio is of attention flow with maps of attention to flow by shares."""
    what = "programs of the study for {}-8, ViT-S and B, 64 images a chip; ratio: attention flow"
    build = {name: functools.partial(compiled, name) for name in SLICES}
    goals = (Goal("ratio", 1), Goal("memory", 1))
    return [
        Row(
            f"tpu_{name}", what.format(name), "ours, maps materialised", "bfloat16", goals, build[name], "tpu", False, "compiler's estimate"
        )
        for name in SLICES
    ]


def available() -> bool:
    """Whether the TPU compiler is installed."""
    return importlib.util.find_spec("libtpu") is not None


def compiled(name: str, size: Size) -> dict[str, Any]:
    """What the compiler says of every program, from a process of its own; "memory" is the largest share of a chip's memory.

    Raises:
        ValueError: there is no libtpu here, or a program does not compile.
    """
    if not available():
        raise ValueError("the TPU compiler is not installed; run pip install -e '.[tpu]' (in a virtual environment of its own)")
    topology, accelerator, memory = SLICES[name]
    command = [sys.executable, "-m", "experiments.bench.tpu", topology, "small" if size.small else "full"]
    environment = os.environ | ENVIRONMENT | {"TPU_ACCELERATOR_TYPE": accelerator}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"compiling for {topology} failed: {done.stderr.strip().splitlines()[-1]}")
    programs = json.loads(done.stdout.strip().splitlines()[-1])
    flow, maps = (programs[_key(key, NAMES[0])]["seconds"] for key in ("attention_flow", "attention_flow_by_maps"))
    largest = max(program["bytes"] for program in programs.values()) / memory
    numbers = {"ratio": maps / flow, "seconds": flow, "theirs_seconds": maps, "memory": largest}
    return numbers | {"facts": {"programs": programs}, "device": f"{topology}, none at hand"}


def _flow_by_maps(state: Any) -> jax.Array:
    """The same flow from full maps, as it is done where attention hands them out."""
    columns = jax.nn.one_hot(state.layout.group_of(), len(state.layout.groups))
    return jnp.einsum("bhtu,us,tr->bhrs", state.attention, columns, columns / columns.sum(axis=0))


def _programs() -> dict[str, Callable[..., Any]]:
    """What the study runs, as functions of (model, images, edits)."""
    forward = jaxvit.forward

    def by_condition(model: jaxvit.ViT, images: Any, edits: Any) -> Any:
        return forward(model, images, edits).tokens

    def maps(model: jaxvit.ViT, images: Any, edits: Any) -> Any:
        return forward(model, images, capture={"flow": _flow_by_maps}).captured

    return {
        "forward": lambda model, images, edits: forward(model, images).tokens,
        "condition": by_condition,
        "attention_flow": lambda model, images, edits: forward(model, images, capture="attention_flow").captured,
        "attention_flow_by_maps": maps,
        "attention_divergence": lambda model, images, edits: jaxvit.contrast(model, images, edits, "attention_divergence").captured,
        "layer_sweep": lambda model, images, edits: sweep_layers(model, images, edits).cls,
    }


def _attentions(groups: jax.Array) -> dict[str, Callable[..., Any]]:
    """One layer's attention with and without the shares of groups, by three routes."""

    def columns(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
        more = jnp.broadcast_to(groups[:, None].astype(v.dtype), (*v.shape[:-1], groups.shape[1]))
        both = attend(q, k, jnp.concatenate([v, more], axis=-1))
        return both[..., : v.shape[-1]], both[..., v.shape[-1] :]

    def maps(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
        return attend(q, k, v), jnp.einsum("bhtu,us->bths", probabilities(q, k), groups)

    return {"plain": attend, "shares": lambda q, k, v: attend_and_share(q, k, v, groups), "columns": columns, "maps": maps}


def _compile(topology: str, size: Size) -> dict[str, dict[str, float]]:
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    mesh = Mesh(np.asarray(devices), ("batch",))
    everywhere, apart = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("batch"))

    def shape(leaf: Any, sharding: NamedSharding, dtype: Any = None) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype, sharding=sharding)

    found: dict[str, dict[str, float]] = {}
    for name in size.pick(NAMES, NAMES[:1]):
        config = jaxvit.MODELS[name]
        layout = jaxvit.TokenLayout.of(config, 224)
        model = jax.tree.map(lambda leaf: shape(leaf, everywhere, jnp.bfloat16), abstract(config))
        edits = jax.tree.map(lambda leaf: shape(leaf, everywhere), jaxvit.lower(jaxvit.zero("registers"), config, 224))
        per_chip = size.pick(64, 2)
        images = jax.ShapeDtypeStruct((per_chip * mesh.size, 224, 224, 3), jnp.bfloat16, sharding=apart)
        ends = _seconds(jax.jit(_ends).lower(model, images).compile())
        for program, function in _programs().items():
            whole = jax.jit(function).lower(model, images, edits).compile()
            # the analysis counts a loop's body, the block, once; a sweep's blocks are those of a forward pass
            block = (found[_key("forward", name)]["seconds"] - ends) / config.depth if program == "layer_sweep" else _seconds(whole) - ends
            blocks = config.depth * (config.depth + 1) // 2 if program == "layer_sweep" else config.depth
            entry = {"seconds": ends + blocks * block, "bytes": _bytes(whole)}
            entry["images_per_second_per_chip"] = per_chip / entry["seconds"]
            found[_key(program, name)] = entry
        if name == NAMES[0]:
            heads = jax.ShapeDtypeStruct((images.shape[0], layout.tokens, config.heads, config.head_width), jnp.bfloat16, sharding=apart)
            groups = jax.nn.one_hot(layout.group_of(), len(layout.groups))
            for route, function in _attentions(groups).items():
                alone = jax.jit(function).lower(heads, heads, heads).compile()
                found[f"attention, {route}"] = {"seconds": _seconds(alone), "bytes": _bytes(alone)}
    return found


def _key(program: str, name: str) -> str:
    return f"{program}, {name}"


def _ends(model: jaxvit.ViT, images: jax.Array) -> jax.Array:
    """What stands before and behind the blocks."""
    grid = model.config.grid(images.shape[1], images.shape[2])
    return model.final_norm(model.add_prefix(model.embed_patches(images), grid))


def _seconds(program: Any) -> float:
    """The compiler's estimate; every operation that it has none for counts as -1 s, and no program here takes a second."""
    return float(program.cost_analysis()["optimal_seconds"] % 1)


def _bytes(program: Any) -> float:
    """What the program needs of a chip's memory: arguments, results and what lies between."""
    memory = program.memory_analysis()
    return float(memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes - memory.alias_size_in_bytes)


if __name__ == "__main__":
    print(json.dumps(_compile(sys.argv[1], Size(sys.argv[2] == "small"))))
