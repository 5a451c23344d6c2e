"""Weights files that conversion tests read: written by torch, in the wrappings of published files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

Weights = dict[str, torch.Tensor]
DEPTH, WIDTH, HEADS = 2, 16, 2


def _sublayers(i: int, mlp_dim: int, generator: torch.Generator) -> Weights:
    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    linear = {"attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH), "mlp.fc1": (mlp_dim, WIDTH), "mlp.fc2": (WIDTH, mlp_dim)}
    block = {f"{name}.weight": draw(*shape) for name, shape in linear.items()}
    block |= {f"{name}.bias": draw(shape[0]) for name, shape in linear.items()}
    block |= {f"norm{n}.{leaf}": draw(WIDTH) for n in (1, 2) for leaf in ("weight", "bias")}
    block |= {f"ls{n}.gamma": draw(WIDTH) for n in (1, 2)}
    return {f"blocks.{i}.{key}": value for key, value in block.items()}


def dinov2(registers: int = 0, seed: int = 0) -> Weights:
    """A tiny DINOv2 under Meta's keys: patch 4, table 3 x 3."""
    generator = torch.Generator().manual_seed(seed)
    weights = {
        "cls_token": torch.randn(1, 1, WIDTH, generator=generator),
        "pos_embed": torch.randn(1, 10, WIDTH, generator=generator),
        "mask_token": torch.zeros(1, WIDTH),
        "patch_embed.proj.weight": torch.randn(WIDTH, 3, 4, 4, generator=generator),
        "patch_embed.proj.bias": torch.randn(WIDTH, generator=generator),
        "norm.weight": torch.randn(WIDTH, generator=generator),
        "norm.bias": torch.randn(WIDTH, generator=generator),
    }
    if registers:
        weights["register_tokens"] = torch.randn(1, registers, WIDTH, generator=generator)
    for i in range(DEPTH):
        weights |= _sublayers(i, 2 * WIDTH, generator)
    return weights


def dinov3(seed: int = 0) -> Weights:
    """A tiny DINOv3 under Meta's keys, with NaN where the key's bias is masked, as Meta's own initialisation leaves it."""
    weights = dinov2(4, seed)
    del weights["pos_embed"]
    weights["storage_tokens"] = weights.pop("register_tokens")
    weights["rope_embed.periods"] = torch.tensor([1.0, 10.0])
    for i in range(DEPTH):
        mask = torch.ones(3 * WIDTH)
        mask[WIDTH : 2 * WIDTH] = 0
        weights[f"blocks.{i}.attn.qkv.bias_mask"] = mask
        weights[f"blocks.{i}.attn.qkv.bias"][WIDTH : 2 * WIDTH] = torch.nan
    return weights


def to_timm(weights: Weights) -> Weights:
    """Weights under Meta's keys as timm writes them (its `checkpoint_filter_fn`: vision_transformer.py and eva.py of timm 1.0)."""
    timm = {key: value for key, value in weights.items() if key != "mask_token"}
    if "register_tokens" in timm:
        timm["reg_token"] = timm.pop("register_tokens")
        table = timm["pos_embed"]
        timm["cls_token"], timm["pos_embed"] = timm["cls_token"] + table[:, :1], table[:, 1:]
    rope = "storage_tokens" in timm
    if rope:
        timm["reg_token"] = timm.pop("storage_tokens")
    renamed_weights: Weights = {}
    for key, value in timm.items():
        if key.endswith((".periods", ".bias_mask")) or key.startswith("local_cls_norm"):
            continue
        if rope and key.endswith("qkv.bias"):
            query, _, values = value.chunk(3)
            renamed_weights[key.replace("qkv.bias", "q_bias")] = query
            renamed_weights[key.replace("qkv.bias", "v_bias")] = values
            continue
        if rope:
            for ours, theirs in (("ls1.gamma", "gamma_1"), ("ls2.gamma", "gamma_2"), ("mlp.w1.", "mlp.fc1_g."), ("mlp.w2.", "mlp.fc1_x.")):
                key = key.replace(ours, theirs)
            key = key.replace("mlp.w3.", "mlp.fc2.")
        else:
            key = key.replace("mlp.w12.", "mlp.fc1.").replace("mlp.w3.", "mlp.fc2.")
        renamed_weights[key] = value
    return {key: value.clone().contiguous() for key, value in renamed_weights.items()}


def renamed(weights: Weights, rename: Callable[[str], str]) -> Weights:
    return {rename(key): value for key, value in weights.items()}


def write(path: Path, content: Any, zipped: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def max_error(ours: Any, reference: np.ndarray) -> float:
    """Largest absolute error, as a share of max(1, largest reference)."""
    reference = np.asarray(reference)
    return float(np.abs(np.asarray(ours) - reference).max() / max(1.0, np.abs(reference).max()))
