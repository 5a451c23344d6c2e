"""Does a token know the class of its image? Linear probes, at the last layer under every condition, and at every layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.plotting.columns import Column
from experiments.tasks.base import (
    FROZEN,
    REFITTED,
    Context,
    Feature,
    FeatureSource,
    FrozenReadouts,
    MetricResult,
    Readouts,
    SolverName,
    Task,
    constant_fields,
    pack_readout,
    protocol_id,
    unpack_readout,
)
from experiments.tasks.solvers import SOLVERS
from experiments.tasks.tokens import PARTS, has_labels, labelled_parts, select_tokens, token_features
from jaxvit import metrics
from jaxvit.inference import mean_scores
from jaxvit.probes import sgd
from jaxvit.probes.selection import Probe

LAYER_BYTES = 2**31
"""Bytes of captured tokens that `layer_probes` probes at once."""
_LAYER_FEATURES: tuple[Feature, ...] = ("cls", "patch_mean", "registers", "register_mean")


def linear_probe(features: FeatureSource, context: Context, frozen_readouts: FrozenReadouts) -> list[MetricResult]:
    """Top-1 of linear probes of every feature, refitted under the condition; under an ablation also of the full condition's probes,
    applied unchanged."""
    parts = [token_features(features[part], context.readouts.features) for part in PARTS]
    results = []
    for solver in context.readouts.solvers:
        for names in _by_width(parts[0]):
            stacked = [np.stack([part[name] for name in names]) for part in parts]
            refitted = _refit(solver, names, stacked, context, context.where)
            for result, test in zip(refitted, stacked[-1], strict=True):
                results.append(result)
                if frozen_readouts:
                    results.append(_evaluate_frozen(solver, result, test, context, frozen_readouts))
    return results


def layer_probes(captured: Sequence[Mapping[str, np.ndarray]], context: Context) -> Iterator[tuple[int, MetricResult]]:
    """Top-1 of linear read-outs of CLS, patch mean and registers at every layer, as (layer, result), by the first two solvers; a few
    layers in one program.

    Args:
        captured: "cls" [L, n, D], "patch_mean" [L, n, D] and "registers" [L, n, R, D] of train, val and test, as blocks leave them.
    """
    depth, where = len(captured[0]["cls"]), context.where | {"layer": "every", "norm": "none"}
    at_once = max(1, LAYER_BYTES // max(1, sum(array[0].nbytes for part in captured for array in part.values())))
    for start in range(0, depth, at_once):
        layers = range(start, min(start + at_once, depth))
        parts = [
            {
                (layer, name): array
                for layer in layers
                for name, array in select_tokens({token: values[layer] for token, values in part.items()}, _LAYER_FEATURES).items()
            }
            for part in captured
        ]
        stacked = [np.stack(list(part.values())) for part in parts]
        for solver in context.readouts.solvers[:2]:
            results = _refit(solver, [name for _, name in parts[0]], stacked, context, where)
            for (layer, _), result in zip(parts[0], results, strict=True):
                yield layer, result._replace(readouts={})


def _refit(
    name: SolverName, features: Sequence[str], parts: Sequence[np.ndarray], context: Context, where: dict[str, Any]
) -> Iterator[MetricResult]:
    """Top-1 of a solver fitted to the condition, of each feature in turn.

    Args:
        features: names of the features.
        parts: of train, val and test, [features, images, width].
        where: preparation of images, layer and norm, for the protocol id.
    """
    solver, train = SOLVERS[name], parts[0]
    probes = solver.fit(parts, context)
    for i, feature in enumerate(features):
        probe = jax.tree.map(lambda leaf, i=i: leaf[i], probes)
        constant = constant_fields(train[i])
        yield MetricResult(
            "top1" if name == context.readouts.solvers[0] else f"top1_{name}",
            feature,
            _protocol(name, "condition", context, where),
            [mean_scores(correct) for correct in probe.correct],
            readout=REFITTED,
            **constant,
            flag="" if constant["by_construction"] else _flag(solver.penalty, probe),
            detail=solver.detail(probe.readout),
            readouts=pack_readout(f"{name}/{feature}", probe.readout),
        )


def _flag(penalty: str, probe: Probe) -> str:
    """What may be wrong with a fitted probe."""
    flags = [f"{penalty} at the edge of its grid"] if probe.edge.any() else []
    if np.any(probe.unconverged):
        flags.append(f"{np.max(probe.unconverged)} of the values of {penalty} did not converge and were not candidates")
    if not np.all(getattr(probe.readout, "converged", True)):
        flags.append("the fit did not converge")
    return ", ".join(flags)


def _evaluate_frozen(
    name: SolverName, refitted: MetricResult, test: np.ndarray, context: Context, frozen_readouts: FrozenReadouts
) -> MetricResult:
    """Top-1 of the full condition's read-out on test features of another condition."""
    solver, labels = SOLVERS[name], context.data.labels["test"]
    readout = unpack_readout(f"{name}/{refitted.feature}", frozen_readouts, solver.readout)
    deterministic = len(readout.mean) == 1
    positions = range(len(refitted.scores)) if deterministic else [seed - context.first_seed for seed in context.seeds]
    by_seed = [jax.tree.map(lambda leaf, s=s: leaf[s], readout) for s in positions]
    scores = [mean_scores(metrics.top1(solver.predict(one, test), labels)) for one in by_seed]
    protocol = _protocol(name, "full", context, context.where)
    return refitted._replace(protocol=protocol, scores=scores, readout=FROZEN, flag="", detail="", readouts={})


def _protocol(name: SolverName, fit: str, context: Context, where: dict[str, Any]) -> str:
    return protocol_id(name, **SOLVERS[name].protocol(context), fit=fit, **where)


def _by_width(features: Mapping[str, np.ndarray]) -> list[list[str]]:
    """Names of features of equal width together: they go through one program."""
    widths = sorted({array.shape[1] for array in features.values()})
    return [[name for name, array in features.items() if array.shape[1] == width] for width in widths]


def settings(readouts: Readouts) -> dict[str, Any]:
    """What numbers of probes depend on."""
    names = ("features", "solvers", "cs", "lambdas", "epochs", "standardised")
    entries = {name: list(v) if isinstance(v := getattr(readouts, name), tuple) else v for name in names}
    return entries | {"sgd": dataclasses.asdict(sgd.PARODI)}


LINEAR_PROBE = Task(
    linear_probe,
    labelled_parts,
    has_labels,
    version=3,
    settings=settings,
    columns=(
        Column("top1", "cls", "linear probe<br>CLS", REFITTED, primary=True),
        Column("top1", "cls", "frozen probe<br>CLS", FROZEN),
        Column("top1", "patch_mean", "linear probe<br>patch mean", REFITTED, primary=True),
    ),
)
