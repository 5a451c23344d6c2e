"""What a study will cost on this device, before anything is run."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

import jaxvit
from experiments import table
from experiments.study import Job, Subject
from jaxvit import ViTConfig
from jaxvit.statistics import compare_all, mean_scores

_GIB = 2**30
_STEPS_PER_C = 25  # of L-BFGS along a path, as seen on features of the demo models
_TIMED = 4  # images a device in the timed batch


@dataclass(frozen=True)
class Cost:
    """The cost of what is left of a study, in bytes; what the system does not tell is None.

    Attributes:
        cells: to be computed.
        images: that go through models.
        seconds: estimate; None where it was not asked for.
        memory, memory_there: of the host for features, twice, and images; what is free.
        device, device_there: of a device for weights and one batch; what is free (None where devices use the host's memory).
        disk, disk_there: of cells; what is free.
    """

    cells: int
    images: int
    seconds: float | None
    memory: int
    memory_there: int | None
    device: int
    device_there: int | None
    disk: int
    disk_there: int

    def check(self) -> None:
        """Refuse what does not fit.

        Raises:
            ValueError: memory or disk are too small.
        """
        host = self.memory if self.device_there is not None else self.memory + self.device
        for what, needed, there, remedy in (
            ("memory", host, self.memory_there, "lower --batch-size or numbers of images (--data.pairs, --data.segmentation)"),
            ("memory of the device", self.device, self.device_there, "lower --batch-size"),
            ("disk", self.disk, self.disk_there, "choose another --out"),
        ):
            if there is not None and needed > there:
                raise ValueError(f"the study needs about {needed / _GIB:.1f} GiB of {what}, {there / _GIB:.1f} GiB are free; {remedy}")

    def __str__(self) -> str:
        told = [f"{self.images:,} forward passes of an image"]
        told += [] if self.seconds is None else [f"about {self.seconds / 60:.1f} min"]
        for what, needed, there in (
            ("memory", self.memory, self.memory_there),
            ("of a device", self.device, self.device_there),
            ("disk", self.disk, self.disk_there),
        ):
            told.append(f"{what} {needed / _GIB:.2f} GiB" + ("" if there is None else f" of {there / _GIB:.0f} free"))
        return ", ".join(told)


def estimate(subjects: Sequence[Subject], jobs: Sequence[Job], out: Path, timed: bool = False) -> Cost:
    """The cost of the jobs that are left; `timed` measures this device for the estimate of time."""
    names = {subject.name: subject for subject in subjects}
    images: dict[str, int] = {}
    for job in jobs:
        images[job.key["model"]["name"]] = images.get(job.key["model"]["name"], 0) + job.images
    folder = out
    while not folder.exists():
        folder = folder.parent
    running = [s for s in subjects if images.get(s.name)]
    return Cost(
        cells=len(jobs),
        images=sum(images.values()),
        seconds=_seconds(names, images, jobs) if timed else None,
        memory=max(map(_host, running), default=0),
        memory_there=_free_memory(),
        device=max(map(_device, running), default=0),
        device_there=_free_on_device(),
        disk=sum(_disk(names[job.key["model"]["name"]]) for job in jobs if job.key["kind"] == "scores"),
        disk_there=shutil.disk_usage(folder.absolute()).free,
    )


def _free_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), None)


def _free_on_device() -> int | None:
    told = jax.devices()[0].memory_stats()
    return told["bytes_limit"] - told.get("bytes_in_use", 0) if told and "bytes_limit" in told else None


def _tokens(config: ViTConfig, shape: tuple[int, ...]) -> int:
    rows, columns = config.grid(shape[0], shape[1])
    return 1 + config.registers + rows * columns


def _host(subject: Subject) -> int:
    """Features of the parts that are read under one condition, a second copy while a task works on them, and images in memory."""
    if subject.model is None:
        return 0
    config, total = subject.model.config, 0
    for name in table.parts_read(subject) - {"sample"}:
        images, dense = subject.data.parts[name]
        held = images.nbytes if not isinstance(images, np.memmap) else 0
        tokens = _tokens(config, images.shape[1:3])
        total += 4 * config.width * (len(images) * (6 + config.registers) + dense * tokens) + held
    return 2 * total


def _device(subject: Subject) -> int:
    """Weights on every device that shares this memory, and a batch on its way."""
    if subject.model is None:
        return 0
    config, batch = subject.model.config, subject.settings.batch_size
    tokens = _tokens(config, subject.data.sample.shape[1:3])
    copies = subject.mesh.size if _free_on_device() is None else 1
    return 4 * copies * _weights(config) + 4 * batch * tokens * (16 * config.width + 2 * config.heads * tokens)


def _weights(config: ViTConfig) -> int:
    return config.depth * (4 * config.width**2 + 2 * config.width * config.hidden)


def _disk(subject: Subject) -> int:
    """Scores of one task, before compression: of every test image, feature and solver, or a matrix of classes."""
    data, solvers = subject.data, len(subject.settings.readouts.solvers)
    features = 5 + (subject.model.config.registers if subject.model else 0)
    masks = len(data.masks.test) * len(data.masks.classes) ** 2 * 4 * 4 if data.masks else 0
    return max(16 * 2 * solvers * features * len(data.labels["test"]), masks) // 4


def _seconds(subjects: dict[str, Subject], images: dict[str, int], jobs: Sequence[Job]) -> float:
    """Forward passes at a measured speed, probes at the speed that this makes for their products, and resampling as measured."""
    total = 0.0
    measured: dict[str, float] = {}
    for name, count in images.items():
        subject = subjects[name]
        if subject.model is None or not count:
            continue
        config, shape = subject.model.config, subject.data.sample.shape[1:3]
        if str(config) not in measured:
            measured[str(config)] = _time_forward(subject)
        per_image = measured[str(config)]
        speed = _flops(config, shape) / per_image
        probes = sum(job.key.get("task") == "linear_probe" and job.key["model"]["name"] == name and job.images > 0 for job in jobs)
        rows, classes = len(subject.data.labels["bank"]), len(subject.data.classes)
        features = 5 + config.registers
        steps = _STEPS_PER_C * len(subject.settings.readouts.cs)
        total += count * per_image + probes * features * steps * 8 * rows * config.width * classes / speed
    resampled = sum(job.key["kind"] == "rows" for job in jobs)
    return total + resampled * _time_resampling(next(iter(subjects.values())))


def _flops(config: ViTConfig, shape: tuple[int, ...]) -> float:
    tokens = _tokens(config, shape)
    return 2 * tokens * _weights(config) + config.depth * 4 * tokens**2 * config.width


def _time_forward(subject: Subject) -> float:
    """Seconds an image, in a small batch on all devices, after compiling."""
    assert subject.model is not None
    count = _TIMED * subject.mesh.size
    images = np.resize(subject.data.sample, (count, *subject.data.sample.shape[1:]))
    runner = type(subject.runner)(subject.runner.model, subject.mesh, count)
    runner.extract(images, jaxvit.Ablation(), 0)
    started = time.monotonic()
    runner.extract(images, jaxvit.Ablation(), 0)
    return (time.monotonic() - started) / count


def _time_resampling(subject: Subject) -> float:
    scores = [mean_scores(np.random.default_rng(i).random(len(subject.data.labels["test"]))) for i in range(20)]
    started = time.monotonic()
    compare_all(scores[:10], scores[10:], subject.settings.resamples)
    return time.monotonic() - started
