"""Tasks that ask what tokens know about the class of their image, or about which image they are of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.features import Features
from experiments.measures import (
    CONSTANT,
    FEATURES,
    Context,
    Feature,
    Kept,
    Measure,
    Reader,
    pack_readout,
    protocol_id,
    unpack_readout,
)
from jaxvit import metrics
from jaxvit.probes import few_shot as few_shots
from jaxvit.probes import knn, logistic, ridge, sgd
from jaxvit.probes.selection import Probe
from jaxvit.statistics import mean_scores

PARTS = ("bank", "choose", "test")


def tokens(part: Features, wanted: Sequence[Feature] = FEATURES) -> dict[str, np.ndarray]:
    """The wanted features that there are, [images, width]; joined tokens are concatenated."""
    found: dict[str, np.ndarray] = {}
    registers = part.registers
    for feature in wanted:
        if feature == "registers":
            found |= {f"registers[{r}]": registers[:, r] for r in range(registers.shape[1])}
        elif "register" not in feature or registers.shape[1]:
            found[feature] = np.concatenate([_token(part, name) for name in feature.split("+")], axis=1)
    return found


def _token(part: Features, name: str) -> np.ndarray:
    if name.startswith("register"):
        return part.registers.mean(axis=1) if name == "register_mean" else part.registers.reshape(len(part.registers), -1)
    return part.cls if name == "cls" else part.patch_mean


class Solver(NamedTuple):
    """A linear probe.

    Attributes:
        fit: rows of bank, choose and test, each [problems, rows, width], and their labels to probes with leading axes
            [problems, seeds].
        predict: scores of the classes from one read-out and features.
        kind: type of the read-out.
        protocol: its id, but for where features come from.
        penalty: what is chosen.
        told: how the fit of a read-out (of the first seed) ended.
    """

    fit: Callable[[Sequence[np.ndarray], Context], Probe]
    predict: Callable[[Any, Any], jax.Array]
    kind: type[Any]
    protocol: Callable[[Context], dict[str, Any]]
    penalty: str
    told: Callable[[Any], str]


def linear_probe(f: Reader, context: Context, kept: Kept) -> list[Measure]:
    """Top-1 of linear read-outs of every feature: refitted for the condition and, beside it, that of the full condition as it is."""
    features = [tokens(f[part], context.readouts.features) for part in PARTS]
    return [m for number, name in enumerate(context.readouts.solvers) for m in _solved(name, number == 0, features, context, kept)]


def _solved(name: str, leads: bool, parts: list[dict[str, np.ndarray]], context: Context, kept: Kept) -> Iterator[Measure]:
    solver, metric = SOLVERS[name], "top1" if leads else f"top1_{name}"
    for features in _by_width(parts[0]):
        stacked = [np.stack([part[feature] for feature in features]) for part in parts]
        found = solver.fit(stacked, context)
        for i, feature in enumerate(features):
            one = jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), found)
            note = "" if np.ptp(stacked[0][i], axis=0).any() else CONSTANT
            refitted = Measure(
                metric,
                feature,
                _protocol(name, "condition", context),
                [mean_scores(seed) for seed in one.correct],
                note,
                flag=f"{solver.penalty} at the edge of its grid" if one.edge.any() and not note else "",
                detail=solver.told(one.readout),
                kept=pack_readout(f"{name}/{feature}", one.readout),
            )
            yield refitted
            if kept:
                yield _frozen(name, refitted, stacked[2][i], context, kept)


def _frozen(name: str, refitted: Measure, test: np.ndarray, context: Context, kept: Kept) -> Measure:
    """The read-out of the full condition on features of another."""
    solver, labels = SOLVERS[name], jnp.asarray(context.data.labels["test"])
    readout = unpack_readout(f"{name}/{refitted.feature}", kept, solver.kind)
    fitted = len(kept[f"{name}/{refitted.feature}.mean"])
    numbers = range(len(refitted.scores)) if fitted == 1 else [seed - context.first_seed for seed in context.seeds]
    seeds = [jax.tree.map(lambda leaf, s=s: leaf[s], readout) for s in numbers]
    scores = [mean_scores(metrics.top1(solver.predict(seed, test), labels)) for seed in seeds]
    protocol = _protocol(name, "full", context)
    return Measure(f"{refitted.metric}_frozen", refitted.feature, protocol, scores, refitted.note, full=refitted.metric)


def _protocol(name: str, fit: str, context: Context) -> str:
    return protocol_id(name, **SOLVERS[name].protocol(context), fit=fit, **context.where)


def _by_width(features: dict[str, np.ndarray]) -> list[list[str]]:
    """Names of features with the same width together: they go through one program."""
    widths = sorted({array.shape[1] for array in features.values()})
    return [[name for name, array in features.items() if array.shape[1] == width] for width in widths]


def _logistic(parts: Sequence[np.ndarray], context: Context) -> Probe:
    return _one_seed(
        logistic.probe_many(
            *_problems(parts, context), cs=context.readouts.cs, standardised=context.readouts.standardised, mesh=context.mesh
        )
    )


def _ridge(parts: Sequence[np.ndarray], context: Context) -> Probe:
    return _one_seed(
        ridge.probe_many(
            *_problems(parts, context), lambdas=context.readouts.lambdas, standardised=context.readouts.standardised, mesh=context.mesh
        )
    )


def _problems(parts: Sequence[np.ndarray], context: Context) -> list[Any]:
    """Features and labels in turn, and the number of classes: what probes take."""
    labels = [context.data.labels[part] for part in PARTS]
    return [array for pair in zip(parts, labels, strict=True) for array in pair] + [len(context.data.classes)]


def _parodi(parts: Sequence[np.ndarray], context: Context) -> Probe:
    """Plain SGD, all features in one pass, once for each seed."""
    bank, test = (jnp.asarray(context.data.labels[part]) for part in ("bank", "test"))
    settings = _passes(context)
    heads = [sgd.fit(list(parts[0]), bank, len(context.data.classes), settings, seed) for seed in context.seeds]

    def score(number: int, head: sgd.Heads) -> Probe:
        return Probe(metrics.top1(sgd.predict(head, parts[2][number]), test), jnp.int32(0), jnp.bool_(False), head)

    problems = [_stack([score(number, of[number].at(0)) for of in heads]) for number in range(len(parts[0]))]
    return _stack(problems)


def _stack(probes: Sequence[Probe]) -> Probe:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *probes)


def _passes(context: Context) -> sgd.SGD:
    rows = len(context.data.labels["bank"])
    batch = min(sgd.PARODI.batch, rows)
    return dataclasses.replace(sgd.PARODI, batch=batch, iterations=-(-context.readouts.epochs * rows // batch))


def _one_seed(probes: Probe) -> Probe:
    return jax.tree.map(lambda leaf: leaf[:, None], probes)


def _logistic_told(readout: Any) -> str:
    return (
        f"penalty {readout.penalty[0]:.3g} per example, {readout.iterations[0]} iterations of L-BFGS, gradient norm "
        f"{readout.gradient_norm[0]:.1e}, loss {readout.loss[0]:.4f}"
    )


def _ridge_told(readout: Any) -> str:
    return f"lambda {readout.lambdas[0]:.3g} per example"


def _chosen(name: str, grid: tuple[float, ...], context: Context) -> dict[str, Any]:
    return {name: grid, "select": "choose", "standardised": context.readouts.standardised}


def _plain(context: Context) -> dict[str, Any]:
    settings = _passes(context)
    told = {"rate": settings.learning_rates, "momentum": 0, "batch": settings.batch, "iterations": settings.iterations}
    return told | {"standardised": False}


SOLVERS = {
    "logistic": Solver(_logistic, logistic.predict, logistic.Logistic, lambda c: _chosen("C", c.readouts.cs, c), "C", _logistic_told),
    "ridge": Solver(_ridge, ridge.predict, ridge.Ridge, lambda c: _chosen("lambda", c.readouts.lambdas, c), "lambda", _ridge_told),
    "parodi": Solver(
        _parodi,
        sgd.predict,
        sgd.Heads,
        _plain,
        "",
        lambda r: f"loss {r.losses[0][-1]:.3f} of the last minibatch",
    ),
}


def dinov2_grid(f: Reader, context: Context, kept: Kept) -> list[Measure]:
    """Top-1 of DINOv2's grid of heads, the best of 13 rates x 4 feature sets chosen on images that are not reported. In the full
    condition only: it costs more than all other probes."""
    iterations, parts = context.readouts.grid_iterations, [f[part] for part in PARTS]
    readable = context.readouts.norm == "final" and parts[0].block_cls.shape[1] == 4
    if context.ablated or not iterations or not readable:
        return []
    sets = [sgd.dinov2_sets(jnp.asarray(p.block_cls).swapaxes(0, 1), jnp.asarray(p.patch_mean)) for p in parts]
    labels = [jnp.asarray(context.data.labels[part]) for part in PARTS]
    classes, batch = len(context.data.classes), min(sgd.DINOV2_GRID.batch, len(labels[0]))
    settings = dataclasses.replace(sgd.DINOV2_GRID, iterations=iterations, batch=batch)
    found = [sgd.probe(sets[0], labels[0], sets[1], labels[1], sets[2], labels[2], classes, settings, seed) for seed in context.seeds]
    told = protocol_id("dinov2_grid", heads="13 rates x 4 sets", batch=batch, iterations=iterations, select="choose", **context.where)
    rates, sets_chosen = ({str(np.round(float(getattr(p.readout, n)), 6)) for p in found} for n in ("learning_rate", "feature_set"))
    detail = f"rates {', '.join(sorted(rates))} and feature sets {', '.join(sorted(sets_chosen))} chosen"
    flag = "rate at the edge of its grid" if any(bool(p.edge) for p in found) else ""
    scores = [mean_scores(p.correct) for p in found]
    return [Measure("top1_dinov2_grid", "cls+patch_mean", told, scores, flag=flag, detail=detail)]


def few_shot(f: Reader, context: Context, kept: Kept) -> list[Measure]:
    """Top-1 of big_vision's regression on a few images of every class, for CLS and patch mean; its one penalty is fixed."""
    labels, classes = context.data.labels, len(context.data.classes)
    fewest = np.bincount(labels["bank"], minlength=classes).min()
    shots = tuple(s for s in context.readouts.shots if s <= fewest)
    labelled = [(tokens(f[part], ("cls", "patch_mean")), jnp.asarray(labels[part])) for part in ("bank", "test")]
    measures = []
    for feature in ("cls", "patch_mean") if shots else ():
        (bank, fitted), (test, reported) = ((jnp.asarray(found[feature]), of) for found, of in labelled)
        found = few_shots.few_shot(bank, fitted, test, reported, classes, shots=shots, seeds=context.seeds)
        note = "" if np.ptp(labelled[0][0][feature], axis=0).any() else CONSTANT
        for count, correct in zip(shots, np.asarray(found.correct), strict=True):
            protocol = protocol_id("big_vision_few_shot", shots=count, penalty=few_shots.BIG_VISION_PENALTY, **context.where)
            measures.append(Measure(f"top1_{count}_shot", feature, protocol, [mean_scores(row) for row in correct], note))
    return measures


def nearest_neighbours(f: Reader, context: Context, kept: Kept) -> list[Measure]:
    """Top-1 of DINO's weighted k-NN; the bank is bank and choose together."""
    labels = np.concatenate([context.data.labels[part] for part in ("bank", "choose")])
    ks = tuple(k for k in context.readouts.neighbours if k <= len(labels))
    parts = [tokens(f[part]) for part in PARTS]
    measures = []
    for feature in ("cls", "patch_mean", "register_mean") if ks else ():
        if feature not in parts[0]:
            continue
        bank = np.concatenate([parts[0][feature], parts[1][feature]])
        found = knn.classify(bank, labels, parts[2][feature], len(context.data.classes), ks, mesh=context.mesh)
        note = "" if np.ptp(bank, axis=0).any() else CONSTANT
        for k, row in zip(ks, knn.correct(found, jnp.asarray(context.data.labels["test"])), strict=True):
            protocol = protocol_id("dino_knn", k=k, temperature=0.07, **context.where)
            measures.append(Measure(f"top1_k{k}", feature, protocol, [mean_scores(row)], note))
    return measures


def retrieval(f: Reader, context: Context, kept: Kept) -> list[Measure]:
    """Instance Recall@1 over the pairs of views."""
    first, second = f["first"].cls, f["second"].cls
    note = "" if np.ptp(second, axis=0).any() else CONSTANT
    protocol = protocol_id("instance_recall", views=context.data.protocols["views"], **context.readouts.where)
    return [Measure("recall_at_1", "cls", protocol, [mean_scores(metrics.recall_at_1(jnp.asarray(first), jnp.asarray(second)))], note)]


def layer_probes(captured: Sequence[dict[str, np.ndarray]], context: Context) -> Iterator[tuple[int, Measure]]:
    """Probes of CLS, patch mean and registers at every layer, a few layers in one program: (layer, measure) of each.

    Args:
        captured: "cls" [L, n, D], "patch_mean" [L, n, D] and "registers" [L, n, R, D] of bank, choose and test, as blocks leave them.
    """
    depth = len(captured[0]["cls"])
    at_once = max(1, _LAYER_BYTES // max(1, sum(array[0].nbytes for part in captured for array in part.values())))
    for start in range(0, depth, at_once):
        layers = range(start, min(start + at_once, depth))
        parts = [_tokens_of_layers(part, layers) for part in captured]
        for name in context.readouts.solvers[:2]:
            yield from _probed(name, layers, parts, context)


_LAYER_BYTES = 2**31  # of captured tokens that are probed at once


def _tokens_of_layers(part: dict[str, np.ndarray], layers: range) -> dict[tuple[int, str], np.ndarray]:
    found: dict[tuple[int, str], np.ndarray] = {}
    for layer in layers:
        registers = part["registers"][layer]
        found |= {(layer, "cls"): part["cls"][layer], (layer, "patch_mean"): part["patch_mean"][layer]}
        if registers.shape[1]:
            found |= {(layer, f"registers[{r}]"): registers[:, r] for r in range(registers.shape[1])}
            found[layer, "register_mean"] = registers.mean(axis=1)
    return found


def _probed(name: str, layers: range, parts: list[dict[tuple[int, str], np.ndarray]], context: Context) -> Iterator[tuple[int, Measure]]:
    solver = SOLVERS[name]
    stacked = [np.stack(list(part.values())) for part in parts]
    found = solver.fit(stacked, context)
    told = protocol_id(name, **solver.protocol(context), fit="condition", **(context.where | {"layer": "every", "norm": "none"}))
    metric = "top1" if name == context.readouts.solvers[0] else f"top1_{name}"
    for i, (layer, feature) in enumerate(parts[0]):
        one = jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), found)
        note = "" if np.ptp(stacked[0][i], axis=0).any() else CONSTANT
        flag = f"{solver.penalty} at the edge of its grid" if one.edge.any() and not note else ""
        scores = [mean_scores(seed) for seed in one.correct]
        yield layer, Measure(metric, feature, told, scores, note, flag=flag, detail=solver.told(one.readout))
