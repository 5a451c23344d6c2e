"""The config of a model, read off the shapes of its tensors: everything but the head count, which comes from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from convert.layouts import Layout, Oracle, Rule
from convert.naming import pattern_of
from jaxvit import MODELS, ViTConfig
from jaxvit.config import Position
from jaxvit.position import ROPE_BASE, rope_periods

Shapes = Mapping[str, tuple[int, ...]]
_WITH_REGISTERS = "dinov2_with_registers"
_MODEL_TYPES = {"hf_vit": "vit", "hf_dinov2": "dinov2", "hf_dinov2_with_registers": _WITH_REGISTERS, "hf_dinov3": "dinov3_vit"}
_SETTINGS = {"hidden_size": "width", "num_hidden_layers": "depth", "patch_size": "patch_size", "num_register_tokens": "registers"}
_PERIODS = "rope_embed.periods"
Resize = Literal["offset", "antialias", "plain"]
_RESIZE: dict[Oracle, Resize] = {"meta": "offset", "hf": "plain", "timm": "antialias"}
"""How a position table of a model without registers is resized; of the kind with registers, even of none, all antialias."""
_NOMINAL_IMAGE_SIZE = 224


@dataclass(frozen=True)
class Plan:
    """How a source becomes a model.

    Attributes:
        oracle: whose rules for positions, epsilon and RoPE periods the config follows.
        rules: how each leaf is made, by leaf name.
        computed: leaves that do not come from the source: RoPE periods where it has none, or where the oracle computes them;
            the zeros that timm leaves out (biases, the position of CLS where `cls_token` contains it already).
    """

    config: ViTConfig
    oracle: Oracle
    rules: dict[str, Rule]
    computed: dict[str, np.ndarray]


def plan_model(
    layout: Layout,
    shapes: Shapes,
    heads: int | None,
    name: str | None,
    oracle: Oracle | None,
    settings: Mapping[str, Any] | None,
    resize: Resize | None = None,
) -> Plan:
    """Return the model to make: sizes from the shapes, the head count from wherever it is known, and the oracle's rules.

    Args:
        shapes: by plain name.
        settings: content of the `config.json` of a Hugging Face model.
        resize: how the position table is resized, in place of the oracle's rule.

    Raises:
        ValueError: there is no table to resize, a size cannot be read, the sources of the head count contradict each other or there is
            none, or `name` is a released model of other sizes.
    """
    variant, sizes = _sizes(layout, shapes)
    rules = layout.rules(variant)
    rope = "patch_position" not in rules
    model_oracle = oracle or layout.oracle
    if rope and resize is not None:
        raise ValueError(f'position "{resize}" resizes a learned table, and this model has none (RoPE); leave out position, or --position')
    if rope and not sizes["registers"] and not _register_keys(rules) & shapes.keys() and _released(sizes | {"registers": 4}, rope):
        raise ValueError(f"missing key {', '.join(_register_keys(rules))}; pass the complete, original file")
    computed = {}
    if layout.name == "timm_eva" and not sizes["qkv_bias"] and (with_bias := _released(sizes | {"qkv_bias": True}, rope)):
        sizes["qkv_bias"] = True
        computed["blocks.attention.qkv.bias"] = np.zeros((with_bias[0].depth, 3 * with_bias[0].width), np.float32)
    if not rope and "cls_position" not in rules:
        computed["cls_position"] = np.zeros(sizes["width"], np.float32)
    if settings is not None:
        _check_settings(settings, layout, sizes, rope)
    if name in MODELS and (differences := _differences(MODELS[name], sizes, rope)):
        raise ValueError(f"this is not {name}: {', '.join(differences)}; drop the name or pass the file of that model")
    periods_shape = shapes.get(_PERIODS)
    sizes["heads"] = _heads(heads, name, settings, sizes, rope, periods_shape[0] if periods_shape else None)
    position: Position = "rope" if rope else resize or _resize_rule(rules, shapes, model_oracle, settings)
    norm_eps = 1e-5 if rope else 1e-12 if model_oracle == "hf" and not sizes["layer_scale"] else 1e-6
    if model_oracle == "hf" and settings is not None:
        norm_eps = float(settings.get("layer_norm_eps", norm_eps))
    if name in MODELS:
        sizes |= {"pixel_mean": MODELS[name].pixel_mean, "pixel_std": MODELS[name].pixel_std}
    config = ViTConfig(**sizes, position=position, norm_eps=norm_eps)
    if rope and (model_oracle != "meta" or "rope_periods" not in rules):
        periods = rope_periods(config.head_width)
        # Meta computes them in bfloat16
        computed["rope_periods"] = periods.astype(jnp.bfloat16).astype(np.float32) if model_oracle == "meta" else periods
    return Plan(config, model_oracle, rules, computed)


def _register_keys(rules: Mapping[str, Rule]) -> set[str]:
    """The keys of register tokens in a layout."""
    return {source.removesuffix("?") for source in rules["register_tokens"].sources} if "register_tokens" in rules else set()


def _resize_rule(rules: Mapping[str, Rule], shapes: Shapes, oracle: Oracle, settings: Mapping[str, Any] | None) -> Resize:
    """How the position table is resized: DINOv2 with registers has a rule of its own, also where there are none of them."""
    with_registers = bool(_register_keys(rules) & shapes.keys()) or (settings or {}).get("model_type") == _WITH_REGISTERS
    return "antialias" if with_registers else _RESIZE[oracle]


def has_packed_feed_forward(shapes: Shapes) -> bool:
    """Whether `mlp.fc1` holds both the gate and the up projection of a SwiGLU, as only timm writes them."""
    up, down = shapes.get("blocks.0.mlp.fc1.weight", ()), shapes.get("blocks.0.mlp.fc2.weight", ())
    return len(up) == len(down) == 2 and up[0] == 2 * down[1]


class _PatternShapes:
    """Shapes by key pattern: those of the first block that has the key; other blocks are checked when they are read.

    Attributes:
        shapes: by plain name.
        depth: number of blocks.

    Raises:
        ValueError: the blocks are not numbered from 0 without a gap.
    """

    def __init__(self, shapes: Shapes, block_key: str):
        self.shapes = shapes
        self._by_pattern: dict[str, tuple[int, ...]] = {}
        blocks = set()
        for key, shape in shapes.items():
            pattern, number = pattern_of(key)
            self._by_pattern.setdefault(pattern, shape)
            if number is not None and pattern.startswith(block_key):
                blocks.add(number)
        self.depth = len(blocks)
        if missing := [i for i in range(self.depth or 1) if i not in blocks]:
            raise ValueError(
                f"{self.depth} blocks, but no block {missing[0]}: they must be numbered from 0; pass the complete, original file"
            )

    def count(self, rules: Mapping[str, Rule], *leaves: str) -> int:
        """Number of source keys of these leaves (by default of all) that are present."""
        leaf_rules = [rules[leaf] for leaf in (leaves or rules) if leaf in rules]
        return len({source.removesuffix("?") for rule in leaf_rules for source in rule.sources} & self._by_pattern.keys())

    def source_shape(self, rule: Rule, axes: int) -> tuple[int, ...]:
        """Shape of a rule's first source.

        Raises:
            ValueError: it is missing, or has another number of axes.
        """
        pattern = rule.sources[0].removesuffix("?")
        if pattern not in self._by_pattern:
            raise ValueError(f"missing key {pattern.format(0)}; pass the complete, original file")
        shape = self._by_pattern[pattern]
        if len(shape) != axes:
            raise ValueError(f"{pattern.format(0)} has shape {shape}, but should have {axes} axes")
        return shape


def _sizes(layout: Layout, shapes: Shapes) -> tuple[int, dict[str, Any]]:
    """Variant of the feed-forward layer, and all fields of the config that follow from the tensors' shapes."""
    pattern_shapes = _PatternShapes(shapes, layout.block_key)
    variant = _variant(layout, pattern_shapes)
    rules = layout.rules(variant)
    width, channels, patch_height, patch_width = pattern_shapes.source_shape(rules["patch_embed.kernel"], 4)
    if channels != 3 or patch_height != patch_width or not patch_height:
        raise ValueError(f"patches have shape {(channels, patch_height, patch_width)}; only square patches of 3 channels are supported")
    registers = rules.get("register_tokens")
    if registers is not None and registers.sources[0].endswith("?") and not pattern_shapes.count(rules, "register_tokens"):
        registers = None
    side = _NOMINAL_IMAGE_SIZE // patch_height or 1
    if "patch_position" in rules:
        rows = pattern_shapes.source_shape(rules["patch_position"], 3)[1] - ("cls_position" in rules)
        side = math.isqrt(max(rows, 0))
        if side**2 != rows or not side:
            raise ValueError(f"the position table has {rows} rows for patches, which is no square grid")
    return variant, {
        "patch_size": patch_height,
        "width": width,
        "depth": pattern_shapes.depth,
        "mlp_dim": pattern_shapes.source_shape(rules["blocks.feed_forward.down.kernel"], 2)[1],
        "registers": pattern_shapes.source_shape(registers, 3)[1] if registers is not None else 0,
        "feed_forward": layout.feed_forward[variant][0],
        "image_size": side * patch_height,
        "layer_scale": pattern_shapes.count(rules, "blocks.scale1", "blocks.scale2") > 0,
        "qkv_bias": pattern_shapes.count(rules, "blocks.attention.qkv.bias") > 0,
        "untied_norm": pattern_shapes.count(rules, "prefix_norm.scale", "prefix_norm.bias") > 0,
    }


def _variant(layout: Layout, pattern_shapes: _PatternShapes) -> int:
    """Number of the feed-forward variant of which most keys are present; among variants with the same keys, the one whose sizes fit."""
    variants = range(len(layout.feed_forward))
    counts = [pattern_shapes.count(layout.rules(i)) for i in variants]
    candidates = [i for i in variants if counts[i] == max(counts)]
    if len(candidates) == 1:
        return candidates[0]
    packed = has_packed_feed_forward(pattern_shapes.shapes)
    return next((i for i in candidates if (layout.feed_forward[i][0] == "swiglu") == packed), candidates[0])


def _heads(
    argument: int | None, name: str | None, settings: Mapping[str, Any] | None, sizes: Mapping[str, Any], rope: bool, periods: int | None
) -> int:
    """The head count, on which all sources that state it must agree.

    Args:
        argument: the count that the caller passes.
        periods: number of RoPE periods in the source.

    Raises:
        ValueError: no source states it, or they contradict each other.
    """
    width = sizes["width"]
    heads_by_source: dict[str, int] = {}
    if argument is not None:
        heads_by_source["heads"] = argument
    if settings is not None and "num_attention_heads" in settings:
        heads_by_source["config.json"] = settings["num_attention_heads"]
    if name in MODELS:
        heads_by_source[name] = MODELS[name].heads
    if periods is not None:
        # each period turns a quarter of a head's channels: two axes, and pairs
        if periods < 1 or width % (4 * periods):
            raise ValueError(f"{periods} RoPE periods mean heads of width {4 * periods}, which does not divide width {width}")
        heads_by_source[_PERIODS] = width // (4 * periods)
    if not heads_by_source:
        same_sizes = _released(sizes, rope)
        heads_by_source = {released_name: config.heads for released_name, config in MODELS.items() if config in same_sizes}
    if not heads_by_source:
        raise ValueError(
            f"the head count is not in this file, and width {width} with depth {sizes['depth']} is no released model; "
            "pass it: heads=N, or --heads N"
        )
    if len(set(heads_by_source.values())) > 1:
        raise ValueError(f"the head count is contradictory: {', '.join(f'{n} by {source}' for source, n in heads_by_source.items())}")
    heads = next(iter(heads_by_source.values()))
    if not isinstance(heads, int):
        raise ValueError(f"the head count must be a whole number, got {heads!r}")
    return heads


def _released(sizes: Mapping[str, Any], rope: bool) -> list[ViTConfig]:
    """Configs of the released models of these sizes."""
    return [config for config in MODELS.values() if not _differences(config, sizes, rope)]


def _differences(config: ViTConfig, sizes: Mapping[str, Any], rope: bool) -> list[str]:
    """Fields in which a released config differs from the sizes, but for the final norms, which vary among releases."""
    fields = sizes.keys() - {"untied_norm", "heads", *(["image_size"] if rope else [])}
    differences = [f"{f} {sizes[f]} instead of {getattr(config, f)}" for f in sorted(fields) if getattr(config, f) != sizes[f]]
    return differences + (["RoPE" if rope else "no RoPE"] if rope != (config.position == "rope") else [])


def _check_settings(settings: Mapping[str, Any], layout: Layout, sizes: Mapping[str, Any], rope: bool) -> None:
    """Check that a `config.json` agrees with the tensors and asks only for what our model computes.

    Raises:
        ValueError: it does not.
    """
    expected_type = _MODEL_TYPES[layout.name]
    model_type = settings.get("model_type", expected_type)
    without_registers = model_type == _WITH_REGISTERS and settings.get("num_register_tokens") == 0 and layout.name == "hf_dinov2"
    if model_type != expected_type and not without_registers:
        raise ValueError(f'config.json says model_type "{model_type}", but the keys are those of "{expected_type}"')
    for key, field in _SETTINGS.items():
        value = settings.get(key, sizes[field])
        if any(x != sizes[field] for x in (value if isinstance(value, list) else [value])):
            raise ValueError(f"config.json says {key} {value}, but the tensors have {sizes[field]}")
    # the SwiGLU of Dinov2 is fixed, that of DINOv3 follows hidden_act
    activation = "gelu" if sizes["feed_forward"] == "mlp" else "silu" if rope else None
    if activation and settings.get("hidden_act", activation) != activation:
        raise ValueError(f'config.json says hidden_act "{settings["hidden_act"]}"; only "{activation}" is supported here')
    if rope and settings.get("rope_theta", ROPE_BASE) != ROPE_BASE:
        raise ValueError(f"config.json says rope_theta {settings['rope_theta']}; only {ROPE_BASE} is supported")
