"""Does a token know the class of its image? Linear probes (also at every layer), DINOv2's grid, few-shot probes and k-NN."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.features.extraction import Features
from experiments.tasks.base import (
    FEATURES,
    Context,
    Feature,
    FeatureSource,
    FrozenReadouts,
    MetricResult,
    SolverName,
    constant_note,
    pack_readout,
    protocol_id,
    unpack_readout,
)
from experiments.tasks.solvers import PARTS, SOLVERS
from jaxvit import metrics
from jaxvit.inference import mean_scores
from jaxvit.probes import few_shot as few_shot_probes
from jaxvit.probes import knn, sgd

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


def dinov2_grid(features: FeatureSource, context: Context, frozen_readouts: FrozenReadouts) -> list[MetricResult]:
    """Top-1 of DINOv2's grid of heads, the best of 13 rates x 4 feature sets chosen on images that are not reported. In the full
    condition only: it costs more than all other probes."""
    iterations, parts = context.readouts.grid_iterations, [features[part] for part in PARTS]
    readable = context.readouts.norm == "final" and parts[0].block_cls.shape[1] == 4
    if context.ablated or not iterations or not readable:
        return []
    train, val, test = (sgd.dinov2_sets(jnp.asarray(p.block_cls.swapaxes(0, 1)), jnp.asarray(p.patch_mean)) for p in parts)
    train_labels, val_labels, test_labels = (jnp.asarray(context.data.labels[part]) for part in PARTS)
    batch = min(sgd.DINOV2_GRID.batch, len(train_labels))
    settings = dataclasses.replace(sgd.DINOV2_GRID, iterations=iterations, batch=batch)
    classes = len(context.data.classes)
    probes = [sgd.probe(train, train_labels, val, val_labels, test, test_labels, classes, settings, seed) for seed in context.seeds]
    protocol = protocol_id("dinov2_grid", heads="13 rates x 4 sets", batch=batch, iterations=iterations, select="val", **context.where)
    rates = {str(np.round(float(p.readout.learning_rate), 6)) for p in probes}
    sets = {str(np.round(float(p.readout.feature_set), 6)) for p in probes}
    detail = f"rates {', '.join(sorted(rates))} and feature sets {', '.join(sorted(sets))} chosen"
    flag = "rate at the edge of its grid" if any(bool(p.edge) for p in probes) else ""
    scores = [mean_scores(p.correct) for p in probes]
    return [MetricResult("top1_dinov2_grid", "cls+patch_mean", protocol, scores, flag=flag, detail=detail)]


def few_shot(features: FeatureSource, context: Context, frozen_readouts: FrozenReadouts) -> list[MetricResult]:
    """Top-1 of big_vision's regression on a few images of every class, for CLS and patch mean; its one penalty is fixed."""
    labels, classes = context.data.labels, len(context.data.classes)
    smallest_class = np.bincount(labels["train"], minlength=classes).min()
    shots = tuple(s for s in context.readouts.shots if s <= smallest_class)
    names: tuple[Feature, ...] = ("cls", "patch_mean")
    train, test = (token_features(features[part], names) for part in ("train", "test"))
    train_labels, test_labels = jnp.asarray(labels["train"]), jnp.asarray(labels["test"])
    results = []
    for name in names if shots else ():
        probes = few_shot_probes.few_shot(
            jnp.asarray(train[name]), train_labels, jnp.asarray(test[name]), test_labels, classes, shots=shots, seeds=context.seeds
        )
        note = constant_note(train[name])
        for count, correct in zip(shots, np.asarray(probes.correct), strict=True):
            protocol = protocol_id("big_vision_few_shot", shots=count, penalty=few_shot_probes.BIG_VISION_PENALTY, **context.where)
            results.append(MetricResult(f"top1_{count}_shot", name, protocol, [mean_scores(seed) for seed in correct], note))
    return results


def nearest_neighbours(features: FeatureSource, context: Context, frozen_readouts: FrozenReadouts) -> list[MetricResult]:
    """Top-1 of DINO's weighted k-NN; its bank is train and val together."""
    bank_labels = np.concatenate([context.data.labels[part] for part in ("train", "val")])
    test_labels = context.data.labels["test"]
    ks = tuple(k for k in context.readouts.neighbours if k <= len(bank_labels))
    train, val, test = (token_features(features[part], ("cls", "patch_mean", "register_mean")) for part in PARTS)
    results = []
    for name in train if ks else ():
        bank = np.concatenate([train[name], val[name]])
        predicted = knn.classify(bank, bank_labels, test[name], len(context.data.classes), ks, mesh=context.mesh)
        note = constant_note(bank)
        for k, correct in zip(ks, knn.correct(predicted, test_labels), strict=True):
            protocol = protocol_id("dino_knn", k=k, temperature=0.07, **context.where)
            results.append(MetricResult(f"top1_k{k}", name, protocol, [mean_scores(correct)], note))
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
                for name, array in _select_tokens({token: values[layer] for token, values in part.items()}, _LAYER_FEATURES).items()
            }
            for part in captured
        ]
        stacked = [np.stack(list(part.values())) for part in parts]
        for solver in context.readouts.solvers[:2]:
            results = _refit(solver, [name for _, name in parts[0]], stacked, context, where)
            for (layer, _), result in zip(parts[0], results, strict=True):
                yield layer, result._replace(readouts={})


def token_features(part: Features, names: Sequence[Feature] = FEATURES) -> dict[str, np.ndarray]:
    """Features [images, width] that probes read, by name, as far as the model has them: "registers" stands for "r1", "r2", ..., each
    one alone; names joined by "+" are concatenated."""
    return _select_tokens(part._asdict(), names)


def _select_tokens(tokens: Mapping[str, np.ndarray], names: Sequence[Feature]) -> dict[str, np.ndarray]:
    """`token_features` of "cls" and "patch_mean" [images, width] and "registers" [images, registers, width]."""
    registers = tokens["registers"]

    def token(name: str) -> np.ndarray:
        if name == "register_mean":
            return registers.mean(axis=1)
        return registers.reshape(len(registers), -1) if name == "registers" else tokens[name]

    features: dict[str, np.ndarray] = {}
    for name in names:
        if name == "registers":
            features |= {f"r{i + 1}": registers[:, i] for i in range(registers.shape[1])}
        elif "register" not in name or registers.shape[1]:
            joined = [token(single) for single in name.split("+")]
            features[name] = joined[0] if len(joined) == 1 else np.concatenate(joined, axis=1)
    return features


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
        note = constant_note(train[i])
        yield MetricResult(
            "top1" if name == context.readouts.solvers[0] else f"top1_{name}",
            feature,
            _protocol(name, "condition", context, where),
            [mean_scores(correct) for correct in probe.correct],
            note,
            flag=f"{solver.penalty} at the edge of its grid" if probe.edge.any() and not note else "",
            detail=solver.detail(probe.readout),
            readouts=pack_readout(f"{name}/{feature}", probe.readout),
        )


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
    return MetricResult(f"{refitted.metric}_frozen", refitted.feature, protocol, scores, refitted.note, full_metric=refitted.metric)


def _protocol(name: SolverName, fit: str, context: Context, where: dict[str, Any]) -> str:
    return protocol_id(name, **SOLVERS[name].protocol(context), fit=fit, **where)


def _by_width(features: Mapping[str, np.ndarray]) -> list[list[str]]:
    """Names of features of equal width together: they go through one program."""
    widths = sorted({array.shape[1] for array in features.values()})
    return [[name for name, array in features.items() if array.shape[1] == width] for width in widths]
