"""Hugging Face's models as the opponent: the same weights on both sides, and forward hooks that ablate and read theirs."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxvit
from convert import convert
from experiments.bench.rows import Size
from experiments.features.conditions import lesions, random_patch_count
from jaxvit.sharding import batch_mesh, replicate, split

SMALL = jaxvit.ViTConfig(14, 32, 3, 2, 128, registers=4, position="antialias", image_size=70)
"""The model of small sizes."""


def optional(name: str) -> Any:
    """The module of a package that only benchmarks and tests need.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ValueError(f"this row is measured against {name}, which is not installed; run pip install -e '.[test]'") from None


def device() -> str:
    """The device of torch: a GPU where JAX has one."""
    return "cuda" if jax.default_backend() == "gpu" and optional("torch").cuda.is_available() else "cpu"


def cores() -> int:
    """Number of cores that this process may use; both sides get as many threads."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def paired_models(name: str, small: bool, attention: str = "sdpa") -> tuple[Any, jaxvit.ViT]:
    """A model of transformers with random weights, and ours with the same weights on all devices."""
    torch, transformers = optional("torch"), optional("transformers")
    torch.set_num_threads(cores())
    torch.backends.cudnn.allow_tf32 = False  # its convolutions are rounded on a GPU otherwise, its products are not
    config = jaxvit.MODELS[name]
    if small:
        config = SMALL if config.registers else jaxvit.ViTConfig(**{**vars(SMALL), "registers": 0})
    stem = "Dinov2WithRegisters" if config.registers else "Dinov2"
    settings = getattr(transformers, f"{stem}Config")(
        hidden_size=config.width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        mlp_ratio=config.mlp_dim // config.width,
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
    """The same random images for both sides: [batch, side, side, 3] split over the mesh, and [batch, 3, side, side] for torch.

    The batch is rounded up to a multiple of the devices, to at least two a device in small sizes.
    """
    devices = jax.device_count()
    batch = max(-(-batch // devices), size.pick(1, 2)) * devices
    side = size.pick(224 // config.patch_size * config.patch_size, 5 * config.patch_size)
    images = np.random.default_rng(0).normal(size=(batch, side, side, 3)).astype(np.float32)
    channels_first = optional("torch").from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return split(images, batch_mesh()), channels_first.to(device())


def difference(ours: Any, theirs: Any) -> float:
    """Largest absolute difference of two arrays or tensors."""
    reference = theirs.float().cpu() if hasattr(theirs, "cpu") else theirs
    return float(np.abs(np.asarray(ours, np.float64) - np.asarray(reference, np.float64)).max())


def no_gradient(work: Callable[[], Any]) -> Callable[[], Any]:
    """The work under torch's inference mode; waits for a GPU."""
    torch = optional("torch")

    def run() -> Any:
        with torch.inference_mode():
            result = work()
        if device() == "cuda":
            torch.cuda.synchronize()
        return result

    return run


class Hook(NamedTuple):
    """An ablation as a hook on blocks.

    Attributes:
        replace: of a block's number and the stream [images, tokens, width] at the site; returns the stream in its place.
        at: "block_output" (a forward hook) or "block_input" (a forward pre-hook).
    """

    replace: Callable[[int, Any], Any]
    at: str = "block_output"


@contextlib.contextmanager
def hooked(model: Any, hook: Hook, layers: set[int] | None = None) -> Iterator[None]:
    """Hang a hook on blocks of a model of transformers, by default on all: the usual way to ablate in PyTorch."""

    def first_replaced(layer: int, values: tuple[Any, ...]) -> tuple[Any, ...]:
        return hook.replace(layer, values[0]), *values[1:]

    def before(layer: int) -> Callable[[Any, Any], Any]:
        return lambda module, inputs: first_replaced(layer, inputs)

    def after(layer: int) -> Callable[[Any, Any, Any], Any]:
        def replaced(module: Any, inputs: Any, output: Any) -> Any:
            return first_replaced(layer, output) if isinstance(output, tuple) else hook.replace(layer, output)

        return replaced

    blocks = [(layer, block) for layer, block in enumerate(model.encoder.layer) if layers is None or layer in layers]
    if hook.at == "block_input":
        handles = [block.register_forward_pre_hook(before(layer)) for layer, block in blocks]
    else:
        handles = [block.register_forward_hook(after(layer)) for layer, block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def overwrite(first: int, last: int, value: Callable[[int, Any], Any], at: str = "block_output") -> Hook:
    """A hook that puts `value(layer, stream)` in the place of tokens first, ..., last - 1."""

    def replace(layer: int, x: Any) -> Any:
        x = x.clone()
        x[:, first:last] = value(layer, x)
        return x

    return Hook(replace, at)


def zero_registers(config: jaxvit.ViTConfig) -> Hook:
    """The condition of this name as a hook."""
    return overwrite(1, 1 + config.registers, _zeros)


def condition_hooks(config: jaxvit.ViTConfig, statistics: jaxvit.Moments, batch: int) -> dict[str, Hook]:
    """The conditions of the study of a model with registers as hooks, by name.

    Args:
        statistics: of block outputs and inputs.
        batch: number of images.
    """
    torch = optional("torch")
    mean, mean_input, variance = (
        torch.from_numpy(moment).to(device())
        for moment in (statistics.mean["block_output"], statistics.mean["block_input"], statistics.variance["block_output"])
    )
    prefix, deviation = 1 + config.registers, variance.sqrt()
    rows, columns = config.grid(*statistics.image_size)
    chosen = prefix + torch.rand(batch, rows * columns, device=device()).argsort(dim=1)[:, : random_patch_count(config)]

    def zero_chosen(layer: int, x: Any) -> Any:
        x = x.clone()
        x[torch.arange(batch)[:, None], chosen] = 0
        return x

    def noise(layer: int, x: Any) -> Any:
        return mean[layer, 1:prefix] + deviation[layer, 1:prefix] * torch.randn_like(x[:, 1:prefix])

    donors = torch.randperm(batch)
    return {
        "full": Hook(lambda layer, x: x),
        "zero_cls": overwrite(0, 1, _zeros),
        "mean_cls": overwrite(0, 1, lambda layer, x: mean[layer, 0]),
        "random_patches": Hook(zero_chosen),
        "zero_registers": zero_registers(config),
        **{name: overwrite(1 + zeroed.start, 1 + zeroed.stop, _zeros) for name, zeroed in lesions(config.registers).items()},
        "mean_registers": overwrite(1, prefix, lambda layer, x: mean[layer, 1:prefix]),
        "noise_registers": overwrite(1, prefix, noise),
        "shuffle_registers": overwrite(1, prefix, lambda layer, x: x[torch.randperm(batch), 1:prefix]),
        "shuffle_registers_whole": overwrite(1, prefix, lambda layer, x: x[donors, 1:prefix]),
        "fix_reg_mean": overwrite(1, prefix, lambda layer, x: mean_input[layer, 1:prefix], at="block_input"),
    }


def _zeros(layer: int, x: Any) -> Any:
    return 0.0
