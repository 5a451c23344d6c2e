"""What a task is: features of one condition in, metrics with per-example scores out, each with the id of its protocol.

To add a task (depth, say), write one file in this package with a function like `Task.run` that returns `MetricResult`s, and name it in
one line of `experiments.tasks.table.TASKS`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np
from jax.sharding import Mesh

from experiments.datasets.base import StudyData
from experiments.features.extraction import Features, Norm
from jaxvit.inference import Finish, Scores, mean_ratio, over_seeds, ratio, weighted_median
from jaxvit.metrics import mean_iou

CONSTANT = "constant by construction"
SolverName = Literal["logistic", "ridge", "sgd"]
Feature = Literal["cls", "patch_mean", "register_mean", "registers", "cls+patch_mean", "cls+registers"]
FEATURES: tuple[Feature, ...] = get_args(Feature)
FrozenReadouts = Mapping[str, np.ndarray]
"""Arrays of the read-outs that a task fitted in the full condition, by name; empty in the full condition itself."""
FINISHES: dict[str, Finish] = {"ratio": ratio, "mean_ratio": mean_ratio, "mean_iou": mean_iou, "weighted_median": weighted_median}
"""Functions that turn summed scores into a metric, by the name that is stored with the scores."""
FINISH_NAMES: dict[Finish, str] = {finish: name for name, finish in FINISHES.items()}
METADATA = ("metric", "feature", "protocol", "note", "full_metric", "flag", "detail")
"""Fields of `MetricResult` that are stored as JSON."""


@dataclass(frozen=True)
class Readouts:
    """How features are read; every part of it stands in the protocol ids.

    Attributes:
        norm: tokens after the final norm ("final"), or as the block leaves them ("none").
        layer: block whose output is read, by default the last.
        standardised: channels are divided by their standard deviation before a linear read-out.
        features: tokens that linear probes read, "registers" being each one alone; those that a model does not have are left out.
        solvers: of the linear probe; the first is the one that tables show. "sgd" is plain SGD on raw features, our reading of the
            unpublished solver of Parodi et al. (arXiv 2604.14433).
        cs: inverse penalties of the logistic regression, as scikit-learn counts them.
        lambdas: penalties of the ridge regression, per example.
        neighbours: k of the k-NN classifications; those above the size of the bank are left out.
        shots: images of each class in few-shot probes; those that a class does not have are left out.
        epochs: passes of the solver "sgd" over the training images.
        grid_iterations: of DINOv2's grid of heads, which is run in the full condition; 12,500 in the original, 0 leaves it out.
        tolerance: of a correspondence, in patches.
        alphas: of PCK.
        memory: patches in the memory of the retrieval segmentation.
    """

    norm: Norm = "final"
    layer: int | None = None
    standardised: bool = True
    features: tuple[Feature, ...] = FEATURES
    solvers: tuple[SolverName, ...] = ("logistic", "ridge", "sgd")
    cs: tuple[float, ...] = tuple(10.0**e for e in range(-5, 3))
    lambdas: tuple[float, ...] = tuple(10.0**e for e in range(-4, 3))
    neighbours: tuple[int, ...] = (10, 20, 100, 200)
    shots: tuple[int, ...] = (1, 5, 10, 25)
    epochs: int = 10
    grid_iterations: int = 200
    tolerance: float = 1.0
    alphas: tuple[float, ...] = (0.05, 0.1, 0.15)
    memory: int = 2000

    def __post_init__(self) -> None:
        for name in ("cs", "lambdas", "neighbours", "shots", "alphas"):
            if min(getattr(self, name), default=0) <= 0:
                raise ValueError(f"{name} are {getattr(self, name)}; give at least one, all positive")
        for name in ("epochs", "memory", "tolerance"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")
        if not self.solvers:
            raise ValueError("no solver is given; the linear probe needs at least one of logistic, ridge, sgd")

    @property
    def where(self) -> dict[str, Any]:
        """Layer and norm at which features are taken, as all protocol ids say them."""
        return {"layer": "last" if self.layer is None else self.layer, "norm": self.norm}


def protocol_id(name: str, **settings: Any) -> str:
    """Everything that defines a number besides model, condition and data, as one readable line."""
    return f"{name}({', '.join(f'{key}={_short(value)}' for key, value in settings.items())})"


def _short(value: Any) -> str:
    if isinstance(value, tuple) and len(value) > 4:
        return f"{value[0]:g}..{value[-1]:g}x{len(value)}"
    if isinstance(value, tuple):
        return "+".join(f"{v:g}" for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


class MetricResult(NamedTuple):
    """One metric of one feature.

    Attributes:
        metric: name of the number.
        feature: which tokens it reads.
        protocol: id of the protocol.
        scores: by independent unit (image or pair), one entry for each seed of the task.
        note: what a reader must know about it.
        full_metric: metric of the full condition that it is compared with, by default the same.
        flag: what may be wrong with it, such as a regularisation chosen at the edge of its grid.
        detail: what was chosen, and how the solver ended.
        readouts: arrays of the read-outs fitted for it, by name; other conditions are evaluated with those of the full condition.
    """

    metric: str
    feature: str
    protocol: str
    scores: Sequence[Scores]
    note: str = ""
    full_metric: str = ""
    flag: str = ""
    detail: str = ""
    readouts: Mapping[str, np.ndarray] = {}


class FeatureSource(Protocol):
    """Features of the parts of the data under one condition, extracted when they are asked for."""

    def __getitem__(self, part: str) -> Features: ...

    def first_test(self, count: int) -> Features:
        """Features of the first `count` test images."""


class Context(NamedTuple):
    """What a task works with besides features.

    Attributes:
        seeds: of everything random in the task: all of the study, or in a random condition the one that it is drawn with.
        first_seed: of the study.
        ablated: False in the full condition.
    """

    data: StudyData
    readouts: Readouts
    seeds: tuple[int, ...]
    mesh: Mesh
    first_seed: int = 0
    ablated: bool = False

    @property
    def where(self) -> dict[str, Any]:
        """Preparation of the labelled images, layer and norm, as the protocol ids of their tasks say them."""
        return {"images": self.data.protocols["labels"], **self.readouts.where}


class Task(NamedTuple):
    """One question that is asked of features.

    Attributes:
        run: metrics of one condition, from its features, the context and the read-outs of the full condition.
        possible: whether the data have what the task needs.
        parts: parts of the data that it reads; "analysis" for the test images of measures without labels.
    """

    run: Callable[[FeatureSource, Context, FrozenReadouts], list[MetricResult]]
    possible: Callable[[StudyData], bool]
    parts: Callable[[StudyData], Sequence[str]]


def constant_note(features: np.ndarray) -> str:
    """The note of a metric whose features [examples, width] are the same for all examples, as zeroed tokens are; else ""."""
    return "" if np.ptp(features, axis=0).any() else CONSTANT


def pack(results: Sequence[MetricResult]) -> dict[str, np.ndarray]:
    """Results as named arrays: contributions [units, seeds, *parts], read-outs, and the metadata as JSON."""
    metadata = [{name: getattr(r, name) for name in METADATA} | {"finish": FINISH_NAMES[r.scores[0].finish]} for r in results]
    scores = {f"scores/{i}": np.stack([np.asarray(s.contributions) for s in r.scores], axis=1) for i, r in enumerate(results)}
    readouts = {f"readouts/{name}": array for r in results for name, array in r.readouts.items()}
    return {"metadata": np.array(json.dumps(metadata)), **scores, **readouts}


def unpack(arrays: Mapping[str, np.ndarray]) -> list[MetricResult]:
    """The results of `pack`, without read-outs."""
    results = []
    for i, entry in enumerate(json.loads(str(arrays["metadata"]))):
        finish, contributions = FINISHES[entry.pop("finish")], arrays[f"scores/{i}"]
        results.append(MetricResult(**entry, scores=[Scores(contributions[:, s], finish) for s in range(contributions.shape[1])]))
    return results


def frozen_readouts_of(arrays: Mapping[str, np.ndarray]) -> FrozenReadouts:
    """The read-outs of `pack`."""
    return {name.removeprefix("readouts/"): array for name, array in arrays.items() if name.startswith("readouts/")}


def join_draws(draws: Sequence[list[MetricResult]]) -> list[MetricResult]:
    """The results of several draws of a random condition as one list, each metric with the scores of all draws as its seeds."""
    return [
        same[0]._replace(scores=[s for result in same for s in result.scores], flag=next((r.flag for r in same if r.flag), ""))
        for same in zip(*draws, strict=True)
    ]


def mean_over_seeds(scores: Sequence[Scores], count: int | None = None) -> Scores:
    """The mean of a metric over its seeds; one seed is repeated to `count` of them where the metric is compared with one that has as
    many."""
    return over_seeds([*scores] * (1 if count is None else count // len(scores)))


def pack_readout(name: str, readout: Any) -> dict[str, np.ndarray]:
    """The fields of a read-out (a named tuple) as named arrays."""
    return {f"{name}.{field}": np.asarray(value) for field, value in readout._asdict().items()}


def unpack_readout(name: str, frozen_readouts: FrozenReadouts, kind: type[Any]) -> Any:
    """The read-out of `pack_readout`, of type `kind`."""
    return kind(**{field: frozen_readouts[f"{name}.{field}"] for field in kind._fields})
