"""The token-ablation study as a list of cells: what each needs, how it is computed, in which order."""

from __future__ import annotations

import functools
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from experiments import manifold, tasks
from experiments.cells import Cell, Key, Store
from experiments.conditions import conditions
from experiments.data import StudyData, first_id
from experiments.features import Runner
from experiments.tasks import TASKS, ConditionFeatures
from jaxvit import Ablation, Statistics, TokenLayout, ViT, geometry
from jaxvit.checkpoint import weights_hash
from jaxvit.statistics import Scores, bootstrap, compare, holm, mean_scores, value

PIXELS = "raw_pixels"
_KEPT = "kept/"
_MAP_IMAGES = 6
_MAP_BASIS = "principal components of each image, shared by its conditions"
_MAP_CONDITIONS = ("full", "zero_cls", "zero_registers")


@dataclass(frozen=True)
class Settings:
    """What every cell's numbers depend on beside model, condition and data."""

    seed: int
    batch_size: int
    resamples: int
    precision: str


@dataclass
class Subject:
    """A model of the study under its name there; `model` None stands for raw pixels."""

    name: str
    model: ViT | None
    mesh: Mesh
    data: StudyData
    settings: Settings
    baseline: bool = False
    _features: dict[str, ConditionFeatures] = field(default_factory=dict)

    @property
    def conditions(self) -> list[str]:
        return ["full"] if self.baseline or self.model is None else list(conditions(self.model.config))

    @cached_property
    def key(self) -> dict[str, Any]:
        if self.model is None:
            return {"name": self.name}
        return {"name": self.name, "weights": weights_hash(self.model)}

    @cached_property
    def runner(self) -> Runner:
        assert self.model is not None
        return Runner.on(self.mesh, self.model, self.settings.batch_size)

    @cached_property
    def statistics(self) -> Statistics:
        """Of scenes that read-outs are fitted on, never of test scenes."""
        return self.runner.calibrate(self.data.bank.images[: self.data.size.calibration])

    def ablation(self, condition: str) -> Ablation:
        if condition == "full":
            return Ablation()
        assert self.model is not None
        return conditions(self.model.config)[condition](self.statistics, self.settings.seed)

    def features(self, condition: str) -> ConditionFeatures:
        """Features under a condition; only the last condition asked for stays in memory."""
        if condition not in self._features:
            self._features.clear()
            found = (
                tasks.raw_pixels(self.data, 8) if self.model is None else tasks.extract(self.runner, self.data, self.ablation(condition))
            )
            self._features[condition] = found
        return self._features[condition]


@dataclass(frozen=True)
class Job:
    """A cell to be: its key, a label for the screen, its share of the work, and what computes rows and arrays."""

    key: Key
    label: str
    weight: float
    compute: Callable[[Store], tuple[list[dict[str, Any]], dict[str, np.ndarray]]]


def plan(subjects: list[Subject]) -> list[Job]:
    """All cells in order; the full condition of a task stands before those that are compared with it."""
    return [job for subject in subjects for job in _jobs(subject)]


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


def _jobs(subject: Subject) -> Iterator[Job]:
    for condition in subject.conditions:
        for task in TASKS:
            # the first task of a condition pays for the features
            yield _table_job(subject, condition, task, weight=4 if task == next(iter(TASKS)) else 1)
    if not subject.baseline:
        for condition in subject.conditions[1:]:
            key = _key(subject, "off_manifold", condition=condition, protocol=manifold.METRICS)
            yield Job(key, f"{subject.name}, {condition}: off-manifold meter", 1, functools.partial(_off_manifold, subject, condition))
        yield Job(_key(subject, "layer_probes"), f"{subject.name}: probes at every layer", 8, lambda store: _layer_probes(subject))
        yield Job(_key(subject, "attention_flow"), f"{subject.name}: attention flow", 2, lambda store: _attention_flow(subject))
        yield Job(_key(subject, "maps", basis=_MAP_BASIS), f"{subject.name}: feature maps", 1, lambda store: _maps(subject))


def _key(subject: Subject, kind: str, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "model": subject.key, "data": subject.data.key, **vars(subject.settings), **more}


def _table_job(subject: Subject, condition: str, task: str, weight: float) -> Job:
    def key(of: str) -> dict[str, Any]:
        return _key(subject, "table", task=task, condition=of, protocol=TASKS[task].protocol)

    def compute(store: Store) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
        full = store.load(key("full")).arrays if condition != "full" else {}
        kept = {name.removeprefix(_KEPT): array for name, array in full.items() if name.startswith(_KEPT)}
        rows, arrays = [], {}
        for measure in TASKS[task].run(subject.features(condition), subject.data, kept):
            arrays[f"{measure.metric}/{measure.feature}"] = np.asarray(measure.scores.contributions)
            row = _row(subject, condition, task, measure.metric, TASKS[task].protocol, "last", measure.feature, measure.scores)
            if condition == "full":
                arrays |= {f"{_KEPT}{name}": array for name, array in measure.kept.items()}
            else:
                compared = full[f"{measure.full or measure.metric}/{measure.feature}"]
                row |= _against(Scores(compared, measure.scores.finish), measure.scores, subject.settings)
            rows.append(row | ({"note": measure.note} if measure.note else {}))
        return rows, arrays

    return Job(key(condition), f"{subject.name}, {condition}: {task}", weight, compute)


def _row(
    subject: Subject, condition: str, task: str, metric: str, protocol: str, layer: int | str, feature: str, scores: Scores
) -> dict[str, Any]:
    low, high = bootstrap(scores, subject.settings.resamples, subject.settings.seed)
    return {
        "model": subject.name,
        "condition": condition,
        "task": task,
        "metric": metric,
        "protocol": protocol,
        "layer": layer,
        "feature": feature,
        "value": value(scores),
        "ci_low": low,
        "ci_high": high,
        "n": len(scores.contributions),
        "seed": subject.settings.seed,
        "delta": None,
        "delta_ci_low": None,
        "delta_ci_high": None,
        "p_value": None,
        "p_holm": None,
    }


def _against(full: Scores, ablated: Scores, settings: Settings) -> dict[str, float]:
    found = compare(full, ablated, settings.resamples, settings.seed)
    return {"delta": found.delta, "delta_ci_low": found.low, "delta_ci_high": found.high, "p_value": found.p_value}


def _off_manifold(subject: Subject, condition: str, store: Store) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """How far from the clean run and from the usual a condition goes, at every block."""
    del store
    images = subject.data.test.images[: subject.data.size.flow]
    found = manifold.measure(subject.runner, images, subject.ablation(condition), subject.statistics, first_id("test"))
    rows = [
        _row(subject, condition, "off_manifold", metric, manifold.METRICS[metric], layer, "patches", mean_scores(values[layer]))
        for metric, values in found.items()
        for layer in range(len(values))
    ]
    return rows, found


def correct_tables(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with `p_holm`: p-values adjusted by Holm over all comparisons of a model that are not so by construction."""
    tests: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        if row["p_value"] is not None and not row.get("note"):
            tests.setdefault(row["model"], []).append(i)
    adjusted = {i: p for members in tests.values() for i, p in zip(members, holm([rows[i]["p_value"] for i in members]), strict=True)}
    return [row | {"p_holm": float(adjusted[i])} if i in adjusted else row for i, row in enumerate(rows)]


def _layer_probes(subject: Subject) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    data = subject.data
    parts = {"bank": data.bank.images, "choose": data.choose.images, "test": data.test.images}
    captured = [subject.runner.extract(x, Ablation(), first_id(part), ("cls", "registers")).captured for part, x in parts.items()]
    names, correct = tasks.probe_layers(captured, data)
    protocol = "ridge on standardised block outputs (before the final norm), lambda chosen on held-out digits"
    rows = [
        _row(subject, "full", "layer_probe", "top1", protocol, layer, feature, mean_scores(hits))
        for (layer, feature), hits in zip(names, correct, strict=True)
    ]
    return rows, {"correct": correct.astype(np.uint8)}


def _attention_flow(subject: Subject) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    assert subject.model is not None
    images = subject.data.test.images[: subject.data.size.flow]
    flow = subject.runner.extract(images, Ablation(), first_id("test"), "attention_flow").captured["attention_flow"].mean(axis=2)
    groups = TokenLayout.of(subject.model.config, images.shape[1:3]).groups
    protocol = "softmax attention, mean over heads and a source's queries, summed over a target's keys, mean over images"
    rows = [
        _row(subject, "full", "attention_flow", source, protocol, layer, target, mean_scores(flow[layer, :, s, t]))
        for layer in range(flow.shape[0])
        for s, source in enumerate(groups)
        for t, target in enumerate(groups)
    ]
    return rows, {"flow": flow}


def _maps(subject: Subject) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Principal components of patches as colours; one basis and scale for the conditions of an image."""
    images = subject.data.test.images[:_MAP_IMAGES]
    names = [c for c in _MAP_CONDITIONS if c in subject.conditions]
    patches = np.stack([subject.runner.extract(images, subject.ablation(c), first_id("test")).patches for c in names])
    colours = np.stack([geometry.pca_rgb(patches[:, i].reshape(-1, patches.shape[-1])) for i in range(len(images))])
    side = round(patches.shape[2] ** 0.5)
    maps = colours.reshape(len(images), len(names), side, side, 3).swapaxes(0, 1)
    return [], {"images": images, "conditions": np.array(names), "maps": maps}
