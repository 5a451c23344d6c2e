"""Whose rules: for every oracle the tokens are those of a PyTorch model that resizes its positions, or turns its heads, by that rule.

transformers' models with their resize replaced by torch statements of Meta's and timm's; patch 14 at 224, 252, 518 and
224 x 280, patch 16 at 224, 256, 512 and 224 x 288 (256 and 518 where they are multiples of the patch).
"""

from __future__ import annotations

import types

import pytest
import torch

import convert.layouts
from convert import convert as convert_weights
from jaxvit.checkpoint import load, read_manifest
from tests.convert.sources import WIDTH, dinov2, to_timm, write
from tests.convert.test_transformers_parity import TINY, TOLERANCE, make, measure, saved

SIZES = {14: ((224, 224), (252, 252), (518, 518), (224, 280)), 16: ((224, 224), (256, 256), (512, 512), (224, 288))}
NATIVE = {"vit": 224, "dinov2": 518, "dinov2_reg": 518}


def _resized(table: torch.Tensor, grid: tuple[int, int], **options) -> torch.Tensor:
    """[1, 1 + side^2, width] for another grid; untouched where Meta, Hugging Face and timm leave it so."""
    patches = table[:, 1:]
    side = round(patches.shape[1] ** 0.5)
    if grid == (side, side):
        return table
    square = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(square, mode="bicubic", **options)
    assert resized.shape[-2:] == grid
    return torch.cat([table[:, :1], resized.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def _by_meta(table: torch.Tensor, grid: tuple[int, int], registers: bool) -> torch.Tensor:
    if registers:  # dinov2 with interpolate_antialias and interpolate_offset 0.0
        return _resized(table, grid, size=grid, antialias=True)
    side = round((table.shape[1] - 1) ** 0.5)
    return _resized(table, grid, scale_factor=tuple((n + 0.1) / side for n in grid))


def _by_timm(table: torch.Tensor, grid: tuple[int, int], registers: bool) -> torch.Tensor:
    del registers
    return _resized(table, grid, size=grid, antialias=True)


RESIZE = {"meta": _by_meta, "timm": _by_timm}


@pytest.mark.parametrize("family", NATIVE)
@pytest.mark.parametrize("oracle", ["meta", "hf", "timm"])
def test_position_tables(family, oracle, record_parity, tmp_path):
    theirs = make(family, TINY | {"image_size": NATIVE[family]})
    out = convert_weights(saved(theirs, tmp_path / "hf"), tmp_path / "out", oracle=oracle)
    assert read_manifest(out)["oracle"] == oracle
    ours, patch = load(out), theirs.config.patch_size
    if oracle != "hf":
        registers = family == "dinov2_reg"

        def interpolate(self, embeddings: torch.Tensor, height: int, width: int) -> torch.Tensor:
            return RESIZE[oracle](self.position_embeddings, (height // patch, width // patch), registers)

        theirs.embeddings.interpolate_pos_encoding = types.MethodType(interpolate, theirs.embeddings)
        for module in theirs.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.eps = 1e-6
    for height, width in SIZES[patch]:
        error = measure(theirs, ours, height, width)
        record_parity(f"oracle {oracle}, {family}", f"{height}x{width} max abs", error, TOLERANCE)
        assert error <= TOLERANCE, f"{height}x{width}"


@pytest.mark.parametrize("oracle", ["meta", "hf", "timm"])
def test_rope_periods(oracle, record_parity, tmp_path):
    """Meta rounds them to bfloat16, the others do not."""
    theirs = make("dinov3", TINY)
    ours = load(convert_weights(saved(theirs, tmp_path / "hf"), tmp_path / "out", oracle=oracle))
    if oracle == "meta":
        rope = theirs.rope_embeddings
        rope.inv_freq = 1 / (1 / rope.inv_freq).bfloat16().float()
    for height, width in SIZES[16]:
        error = measure(theirs, ours, height, width)
        record_parity(f"oracle {oracle}, dinov3", f"{height}x{width} max abs", error, TOLERANCE)
        assert error <= TOLERANCE, f"{height}x{width}"


def test_the_oracles_differ_where_they_should(tmp_path):
    """Else the tests above could not fail."""
    folder = saved(make("dinov2", TINY | {"image_size": 518}), tmp_path / "hf")
    theirs = make("dinov2", TINY | {"image_size": 518})
    errors = {oracle: measure(theirs, load(convert_weights(folder, tmp_path / oracle, oracle=oracle)), 224, 224) for oracle in RESIZE}
    assert min(errors.values()) > 30 * TOLERANCE


@pytest.mark.parametrize("position", ["offset", "antialias", "plain"])
def test_a_position_rule_by_name_is_followed_whatever_the_layout(position, record_parity, tmp_path):
    theirs = make("dinov2", TINY | {"image_size": 112})
    ours = load(convert_weights(saved(theirs, tmp_path / "hf"), tmp_path / "out", position=position))
    assert ours.config.position == position

    def interpolate(self, embeddings: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return RESIZE["meta" if position == "offset" else "timm"](self.position_embeddings, (height // 14, width // 14), False)

    if position != "plain":  # that of transformers
        theirs.embeddings.interpolate_pos_encoding = types.MethodType(interpolate, theirs.embeddings)
    error = measure(theirs, ours, 84, 56)
    record_parity(f"position {position}", "84x56 max abs", error, TOLERANCE)
    assert error <= TOLERANCE


@pytest.mark.parametrize("layout", ["meta_v3", "timm_eva"])
def test_a_dinov3_without_registers_has_no_tensor_for_them(layout, record_parity, tmp_path):
    theirs = make("dinov3", TINY, num_register_tokens=0)
    weights = _as_meta(theirs)
    weights = {key: value for key, value in (to_timm(weights) if layout == "timm_eva" else weights).items() if value.numel()}
    out = convert_weights(write(tmp_path / "v3.pth", weights), tmp_path / "out", heads=2, oracle="hf")
    assert read_manifest(out)["layout"] == layout
    error = measure(theirs, load(out), 96, 64)
    record_parity(f"{layout} without registers", "96x64 max abs", error, TOLERANCE)
    assert error <= TOLERANCE


def test_an_empty_register_tensor_is_of_the_kind_with_registers(tmp_path):
    """Which antialiases: in Meta's files as in Hugging Face's."""
    for weights, expected in ((dinov2() | {"register_tokens": torch.zeros(1, 0, WIDTH)}, "antialias"), (dinov2(), "offset")):
        out = convert_weights(write(tmp_path / "w.pth", weights), tmp_path / "out", heads=2)
        assert (load(out).config.position, load(out).config.registers) == (expected, 0)


def test_a_final_norm_for_cls_and_registers_of_their_own(record_parity, tmp_path):
    """DINOv3's checkpoints may hold `cls_norm`: here transformers' tokens before the norm, normed by torch with two norms."""
    theirs = make("dinov3", TINY)
    weights = {**_as_meta(theirs), "cls_norm.weight": torch.rand(32) + 0.5, "cls_norm.bias": torch.randn(32) * 0.1}
    file = tmp_path / "v3.pth"
    torch.save(weights, file)
    ours = load(convert_weights(file, tmp_path / "out", oracle="hf"))
    assert ours.config.untied_norm
    own = theirs.norm

    def both(tokens: torch.Tensor) -> torch.Tensor:
        prefix = torch.nn.functional.layer_norm(tokens[:, :5], (32,), weights["cls_norm.weight"], weights["cls_norm.bias"], 1e-5)
        return torch.cat([prefix, own(tokens[:, 5:])], dim=1)

    theirs.norm = _Function(both)
    error = measure(theirs, ours, 224, 224)
    record_parity("untied final norms", "224x224 max abs", error, TOLERANCE)
    assert error <= TOLERANCE


class _Function(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def _as_meta(model) -> dict[str, torch.Tensor]:
    """A transformers DINOv3 under Meta's keys."""
    table = {
        "norm1": "norm1", "norm2": "norm2", "attention.o_proj": "attn.proj", "mlp.up_proj": "mlp.fc1", "mlp.down_proj": "mlp.fc2",
    }  # fmt: skip
    weights: dict[str, torch.Tensor] = {
        "cls_token": model.embeddings.cls_token,
        "storage_tokens": model.embeddings.register_tokens,
        "patch_embed.proj.weight": model.embeddings.patch_embeddings.weight,
        "patch_embed.proj.bias": model.embeddings.patch_embeddings.bias,
        "rope_embed.periods": 1 / model.rope_embeddings.inv_freq,
        "norm.weight": model.norm.weight,
        "norm.bias": model.norm.bias,
    }
    layers = [m for m in model.modules() if type(m).__name__ == "DINOv3ViTLayer"]
    assert len(layers) == model.config.num_hidden_layers
    for i, layer in enumerate(layers):
        for theirs, meta in table.items():
            module = layer.get_submodule(theirs)
            weights[f"blocks.{i}.{meta}.weight"], weights[f"blocks.{i}.{meta}.bias"] = module.weight, module.bias
        q, k, v = (layer.get_submodule(f"attention.{x}_proj") for x in "qkv")
        weights[f"blocks.{i}.attn.qkv.weight"] = torch.cat([q.weight, k.weight, v.weight])
        weights[f"blocks.{i}.attn.qkv.bias"] = torch.cat([q.bias, torch.zeros_like(q.bias), v.bias])
        weights[f"blocks.{i}.attn.qkv.bias_mask"] = torch.cat([torch.ones(32), torch.zeros(32), torch.ones(32)])
        for n in (1, 2):
            weights[f"blocks.{i}.ls{n}.gamma"] = layer.get_submodule(f"layer_scale{n}").lambda1
    return {key: value.detach().clone() for key, value in weights.items()}


def test_every_oracle_is_tested():
    assert {layout.oracle for layout in convert.layouts.LAYOUTS} == {"hf", *RESIZE}
