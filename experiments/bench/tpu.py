"""Rows for TPUs without a TPU: the compiler's estimates for every program of the study, compiled ahead of time for a described slice.

XLA's compiler for TPUs is in the `libtpu` wheel (`pip install 'jaxvit[tpu]'`) and runs on any Linux machine. It reads its settings
from the environment when a process starts, so it runs in a process of its own: `python -m experiments.bench.tpu TOPOLOGY small|full`.
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
from jax.sharding import Mesh, PartitionSpec

import jaxvit
from experiments.bench.programs import NAMES, SIDE, Call, Program, Shapes, model_programs, readout_programs
from experiments.bench.rows import BenchRow, Goal, Size
from experiments.numerics import pin_process
from jaxvit.attention import attend, attention_with_groups, probabilities
from jaxvit.capture import group_columns
from jaxvit.sharding import batch_mesh

ENVIRONMENT = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
SLICES = {"v5e": ("v5e:2x4", "v5litepod-8", 16e9), "v4": ("v4:2x2x1", "v4-8", 32e9)}
"""By name: topology, accelerator type, and bytes of memory of a chip (Google Cloud's system architecture pages)."""

BOOKKEEPING = {"ConcatBitcast", "SliceBitcast", "AllocateBuffer", "AssumeGatherIndicesInBound", "GatherScatterIndicesBitpacked"}
"""Custom calls that take no time: names for parts of memory, and assumptions about indices."""


COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)


def rows() -> list[BenchRow]:
    """The rows of this module; the ratio compares attention flow by full maps of attention with ours."""
    title = "programs of the study for {}-8, ViT-S and B, 64 images a chip; ratio: attention flow"
    against, goals = "ours, maps materialised", (Goal("ratio", 1), Goal("memory", 1))
    return [
        BenchRow(
            name=f"tpu_{name}",
            what=title.format(name),
            against=against,
            dtype="bfloat16",
            goals=goals,
            build=functools.partial(compiled, name),
            platform="tpu",
            estimate="compiler's estimate",
        )
        for name in SLICES
    ]


def available() -> bool:
    """Whether the TPU compiler is installed."""
    return importlib.util.find_spec("libtpu") is not None


def compiled(name: str, size: Size) -> dict[str, Any]:
    """The compiler's estimates for every program; "memory" is the largest share of a chip's memory. Errors as for `compiled_apart`."""
    result = compiled_apart("experiments.bench.tpu", name, size)
    entries = result["facts"]["programs"]
    seconds = {e["program"]: e.get("seconds") for e in entries if e["model"] == NAMES[0] and e["dtype"] == "bfloat16"}
    flow, maps = seconds["attention flow"], seconds["attention flow by maps"]
    return {"ratio": maps / flow, "seconds": flow, "theirs_seconds": maps} | result


def compiled_apart(module: str, name: str, size: Size) -> dict[str, Any]:
    """What a module finds that is run in a process of its own to compile for a slice: facts with "programs", of each of which is added
    whether it fits, and "memory", the largest share of a chip's memory.

    Raises:
        ValueError: there is no libtpu here, or the process fails.
    """
    if not available():
        raise ValueError("the TPU compiler is not installed; run pip install -e '.[tpu]' (in a virtual environment of its own)")
    topology, accelerator, memory = SLICES[name]
    command = [sys.executable, "-m", module, topology, "small" if size.small else "full"]
    environment = os.environ | ENVIRONMENT | {"TPU_ACCELERATOR_TYPE": accelerator}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)  # stderr shows progress
    if done.returncode:
        raise ValueError(f"compiling for {topology} failed; the compiler's message is above")
    facts = json.loads(done.stdout.strip().splitlines()[-1])
    entries = facts["programs"]
    for entry in entries:
        entry["fits"] = entry.get("bytes", math.inf) <= memory
    largest = {"memory": max(entry["bytes"] for entry in entries) / memory} if all("bytes" in entry for entry in entries) else {}
    return {**largest, "facts": facts, "device": f"{topology}, none at hand"}


def _attentions(groups: jax.Array) -> dict[str, Callable[..., Any]]:
    """One layer's attention plain, and with attention by token group computed in three ways."""

    def columns(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
        indicators = jnp.broadcast_to(groups[:, None].astype(v.dtype), (*v.shape[:-1], groups.shape[1]))
        both = attend(q, k, jnp.concatenate([v, indicators], axis=-1))
        return both[..., : v.shape[-1]], both[..., v.shape[-1] :]

    def maps(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
        return attend(q, k, v), jnp.einsum("bhtu,us->bths", probabilities(q, k), groups)

    return {"plain": attend, "shares": lambda q, k, v: attention_with_groups(q, k, v, groups), "columns": columns, "maps": maps}


def _pallas() -> dict[str, Callable[..., Any]]:
    """The attention kernels that come with JAX, for one chip: heads first, tokens padded to a multiple of 128 and the padding masked."""
    from jax.experimental.pallas.ops.tpu import flash_attention as flash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    def padded(x: jax.Array) -> jax.Array:
        return jnp.pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, 0), (0, -x.shape[1] % 128), (0, 0)))

    def by_flash(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        heads = [padded(x) for x in (q, k, v)]
        segments = jnp.broadcast_to((jnp.arange(heads[0].shape[2]) >= q.shape[1]).astype(jnp.int32), (len(q), heads[0].shape[2]))
        mixed = flash.flash_attention(*heads, segment_ids=flash.SegmentIds(segments, segments), sm_scale=q.shape[-1] ** -0.5)
        return jnp.swapaxes(mixed, 1, 2)[:, : q.shape[1]]

    def by_splash(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        heads = [padded(x) for x in (q * q.shape[-1] ** -0.5, k, v)]
        segments = (jnp.arange(heads[0].shape[2]) >= q.shape[1]).astype(jnp.int32)
        everything = masks.MultiHeadMask([masks.FullMask((len(segments), len(segments)))] * q.shape[2])
        kernel = splash.make_splash_mha(mask=everything, head_shards=1, q_seq_shards=1)
        mixed = jax.vmap(lambda q, k, v: kernel(q, k, v, splash.SegmentIds(segments, segments)))(*heads)
        return jnp.swapaxes(mixed, 1, 2)[:, : q.shape[1]]

    return {"flash": by_flash, "splash": by_splash}


def mesh_of_slice(topology: str) -> Mesh:
    """A mesh of the chips of a slice that is not here."""
    from jax.experimental import topologies

    options = {"chip_config_name": "megacore"} if topology.startswith("v4") else {}  # a device is a chip of two cores, as on a v4-8 itself
    return batch_mesh(topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices)


def _compile(topology: str, size: Size) -> dict[str, list[dict[str, Any]]]:
    """The compiler's estimates for every program, and for one layer's attention by every route."""
    shapes = Shapes(mesh_of_slice(topology))
    models = [(NAMES[0], jnp.bfloat16), (NAMES[1], jnp.bfloat16), (NAMES[1], jnp.float32)]
    readouts = list(estimates(readout_programs(shapes, size)))
    entries: list[dict[str, Any]] = []
    for name, dtype in size.pick(models, models[:1]):
        entries += estimates(model_programs(name, dtype, shapes, size))
    return {"programs": entries + readouts, "attention": list(_attention_estimates(shapes, size))}


def estimates(programs: Iterable[Program]) -> Iterator[dict[str, Any]]:
    """Seconds of a call and bytes on each chip, as the compiler estimates them.

    The compiler counts the body of a loop once. The loop over blocks is multiplied by its iterations; where there are other loops, or an
    operation has no estimate, the entry has no seconds.
    """
    blocks: dict[str, float] = {}
    ends: dict[Callable[..., Any], float] = {}
    for program in programs:
        entry: dict[str, Any] = {"program": program.name, "model": program.model, "dtype": program.dtype}
        try:
            whole = _compiled(program.call)
        except jax.errors.JaxRuntimeError as error:  # the compiler refuses programs that do not fit into memory
            yield entry | {"error": str(error)}
            print(entry["program"], error, file=sys.stderr)
            continue
        entry |= {"bytes": _bytes(whole), "without_estimate": sorted(_unestimated(whole)), "loops": _loops(whole)}
        entry |= {"temporary_bytes": whole.memory_analysis().temp_size_in_bytes, "collectives": _collectives(whole)}
        ends |= {end[0]: _seconds(_compiled(end)) for end in program.ends if end[0] not in ends}
        outside = sum(ends[function] for function, _ in program.ends)
        blocks[program.name] = blocks.get(program.block_of) or _seconds(whole) - outside
        if not entry["without_estimate"] and (entry["loops"] <= bool(program.images) or program.block_of):
            entry["seconds"] = outside + program.blocks * blocks[program.name]
            entry |= {"images_per_second_per_chip": program.images / entry["seconds"]} if program.images else {}
        print(json.dumps(entry), file=sys.stderr)
        yield entry


def _attention_estimates(shapes: Shapes, size: Size) -> Iterator[dict[str, Any]]:
    """Estimates for one layer of attention of an S, by XLA and by the kernels that come with JAX."""
    config = jaxvit.MODELS[NAMES[0]]
    layout, count = jaxvit.TokenLayout.of(config, SIDE), size.pick(64, 2) * shapes.mesh.size
    heads = shapes.split(count, layout.tokens, config.heads, config.head_width, dtype=jnp.bfloat16)
    split = functools.partial(jax.shard_map, mesh=shapes.mesh, in_specs=PartitionSpec("batch"), out_specs=PartitionSpec("batch"))
    kernels = {name: split(kernel, check_vma=False) for name, kernel in _pallas().items()}
    groups = group_columns(layout)
    for route, function in (_attentions(groups) | kernels).items():
        program = _compiled((function, (heads, heads, heads)))
        flops = program.cost_analysis()["flops"]
        yield {"route": route, "dtype": "bfloat16", "bytes": _bytes(program), "seconds": _seconds(program), "flops": flops}


def _compiled(call: Call) -> Any:
    function, arguments = call
    return jax.jit(function).lower(*arguments).compile()


def _loops(program: Any) -> int:
    return program.as_text().count(" while(")


def _collectives(program: Any) -> list[str]:
    """The kinds of operations between chips."""
    return sorted(kind for kind in COLLECTIVES if re.search(rf" {kind}(-start)?\(", program.as_text()))


def _unestimated(program: Any) -> set[str]:
    """Custom calls that the compiler has no estimate of time for."""
    return set(re.findall(r'custom_call_target="([^"]+)"', program.as_text())) - BOOKKEEPING


def _seconds(program: Any) -> float:
    """The compiler's estimate. Operations without one count as -1 s each; no program here takes a second, so the fraction is the rest."""
    return float((program.cost_analysis().get("optimal_seconds") or 0) % 1)


def _bytes(program: Any) -> float:
    """Memory that the program needs on a chip: arguments, results and temporaries."""
    memory = program.memory_analysis()
    return float(memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes - memory.alias_size_in_bytes)


if __name__ == "__main__":
    pin_process()
    print(json.dumps(_compile(sys.argv[1], Size(sys.argv[2] == "small"))))
