"""Hugging Face's models as the opponent: the same weights on both sides, and what people hang on them to ablate and to look inside."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxvit
from convert import convert
from experiments.bench.rows import Size
from jaxvit.sharding import batch_mesh, replicate, split

SMALL = jaxvit.ViTConfig(14, 32, 3, 2, 128, registers=4, position="antialias", image_size=70)


def optional(name: str) -> Any:
    """A package that only benchmarks and tests need.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ValueError(f"this row is measured against {name}, which is not installed; run pip install -e '.[test]'") from None


def device() -> str:
    """Where torch runs: on a GPU where JAX does."""
    return "cuda" if jax.default_backend() == "gpu" and optional("torch").cuda.is_available() else "cpu"


def cores() -> int:
    """Cores that this process may use; both sides get as many threads."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def rivals(name: str, small: bool, attention: str = "sdpa") -> tuple[Any, jaxvit.ViT]:
    """A model of transformers with random weights, and ours with the same weights, on all devices."""
    torch, transformers = optional("torch"), optional("transformers")
    torch.set_num_threads(cores())
    config = jaxvit.MODELS[name]
    if small:
        config = SMALL if config.registers else jaxvit.ViTConfig(**{**vars(SMALL), "registers": 0})
    stem = "Dinov2WithRegisters" if config.registers else "Dinov2"
    settings = getattr(transformers, f"{stem}Config")(
        hidden_size=config.width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        mlp_ratio=config.hidden // config.width,
        patch_size=config.patch_size,
        image_size=config.image_size,
        attn_implementation=attention,
        **({"num_register_tokens": config.registers} if config.registers else {}),
    )
    torch.manual_seed(0)
    theirs = getattr(transformers, f"{stem}Model")(settings).eval()
    with tempfile.TemporaryDirectory() as folder, _quiet(transformers):
        theirs.save_pretrained(Path(folder) / "hf")
        ours = jaxvit.load(convert(Path(folder) / "hf", Path(folder) / "ours"))
    return theirs.to(device()), replicate(ours, batch_mesh())


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.utils.logging.enable_progress_bar()


def pixels(size: Size, batch: int, config: jaxvit.ViTConfig) -> tuple[jax.Array, Any]:
    """The same random images for both: [batch, side, side, 3] over the mesh, and [batch, 3, side, side] for torch.

    The batch is rounded up to a multiple of the devices, and above it in small sizes.
    """
    devices = jax.device_count()
    batch = max(-(-batch // devices), size.pick(1, 2)) * devices
    side = size.pick(224 // config.patch_size * config.patch_size, 5 * config.patch_size)
    images = np.random.default_rng(0).normal(size=(batch, side, side, 3)).astype(np.float32)
    same = optional("torch").from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return split(images, batch_mesh()), same.to(device())


def difference(ours: Any, theirs: Any) -> float:
    """Largest absolute difference."""
    reference = theirs.float().cpu() if hasattr(theirs, "cpu") else theirs
    return float(np.abs(np.asarray(ours, np.float64) - np.asarray(reference, np.float64)).max())


def no_gradient(work: Callable[[], Any]) -> Callable[[], Any]:
    """Run under torch's inference mode, and wait for a GPU."""
    torch = optional("torch")

    def run() -> Any:
        with torch.inference_mode():
            found = work()
        if device() == "cuda":
            torch.cuda.synchronize()
        return found

    return run


@contextlib.contextmanager
def hooked(model: Any, replace: Callable[[int, Any], Any], layers: set[int] | None = None) -> Iterator[None]:
    """Forward hooks on the blocks: `replace(layer, output)` stands in for what a block returns. The usual way to ablate in PyTorch."""

    def hook(layer: int) -> Callable[[Any, Any, Any], Any]:
        def replaced(module: Any, inputs: Any, output: Any) -> Any:
            return (replace(layer, output[0]), *output[1:]) if isinstance(output, tuple) else replace(layer, output)

        return replaced

    blocks = enumerate(model.encoder.layer)
    handles = [block.register_forward_hook(hook(number)) for number, block in blocks if layers is None or number in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
