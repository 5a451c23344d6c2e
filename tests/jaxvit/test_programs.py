"""The programs and the JSON of whole-token edits of the residual stream and of what is added to it stay what they were, to the byte.

`programs.json` was written by `python -m tests.jaxvit.test_programs` before blocks had any other site. Write it again only with a new
version of JAX, at a commit that is known to be right.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxvit
from jaxvit.capture import CAPTURES, CONTRASTS, resolve
from jaxvit.vit import cast
from tests.jaxvit import tiny

RECORD = Path(__file__).with_name("programs.json")
MODELS = {
    "table": lambda: tiny.model(),
    "rope, swiglu": lambda: tiny.model(tiny.ROPE),
    "bfloat16": lambda: cast(tiny.model(), jnp.bfloat16),
}


def ablations() -> dict[str, jaxvit.Ablation]:
    """One of every kind, and together at all of the four sites that there were."""
    shape = (tiny.CONFIG.depth, 2 + tiny.CONFIG.registers, tiny.CONFIG.width)
    values = {site: np.arange(np.prod(shape), dtype=np.float32).reshape(shape) for site in ("block_output", "mlp_output")}
    moments = jaxvit.Moments(values, values, 8, tiny.SIZE)
    return {
        "zero": jaxvit.zero("registers") & jaxvit.zero("cls", layers=[1], at="attention_output"),
        "mean": jaxvit.mean("registers", moments) & jaxvit.mean("cls", moments, at="mlp_output") & jaxvit.constant([1, 5], np.ones(24)),
        "noise": jaxvit.noise("registers", moments, 3, at="mlp_output"),
        "shuffle": jaxvit.shuffle("registers", 4, "0-1") & jaxvit.shuffle("cls", 5, at="block_input", same_donor=True),
        "random": jaxvit.zero(jaxvit.random_patches(3, 6), at="block_input"),
    }


def program(model: jaxvit.ViT, run: str, ablation: jaxvit.Ablation | None) -> str:
    """The StableHLO of a run, as text without locations."""
    forward = importlib.import_module("jaxvit.forward")  # the attribute of the package is the function
    edits = None if ablation is None else jaxvit.lower(ablation, model, tiny.SIZE)
    arguments = (model, tiny.images(2), edits, jnp.asarray(tiny.ids(2)), None, None)
    lowered = {
        "forward": lambda: forward._forward.lower(*arguments, ()),
        "flow": lambda: forward._forward.lower(*arguments, resolve("attention_flow", CAPTURES)),
        "contrast": lambda: forward._contrast.lower(*arguments, resolve("attention_divergence", CONTRASTS)),
        "sweep": lambda: forward._sweep_layers.lower(*arguments),
    }
    return lowered[run]().as_text()


def recorded(name: str) -> dict[str, str]:
    """SHA-256 (first 16 hex digits) of the programs of a model, by run and kind of edit."""
    model, found = MODELS[name](), {}
    for run in ("forward", "flow", "contrast", "sweep"):
        clean = {"none": None} if run in ("forward", "flow") else {}
        for kind, ablation in (clean | ablations()).items():
            found[f"{run}, {kind}"] = hashlib.sha256(program(model, run, ablation).encode()).hexdigest()[:16]
    return found


@pytest.mark.parametrize("name", MODELS)
def test_programs_of_whole_token_edits_are_what_they_were(name):
    record = json.loads(RECORD.read_text())
    if record["jax"] != jax.__version__:
        pytest.skip(f"programs were recorded with JAX {record['jax']}, this is {jax.__version__}")
    if jax.default_backend() != "cpu" or jax.device_count() != 1:
        pytest.skip("programs were recorded on one CPU device")
    assert recorded(name) == record["programs"][name]


def test_an_empty_ablation_is_the_program_without_edits():
    assert program(tiny.model(), "flow", jaxvit.Ablation()) == program(tiny.model(), "flow", None)


def test_the_json_of_whole_token_edits_is_what_it_was():
    assert {kind: ablation.to_json() for kind, ablation in ablations().items()} == json.loads(RECORD.read_text())["json"]


if __name__ == "__main__":
    programs = {name: recorded(name) for name in MODELS}
    texts = {kind: ablation.to_json() for kind, ablation in ablations().items()}
    RECORD.write_text(json.dumps({"jax": jax.__version__, "programs": programs, "json": texts}, indent=1) + "\n")
