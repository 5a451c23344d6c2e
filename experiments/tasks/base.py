"""What a task is: features of one condition in, metrics with per-example scores out, each with the id of its protocol.

To add a task (depth, say), write one file with a function like `Task.run` that returns `MetricResult`s, and a `Task` that declares its
version, what it needs of the data, its settings and its columns on the page. A study takes it as a plug-in (`--plugin FILE`, which has
`TASKS = {"depth": Task(...)}`), or from Python (`Study(tasks={"depth": Task(...)})`); tasks of this package stand in `tasks.table`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool

from experiments.datasets.base import StudyData
from experiments.features.extraction import Features, Norm
from experiments.plotting.columns import Column
from jaxvit.batching import Images
from jaxvit.config import ViTConfig
from jaxvit.inference import Finish, Scores, mean_ratio, ratio, weighted_median

CONSTANT = "constant by construction"
SolverName = Literal["logistic", "ridge", "sgd", "dinov2_logistic"]
Feature = Literal["cls", "patch_mean", "register_mean", "registers", "cls+patch_mean", "cls+registers"]
FEATURES: tuple[Feature, ...] = get_args(Feature)
FrozenReadouts = Mapping[str, np.ndarray]
"""Arrays of the read-outs that a task fitted in the full condition, by name; empty in the full condition itself."""
REFITTED, FROZEN = "refitted", "frozen"
"""Read-outs: fitted under the condition, or in the full condition and applied unchanged."""


class Unit(NamedTuple):
    """How a number is shown: the unit of value x scale, and its direction (None where neither is better)."""

    name: str = ""
    scale: float = 1.0
    higher_is_better: bool | None = None


PERCENT = Unit("%", 100.0, higher_is_better=True)
"""Of scores that are shares of 1."""


@dataclass(frozen=True)
class Readouts:
    """How features are read; every part of it stands in the protocol ids.

    Attributes:
        norm: tokens after the final norm ("final"), or as the block leaves them ("none").
        layer: block whose output is read, by default the last.
        standardised: channels are divided by their standard deviation before a linear read-out.
        features: tokens that linear probes read, "registers" being each one alone; those that a model does not have are left out.
        solvers: of the linear probe; the first is the one that tables show. "sgd" is plain SGD on raw features, our reading of the
            unpublished solver of Parodi et al. (arXiv 2604.14433); "dinov2_logistic" is DINOv2's logistic regression: raw features, 45
            values of C from 1e-6 to 1e5, chosen on val, and a last fit on train and val together.
        cs: inverse penalties of the logistic regression, as scikit-learn counts them.
        lambdas: penalties of the ridge regression, per example.
        neighbours: k of the k-NN classifications; rows say which are above the size of the bank, the train images.
        shots: images of each class in few-shot probes; rows say which are more than the smallest class has.
        epochs: passes of the solver "sgd" over the training images.
        grid_iterations: of DINOv2's grid of heads, which is run in the full condition; 12,500 in the original, 0 leaves it out.
        tolerance: of a correspondence, in patches.
        alphas: of PCK.
        memory: patches in the memory of the retrieval segmentation.
        draws: of what a read-out draws (memories of patches, few-shot samples), or as many as there are seeds, if that is more; from 5 on
            intervals cover them.
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
    draws: int = 8

    def __post_init__(self) -> None:
        for name in ("cs", "lambdas", "neighbours", "shots", "alphas"):
            if not getattr(self, name) or not all(0 < number < math.inf for number in getattr(self, name)):
                raise ValueError(f"{name} are {getattr(self, name)}; give at least one, all positive")
        for name in ("epochs", "memory", "draws", "tolerance"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")
        for name, number in (("grid_iterations", self.grid_iterations), ("layer", self.layer)):
            if number is not None and number < 0:
                raise ValueError(f"{name} is {number}; give 0 or more")
        if not self.solvers:
            raise ValueError(f"no solver is given; the linear probe needs at least one of {', '.join(get_args(SolverName))}")

    @property
    def where(self) -> dict[str, Any]:
        """Layer and norm at which features are taken, as all protocol ids say them."""
        return {"layer": "last" if self.layer is None else self.layer, "norm": self.norm}


def protocol_id(name: str, **settings: Any) -> str:
    """Everything that defines a number besides model, condition and data, as one readable line."""
    return f"{name}({', '.join(f'{key}={_short(value)}' for key, value in settings.items())})"


def extended(protocol: str, settings: Mapping[str, Any]) -> str:
    """A protocol id with further settings at its end."""
    added = "".join(f", {key}={_short(value)}" for key, value in settings.items())
    return f"{protocol.removesuffix(')')}{added})" if added else protocol


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
        feature: which tokens it reads; None where `fields` says it.
        protocol: id of the protocol.
        scores: by independent unit (image or pair), one entry for each seed of the task.
        unit: how it is shown.
        readout: `REFITTED`, `FROZEN`, or None where nothing is fitted.
        by_construction: it is what it is because of how the condition is made.
        note: what a reader must know about it.
        flag: what may be wrong with it, such as a regularisation chosen at the edge of its grid.
        detail: what was chosen, and how the solver ended.
        n_unit: what a unit is.
        part: of the data, whose leading images (or pairs, in their order) the units are: it says which units are not independent. By
            default "test" where units are images, and none where they are something else.
        draws: the draw of the read-out that each of the scores was made with; empty where nothing is drawn.
        counterpart: name of the metric of the full condition that it is compared with; "" for its own.
        reference: scores of the full condition that it is compared with, one entry for each seed; empty for those of the full condition's
            own result.
        fields: more fields of its row (`experiments.rows.RowFields`): index, register_a, layer, ...
        readouts: arrays of the read-outs fitted for it, by name; other conditions are evaluated with those of the full condition.
    """

    metric: str
    feature: str | None
    protocol: str
    scores: Sequence[Scores]
    unit: Unit = PERCENT
    readout: str | None = None
    by_construction: bool = False
    note: str = ""
    flag: str = ""
    detail: str = ""
    n_unit: str = "images"
    part: str | None = None
    draws: tuple[int, ...] = ()
    counterpart: str = ""
    reference: Sequence[Scores] = ()
    fields: Mapping[str, Any] = {}
    readouts: Mapping[str, np.ndarray] = {}

    @property
    def identity(self) -> tuple[Any, ...]:
        """What it has in common with the same metric under other conditions, frozen or refitted."""
        return self.counterpart or self.metric, self.feature, tuple(sorted(self.fields.items()))

    @property
    def units_of(self) -> str | None:
        """The part of the data that its units are of."""
        return self.part or ("test" if self.n_unit == "images" else None)

    @property
    def row_fields(self) -> dict[str, Any]:
        """The fields of its row that it determines."""
        texts = {name: getattr(self, name) or None for name in ("note", "flag", "detail")}
        unit = {"unit": self.unit.name, "scale": self.unit.scale, "higher_is_better": self.unit.higher_is_better}
        same = {name: getattr(self, name) for name in ("metric", "feature", "protocol", "readout", "by_construction", "n_unit")}
        return {**same, **texts, **unit, **self.fields}


class FeatureSource(Protocol):
    """Features of the parts of the data under one condition, extracted when they are asked for."""

    def __getitem__(self, part: str) -> Features: ...

    def first_test(self, count: int) -> Features:
        """Features of the first `count` test images."""

    def of_images(self, images: Images, part: str) -> Features:
        """Features of images that a task makes from the leading ones of a part, without their patches; not kept. Noise and
        random patches are drawn for an image as for the one that it is made from; a shuffle exchanges tokens among these images."""

    def overwritten(self, part: str) -> Bool[np.ndarray, "images patches"] | None:
        """Which patches of the part's leading images the condition overwrites where they are read; None where it overwrites none."""

    @property
    def full(self) -> FeatureSource:
        """Features of the same parts without ablation, of the leading images whose patches are kept."""


class Context(NamedTuple):
    """What a task works with besides features.

    Attributes:
        seeds: of everything random in the task: all of the study, or in a random condition the one that it is drawn with.
        draws: seeds of a read-out whose draws intervals cover (`Task.drawn`): `Readouts.draws`, or all of the study, if those are more;
            under each of several seeds of a random condition its share of them.
        first_seed: of the study.
        ablated: False in the full condition.
        config: of the model; None for raw pixels.
    """

    data: StudyData
    readouts: Readouts
    seeds: tuple[int, ...]
    mesh: Mesh
    draws: tuple[int, ...] = (0,)
    first_seed: int = 0
    ablated: bool = False
    config: ViTConfig | None = None

    @property
    def where(self) -> dict[str, Any]:
        """Preparation of the labelled images, layer and norm, as the protocol ids of their tasks say them."""
        return {"images": self.data.protocols["labels"], **self.readouts.where}


def _no_settings(readouts: Readouts) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Task:
    """One question that is asked of features.

    Attributes:
        run: metrics of one condition, from its features, the context and the read-outs of the full condition.
        parts: parts of the data that it reads; "analysis" for the test images of measures without labels.
        possible: whether the data have what the task needs.
        version: raise it when the same features and settings give other numbers: finished cells are then not used again.
        settings: everything that its numbers depend on besides features, data and seeds, as JSON; in the key of its cells.
        columns: those of its scores that tables and bars show, in order.
        made_images: images that it makes itself (`FeatureSource.of_images`), for the estimate of cost.
        drawn: it draws its read-outs (`Context.draws`): images of a few shots, patches of a memory.
        scores_patches: it scores single patches, so that it reads `FeatureSource.full` under conditions that overwrite some of them
            (`tasks.overwritten`); for the estimate of cost.
        finishes: functions, besides those of `jaxvit.inference`, that turn summed scores into its metrics.
    """

    run: Callable[[FeatureSource, Context, FrozenReadouts], list[MetricResult]]
    parts: Callable[[StudyData], Sequence[str]]
    possible: Callable[[StudyData], bool]
    version: int = 1
    settings: Callable[[Readouts], dict[str, Any]] = _no_settings
    columns: tuple[Column, ...] = ()
    made_images: Callable[[StudyData], int] = lambda data: 0
    drawn: bool = False
    scores_patches: bool = False
    finishes: tuple[Finish, ...] = ()


def is_constant(features: np.ndarray) -> bool:
    """Whether features [examples, width] are the same for all examples, as zeroed tokens are: what is read from them is then what it is
    by construction."""
    return not np.ptp(features, axis=0).any()


def constant_fields(features: np.ndarray) -> dict[str, Any]:
    """The fields of a `MetricResult` that say whether its features [examples, width] are constant."""
    constant = is_constant(features)
    return {"by_construction": constant, "note": CONSTANT if constant else ""}


_ARRAYS = ("scores", "readouts", "reference")
"""Fields of `MetricResult` that are stored as arrays; the others are stored as JSON."""
_FINISHES = (ratio, mean_ratio, weighted_median)


def scores_array(position: int) -> str:
    """The name of the array with the scores of one of several results."""
    return f"scores/{position}"


def reference_array(position: int) -> str:
    """The name of the array with the scores of the full condition that one of several results is compared with."""
    return f"reference/{position}"


def pack_scores(results: Sequence[MetricResult]) -> dict[str, np.ndarray]:
    """The contributions of results, and of what they are compared with, as named arrays [units, seeds, *parts]."""
    named = {scores_array(i): result.scores for i, result in enumerate(results)}
    named |= {reference_array(i): result.reference for i, result in enumerate(results) if result.reference}
    return {name: np.stack([np.asarray(s.contributions) for s in scores], axis=1) for name, scores in named.items()}


def pack(results: Sequence[MetricResult]) -> dict[str, np.ndarray]:
    """Results as named arrays: contributions, read-outs, and all else as JSON."""
    entries = []
    for result in results:
        entry = {name: value for name, value in result._asdict().items() if name not in _ARRAYS}
        entries.append({**entry, "fields": dict(result.fields), "finish": result.scores[0].finish.__name__})
    readouts = {f"readouts/{name}": array for r in results for name, array in r.readouts.items()}
    return {"metadata": np.array(json.dumps(entries)), **pack_scores(results), **readouts}


def unpack(arrays: Mapping[str, np.ndarray], task: Task) -> list[MetricResult]:
    """The results of `pack`, without read-outs."""
    finishes = {finish.__name__: finish for finish in (*_FINISHES, *task.finishes)}
    results = []
    for i, entry in enumerate(json.loads(str(arrays["metadata"]))):
        finish, names = finishes[entry.pop("finish")], (scores_array(i), reference_array(i))
        scores, reference = ([Scores(s, finish) for s in np.moveaxis(arrays[n], 1, 0)] if n in arrays else () for n in names)
        kinds = {"unit": Unit(*entry["unit"]), "draws": tuple(entry["draws"])}
        results.append(MetricResult(**{**entry, **kinds}, scores=scores, reference=reference))
    return results


def frozen_readouts_of(arrays: Mapping[str, np.ndarray]) -> FrozenReadouts:
    """The read-outs of `pack`."""
    return {name.removeprefix("readouts/"): array for name, array in arrays.items() if name.startswith("readouts/")}


def join_draws(draws: Sequence[list[MetricResult]]) -> list[MetricResult]:
    """The results of several draws of a random condition as one list, each metric with the scores of all draws as its seeds."""
    return [
        same[0]._replace(
            scores=[s for result in same for s in result.scores],
            reference=[s for result in same for s in result.reference],
            draws=tuple(draw for result in same for draw in result.draws),
            flag=next((r.flag for r in same if r.flag), ""),
            note=next((r.note for r in same if r.note), ""),
            by_construction=any(r.by_construction for r in same),
        )
        for same in zip(*draws, strict=True)
    ]


def matched(clean: MetricResult, result: MetricResult) -> Sequence[Scores]:
    """The scores of the full condition that those of a result are compared with, one by one: of the same draw of the read-out where it is
    drawn; else those that there are, again and again."""
    if result.reference:
        return result.reference
    if result.draws:
        return [clean.scores[clean.draws.index(draw)] for draw in result.draws]
    return [*clean.scores] * (len(result.scores) // len(clean.scores))


def pack_readout(name: str, readout: Any) -> dict[str, np.ndarray]:
    """The fields of a read-out (a named tuple) as named arrays."""
    return {f"{name}.{field}": np.asarray(value) for field, value in readout._asdict().items()}


def unpack_readout(name: str, frozen_readouts: FrozenReadouts, kind: type[Any]) -> Any:
    """The read-out of `pack_readout`, of type `kind`."""
    return kind(**{field: frozen_readouts[f"{name}.{field}"] for field in kind._fields})
