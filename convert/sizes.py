"""What a checkpoint's tensors say about its model: everything but the head count, which comes from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from convert.layouts import Layout, Oracle, Rule
from convert.naming import pattern_of
from jaxvit import MODELS, ViTConfig
from jaxvit.config import Position
from jaxvit.position import ROPE_BASE, rope_periods

Shapes = Mapping[str, tuple[int, ...]]
_MODEL_TYPES = {"hf_vit": "vit", "hf_dinov2": "dinov2", "hf_dinov2_with_registers": "dinov2_with_registers", "hf_dinov3": "dinov3_vit"}
_SETTINGS = {"hidden_size": "width", "num_hidden_layers": "depth", "patch_size": "patch_size", "num_register_tokens": "registers"}
_PERIODS = "rope_embed.periods"
_RESIZE: dict[Oracle, Position] = {"meta": "offset", "hf": "plain", "timm": "antialias"}
"""How a position table of a model without registers is resized; with registers all three antialias."""
_NOMINAL_SIDE = 224


@dataclass(frozen=True)
class Plan:
    """How a source becomes a model.

    Attributes:
        oracle: whose rules for positions, epsilon and RoPE periods the config follows.
        rules: how leaves are made.
        computed: leaves that do not come from the source: RoPE periods where it has none, or where the oracle computes them;
            the zeros that timm leaves out (biases, the position of CLS where `cls_token` has it already).
    """

    config: ViTConfig
    oracle: Oracle
    rules: dict[str, Rule]
    computed: dict[str, np.ndarray]


def plan(
    layout: Layout, shapes: Shapes, heads: int | None, name: str | None, oracle: Oracle | None, settings: Mapping[str, Any] | None
) -> Plan:
    """Read the config off the shapes (by plain name), take the head count from wherever it is known, and choose the oracle.

    Args:
        settings: content of the `config.json` of a Hugging Face model.

    Raises:
        ValueError: a size cannot be read, the sources of the head count contradict each other or there is none, or
            `name` is a released model of other sizes.
    """
    variant, sizes = _sizes(layout, shapes)
    rules = layout.rules(variant)
    rope = "patch_position" not in rules
    chosen = oracle or layout.oracle
    computed = {}
    if layout.name == "timm_eva" and not sizes["qkv_bias"] and (with_bias := _released(sizes | {"qkv_bias": True}, rope)):
        sizes["qkv_bias"] = True
        computed["blocks.attention.qkv.bias"] = np.zeros((with_bias[0].depth, 3 * with_bias[0].width), np.float32)
    if not rope and "cls_position" not in rules:
        computed["cls_position"] = np.zeros(sizes["width"], np.float32)
    if settings is not None:
        _check_settings(settings, layout, sizes, rope)
    if name in MODELS and (odd := _differences(MODELS[name], sizes, rope)):
        raise ValueError(f"this is not {name}: {', '.join(odd)}; drop the name or pass the file of that model")
    stored = shapes.get(_PERIODS)
    sizes["heads"] = _heads(heads, name, settings, sizes, rope, stored[0] if stored else None)
    position: Position = "rope" if rope else "antialias" if sizes["registers"] else _RESIZE[chosen]
    eps = 1e-5 if rope else 1e-12 if chosen == "hf" and not sizes["layer_scale"] else 1e-6
    if chosen == "hf" and settings is not None:
        eps = float(settings.get("layer_norm_eps", eps))
    if name in MODELS:
        sizes |= {"pixel_mean": MODELS[name].pixel_mean, "pixel_std": MODELS[name].pixel_std}
    config = ViTConfig(**sizes, position=position, norm_eps=eps)
    if rope and (chosen != "meta" or "rope_periods" not in rules):
        periods = rope_periods(config.head_width)
        # Meta computes them in bfloat16
        computed["rope_periods"] = periods.astype(jnp.bfloat16).astype(np.float32) if chosen == "meta" else periods
    return Plan(config, chosen, rules, computed)


def has_packed_feed_forward(shapes: Shapes) -> bool:
    """Whether `mlp.fc1` holds gate and up of a SwiGLU, which only timm writes so."""
    up, down = shapes.get("blocks.0.mlp.fc1.weight", ()), shapes.get("blocks.0.mlp.fc2.weight", ())
    return len(up) == len(down) == 2 and up[0] == 2 * down[1]


class _Shapes:
    """Shapes by key pattern: the first block that has a key speaks for all, the others are asserted when they are read."""

    def __init__(self, shapes: Shapes, block_key: str):
        self.shapes = shapes
        self._first: dict[str, tuple[int, ...]] = {}
        blocks = set()
        for key, shape in shapes.items():
            pattern, number = pattern_of(key)
            self._first.setdefault(pattern, shape)
            if number is not None and pattern.startswith(block_key):
                blocks.add(number)
        self.depth = len(blocks)
        if gap := [i for i in range(self.depth or 1) if i not in blocks]:
            raise ValueError(f"{self.depth} blocks, but no block {gap[0]}: they must be numbered from 0; pass the complete, original file")

    def count(self, rules: Mapping[str, Rule], *leaves: str) -> int:
        """How many source keys of these leaves (by default of all) are there."""
        wanted = [rules[leaf] for leaf in (leaves or rules) if leaf in rules]
        return len({source.removesuffix("?") for rule in wanted for source in rule.sources} & self._first.keys())

    def of(self, rule: Rule, axes: int) -> tuple[int, ...]:
        """Shape of a rule's first source."""
        pattern = rule.sources[0].removesuffix("?")
        if pattern not in self._first:
            raise ValueError(f"missing key {pattern.format(0)}; pass the complete, original file")
        shape = self._first[pattern]
        if len(shape) != axes:
            raise ValueError(f"{pattern.format(0)} has shape {shape}, but should have {axes} axes")
        return shape


def _sizes(layout: Layout, shapes: Shapes) -> tuple[int, dict[str, Any]]:
    """Variant of the feed-forward layer, and all fields of the config that the tensors tell."""
    first = _Shapes(shapes, layout.block_key)
    variant = _variant(layout, first)
    rules = layout.rules(variant)
    width, channels, patch, across = first.of(rules["patch_embed.kernel"], 4)
    if channels != 3 or patch != across or not patch:
        raise ValueError(f"patches have shape {(channels, patch, across)}; only square patches of 3 channels are supported")
    registers = rules.get("register_tokens")
    if registers is not None and registers.sources[0].endswith("?") and not first.count(rules, "register_tokens"):
        registers = None
    side = _NOMINAL_SIDE // patch or 1
    if "patch_position" in rules:
        rows = first.of(rules["patch_position"], 3)[1] - ("cls_position" in rules)
        side = math.isqrt(max(rows, 0))
        if side**2 != rows or not side:
            raise ValueError(f"the position table has {rows} rows for patches, which is no square grid")
    return variant, {
        "patch_size": patch,
        "width": width,
        "depth": first.depth,
        "hidden": first.of(rules["blocks.feed_forward.down.kernel"], 2)[1],
        "registers": first.of(registers, 3)[1] if registers is not None else 0,
        "feed_forward": layout.feed_forward[variant][0],
        "image_size": side * patch,
        "layer_scale": first.count(rules, "blocks.scale1", "blocks.scale2") > 0,
        "qkv_bias": first.count(rules, "blocks.attention.qkv.bias") > 0,
        "untied_norm": first.count(rules, "prefix_norm.scale", "prefix_norm.bias") > 0,
    }


def _variant(layout: Layout, first: _Shapes) -> int:
    """Number of the feed-forward variant that has most keys; where two have the same keys, the one whose sizes fit."""
    variants = range(len(layout.feed_forward))
    matches = [first.count(layout.rules(i)) for i in variants]
    likely = [i for i in variants if matches[i] == max(matches)]
    if len(likely) == 1:
        return likely[0]

    return next((i for i in likely if (layout.feed_forward[i][0] == "swiglu") == has_packed_feed_forward(first.shapes)), likely[0])


def _heads(
    given: int | None, name: str | None, settings: Mapping[str, Any] | None, sizes: Mapping[str, Any], rope: bool, periods: int | None
) -> int:
    """The head count, on which everything that knows it must agree."""
    width = sizes["width"]
    known: dict[str, int] = {}
    if given is not None:
        known["heads"] = given
    if settings is not None and "num_attention_heads" in settings:
        known["config.json"] = settings["num_attention_heads"]
    if name in MODELS:
        known[name] = MODELS[name].heads
    if periods is not None:
        # a quarter of a head's channels turns at each period: two axes, and pairs
        if periods < 1 or width % (4 * periods):
            raise ValueError(f"{periods} RoPE periods mean heads of width {4 * periods}, which does not divide width {width}")
        known[_PERIODS] = width // (4 * periods)
    if not known:
        known = {released_name: config.heads for released_name, config in MODELS.items() if config in _released(sizes, rope)}
    if not known:
        raise ValueError(
            f"the head count is not in this file, and width {width} with depth {sizes['depth']} is no released model; "
            "pass it: heads=N, or --heads N"
        )
    if len(set(known.values())) > 1:
        raise ValueError(f"the head count is contradictory: {', '.join(f'{n} by {source}' for source, n in known.items())}")
    heads = next(iter(known.values()))
    if not isinstance(heads, int):
        raise ValueError(f"the head count must be a whole number, got {heads!r}")
    return heads


def _released(sizes: Mapping[str, Any], rope: bool) -> list[ViTConfig]:
    """Released models of these sizes."""
    return [config for config in MODELS.values() if not _differences(config, sizes, rope)]


def _differences(config: ViTConfig, sizes: Mapping[str, Any], rope: bool) -> list[str]:
    """Fields in which a released config differs from the sizes. Not the final norms: releases vary in them."""
    fields = sizes.keys() - {"untied_norm", "heads", *(["image_size"] if rope else [])}
    odd = [f"{f} {sizes[f]} instead of {getattr(config, f)}" for f in sorted(fields) if getattr(config, f) != sizes[f]]
    return odd + (["RoPE" if rope else "no RoPE"] if rope != (config.position == "rope") else [])


def _check_settings(settings: Mapping[str, Any], layout: Layout, sizes: Mapping[str, Any], rope: bool) -> None:
    """What a `config.json` says must be true of the tensors, and must be something that our model computes."""
    kind = settings.get("model_type", _MODEL_TYPES[layout.name])
    if kind != _MODEL_TYPES[layout.name]:
        raise ValueError(f'config.json says model_type "{kind}", but the keys are those of "{_MODEL_TYPES[layout.name]}"')
    for key, field in _SETTINGS.items():
        said = settings.get(key, sizes[field])
        if any(x != sizes[field] for x in (said if isinstance(said, list) else [said])):
            raise ValueError(f"config.json says {key} {said}, but the tensors have {sizes[field]}")
    # the SwiGLU of Dinov2 is fixed, that of DINOv3 follows hidden_act
    expected = "gelu" if sizes["feed_forward"] == "mlp" else "silu" if rope else None
    if expected and settings.get("hidden_act", expected) != expected:
        raise ValueError(f'config.json says hidden_act "{settings["hidden_act"]}"; only "{expected}" is supported here')
    if rope and settings.get("rope_theta", ROPE_BASE) != ROPE_BASE:
        raise ValueError(f"config.json says rope_theta {settings['rope_theta']}; only {ROPE_BASE} is supported")
