"""What a study will cost on this device, before anything is run."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

import jaxvit
from experiments.features.conditions import CALIBRATED_SITES
from experiments.features.extraction import share_of
from experiments.study import grid
from experiments.study.jobs import Job
from experiments.study.target import Target
from jaxvit import Moments, ViTConfig
from jaxvit.inference import compare_all, mean_scores

_GIB = 2**30
_BLOCKS_AT_A_TIME = 2  # gathered where weights are split: the one that runs, and the next
_STEPS_PER_C = 25  # of L-BFGS along a path, as seen on features of the demo models


@dataclass(frozen=True)
class Cost:
    """The cost of what is left of a study, in bytes; what the system does not tell is None.

    Attributes:
        cells: to be computed.
        images: that go through models.
        seconds: estimate; None where it was not asked for.
        host_memory, free_host_memory: twice that of images and features, for copies on their way, and once that of images which other
            models see under another protocol; what is free.
        device_memory, free_device_memory: for weights and one batch; what is free (None where devices use the host's memory).
        disk, free_disk: for cells; what is free.
    """

    cells: int
    images: int
    seconds: float | None
    host_memory: int
    free_host_memory: int | None
    device_memory: int
    free_device_memory: int | None
    disk: int
    free_disk: int

    def check(self, computing: bool = True) -> None:
        """Refuse what does not fit.

        Args:
            computing: this process computes; else it only writes.

        Raises:
            ValueError: memory or disk are too small.
        """
        host = self.host_memory if self.free_device_memory is not None else self.host_memory + self.device_memory
        for resource, needed, free, remedy in (
            ("memory", host, self.free_host_memory, "lower numbers of images (--data.pairs, --data.segmentation)"),
            (
                "memory of the device",
                self.device_memory,
                self.free_device_memory,
                "choose smaller images, --dtype bfloat16, or --shard-weights on several devices",
            ),
            ("disk", self.disk, self.free_disk, "choose another --out"),
        ):
            if free is not None and needed > free and (computing or resource == "disk"):
                raise ValueError(f"the study needs about {needed / _GIB:.1f} GiB of {resource}, {free / _GIB:.1f} GiB are free; {remedy}")

    def __str__(self) -> str:
        parts = [f"{self.images:,} forward passes of an image"]
        parts += [] if self.seconds is None else [f"about {self.seconds / 60:.1f} min"]
        for resource, needed, free in (
            ("memory", self.host_memory, self.free_host_memory),
            ("of a device", self.device_memory, self.free_device_memory),
            ("disk", self.disk, self.free_disk),
        ):
            parts.append(f"{resource} {needed / _GIB:.2f} GiB" + ("" if free is None else f" of {free / _GIB:.0f} free"))
        return ", ".join(parts)


def estimate(targets: Sequence[Target], jobs: Sequence[Job], out: Path, timed: bool = False) -> Cost:
    """The cost of the jobs that are left; `timed` measures this device for the estimate of time."""
    by_name = {target.name: target for target in targets}
    images: dict[str, int] = {}
    for job in jobs:
        images[job.model] = images.get(job.model, 0) + job.images
    existing = out
    while not existing.exists():
        existing = existing.parent
    running = [target for target in targets if images.get(target.name)]
    return Cost(
        cells=len(jobs),
        images=sum(images.values()),
        seconds=_seconds(by_name, images, jobs) if timed else None,
        host_memory=max((_host_memory(target) + _elsewhere(target, targets) for target in running), default=0),
        free_host_memory=free_host_memory(),
        device_memory=max(map(_device_memory, running), default=0),
        free_device_memory=_free_device_memory(),
        disk=sum(_disk(by_name[job.model]) for job in jobs if job.key["kind"] == "scores"),
        free_disk=shutil.disk_usage(existing.absolute()).free,
    )


def free_host_memory() -> int | None:
    """Bytes of memory that programs of this machine can have; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), None)


def is_large(config: ViTConfig, mesh: Mesh) -> bool:
    """Whether copies of the weights would take more than half of a device's memory (all copies together, where devices share the host's),
    and the mesh can split them."""
    of_device = jax.local_devices()[0].memory_stats() or {}
    needed, memory = 4 * _weight_count(config), of_device.get("bytes_limit")
    if memory is None:
        needed, memory = mesh.size * needed, free_host_memory()
    can_split = mesh.size > 1 and any(side % mesh.size == 0 for side in (config.width, 3 * config.width, config.mlp_dim))
    return memory is not None and can_split and needed > memory / 2


def _free_device_memory() -> int | None:
    stats = jax.local_devices()[0].memory_stats()
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0) if stats and "bytes_limit" in stats else None


def _token_count(config: ViTConfig, shape: tuple[int, ...]) -> int:
    rows, columns = config.grid(shape[0], shape[1])
    return 1 + config.registers + rows * columns


def _host_memory(target: Target) -> int:
    """Bytes of images and of features of the parts that are read under one condition (with patches of the full one, where any condition
    overwrites patches), and a second copy while tasks work on them."""
    if target.model is None:
        return 0
    config, total = target.model.config, 0
    twice = grid.parts_of_patches(target) if any(map(target.overwrites_patches, target.conditions)) else ()
    for name in grid.parts_read(target) - {"analysis"}:
        images, patch_images = target.data.parts[name]
        in_memory = images.nbytes if not isinstance(images, np.memmap) else 0
        tokens = _token_count(config, images.shape[1:3])
        sources = 1 + (name in twice)
        total += 4 * config.width * (len(images) * (6 + config.registers) + sources * patch_images * tokens) + in_memory
    return 2 * total


def _elsewhere(target: Target, targets: Sequence[Target]) -> int:
    """Bytes of images in memory that only other models see, because theirs are prepared by another protocol."""
    arrays = {id(part.images): part.images for other in targets for part in other.data.parts.values()}
    own = {id(part.images) for part in target.data.parts.values()}
    return sum(images.nbytes for name, images in arrays.items() if name not in own and not isinstance(images, np.memmap))


def _device_memory(target: Target) -> int:
    """Bytes of weights on every device that shares this memory, and of a batch on its way."""
    if target.model is None:
        return 0
    config, share = target.model.config, share_of(target.model.config, target.image_size, target.mesh)
    tokens = _token_count(config, target.data.analysis_images.shape[1:3])
    copies = target.mesh.size if _free_device_memory() is None else 1
    weights = 4 * _weight_count(config)
    if target.model.weight_shards is not None:  # the shares are there already, and not free
        weights = _BLOCKS_AT_A_TIME * weights // config.depth
    return copies * (weights + 4 * share * tokens * (16 * config.width + 2 * config.heads * tokens))


def _weight_count(config: ViTConfig) -> int:
    matrices = 3 if config.feed_forward == "swiglu" else 2
    return config.depth * (4 * config.width**2 + matrices * config.width * config.mlp_dim)


def _disk(target: Target) -> int:
    """Bytes of the scores of one task after compression: of every test image, feature and solver, or a matrix of classes."""
    data, solvers = target.data, len(target.settings.readouts.solvers)
    features = 5 + (target.model.config.registers if target.model else 0)
    masks = len(data.masks.test) * len(data.masks.classes) ** 2 * 4 * 4 if data.masks else 0
    return max(16 * 2 * solvers * features * len(data.parts["test"].images), masks) // 4


def _seconds(targets: dict[str, Target], images: dict[str, int], jobs: Sequence[Job]) -> float:
    """Estimated seconds: compiling, forward passes and resampling as timed here, linear probes from their matrix products at the FLOP/s of
    the timed forward pass."""
    total = 0.0
    measured: dict[str, tuple[float, float]] = {}
    for name, count in images.items():
        target = targets[name]
        if target.model is None or not count:
            continue
        config, shape = target.model.config, target.data.analysis_images.shape[1:3]
        if str(config) not in measured:
            measured[str(config)] = _time_forward(target)
            total += measured[str(config)][0] * len(programs(target, jobs))
        per_image = measured[str(config)][1]
        speed = _flops(config, shape) / per_image
        probes = sum(job.key.get("task") == "linear_probe" and job.model == name for job in jobs if job.key["kind"] == "scores")
        rows, classes = len(target.data.parts["train"].images), len(target.data.classes)
        features = 5 + config.registers
        steps = _STEPS_PER_C * len(target.settings.readouts.cs)
        total += count * per_image + probes * features * steps * 8 * rows * config.width * classes / speed
    resampled = sum(job.key["kind"] == "rows" for job in jobs)
    return total + resampled * _time_resampling(next(iter(targets.values())))


def _flops(config: ViTConfig, shape: tuple[int, ...]) -> float:
    tokens = _token_count(config, shape)
    return 2 * tokens * _weight_count(config) + config.depth * 4 * tokens**2 * config.width


def programs(target: Target, jobs: Sequence[Job]) -> set[tuple[str, ...]]:
    """The programs of a model that jobs compile: one for each kind of cell and structure of its condition's edits."""
    assert target.model is not None
    config, size = target.model.config, target.data.analysis_images.shape[1:3]
    zeros = np.zeros((config.depth, 2 + config.registers, config.width), np.float32)
    moments = Moments(dict.fromkeys(CALIBRATED_SITES, zeros), dict.fromkeys(CALIBRATED_SITES, zeros), 1, (size[0], size[1]))
    structures = {
        name: str(jax.tree.structure(jaxvit.lower(condition(config, moments, 0), config, (size[0], size[1]))))
        for name, condition in target.conditions.items()
    }
    run = [job for job in jobs if job.images and job.model == target.name]
    return {(job.key["kind"], structures.get(job.condition, "")) for job in run}


def _time_forward(target: Target) -> tuple[float, float]:
    """Seconds of compiling, and seconds an image after that, in one step on all devices."""
    assert target.model is not None
    count = share_of(target.model.config, target.image_size, target.mesh) * target.mesh.size
    images = np.resize(target.data.analysis_images, (count, *target.data.analysis_images.shape[1:]))
    runner = target.runner
    seconds = []
    for _ in range(2):
        started = time.monotonic()
        runner.extract(images, jaxvit.Ablation(), 0)
        seconds.append(time.monotonic() - started)
    return max(seconds[0] - seconds[1], 0), seconds[1] / count


def _time_resampling(target: Target) -> float:
    scores = [mean_scores(np.random.default_rng(i).random(len(target.data.parts["test"].images))) for i in range(20)]
    started = time.monotonic()
    compare_all(scores[:10], scores[10:], target.settings.resamples)
    return time.monotonic() - started
