"""What a task is: features of one condition in, metrics taken apart by example out, each with the id of its protocol."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, get_args

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.data import StudyData
from experiments.features import Features, Norm
from jaxvit.metrics import mean_iou
from jaxvit.statistics import Finish, Scores, mean_ratio, over_seeds, ratio, weighted_median

CONSTANT = "constant by construction"
Solver = Literal["logistic", "ridge", "parodi"]
Feature = Literal["cls", "patch_mean", "register_mean", "registers", "cls+patch_mean", "cls+registers"]
FEATURES: tuple[Feature, ...] = get_args(Feature)
Kept = Mapping[str, np.ndarray]
"""What a task kept in the full condition, by name; empty in the full condition itself."""
FINISHES: dict[str, Finish] = {f.__name__: f for f in (ratio, mean_ratio, mean_iou, weighted_median)}


@dataclass(frozen=True)
class Readouts:
    """How features are read; every part of it stands in the protocol ids.

    Attributes:
        norm: tokens after the final norm ("final"), or as the block leaves them ("none").
        layer: block whose output is read, by default the last.
        standardised: channels divided by their standard deviation before a linear read-out.
        features: tokens that linear probes read, "registers" being each one alone; those that a model does not have are left out.
        solvers: of the linear probe; the first is the one that tables show.
        cs: inverse penalties of the logistic regression, as scikit-learn counts them.
        lambdas: penalties of the ridge, per example.
        neighbours: k of the k-NN classifications; those above the size of the bank are left out.
        shots: images of each class in few-shot probes; those that a class does not have are left out.
        epochs: passes of the SGD probe "parodi".
        grid_iterations: of DINOv2's grid of heads, which is run in the full condition; 12,500 in the original, 0 leaves it out.
        tolerance: of a correspondence, in patches.
        alphas: of PCK.
        memory: patches in the memory of the retrieval segmentation.
    """

    norm: Norm = "final"
    layer: int | None = None
    standardised: bool = True
    features: tuple[Feature, ...] = FEATURES
    solvers: tuple[Solver, ...] = ("logistic", "ridge", "parodi")
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
            raise ValueError("no solver is given; the linear probe needs at least one of logistic, ridge, parodi")

    @property
    def where(self) -> dict[str, Any]:
        """What all protocol ids say: where features are taken."""
        return {"layer": "last" if self.layer is None else self.layer, "norm": self.norm}


def protocol_id(name: str, **settings: Any) -> str:
    """Everything that defines a number beside model, condition and data, as one readable line."""
    return f"{name}({', '.join(f'{key}={_short(value)}' for key, value in settings.items())})"


def _short(value: Any) -> str:
    if isinstance(value, tuple) and len(value) > 4:
        return f"{value[0]:g}..{value[-1]:g}x{len(value)}"
    if isinstance(value, tuple):
        return "+".join(f"{v:g}" for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


class Measure(NamedTuple):
    """One metric of one feature.

    Attributes:
        metric: name of the number.
        feature: which tokens it reads.
        protocol: id of the protocol.
        scores: by independent unit (image or pair), one entry for each seed of the task.
        note: what a reader must know about it.
        full: metric of the full condition that it is compared with, by default the same.
        flag: what may be wrong with it, such as a regularisation chosen at the edge of its grid.
        detail: what was chosen, and how the solver ended.
        kept: read-outs that other conditions are to be read with, unchanged.
    """

    metric: str
    feature: str
    protocol: str
    scores: Sequence[Scores]
    note: str = ""
    full: str = ""
    flag: str = ""
    detail: str = ""
    kept: Mapping[str, np.ndarray] = {}


class Reader(Protocol):
    """Features of the parts of the data under one condition, extracted when they are asked for."""

    def __getitem__(self, part: str) -> Features: ...

    def sample(self, count: int) -> Features:
        """Of the first test images."""


class Context(NamedTuple):
    """What a task works with beside features.

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
        """What the protocol ids of labelled images say."""
        return {"images": self.data.protocols["labels"], **self.readouts.where}


class Task(NamedTuple):
    """A task: how it is run, whether the data have what it needs, and which parts of them it reads ("sample" for test images without
    labels)."""

    run: Callable[[Reader, Context, Kept], list[Measure]]
    possible: Callable[[StudyData], bool]
    parts: Callable[[StudyData], Sequence[str]]


TOLD = ("metric", "feature", "protocol", "note", "full", "flag", "detail")


def pack(measures: Sequence[Measure]) -> dict[str, np.ndarray]:
    """Measures as named arrays: contributions [units, seeds, *parts], read-outs, and a description as JSON."""
    told = [{name: getattr(m, name) for name in TOLD} | {"finish": m.scores[0].finish.__name__} for m in measures]
    arrays = {f"scores/{i}": np.stack([np.asarray(s.contributions) for s in m.scores], axis=1) for i, m in enumerate(measures)}
    kept = {f"kept/{name}": array for m in measures for name, array in m.kept.items()}
    return {"measures": np.array(json.dumps(told)), **arrays, **kept}


def unpack(arrays: Mapping[str, np.ndarray]) -> list[Measure]:
    """The measures of `pack`, without read-outs."""
    measures = []
    for i, entry in enumerate(json.loads(str(arrays["measures"]))):
        finish, stacked = FINISHES[entry.pop("finish")], arrays[f"scores/{i}"]
        measures.append(Measure(**entry, scores=[Scores(stacked[:, s], finish) for s in range(stacked.shape[1])]))
    return measures


def kept_of(arrays: Mapping[str, np.ndarray]) -> Kept:
    """The read-outs of `pack`."""
    return {name.removeprefix("kept/"): array for name, array in arrays.items() if name.startswith("kept/")}


def joined(draws: Sequence[list[Measure]]) -> list[Measure]:
    """The same measures under several draws of a condition, as one list with the scores of all seeds."""
    return [
        same[0]._replace(scores=[s for m in same for s in m.scores], flag=next((m.flag for m in same if m.flag), ""))
        for same in zip(*draws, strict=True)
    ]


def as_one(scores: Sequence[Scores], count: int | None = None) -> Scores:
    """The metric over its seeds; one seed is repeated to `count` of them, where it is compared with a metric that has as many."""
    return over_seeds([*scores] * (1 if count is None else count // len(scores)))


def pack_readout(name: str, readout: Any) -> dict[str, np.ndarray]:
    """The leaves of a read-out (a named tuple) as named arrays."""
    return {f"{name}.{field}": np.asarray(value) for field, value in readout._asdict().items()}


def unpack_readout(name: str, kept: Kept, kind: type[Any]) -> Any:
    """The read-out of `pack_readout`."""
    return kind(*(jnp.asarray(kept[f"{name}.{field}"]) for field in kind._fields))
