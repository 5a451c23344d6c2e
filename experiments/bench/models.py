"""Rows of running models: forward, the conditions of the study, single-layer sweeps, attention flow and divergence."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxvit
from experiments.bench.opponents import (
    SMALL,
    condition_hooks,
    device,
    difference,
    hooked,
    no_gradient,
    optional,
    paired_models,
    pixels,
    zero_registers,
)
from experiments.bench.rows import BenchRow, Case, Goal, Size
from experiments.features.conditions import CALIBRATED_SITES, overwriting
from experiments.features.recipes import is_random
from jaxvit.forward import sweep_layers
from jaxvit.sharding import batch_mesh, replicate, split
from jaxvit.sites import SITES, STREAM_SITES
from jaxvit.vit import cast

VIT_S, VIT_B, VIT_L = "dinov2_vits14_reg", "dinov2_vitb14", "dinov2_vitl14"
_HALF = "bfloat16, float32 softmax and norms"


def rows() -> list[BenchRow]:
    """The rows of this module."""
    return [*_forward_rows(), *_ablation_rows(), *_attention_rows()]


def _forward_rows() -> list[BenchRow]:
    faster = (Goal("ratio", 1),)
    sdpa, compiled = "transformers, SDPA", "transformers, torch.compile, SDPA"
    return [
        BenchRow("forward_s", "forward, ViT-S/14+reg, 224", sdpa, "float32", faster, functools.partial(forward, VIT_S)),
        BenchRow("forward_b", "forward, ViT-B/14, 224", sdpa, "float32", faster, functools.partial(forward, VIT_B)),
        *(
            BenchRow(f"forward_{name}_bf16", f"forward, ViT-{name.upper()}/14, 224", compiled, _HALF, goals, build, platform="gpu")
            for name, goals, build in (
                ("s", faster, functools.partial(half_forward, VIT_S)),
                ("b", (*faster, Goal("utilisation", 0.55)), functools.partial(half_forward, VIT_B)),
                ("l", (*faster, Goal("utilisation", 0.6)), functools.partial(half_forward, VIT_L)),
            )
        ),
    ]


def _ablation_rows() -> list[BenchRow]:
    return [
        BenchRow(
            "conditions",
            f"{len(overwriting(jaxvit.MODELS[VIT_S]))} conditions, all layers ablated, ViT-S/14+reg",
            "forward hooks",
            "float32",
            (Goal("ratio", 1),),
            all_conditions,
            "any",
            on_gpu=(Goal("ratio", 1.5),),
        ),
        BenchRow(
            "layer_sweep",
            "zero registers at one block, every block, ViT-S/14+reg",
            "hooks",
            "float32",
            (Goal("ratio", 1.8),),
            layer_sweep,
            "any",
        ),
        *(
            BenchRow(
                name,
                f"{title}, all layers, ViT-S/14+reg",
                "ours: plain forward",
                "float32",
                (Goal("ratio", 1 / most),),
                functools.partial(edited, ablation, capture),
                "any",
            )
            for name, title, most, ablation, capture in _inside_a_block()
        ),
    ]


def _inside_a_block() -> list[tuple[str, str, float, Callable[[jaxvit.Moments], jaxvit.Ablation], str | None]]:
    """Edits inside blocks: name and title of a row, how much longer than a plain forward pass it may take, the edit from the moments at
    "mlp_hidden", and what is captured."""

    def cut(moments: jaxvit.Moments) -> jaxvit.Ablation:
        return jaxvit.cut(["cls", "patches"], "registers")

    def three_cuts(moments: jaxvit.Moments) -> jaxvit.Ablation:
        return cut(moments) & jaxvit.cut("cls", "patches[0]", mass="lost") & jaxvit.cut("patches", "patches[1]", mass="cls")

    return [
        *(
            (f"edit_{site}", f"zero registers at {site}", 1.05, functools.partial(_zero_registers, site), None)
            for site in SITES
            if site not in STREAM_SITES
        ),
        ("edit_noise", "noise in the neurons of registers", 1.5, lambda m: jaxvit.noise("registers", m, at="mlp_hidden"), None),
        ("cut", "attention from CLS and patches to registers cut", 1.05, cut, None),
        ("three_cuts", "three cuts of attention, of three masses", 1.3, three_cuts, None),
        ("flow_with_a_cut", "attention flow with a cut", 1.06, cut, "attention_flow"),
    ]


def _zero_registers(site: str, moments: jaxvit.Moments) -> jaxvit.Ablation:
    return jaxvit.zero("registers", at=site)


def _attention_rows() -> list[BenchRow]:
    flow, plain, overhead = "attention flow of all layers", "ours: plain forward", (Goal("ratio", 1 / 1.15),)
    return [
        BenchRow(
            "attention_flow",
            f"{flow}, ViT-S/14+reg",
            "transformers, eager, maps reduced",
            "float32",
            (Goal("ratio", 1.5), Goal("memory", 0.1)),
            attention_flow,
            "any",
            memory=True,
        ),
        BenchRow("flow_overhead", flow, plain, "float32", overhead, functools.partial(flow_overhead, jnp.float32), "any"),
        BenchRow("flow_overhead_bf16", flow, plain, _HALF, overhead, functools.partial(flow_overhead, jnp.bfloat16), "gpu"),
        BenchRow(
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
    """A forward pass to the tokens after the final norm."""
    theirs, ours = paired_models(name, size.small)
    images, tensor = pixels(size, size.pick(16, 2), ours.config)
    return Case(
        lambda: jaxvit.forward(ours, images).tokens,
        no_gradient(lambda: theirs(tensor).last_hidden_state),
        facts={"images": len(images)},
        flop=len(images) * flop_per_image(ours.config, images.shape[1]),
        check=lambda a, b: {"max_difference": difference(a, b)},
    )


def half_forward(name: str, size: Size) -> Case:
    """`forward` in bfloat16; theirs is compiled where there is a GPU to compile for."""
    torch = optional("torch")
    theirs, ours = paired_models(name, size.small)
    ours = cast(ours, jnp.bfloat16)
    images, tensor = pixels(size, size.pick(256, 2), ours.config)
    images = images.astype(jnp.bfloat16)
    paired_models.cache_clear()  # `to` changes the module in place
    theirs, tensor = theirs.to(torch.bfloat16), tensor.to(torch.bfloat16)
    program = torch.compile(theirs) if device() == "cuda" else theirs

    return Case(
        lambda: jaxvit.forward(ours, images).tokens,
        no_gradient(lambda: program(tensor).last_hidden_state),
        facts={"images": len(images)},
        flop=len(images) * flop_per_image(ours.config, images.shape[1]),
        check=lambda a, b: {"max_difference": difference(a, b)},
    )


def _batch(size: Size, count: int) -> int:
    """Images of a batch: `count` on a CPU, and 16 times as many on a GPU, which would not be busy otherwise."""
    return size.pick(count * (16 if jax.default_backend() == "gpu" else 1), 2)


def flop_per_image(config: jaxvit.ViTConfig, side: int) -> float:
    """Floating-point operations of the matrix products of a forward pass, two per multiplication and addition; nothing else is counted."""
    tokens = 1 + config.registers + (side // config.patch_size) ** 2
    matrices = 4 * config.width**2 + (3 if config.feed_forward == "swiglu" else 2) * config.width * config.mlp_dim
    block = 2 * tokens * matrices + 4 * tokens**2 * config.width
    return config.depth * block + 2 * tokens * 3 * config.patch_size**2 * config.width


def all_conditions(size: Size) -> Case:
    """One run of the model for every condition, on the same batch; constant-valued conditions share a program, "full" among them."""
    theirs, ours = paired_models(VIT_S, size.small)
    images, tensor = pixels(size, _batch(size, 8), ours.config)
    statistics = jaxvit.calibrate(ours, [(images, None)], CALIBRATED_SITES)
    study = overwriting(ours.config)
    ablations = [condition(ours.config, statistics, 0) for condition in study.values()]
    # "full" as edits of the same structure as the others', so that it shares their program
    full = jax.tree.map(lambda leaf: leaf[1], jaxvit.stack([jaxvit.zero("cls"), jaxvit.Ablation()], ours, images.shape[1]))
    edits = replicate([jaxvit.lower(a, ours, images.shape[1]) if a.replacements else full for a in ablations], batch_mesh())
    ids = split(np.arange(len(images), dtype=np.int32), batch_mesh())
    programs = {jax.tree.structure(e) for e in edits}

    def run() -> Any:
        return [jaxvit.forward(ours, images, edit, example_ids=ids).cls for edit in edits]

    hooks = condition_hooks(ours.config, statistics, len(images))

    def run_hooks() -> Any:
        cls = []
        for name in study:
            with hooked(theirs, hooks[name]):
                cls.append(theirs(tensor).last_hidden_state[:, 0])
        return cls

    def check(a: Any, b: Any) -> dict[str, Any]:
        size = images.shape[1:3]
        random = [is_random(condition, ours.config, (size[0], size[1])) for condition in study.values()]
        constant = [difference(x, y) for x, y, drawn in zip(a, b, random, strict=True) if not drawn]
        return {"max_difference_constant": max(constant)}

    facts = {"images": len(images), "conditions": len(study), "programs": len(programs)}
    return Case(run, no_gradient(run_hooks), facts=facts, check=check)


def layer_sweep(size: Size) -> Case:
    """The clean run, and for every block a run with its registers zeroed: on their side depth + 1 full runs."""
    theirs, ours = paired_models(VIT_S, size.small)
    images, tensor = pixels(size, _batch(size, 8), ours.config)
    edits = replicate(jaxvit.lower(jaxvit.zero("registers"), ours, images.shape[1]), batch_mesh())

    def run_hooks() -> Any:
        tokens = [theirs(tensor).last_hidden_state]
        for layer in range(ours.config.depth):
            with hooked(theirs, zero_registers(ours.config), {layer}):
                tokens.append(theirs(tensor).last_hidden_state)
        return tokens

    def check(a: Any, b: Any) -> dict[str, Any]:
        return {"max_difference": max(difference(x, y) for x, y in zip(a, b[1:], strict=True))}

    return Case(lambda: sweep_layers(ours, images, edits).tokens, no_gradient(run_hooks), facts={"images": len(images)}, check=check)


def edited(ablation: Callable[[jaxvit.Moments], jaxvit.Ablation], capture: str | None, size: Size) -> Case:
    """A forward pass with an ablation, against the plain one, both ours."""
    model = replicate(jaxvit.create(size.pick(VIT_S, SMALL)), batch_mesh())
    images, _ = pixels(size, _batch(size, 8), model.config)
    moments = jaxvit.calibrate(model, [(images, None)], ("mlp_hidden",))
    edits = replicate(jaxvit.lower(ablation(moments), model, images.shape[1]), batch_mesh())
    ids = split(np.arange(len(images), dtype=np.int32), batch_mesh())
    return Case(
        lambda: jaxvit.forward(model, images, edits, capture or (), example_ids=ids),
        lambda: jax.block_until_ready(jaxvit.forward(model, images).tokens),
        facts={"images": len(images)},
    )


def _group_indicators(config: jaxvit.ViTConfig, side: int) -> np.ndarray:
    """1 where a token belongs to a group [tokens, groups]."""
    layout = jaxvit.TokenLayout.of(config, side)
    return np.eye(len(layout.groups), dtype=np.float32)[layout.group_of()]


def attention_flow(size: Size) -> Case:
    """Attention by token group of every layer and head."""
    theirs, ours = paired_models(VIT_S, size.small, "eager")
    images, tensor = pixels(size, _batch(size, 16), ours.config)
    targets = optional("torch").from_numpy(_group_indicators(ours.config, images.shape[1])).to(device())
    sources = targets / targets.sum(0)

    def eager() -> Any:
        maps = theirs(tensor, output_attentions=True).attentions
        return [sources.T @ (attention @ targets) for attention in maps]

    def check(a: Any, b: Any) -> dict[str, Any]:
        return {"max_difference": max(difference(x, y) for x, y in zip(a, b, strict=True))}

    return Case(
        lambda: jaxvit.forward(ours, images, capture="attention_flow").captured["attention_flow"],
        no_gradient(eager),
        facts={"images": len(images)},
        check=check,
    )


def flow_overhead(dtype: Any, size: Size) -> Case:
    """Attention flow against the plain forward pass, both ours."""
    model = replicate(cast(jaxvit.create(size.pick(VIT_S, SMALL)), dtype), batch_mesh())
    images, _ = pixels(size, _batch(size, 16), model.config)
    images = images.astype(dtype)
    return Case(
        lambda: jaxvit.forward(model, images, capture="attention_flow").captured,
        lambda: jax.block_until_ready(jaxvit.forward(model, images).tokens),
        facts={"images": len(images)},
    )


def attention_divergence(size: Size) -> Case:
    """Jensen-Shannon divergence of clean and ablated attention, by layer and head."""
    theirs, ours = paired_models(VIT_S, size.small, "eager")
    images, tensor = pixels(size, _batch(size, 8), ours.config)
    edits = replicate(jaxvit.lower(jaxvit.zero("registers"), ours, images.shape[1]), batch_mesh())
    torch = optional("torch")

    def eager() -> Any:
        clean = theirs(tensor, output_attentions=True).attentions
        with hooked(theirs, zero_registers(ours.config)):
            ablated = theirs(tensor, output_attentions=True).attentions
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
    """Jensen-Shannon divergence in bits, summed over the last axis, by its definition."""
    middle = (p + q).log2() - 1
    return ((torch.special.xlogy(p, p) + torch.special.xlogy(q, q)) / np.log(2) - (p + q) * middle).sum(-1) / 2
