"""How cost grows with images, conditions, layers, tokens and devices.

As a program (`python -m experiments.bench.scaling DEVICES REPEATS small|full`) it runs a model on that many virtual devices of a CPU and
prints the result as JSON: a process cannot change its number of devices.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

import jaxvit
from experiments.bench.rows import Size, peak_memory
from experiments.numerics import pin_process
from jaxvit.sharding import batch_mesh, batches, replicate, split

CONFIG = jaxvit.MODELS["dinov2_vits14_reg"]
TINY = dataclasses.replace(CONFIG, width=32, depth=3, heads=2, mlp_dim=64, image_size=70)


def images(size: Size) -> Iterator[tuple[int, Callable[[], Any]]]:
    """More images in batches of one size, CLS fetched: seconds an image and memory must stay level."""
    model = replicate(jaxvit.create(size.pick(CONFIG, TINY)), batch_mesh())
    batch = size.pick(8, 2) * jax.device_count()
    for count in (batch, 2 * batch, 4 * batch, 8 * batch):
        pixels = np.zeros((count, *[size.pick(224, 70)] * 2, 3), np.float32)
        yield count, functools.partial(_in_batches, model, pixels, batch)


def conditions(size: Size) -> Iterator[tuple[int, Callable[[], Any]]]:
    """More conditions on the same batch, one after the other."""
    model, pixels = _ready(size, size.pick(CONFIG, TINY), size.pick(224, 70))
    edits = [replicate(jaxvit.lower(jaxvit.zero(["cls", "registers[1]"][i % 2]), model, pixels.shape[1]), batch_mesh()) for i in range(14)]
    for count in (1, 2, 4, 8, 14):
        yield count, functools.partial(_each, model, pixels, edits[:count])


def layers(size: Size) -> Iterator[tuple[int, Callable[[], Any]]]:
    """Deeper models."""
    for depth in size.pick((3, 6, 12, 24), (1, 2, 4)):
        model, pixels = _ready(size, dataclasses.replace(size.pick(CONFIG, TINY), depth=depth), size.pick(224, 70))
        yield depth, functools.partial(jaxvit.forward, model, pixels)


def tokens(size: Size) -> Iterator[tuple[int, Callable[[], Any]]]:
    """More patches, with attention flow: maps would grow with the square of the patches, memory must not."""
    for side in size.pick((8, 16, 32, 64), (2, 4, 8)):
        model, pixels = _ready(size, size.pick(CONFIG, TINY), side * CONFIG.patch_size, 1)
        yield side**2, functools.partial(jaxvit.forward, model, pixels, capture="attention_flow")


def _in_batches(model: jaxvit.ViT, pixels: np.ndarray, batch: int) -> list[np.ndarray]:
    return [np.asarray(jaxvit.forward(model, part.rows).cls) for part in batches(pixels, batch // jax.device_count(), batch_mesh())]


def _each(model: jaxvit.ViT, pixels: jax.Array, edits: list[Any]) -> list[jax.Array]:
    return [jaxvit.forward(model, pixels, edit).cls for edit in edits]


def _ready(size: Size, config: jaxvit.ViTConfig, side: int, per_device: int | None = None) -> tuple[jaxvit.ViT, jax.Array]:
    batch = (per_device or size.pick(4, 1)) * jax.device_count()
    pixels = np.random.default_rng(0).normal(size=(batch, side, side, 3)).astype(np.float32)
    return replicate(jaxvit.create(config), batch_mesh()), split(pixels, batch_mesh())


def _timed(points: Callable[[Size], Iterable[tuple[int, Callable[[], Any]]]]) -> Callable[[Size, int], list[dict[str, Any]]]:
    def run(size: Size, repeats: int) -> list[dict[str, Any]]:
        measured = []
        for value, work in points(size):
            jax.block_until_ready(work())
            peak = peak_memory(work)
            seconds = _median_seconds(work, repeats)
            measured.append({"value": value, "seconds": seconds, "per_unit": seconds / value} | ({} if peak is None else {"peak_mb": peak}))
        return measured

    return run


def _median_seconds(work: Callable[[], Any], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(work())
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def devices(size: Size, repeats: int) -> list[dict[str, Any]]:
    """1 to 8 virtual devices of a CPU, each number of devices in a process of its own: the tokens must be those of one device."""
    points = []
    for count in (1, 2, 4, 8):
        command = [sys.executable, "-m", "experiments.bench.scaling", str(count), str(repeats), "small" if size.small else "full"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"{count} virtual devices: {done.stderr.strip().splitlines()[-1]}")
        points.append(json.loads(done.stdout.strip().splitlines()[-1]))
    tokens = [np.array(point.pop("tokens")) for point in points]
    return [point | {"difference": float(np.abs(own - tokens[0]).max())} for point, own in zip(points, tokens, strict=True)]


Axis = Callable[[Size, int], list[dict[str, Any]]]
"""Of a size and a number of repetitions: value, seconds, seconds per unit and peak memory of every point."""

AXES: dict[str, Axis] = {
    "images": _timed(images),
    "conditions": _timed(conditions),
    "layers": _timed(layers),
    "tokens": _timed(tokens),
    "devices": devices,
}


def _on_devices(count: int, repeats: int, size: Size) -> dict[str, Any]:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)
    pin_process()
    model = replicate(jaxvit.create(size.pick(CONFIG, TINY)), batch_mesh())
    side = size.pick(224, 70)
    pixels = split(np.random.default_rng(0).normal(size=(8, side, side, 3)).astype(np.float32), batch_mesh())
    cls = np.asarray(jaxvit.forward(model, pixels).cls[:, :16])
    seconds = _median_seconds(lambda: jaxvit.forward(model, pixels).tokens, repeats)
    return {"value": count, "seconds": seconds, "per_unit": seconds * count, "tokens": cls.tolist()}


if __name__ == "__main__":
    print(json.dumps(_on_devices(int(sys.argv[1]), int(sys.argv[2]), Size(sys.argv[3] == "small"))))
