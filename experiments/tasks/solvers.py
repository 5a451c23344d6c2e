"""Solvers of linear probes, by name: how each is fitted, applied, and described in protocol ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tasks.base import Context, SolverName
from experiments.tasks.tokens import PARTS
from jaxvit import metrics
from jaxvit.probes import logistic, ridge, sgd
from jaxvit.probes.selection import Probe


class Solver(NamedTuple):
    """A way to fit linear probes.

    Attributes:
        fit: features of train, val and test images, each [problems, images, width], to probes with leading axes [problems, seeds].
        predict: a read-out and features [images, width] to scores of the classes.
        readout: type of the read-out.
        protocol: settings for the protocol id, without where features come from.
        penalty: what is chosen on the val images; "" where nothing is.
        detail: how the fit of a read-out ended, under the first seed.
    """

    fit: Callable[[Sequence[np.ndarray], Context], Probe]
    predict: Callable[[Any, Any], jax.Array]
    readout: type[Any]
    protocol: Callable[[Context], dict[str, Any]]
    penalty: str
    detail: Callable[[Any], str]


def _fit_logistic(parts: Sequence[np.ndarray], context: Context) -> Probe:
    readouts, problems = context.readouts, _problems(parts, context)
    options: dict[str, Any] = {"cs": readouts.cs, "standardised": readouts.standardised, "mesh": context.mesh}
    return _add_seed_axis(logistic.probe_many(*problems, **options))


def _fit_dinov2_logistic(parts: Sequence[np.ndarray], context: Context) -> Probe:
    """DINOv2's own convention: raw features, its 45 values of C, and a last fit on train and val together."""
    options: dict[str, Any] = {"standardised": False, "refit": True, "mesh": context.mesh}
    return _add_seed_axis(logistic.probe_many(*_problems(parts, context), **options))


def _fit_ridge(parts: Sequence[np.ndarray], context: Context) -> Probe:
    readouts, problems = context.readouts, _problems(parts, context)
    options: dict[str, Any] = {"lambdas": readouts.lambdas, "standardised": readouts.standardised, "mesh": context.mesh}
    return _add_seed_axis(ridge.probe_many(*problems, **options))


def _fit_sgd(parts: Sequence[np.ndarray], context: Context) -> Probe:
    """Probes of plain SGD: the heads of all features in one pass over the minibatches, once for each seed; nothing is chosen."""
    train, _, test = parts
    train_labels, test_labels = (jnp.asarray(context.data.labels[part]) for part in ("train", "test"))
    settings = _sgd_settings(context)
    # on the host, where taking arrays apart and stacking them compiles nothing
    heads_of_seeds = [jax.device_get(sgd.fit(list(train), train_labels, len(context.data.classes), settings, s)) for s in context.seeds]

    def score(problem: int, head: sgd.Heads) -> Probe:
        correct = metrics.top1(sgd.predict(head, test[problem]), test_labels)
        return jax.device_get(Probe(correct, jnp.int32(0), jnp.bool_(False), head))

    return _stack([_stack([score(problem, heads[problem].at(0)) for heads in heads_of_seeds]) for problem in range(len(train))])


def _sgd_settings(context: Context) -> sgd.SGD:
    """Settings of the solver "sgd": a minibatch is no larger than the training set, iterations make up the chosen epochs."""
    rows = len(context.data.labels["train"])
    batch = min(sgd.PARODI.batch, rows)
    return dataclasses.replace(sgd.PARODI, batch=batch, iterations=-(-context.readouts.epochs * rows // batch))


def _problems(parts: Sequence[np.ndarray], context: Context) -> list[Any]:
    """Features and labels of train, val and test in turn, and the number of classes: what `probe_many` takes."""
    labels = [context.data.labels[part] for part in PARTS]
    return [array for pair in zip(parts, labels, strict=True) for array in pair] + [len(context.data.classes)]


def _add_seed_axis(probes: Probe) -> Probe:
    """Probes [problems, ...] of a deterministic solver as [problems, 1, ...], on the host."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:, None], probes)


def _stack(probes: Sequence[Probe]) -> Probe:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *probes)


def _logistic_protocol(context: Context) -> dict[str, Any]:
    return {"C": context.readouts.cs, "select": "val", "standardised": context.readouts.standardised}


def _dinov2_logistic_protocol(context: Context) -> dict[str, Any]:
    return {"C": logistic.DINOV2_CS, "select": "val", "refit": "train+val", "standardised": False}


def _ridge_protocol(context: Context) -> dict[str, Any]:
    return {"lambda": context.readouts.lambdas, "select": "val", "standardised": context.readouts.standardised}


def _sgd_protocol(context: Context) -> dict[str, Any]:
    settings = _sgd_settings(context)
    rates = {"rate": settings.learning_rates, "momentum": 0, "batch": settings.batch, "iterations": settings.iterations}
    return rates | {"standardised": False}


def _logistic_detail(readout: logistic.Logistic) -> str:
    return (
        f"penalty {readout.penalty[0]:.3g} per example, {readout.iterations[0]} Newton steps, loss {readout.loss[0]:.3g}, estimated "
        f"to be {readout.gap[0]:.0e} of itself above its minimum"
    )


def _ridge_detail(readout: ridge.Ridge) -> str:
    return f"lambda {readout.lambdas[0]:.3g} per example"


def _sgd_detail(readout: sgd.Heads) -> str:
    return f"loss {readout.losses[0][-1]:.3f} of the last minibatch"


SOLVERS: dict[SolverName, Solver] = {
    "logistic": Solver(_fit_logistic, logistic.predict, logistic.Logistic, _logistic_protocol, "C", _logistic_detail),
    "dinov2_logistic": Solver(_fit_dinov2_logistic, logistic.predict, logistic.Logistic, _dinov2_logistic_protocol, "C", _logistic_detail),
    "ridge": Solver(_fit_ridge, ridge.predict, ridge.Ridge, _ridge_protocol, "lambda", _ridge_detail),
    "sgd": Solver(_fit_sgd, sgd.predict, sgd.Heads, _sgd_protocol, "", _sgd_detail),
}
