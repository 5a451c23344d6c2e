"""The original PyTorch modules and our converted models agree, block by block."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import jaxvit
from convert import convert
from jaxvit.checkpoint import load
from jaxvit.position import rope_periods
from tests.conftest import golden_names
from tests.convert.sources import max_error

TOLERANCE = 5e-6


@pytest.mark.parametrize("name", golden_names() or ["dinov2_p14"])
def test_converted_model_computes_what_the_original_does(name, golden, record_parity, tmp_path):
    meta, weights = golden(name)
    heads = None if meta["family"] == "dinov3" else meta["num_heads"]  # DINOv3's periods tell the head count
    model = load(convert(weights, tmp_path / name, heads=heads))
    config = model.config
    assert (config.depth, config.heads, config.width) == (meta["depth"], meta["num_heads"], meta["embed_dim"])
    assert (config.registers, config.patch_size) == (meta["num_register_tokens"], meta["patch_size"])
    reference = load_file(weights.with_suffix(".outputs.safetensors"))
    for height, width in meta["sizes"]:
        size = f"{height}x{width}"
        with jax.default_matmul_precision("highest"):
            images = reference[f"{size}/images"].transpose(0, 2, 3, 1)
            out = jaxvit.forward(model, images, capture=("block_output", "attention"))
            embed = model.add_prefix(model.embed_patches(images), config.grid(height, width))
        blocks = [reference[f"{size}/block_{i}_out"] for i in range(config.depth)]
        maps = [reference[f"{size}/attn_{i}"] for i in range(config.depth)]
        errors = {
            "embed": max_error(embed, reference[f"{size}/embed"]),
            "blocks": max(map(max_error, out.captured["block_output"], blocks)),
            "attention": max(map(max_error, out.captured["attention"], maps)),
            "prenorm": max_error(out.prenorm, reference[f"{size}/prenorm"]),
            "normed": max_error(out.tokens, reference[f"{size}/normed"]),
        }
        for tensor, error in errors.items():
            record_parity(name, f"{size} {tensor}", error, TOLERANCE)
            assert error <= TOLERANCE, f"{size} {tensor}"


def test_computed_periods_of_the_meta_oracle_are_those_that_meta_stores(golden, tmp_path):
    _, weights = golden("dinov3_p16")
    stored = np.asarray(load(convert(weights, tmp_path / "stored")).rope_periods[...])
    computed = np.asarray(load(convert(weights, tmp_path / "computed", oracle="hf")).rope_periods[...])
    np.testing.assert_array_equal(computed, rope_periods(32))
    np.testing.assert_array_equal(stored, jax.numpy.asarray(computed, "bfloat16").astype("float32"))
