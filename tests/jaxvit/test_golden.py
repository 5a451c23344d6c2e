"""Every ablation that was recorded on the original PyTorch modules with hooks comes out the same."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import jaxvit
from convert import convert
from tests.conftest import golden_names

TOLERANCE = 5e-6


@pytest.mark.parametrize("name", golden_names() or ["dinov2_p14"])
def test_recorded_ablations(name, golden, record_parity, tmp_path):
    meta, weights = golden(name)
    model = jaxvit.load(convert(weights, tmp_path / name, heads=meta["num_heads"]))
    reference = load_file(weights.with_suffix(".outputs.safetensors"))
    worst: dict[str, float] = {}
    for recorded in meta["ablations"]:
        size = recorded["key"].split("/")[0]
        where = {"layers": "all" if recorded["layer"] == "all" else [recorded["layer"]], "at": f"block_{recorded['where']}put"}
        if recorded["value"] == "zero":
            ablation = jaxvit.zero(recorded["tokens"], **where)
        else:
            ablation = jaxvit.constant(recorded["tokens"], reference[f"{size}/substitute"], **where)
        with jax.default_matmul_precision("highest"):
            out = jaxvit.forward(model, reference[f"{size}/images"].transpose(0, 2, 3, 1), ablation=ablation)
        want = reference[recorded["key"]]
        error = float(np.abs(out.tokens - want).max() / max(1, np.abs(want).max()))
        worst[size] = max(worst.get(size, 0), error)
        assert error <= TOLERANCE, recorded["key"]
    assert len(meta["ablations"]) > 0
    for size, error in worst.items():
        record_parity(name, f"{size} {len(meta['ablations'])} ablations", error, TOLERANCE)
