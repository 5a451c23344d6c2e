"""Linear heads trained by SGD: a grid of learning rates on several feature sets, all heads in one pass over the features."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from jaxvit.metrics import top1
from jaxvit.probes.ridge import matmul, standardisation
from jaxvit.probes.selection import Probe, one_hot


@dataclass(frozen=True)
class SGD:
    """How heads are trained: the mean cross-entropy of a minibatch, no weight decay, torch's update (momentum * v + gradient).

    Attributes:
        learning_rates: a head for each, per 256 examples: the rate at the start is learning_rate * batch / 256.
        batch: examples of a minibatch.
        iterations: minibatches.
        momentum: of the velocity, which starts at 0.
        cosine: the rate falls to 0 along half a cosine, iteration by iteration; otherwise it stays.
        standardise: features are standardised by the training rows; otherwise they are taken as they are.
    """

    learning_rates: tuple[float, ...]
    batch: int = 256
    iterations: int = 1_000
    momentum: float = 0.0
    cosine: bool = False
    standardise: bool = False

    def __post_init__(self) -> None:
        if not self.learning_rates or min(self.learning_rates) <= 0:
            raise ValueError(f"learning_rates are {self.learning_rates}; give at least one, all positive")
        if self.batch < 1 or self.iterations < 1 or not 0 <= self.momentum < 1:
            raise ValueError(
                f"batch is {self.batch}, iterations {self.iterations}, momentum {self.momentum}; give at least 1, 1, and momentum in [0, 1)"
            )


PARODI = SGD(learning_rates=(1e-3,), batch=256, iterations=1_570)
"""Plain SGD on raw features, at a constant rate, ten passes over 40,000 images. The solver of Parodi et al. (arXiv 2604.14433) is
unpublished; this is OUR READING of it, every number in it our choice: a probe that is not yet converged, as theirs looks."""

DINOV2_GRID = SGD(
    learning_rates=(1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1),
    batch=1_024,
    iterations=12_500,
    momentum=0.9,
    cosine=True,
)
"""DINOv2's linear evaluation (`dinov2/eval/linear.py`, of Oquab et al. 2023): 13 rates on each of the four feature sets of
`dinov2_sets`, 128 examples on each of 8 GPUs (the default of `dinov2/run/submit.py`), 10 epochs of 1,250 iterations;
`dataclasses.replace(DINOV2_GRID, iterations=...)` is a shorter one. There features are of augmented views (random resized crops,
flips), new in every epoch; here of images as they are given. And there the best head is chosen ON THE SPLIT THAT IS REPORTED, unless
other test sets are named; here on a validation split."""


class Heads(NamedTuple):
    """Linear read-outs of one feature set; with a leading axis of learning rates, or without (`at`).

    Attributes:
        weights: [*rates, width, classes], for (features - mean) / scale.
        intercept: [*rates, classes].
        mean, scale: [width], 0 and 1 where features are not standardised.
        learning_rate: [*rates], as in the settings.
        feature_set: position of the feature set.
        losses: [*rates, iterations], mean cross-entropy of each minibatch before its step.
    """

    weights: Float[Array, "*rates width classes"]
    intercept: Float[Array, "*rates classes"]
    mean: Float[Array, "width"]
    scale: Float[Array, "width"]
    learning_rate: Float[Array, "*rates"]
    feature_set: Int[Array, ""]
    losses: Float[Array, "*rates iterations"]

    def at(self, index: int | Int[Array, ""]) -> Heads:
        """The read-out of one learning rate."""
        taken = jax.tree.map(lambda leaf: leaf[index], (self.weights, self.intercept, self.learning_rate, self.losses))
        return Heads(taken[0], taken[1], self.mean, self.scale, taken[2], self.feature_set, taken[3])


def dinov2_sets(
    cls: Shaped[Array, "blocks rows width"], patch_mean: Shaped[Array, "rows width"]
) -> tuple[Shaped[Array, "rows features"], ...]:
    """The four feature sets of DINOv2's grid: CLS of the last block, of the last four blocks; each without, then with the mean patch.

    Args:
        cls: after the final norm, of the last four blocks (or more), first to last, as the original's features are.
        patch_mean: of the last block, after the final norm.

    Raises:
        ValueError: fewer than four blocks.
    """
    if len(cls) < 4:
        raise ValueError(f"CLS of {len(cls)} blocks; the grid reads those of the last four")
    alone = [jnp.concatenate(list(cls[-count:]), axis=-1) for count in (1, 4)]
    return tuple(features for one in alone for features in (one, jnp.concatenate([one, patch_mean], axis=-1)))


def minibatches(labels: Int[Array, "rows"], batch: int, iterations: int, seed: int) -> Int[np.ndarray, "iterations batch"]:
    """Rows of every minibatch: one permutation after the other of the rows not labelled -1, cut every `batch` rows; the rest of a
    permutation starts the next minibatch.

    Raises:
        ValueError: all rows are padding.
    """
    rows = np.flatnonzero(np.asarray(labels) >= 0)
    if not len(rows):
        raise ValueError("all training rows are labelled -1, which is padding; give some with labels")
    generator = np.random.default_rng(seed)
    stream = [generator.permutation(rows).astype(np.int32) for _ in range(math.ceil(batch * iterations / len(rows)))]
    return np.concatenate(stream)[: batch * iterations].reshape(iterations, batch)


def start(width: int, classes: int, settings: SGD, seed: int, feature_set: int = 0) -> Float[Array, "rates width classes"]:
    """Weights before training, normal with standard deviation 0.01 as in DINOv2; intercepts start at 0."""
    key = jax.random.fold_in(jax.random.key(seed), feature_set)
    return 0.01 * jax.random.normal(key, (len(settings.learning_rates), width, classes))


def fit(
    features: Sequence[Shaped[Array, "rows width"]], labels: Int[Array, "rows"], classes: int, settings: SGD, seed: int = 0
) -> tuple[Heads, ...]:
    """Heads of every feature set and learning rate, trained on the same minibatches, float32.

    All are read once a minibatch, so the features are passed over once for all heads. Memory beside the features: three times the
    heads (weights, velocity, gradient), batch x classes x heads floats of scores, and iterations x batch integers. Rows labelled -1
    are padding.

    Raises:
        ValueError: a feature set is not [rows, width] with the labels' rows, there is none, or all rows are padding.
    """
    _check(features, labels)
    order = jnp.asarray(minibatches(labels, settings.batch, settings.iterations, seed))
    starts = tuple(start(part.shape[1], classes, settings, seed, i) for i, part in enumerate(features))
    return _train(tuple(features), labels, order, starts, settings)


@jax.jit
def predict(heads: Heads, features: Shaped[Array, "rows width"]) -> Float[Array, "rows classes"]:
    """Logits of the classes, for the read-out of one learning rate, from its feature set."""
    return matmul((features.astype(jnp.float32) - heads.mean) / heads.scale, heads.weights) + heads.intercept


def probe(
    train: Sequence[Shaped[Array, "train width"]],
    train_labels: Int[Array, "train"],
    validation: Sequence[Shaped[Array, "validation width"]],
    validation_labels: Int[Array, "validation"],
    test: Sequence[Shaped[Array, "test width"]],
    test_labels: Int[Array, "test"],
    classes: int,
    settings: SGD = DINOV2_GRID,
    seed: int = 0,
) -> Probe[Heads]:
    """Train all heads, choose the best on validation, score it on test. Rows labelled -1 are padding in any of them.

    Args:
        train, validation, test: the same feature sets of each split.

    Returns:
        `chosen` counts heads set by set, within a set by learning rate, as in the settings; of equally good heads the first. `edge`:
        its learning rate is the smallest or largest. `readout.feature_set` says which features the head reads.

    Raises:
        ValueError: see `fit`.
    """
    for features, labels in ((validation, validation_labels), (test, test_labels)):
        _check(features, labels)
        if [part.shape[1] for part in features] != [part.shape[1] for part in train]:
            raise ValueError("the feature sets of train, validation and test differ in number or width; give the same of each")
    heads = fit(train, train_labels, classes, settings, seed)
    hits = jnp.concatenate([_hits(*part, validation_labels) for part in zip(heads, validation, strict=True)])
    chosen = jnp.argmax(hits)
    feature_set, rate = divmod(int(chosen), len(settings.learning_rates))
    readout = heads[feature_set].at(rate)
    ends = min(settings.learning_rates), max(settings.learning_rates)
    edge = jnp.bool_(settings.learning_rates[rate] in ends)
    return Probe(top1(predict(readout, test[feature_set]), test_labels), chosen, edge, readout)


def _check(features: Sequence[Shaped[Array, "rows width"]], labels: Int[Array, "rows"]) -> None:
    shapes = [part.shape for part in features]
    if not shapes or any(len(shape) != 2 or shape[0] != len(labels) for shape in shapes):
        raise ValueError(f"feature sets have the shapes {shapes[:4]}; give a list of at least one, each [{len(labels)} rows, width]")


@jax.jit
def _hits(heads: Heads, features: Shaped[Array, "rows width"], labels: Int[Array, "rows"]) -> Float[Array, "rates"]:
    """Rows that each head classifies right, one head at a time."""
    return jax.lax.map(lambda rate: top1(predict(heads.at(rate), features), labels).sum(), jnp.arange(len(heads.learning_rate)))


@functools.partial(jax.jit, static_argnames="settings")
def _train(
    features: tuple[Shaped[Array, "rows width"], ...],
    labels: Int[Array, "rows"],
    order: Int[Array, "iterations batch"],
    starts: tuple[Float[Array, "rates width classes"], ...],
    settings: SGD,
) -> tuple[Heads, ...]:
    """One scan over minibatches. Within it classes come before width: both products of a step then run along rows of features."""
    as_given = [(jnp.zeros(part.shape[1]), jnp.ones(part.shape[1])) for part in features]
    moments = [standardisation(part, labels >= 0) for part in features] if settings.standardise else as_given
    rates = jnp.asarray(settings.learning_rates, jnp.float32)
    classes = starts[0].shape[2]

    def cross_entropy(parameters: list[tuple[Array, Array]], rows: Int[Array, "batch"]) -> tuple[Array, list[Array]]:
        targets = one_hot(labels[rows], classes).T
        each = []
        for part, (mean, scale), (weights, intercept) in zip(features, moments, parameters, strict=True):
            x = (part[rows].astype(jnp.float32) - mean) / scale
            scores = matmul(weights, x.T) + intercept[..., None]
            each.append(-(targets * jax.nn.log_softmax(scores, axis=1)).sum(axis=1).mean(axis=1))
        return jnp.concatenate(each).sum(), each

    def step(carry: tuple, now: tuple[Array, Array]) -> tuple[tuple, list[Array]]:
        parameters, velocity = carry
        gradient, each = jax.grad(cross_entropy, has_aux=True)(parameters, now[1])
        factor = (1 + jnp.cos(jnp.pi * now[0] / settings.iterations)) / 2 if settings.cosine else 1.0
        rate = rates * (settings.batch / 256) * factor
        velocity = jax.tree.map(lambda v, g: settings.momentum * v + g, velocity, gradient)
        parameters = jax.tree.map(lambda p, v: p - rate.reshape(-1, *[1] * (p.ndim - 1)) * v, parameters, velocity)
        return (parameters, velocity), each

    begin = [(weights.swapaxes(1, 2), jnp.zeros((len(rates), classes))) for weights in starts]
    still = jax.tree.map(jnp.zeros_like, begin)
    (found, _), each = jax.lax.scan(step, (begin, still), (jnp.arange(len(order)), order))
    parts = zip(found, moments, each, strict=True)
    return tuple(
        Heads(weights.swapaxes(1, 2), intercept, mean, scale, rates, jnp.int32(i), losses.T)
        for i, ((weights, intercept), (mean, scale), losses) in enumerate(parts)
    )
