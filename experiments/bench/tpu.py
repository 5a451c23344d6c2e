"""Rows of TPUs without a TPU: every program of the study compiled ahead of time for a described slice, and the compiler's estimates.

XLA's compiler for TPUs is in the `libtpu` wheel (`pip install 'jaxvit[tpu]'`) and runs on any Linux machine. It reads its settings
from the environment when a process starts, so it works in one of its own: `python -m experiments.bench.tpu TOPOLOGY`.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

import jaxvit
from experiments.bench import programs
from experiments.bench.programs import NAMES, SIDE, Call, Program, Shapes
from experiments.bench.rows import Goal, Row, Size
from jaxvit.attention import attend, attend_and_share, probabilities

ENVIRONMENT = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
SLICES = {"v5e": ("v5e:2x4", "v5litepod-8", 16e9), "v4": ("v4:2x2x1", "v4-8", 32e9)}
"""Topology, accelerator type, and bytes of memory of a chip (Google Cloud's system architecture pages)."""

BOOKKEEPING = {"ConcatBitcast", "SliceBitcast", "AllocateBuffer", "AssumeGatherIndicesInBound", "GatherScatterIndicesBitpacked"}
"""Custom calls without work: names for parts of memory, and what the compiler may take for granted of indices."""


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
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)  # what it says meanwhile is seen
    if done.returncode:
        raise ValueError(f"compiling for {topology} failed; what the compiler said stands above")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    first = {one["program"]: one.get("seconds") for one in found["programs"] if one["model"] == NAMES[0] and one["dtype"] == "bfloat16"}
    flow, maps = first["attention flow"], first["attention flow by maps"]
    for one in found["programs"]:
        one["fits"] = one.get("bytes", math.inf) <= memory
    numbers = {"ratio": maps / flow, "seconds": flow, "theirs_seconds": maps}
    if all("bytes" in one for one in found["programs"]):
        numbers["memory"] = max(one["bytes"] for one in found["programs"]) / memory
    return numbers | {"facts": found, "device": f"{topology}, none at hand"}


def _attentions(groups: jax.Array) -> dict[str, Callable[..., Any]]:
    """One layer's attention with and without the shares of groups, by three routes."""

    def columns(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
        more = jnp.broadcast_to(groups[:, None].astype(v.dtype), (*v.shape[:-1], groups.shape[1]))
        both = attend(q, k, jnp.concatenate([v, more], axis=-1))
        return both[..., : v.shape[-1]], both[..., v.shape[-1] :]

    def maps(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
        return attend(q, k, v), jnp.einsum("bhtu,us->bths", probabilities(q, k), groups)

    return {"plain": attend, "shares": lambda q, k, v: attend_and_share(q, k, v, groups), "columns": columns, "maps": maps}


def _pallas() -> dict[str, Callable[..., Any]]:
    """The kernels that come with JAX, for one chip: heads first, tokens filled up to a multiple of 128, which no real one sees."""
    from jax.experimental.pallas.ops.tpu import flash_attention as flash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    def filled(x: jax.Array) -> jax.Array:
        return jnp.pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, 0), (0, -x.shape[1] % 128), (0, 0)))

    def by_flash(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        heads = [filled(x) for x in (q, k, v)]
        fill = jnp.broadcast_to((jnp.arange(heads[0].shape[2]) >= q.shape[1]).astype(jnp.int32), (len(q), heads[0].shape[2]))
        mixed = flash.flash_attention(*heads, segment_ids=flash.SegmentIds(fill, fill), sm_scale=q.shape[-1] ** -0.5)
        return jnp.swapaxes(mixed, 1, 2)[:, : q.shape[1]]

    def by_splash(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        heads = [filled(x) for x in (q * q.shape[-1] ** -0.5, k, v)]
        fill = (jnp.arange(heads[0].shape[2]) >= q.shape[1]).astype(jnp.int32)
        everything = masks.MultiHeadMask([masks.FullMask((len(fill), len(fill)))] * q.shape[2])
        kernel = splash.make_splash_mha(mask=everything, head_shards=1, q_seq_shards=1)
        mixed = jax.vmap(lambda q, k, v: kernel(q, k, v, splash.SegmentIds(fill, fill)))(*heads)
        return jnp.swapaxes(mixed, 1, 2)[:, : q.shape[1]]

    return {"flash": by_flash, "splash": by_splash}


def _compile(topology: str, size: Size) -> dict[str, list[dict[str, Any]]]:
    """What the compiler says of every program, and of one layer's attention by every route."""
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    shapes = Shapes(Mesh(np.asarray(devices), ("batch",)))
    models = [(NAMES[0], jnp.bfloat16), (NAMES[1], jnp.bfloat16), (NAMES[1], jnp.float32)]
    read = list(_told(programs.of_features(shapes, size)))
    found: list[dict[str, Any]] = []
    for name, dtype in size.pick(models, models[:1]):
        found += _told(programs.of_model(name, dtype, shapes, size))
    return {"programs": found + read, "attention": list(_routes(shapes, size))}


def _told(wanted: Iterable[Program]) -> Iterator[dict[str, Any]]:
    """Seconds of a call and bytes on each chip. The compiler counts what a loop does once: a block is counted as often as it is run,
    and where other loops repeat something, or an operation has no estimate, there are no seconds."""
    blocks: dict[str, float] = {}
    ends: dict[Callable[..., Any], float] = {}
    for program in wanted:
        entry: dict[str, Any] = {"program": program.name, "model": program.model, "dtype": program.dtype}
        try:
            whole = _compiled(program.call)
        except jax.errors.JaxRuntimeError as error:  # the compiler refuses what does not fit
            yield entry | {"error": str(error)}
            print(entry["program"], error, file=sys.stderr)
            continue
        entry |= {"bytes": _bytes(whole), "without_estimate": sorted(_unestimated(whole)), "loops": _loops(whole)}
        ends |= {end[0]: _seconds(_compiled(end)) for end in program.ends if end[0] not in ends}
        around = sum(ends[function] for function, _ in program.ends)
        blocks[program.name] = blocks.get(program.block_of) or _seconds(whole) - around
        if not entry["without_estimate"] and (entry["loops"] <= bool(program.images) or program.block_of):
            entry["seconds"] = around + program.blocks * blocks[program.name]
            entry |= {"images_per_second_per_chip": program.images / entry["seconds"]} if program.images else {}
        print(json.dumps(entry), file=sys.stderr)
        yield entry


def _routes(shapes: Shapes, size: Size) -> Iterator[dict[str, Any]]:
    """One layer of attention of an S by XLA and by the kernels that come with JAX."""
    config = jaxvit.MODELS[NAMES[0]]
    layout, count = jaxvit.TokenLayout.of(config, SIDE), size.pick(64, 2) * shapes.mesh.size
    heads = shapes.split(count, layout.tokens, config.heads, config.head_width, dtype=jnp.bfloat16)
    split = functools.partial(jax.shard_map, mesh=shapes.mesh, in_specs=PartitionSpec("batch"), out_specs=PartitionSpec("batch"))
    kernels = {name: split(kernel, check_vma=False) for name, kernel in _pallas().items()}
    groups = jax.nn.one_hot(layout.group_of(), len(layout.groups))
    for route, function in (_attentions(groups) | kernels).items():
        alone = _compiled((function, (heads, heads, heads)))
        counted = alone.cost_analysis()
        yield {"route": route, "dtype": "bfloat16", "bytes": _bytes(alone), "seconds": _seconds(alone), "flops": counted["flops"]}


def _compiled(call: Call) -> Any:
    function, arguments = call
    return jax.jit(function).lower(*arguments).compile()


def _loops(program: Any) -> int:
    return program.as_text().count(" while(")


def _unestimated(program: Any) -> set[str]:
    """Custom calls that the compiler has no estimate for."""
    return set(re.findall(r'custom_call_target="([^"]+)"', program.as_text())) - BOOKKEEPING


def _seconds(program: Any) -> float:
    """The compiler's estimate; every operation that it has none for counts as -1 s, and no program here takes a second."""
    return float((program.cost_analysis().get("optimal_seconds") or 0) % 1)


def _bytes(program: Any) -> float:
    """What the program needs of a chip's memory: arguments, results and what lies between."""
    memory = program.memory_analysis()
    return float(memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes - memory.alias_size_in_bytes)


if __name__ == "__main__":
    print(json.dumps(_compile(sys.argv[1], Size(sys.argv[2] == "small"))))
