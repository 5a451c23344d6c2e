"""Rows of running models: forward, the conditions of the study, single-layer sweeps, attention flow and divergence."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxvit
from experiments.bench.opponents import SMALL, device, difference, hooked, no_gradient, optional, pixels, rivals
from experiments.bench.rows import Case, Goal, Row, Size
from jaxvit.forward import sweep_layers
from jaxvit.sharding import batch_mesh, replicate, split
from jaxvit.vit import cast

S, B, L = "dinov2_vits14_reg", "dinov2_vitb14", "dinov2_vitl14"


def rows() -> list[Row]:
    """The rows of this module."""
    half = "bfloat16, float32 softmax and norms"
    compiled = "transformers, torch.compile, SDPA"
    return [
        Row("forward_s", "forward, ViT-S/14+reg, 224", "transformers, SDPA", "float32", (Goal("ratio", 1),), functools.partial(forward, S)),
        Row("forward_b", "forward, ViT-B/14, 224", "transformers, SDPA", "float32", (Goal("ratio", 1),), functools.partial(forward, B)),
        *(
            Row(f"forward_{name}_bf16", f"forward, ViT-{name.upper()}/14, 224", compiled, half, goals, build, platform="gpu")
            for name, goals, build in (
                ("s", (Goal("ratio", 1),), functools.partial(half_forward, S)),
                ("b", (Goal("ratio", 1), Goal("utilisation", 0.4)), functools.partial(half_forward, B)),
                ("l", (Goal("ratio", 1),), functools.partial(half_forward, L)),
            )
        ),
        Row(
            "conditions",
            "14 conditions, all layers ablated, ViT-S/14+reg",
            "forward hooks",
            "float32",
            (Goal("ratio", 1),),
            conditions,
            "any",
            on_gpu=(Goal("ratio", 1.5),),
        ),
        Row(
            "layer_sweep",
            "zero registers at one block, every block, ViT-S/14+reg",
            "hooks",
            "float32",
            (Goal("ratio", 1.8),),
            layer_sweep,
            "any",
        ),
        Row(
            "attention_flow",
            "attention flow of all layers, ViT-S/14+reg",
            "transformers, eager, maps reduced",
            "float32",
            (Goal("ratio", 1.5), Goal("memory", 0.1)),
            attention_flow,
            "any",
            memory=True,
        ),
        Row(
            "flow_overhead",
            "attention flow of all layers",
            "ours: plain forward",
            "float32",
            (Goal("ratio", 1 / 1.15),),
            functools.partial(flow_overhead, jnp.float32),
            "any",
        ),
        Row(
            "flow_overhead_bf16",
            "attention flow of all layers",
            "ours: plain forward",
            half,
            (Goal("ratio", 1 / 1.15),),
            functools.partial(flow_overhead, jnp.bfloat16),
            platform="gpu",
        ),
        Row(
            "attention_divergence",
            "Jensen-Shannon divergence of attention, zeroed registers against full, all layers",
            "transformers, eager, the same in torch",
            "float32",
            (Goal("ratio", 1.5),),
            attention_divergence,
            "any",
            memory=True,
        ),
    ]


def forward(name: str, size: Size) -> Case:
    """The tokens after the final norm."""
    theirs, ours = rivals(name, size.small)
    images, same = pixels(size, size.pick(16, 2), ours.config)
    return Case(
        lambda: jaxvit.forward(ours, images).tokens,
        no_gradient(lambda: theirs(same).last_hidden_state),
        facts={"images": len(images)},
        flop=len(images) * flop_per_image(ours.config, images.shape[1]),
        check=lambda a, b: {"max_difference": difference(a, b)},
    )


def half_forward(name: str, size: Size) -> Case:
    """The same in bfloat16; theirs compiled where there is a GPU to compile for."""
    torch = optional("torch")
    theirs, ours = rivals(name, size.small)
    ours = cast(ours, jnp.bfloat16)
    images, same = pixels(size, size.pick(256, 2), ours.config)
    images = images.astype(jnp.bfloat16)
    rivals.cache_clear()  # `to` changes the module in place
    theirs, same = theirs.to(torch.bfloat16), same.to(torch.bfloat16)
    program = torch.compile(theirs) if device() == "cuda" else theirs

    return Case(
        lambda: jaxvit.forward(ours, images).tokens,
        no_gradient(lambda: program(same).last_hidden_state),
        facts={"images": len(images)},
        flop=len(images) * flop_per_image(ours.config, images.shape[1]),
        check=lambda a, b: {"max_difference": difference(a, b)},
    )


def _batch(size: Size, count: int) -> int:
    """Images at once: `count` on a CPU, and on a GPU as many more as it takes to be busy."""
    return size.pick(count * (16 if jax.default_backend() == "gpu" else 1), 2)


def flop_per_image(config: jaxvit.ViTConfig, side: int) -> float:
    """Two per multiplication and addition of every matrix product of a forward pass; nothing else is counted."""
    tokens = 1 + config.registers + (side // config.patch_size) ** 2
    matrices = 4 * config.width**2 + (3 if config.feed_forward == "swiglu" else 2) * config.width * config.hidden
    block = 2 * tokens * matrices + 4 * tokens**2 * config.width
    return config.depth * block + 2 * tokens * 3 * config.patch_size**2 * config.width


def _study(model: jaxvit.ViT, images: jax.Array) -> tuple[list[jaxvit.Ablation], jaxvit.Statistics]:
    """Fourteen conditions: eleven of constant value, random patches, noise and shuffle."""
    statistics = jaxvit.calibrate(model, [(images, None)])
    registers = model.config.registers
    constant = [
        jaxvit.Ablation(),
        jaxvit.zero("cls"),
        jaxvit.mean("cls", statistics),
        jaxvit.zero("registers"),
        jaxvit.mean("registers", statistics),
        *(jaxvit.zero(f"registers[{i}]") for i in range(registers)),
        *(jaxvit.zero([f"registers[{i}]" for i in range(count)]) for count in range(2, registers)),
    ]
    drawn = [jaxvit.zero(jaxvit.random_patches(4, 0)), jaxvit.noise("registers", statistics, 0), jaxvit.shuffle("registers", 0)]
    return constant + drawn, statistics


def conditions(size: Size) -> Case:
    """One run of the model for every condition, the same batch; constant-valued conditions, "full" among them, share a program."""
    theirs, ours = rivals(S, size.small)
    images, same = pixels(size, _batch(size, 8), ours.config)
    study, statistics = _study(ours, images)
    empty = jaxvit.stack([jaxvit.zero("cls"), jaxvit.Ablation()], ours, images.shape[1])  # "full" with the others' structure
    lowered = [jaxvit.lower(a, ours, images.shape[1]) if a.replacements else jax.tree.map(lambda leaf: leaf[1], empty) for a in study]
    edits = replicate(lowered, batch_mesh())
    ids = split(np.arange(len(images), dtype=np.int32), batch_mesh())
    programs = {jax.tree.structure(e) for e in edits}

    def run() -> Any:
        return [jaxvit.forward(ours, images, edit, example_ids=ids).cls for edit in edits]

    replacements = _hook_conditions(ours.config, statistics, len(images))

    def hooks() -> Any:
        found = []
        for replace in replacements:
            with hooked(theirs, replace):
                found.append(theirs(same).last_hidden_state[:, 0])
        return found

    def check(a: Any, b: Any) -> dict[str, Any]:
        return {"max_difference_constant": max(difference(x, y) for x, y in zip(a[:11], b[:11], strict=True))}

    return Case(run, no_gradient(hooks), facts={"images": len(images), "conditions": len(study), "programs": len(programs)}, check=check)


def _hook_conditions(config: jaxvit.ViTConfig, statistics: jaxvit.Statistics, batch: int) -> list[Callable[[int, Any], Any]]:
    """The same conditions as what a hook does to the output of a block."""
    torch = optional("torch")
    mean, variance = (torch.from_numpy(moment["block_output"]).to(device()) for moment in (statistics.mean, statistics.variance))
    prefix, deviation = 1 + config.registers, variance.sqrt()

    def put(first: int, last: int, value: Callable[[int, Any], Any]) -> Callable[[int, Any], Any]:
        def replace(layer: int, x: Any) -> Any:
            x = x.clone()
            x[:, first:last] = value(layer, x)
            return x

        return replace

    def zeros(layer: int, x: Any) -> Any:
        return 0.0

    def patches(layer: int, x: Any) -> Any:
        x = x.clone()
        x[torch.arange(batch)[:, None], chosen] = 0
        return x

    chosen = prefix + torch.rand(batch, 1 + 4 * config.registers, device=device()).argsort(dim=1)[:, :4]
    registers = range(1, prefix)
    return [
        lambda layer, x: x,
        put(0, 1, zeros),
        put(0, 1, lambda layer, x: mean[layer, 0]),
        put(1, prefix, zeros),
        put(1, prefix, lambda layer, x: mean[layer, 1:prefix]),
        *(put(i, i + 1, zeros) for i in registers),
        *(put(1, 1 + count, zeros) for count in range(2, config.registers)),
        patches,
        put(1, prefix, lambda layer, x: mean[layer, 1:prefix] + deviation[layer, 1:prefix] * torch.randn_like(x[:, 1:prefix])),
        put(1, prefix, lambda layer, x: x[torch.randperm(batch), 1:prefix]),
    ]


def layer_sweep(size: Size) -> Case:
    """The clean run and a run for every block whose registers are zeroed: theirs are depth + 1 full runs."""
    theirs, ours = rivals(S, size.small)
    images, same = pixels(size, _batch(size, 8), ours.config)
    edits = replicate(jaxvit.lower(jaxvit.zero("registers"), ours, images.shape[1]), batch_mesh())
    zero = _hook_conditions(ours.config, jaxvit.calibrate(ours, [(images, None)]), len(images))[3]

    def hooks() -> Any:
        found = [theirs(same).last_hidden_state]
        for layer in range(ours.config.depth):
            with hooked(theirs, zero, {layer}):
                found.append(theirs(same).last_hidden_state)
        return found

    def check(a: Any, b: Any) -> dict[str, Any]:
        return {"max_difference": max(difference(x, y) for x, y in zip(a, b[1:], strict=True))}

    return Case(lambda: sweep_layers(ours, images, edits).tokens, no_gradient(hooks), facts={"images": len(images)}, check=check)


def _columns(config: jaxvit.ViTConfig, side: int) -> np.ndarray:
    layout = jaxvit.TokenLayout.of(config, side)
    return np.eye(len(layout.groups), dtype=np.float32)[layout.group_of()]


def attention_flow(size: Size) -> Case:
    """Attention by token group of every layer and head."""
    theirs, ours = rivals(S, size.small, "eager")
    images, same = pixels(size, _batch(size, 16), ours.config)
    columns = optional("torch").from_numpy(_columns(ours.config, images.shape[1])).to(device())
    rows = columns / columns.sum(0)

    def eager() -> Any:
        maps = theirs(same, output_attentions=True).attentions
        return [rows.T @ (attention @ columns) for attention in maps]

    def check(a: Any, b: Any) -> dict[str, Any]:
        return {"max_difference": max(difference(x, y) for x, y in zip(a, b, strict=True))}

    return Case(
        lambda: jaxvit.forward(ours, images, capture="attention_flow").captured["attention_flow"],
        no_gradient(eager),
        facts={"images": len(images)},
        check=check,
    )


def flow_overhead(dtype: Any, size: Size) -> Case:
    """The flow beside the plain forward pass."""
    model = replicate(cast(jaxvit.create(size.pick(S, SMALL)), dtype), batch_mesh())
    images, _ = pixels(size, _batch(size, 16), model.config)
    images = images.astype(dtype)
    return Case(
        lambda: jaxvit.forward(model, images, capture="attention_flow").captured,
        lambda: jax.block_until_ready(jaxvit.forward(model, images).tokens),
        facts={"images": len(images)},
    )


def attention_divergence(size: Size) -> Case:
    """Jensen-Shannon divergence of clean and ablated attention, by layer and head."""
    theirs, ours = rivals(S, size.small, "eager")
    images, same = pixels(size, _batch(size, 8), ours.config)
    edits = replicate(jaxvit.lower(jaxvit.zero("registers"), ours, images.shape[1]), batch_mesh())
    torch = optional("torch")
    zero = _hook_conditions(ours.config, jaxvit.calibrate(ours, [(images, None)]), len(images))[3]

    def eager() -> Any:
        clean = theirs(same, output_attentions=True).attentions
        with hooked(theirs, zero):
            ablated = theirs(same, output_attentions=True).attentions
        return [_jensen_shannon(torch, p, q).mean(-1) for p, q in zip(clean, ablated, strict=True)]

    def check(a: Any, b: Any) -> dict[str, Any]:
        return {"max_difference": max(difference(x, y) for x, y in zip(a, b, strict=True))}

    return Case(
        lambda: jaxvit.contrast(ours, images, edits, capture="attention_divergence").captured["attention_divergence"],
        no_gradient(eager),
        facts={"images": len(images)},
        check=check,
    )


def _jensen_shannon(torch: Any, p: Any, q: Any) -> Any:
    """In bits, by the usual two logarithms."""
    middle = (p + q).log2() - 1
    return ((torch.special.xlogy(p, p) + torch.special.xlogy(q, q)) / np.log(2) - (p + q) * middle).sum(-1) / 2
