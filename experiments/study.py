"""What a study is made of: a model with its data (`Subject`), pieces of work (`Job`), and rows of results."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.cells import Cell, Key, Store
from experiments.conditions import Condition, conditions
from experiments.data import StudyData, first_id
from experiments.features import Features, Runner
from experiments.measures import Context, Readouts
from experiments.tasks import CONSTANTS, raw_pixels
from jaxvit import Ablation, Statistics, ViT
from jaxvit.capture import CaptureSpec
from jaxvit.checkpoint import weights_hash
from jaxvit.statistics import Comparison, Scores, bootstrap_all, compare_all, holm, value

PIXELS = "raw_pixels"
Arrays = dict[str, np.ndarray]
Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What every cell's numbers depend on beside model, condition and data.

    Attributes:
        seed: the first one; seeds: how many of them everything random is drawn with.
        conditions: names of those that are run; empty for all that a model can run.
        tasks: names of those that are run; empty for all that the data have what it takes for.
    """

    seed: int
    seeds: int
    batch_size: int
    resamples: int
    precision: str
    readouts: Readouts
    conditions: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()

    @property
    def draws(self) -> tuple[int, ...]:
        return tuple(range(self.seed, self.seed + self.seeds))

    @property
    def key(self) -> dict[str, Any]:
        """What features and scores depend on: everything but resampling and what is run."""
        kept = {name: item for name, item in asdict(self).items() if name not in ("resamples", "conditions", "tasks")}
        kept["constants"] = CONSTANTS
        kept["readouts"] = {name: list(item) if isinstance(item, tuple) else item for name, item in kept["readouts"].items()}
        return kept


@dataclass
class Subject:
    """A model of the study under its name there; `model` None stands for raw pixels."""

    name: str
    model: ViT | None
    mesh: Mesh
    data: StudyData
    settings: Settings
    baseline: bool = False
    _features: dict[str, Features] = field(default_factory=dict)
    _holding: tuple[str, int] = ("", 0)

    @cached_property
    def conditions(self) -> dict[str, Condition]:
        """The conditions that are run, "full" first."""
        if self.baseline or self.model is None:
            return {"full": Condition(lambda statistics, seed: Ablation())}
        wanted = self.settings.conditions
        return {name: c for name, c in conditions(self.model.config).items() if name == "full" or not wanted or name in wanted}

    @cached_property
    def key(self) -> dict[str, Any]:
        if self.model is None:
            return {"name": self.name}
        return {"name": self.name, "weights": weights_hash(self.model), "config": asdict(self.model.config)}

    @property
    def context(self) -> Context:
        return Context(self.data, self.settings.readouts, self.settings.draws, self.mesh, self.settings.seed)

    def images(self, part: str) -> int:
        """How many images a part has."""
        return len(self.data.sample) if part == "sample" else len(self.data.parts[part].images)

    def release(self) -> None:
        """Give back features and the copies of the weights on devices."""
        self._features.clear()
        self._holding = ("", 0)
        self.__dict__.pop("runner", None)

    @cached_property
    def runner(self) -> Runner:
        assert self.model is not None
        return Runner.on(self.mesh, self.model, self.settings.batch_size)

    @cached_property
    def statistics(self) -> Statistics:
        """Of images that read-outs are fitted on, never of test images."""
        return self.runner.calibrate(self.data.parts["bank"].images[: self.data.size["calibration"]])

    def draws(self, condition: str) -> tuple[int, ...]:
        """Seeds that a condition is drawn with."""
        return self.settings.draws if self.conditions[condition].random else (self.settings.seed,)

    def ablation(self, condition: str, seed: int) -> Ablation:
        return Ablation() if condition == "full" else self.conditions[condition].build(self.statistics, seed)

    def reader(self, condition: str, seed: int) -> ConditionReader:
        """Features under a condition; only those of the last condition asked for stay in memory."""
        if self._holding != (condition, seed):
            self._features.clear()
            self._holding = (condition, seed)
        return ConditionReader(self, condition, seed, self._features)

    def sample(self, condition: str, seed: int, capture: CaptureSpec = (), count: int | None = None) -> Features:
        """Features of the test images for measures without labels, with captures."""
        images = self.data.sample[:count]
        return self.runner.extract(images, self.ablation(condition, seed), first_id("test"), capture, self.settings.readouts.norm)


@dataclass(frozen=True)
class ConditionReader:
    """Features of the parts of the data under one condition, extracted when they are asked for."""

    subject: Subject
    condition: str
    seed: int
    found: dict[str, Features]

    def sample(self, count: int) -> Features:
        """Of the first test images: those of the part where it is there, else of them alone."""
        if "test" not in self.found:
            return self._extracted("test", f"first {count} of test", count)
        arrays = {name: array[:count] for name, array in self.found["test"]._asdict().items() if name != "captured"}
        return Features(**arrays, captured={})

    def __getitem__(self, part: str) -> Features:
        return self._extracted(part, part, None)

    def _extracted(self, part: str, name: str, count: int | None) -> Features:
        if name not in self.found:
            images, dense = self.subject.data.parts[part]
            images, dense = images[:count], dense if count is None else count
            if self.subject.model is None:
                self.found[name] = raw_pixels(images)
            else:
                ablation = self.subject.ablation(self.condition, self.seed)
                norm = self.subject.settings.readouts.norm
                self.found[name] = self.subject.runner.extract(images, ablation, first_id(part), norm=norm, dense=dense)
        return self.found[name]


@dataclass(frozen=True)
class Job:
    """A cell to be: its key, a label for the screen, its share of the work, and what computes rows and arrays.

    Attributes:
        images: that go through the model, for the estimate of cost.
    """

    key: Key
    label: str
    weight: float
    compute: Callable[[Store], tuple[list[Row], Arrays]]
    images: int = 0


def run_job(job: Job, store: Store) -> Cell:
    """Compute a cell and store it."""
    started = time.monotonic()
    rows, arrays = job.compute(store)
    provenance = {
        "seconds": round(time.monotonic() - started, 3),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **machine(),
    }
    return store.save(job.key, rows, arrays, provenance)


def machine() -> dict[str, Any]:
    """Device and versions that a number was computed with."""
    devices = jax.devices()
    packages = {name: version(name) for name in ("jaxvit", "jax", "jaxlib", "flax", "numpy")}
    return {"device": devices[0].device_kind, "devices": len(devices), "python": platform.python_version(), "versions": packages}


def key(subject: Subject, kind: str, **more: Any) -> dict[str, Any]:
    """The key of a cell."""
    return {"kind": kind, "model": subject.key, "data": subject.data.key, **subject.settings.key, **more}


def rows_of(
    subject: Subject, condition: str, task: str, told: Sequence[dict[str, Any]], scores: Sequence[Scores], full: Sequence[Scores] = ()
) -> list[Row]:
    """Rows with intervals and, where there are scores of the full condition, paired comparisons with it.

    Args:
        told: of each row: metric, feature, layer, protocol, and by_seed, its value under each seed.
        full: of each row, the scores that it is compared with; empty where nothing is.
    """
    settings = subject.settings
    intervals = _by_units(scores, lambda of: bootstrap_all([scores[i] for i in of], settings.resamples, settings.seed))
    compared: list[Comparison | None] = [None] * len(scores)
    if full:
        compared = _by_units(
            scores, lambda of: compare_all([full[i] for i in of], [scores[i] for i in of], settings.resamples, settings.seed)
        )
    rows = []
    for entry, score, (low, high), found in zip(told, scores, intervals, compared, strict=True):
        row = {"model": subject.name, "condition": condition, "task": task} | {
            n: entry[n] for n in ("metric", "protocol", "layer", "feature")
        }
        row |= {"value": value(score), "ci_low": low, "ci_high": high, "n": len(score.contributions), "seed": settings.seed}
        row |= {"seeds": len(entry["by_seed"]), "by_seed": entry["by_seed"]}
        row |= dict.fromkeys(("delta", "delta_ci_low", "delta_ci_high", "p_value", "p_holm"))
        if found:
            row |= {"delta": found.delta, "delta_ci_low": found.low, "delta_ci_high": found.high, "p_value": found.p_value}
        rows.append(row | {name: entry[name] for name in ("note", "flag", "detail") if entry.get(name)})
    return rows


def plain_rows(subject: Subject, condition: str, task: str, found: Iterable[tuple[str, str, int | str, str, Scores]]) -> list[Row]:
    """Rows of numbers that are not compared: (metric, feature, layer, protocol, scores) of each."""
    told, scores = [], []
    for metric, feature, layer, protocol, score in found:
        told.append({"metric": metric, "feature": feature, "layer": layer, "protocol": protocol, "by_seed": [value(score)]})
        scores.append(score)
    return rows_of(subject, condition, task, told, scores)


def _by_units(scores: Sequence[Scores], work: Callable[[list[int]], list[Any]]) -> list[Any]:
    """`work` on the numbers of the scores that share their units, together; results in the order of the scores."""
    found: dict[int, Any] = {}
    for units in dict.fromkeys(len(s.contributions) for s in scores):
        of = [i for i, s in enumerate(scores) if len(s.contributions) == units]
        found |= dict(zip(of, work(of), strict=True))
    return [found[i] for i in range(len(scores))]


def correct_tables(rows: list[Row]) -> list[Row]:
    """Rows with `p_holm`: p-values adjusted by Holm over the table of a metric, that is all conditions and features of a model
    under the same metric that are not so by construction; `holm_tests` says how many these are."""
    tests: dict[tuple[str, ...], list[int]] = {}
    for i, row in enumerate(rows):
        if row["p_value"] is not None and not row.get("note"):
            tests.setdefault((row["model"], row["task"], row["metric"]), []).append(i)
    adjusted = {
        i: {"p_holm": float(p), "holm_tests": len(members)}
        for members in tests.values()
        for i, p in zip(members, holm([rows[i]["p_value"] for i in members]), strict=True)
    }
    return [row | adjusted.get(i, {}) for i, row in enumerate(rows)]
