"""Linear heads trained by SGD, for several learning rates and feature sets, all heads in one pass over the features."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from jaxvit import checks
from jaxvit.metrics import top1
from jaxvit.probes.ridge import matmul, standardisation
from jaxvit.probes.selection import Probe, one_hot


@dataclass(frozen=True)
class SGD:
    """Settings of the training: mean cross-entropy of a minibatch, no weight decay, torch's update (momentum * v + gradient).

    Attributes:
        learning_rates: one head is trained for each; the rate at the start is learning_rate * batch / 256.
        batch: examples in a minibatch.
        iterations: number of minibatches.
        momentum: of the velocity, which starts at 0.
        cosine: the rate falls to 0 along half a cosine, iteration by iteration; otherwise it is constant.
        standardise: features are standardised by the training rows; otherwise they are used as they are.

    Raises:
        ValueError: no learning rate, one that is not positive, or another number out of range.
    """

    learning_rates: tuple[float, ...]
    batch: int = 256
    iterations: int = 1_000
    momentum: float = 0.0
    cosine: bool = False
    standardise: bool = False

    def __post_init__(self) -> None:
        checks.check_positive("learning_rates", self.learning_rates)
        if self.batch < 1 or self.iterations < 1 or not 0 <= self.momentum < 1:
            raise ValueError(
                f"batch is {self.batch}, iterations {self.iterations}, momentum {self.momentum}; give at least 1, 1, and momentum in [0, 1)"
            )


PARODI = SGD(learning_rates=(1e-3,), batch=256, iterations=1_570)
"""Our reading of the linear probe of Parodi et al. (arXiv 2604.14433): plain SGD on raw features, at a constant rate, ten passes over
40,000 images. Their solver is unpublished; every number here is our choice. Like theirs, as far as its results show, this probe has
not converged."""

DINOV2_GRID = SGD(
    learning_rates=(1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1),
    batch=1_024,
    iterations=12_500,
    momentum=0.9,
    cosine=True,
)
"""DINOv2's linear evaluation (`dinov2/eval/linear.py`, of Oquab et al. 2023): 13 rates on each of the four feature sets of
`dinov2_sets`, 128 examples on each of 8 GPUs (the default of `dinov2/run/submit.py`), 10 epochs of 1,250 iterations; for fewer use
`dataclasses.replace(DINOV2_GRID, iterations=...)`. Two differences: the original extracts features of augmented views (random resized
crops, flips), anew in every epoch, and here they are those of the images as they are; and the original chooses the best head ON THE
SPLIT THAT IS REPORTED, unless other test sets are named, where here it is chosen on a validation split."""


class Heads(NamedTuple):
    """Linear read-outs of one feature set, with a leading axis of learning rates, or of one rate (`at`).

    Attributes:
        weights: [*rates, width, classes], for (features - mean) / scale.
        intercept: [*rates, classes].
        mean, scale: [width]; 0 and 1 where features are not standardised.
        learning_rate: [*rates], as in the settings.
        feature_set: its position among the feature sets.
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
        return self._replace(
            weights=self.weights[index],
            intercept=self.intercept[index],
            learning_rate=self.learning_rate[index],
            losses=self.losses[index],
        )


def dinov2_sets(
    cls: Shaped[Array, "blocks rows width"], patch_mean: Shaped[Array, "rows width"]
) -> tuple[Shaped[Array, "rows features"], ...]:
    """The four feature sets of DINOv2's grid: CLS of the last block and of the last four, each without and with the mean patch.

    Args:
        cls: of the last four blocks (or more), first to last, after the final norm.
        patch_mean: of the last block, after the final norm.

    Raises:
        ValueError: fewer than four blocks.
    """
    if len(cls) < 4:
        raise ValueError(f"CLS of {len(cls)} blocks; the grid reads those of the last four")
    cls_of_blocks = [jnp.concatenate(list(cls[-count:]), axis=-1) for count in (1, 4)]
    return tuple(features for part in cls_of_blocks for features in (part, jnp.concatenate([part, patch_mean], axis=-1)))


def minibatches(labels: Int[Array, "rows"], batch: int, iterations: int, seed: int) -> Int[np.ndarray, "iterations batch"]:
    """The rows of every minibatch: consecutive pieces of a sequence of permutations of the rows that are not labelled -1.

    A minibatch may end one permutation and begin the next.

    Raises:
        ValueError: all rows are padding, labels are no integers, or `batch` or `iterations` is below 1.
    """
    checks.check_integers("labels", labels)
    checks.check_counts(batch=batch, iterations=iterations)
    rows = np.flatnonzero(np.asarray(labels) >= 0)
    if not len(rows):
        raise ValueError("all training rows are labelled -1, which is padding; give some with labels")
    generator = np.random.default_rng(seed)
    permutations = [generator.permutation(rows).astype(np.int32) for _ in range(math.ceil(batch * iterations / len(rows)))]
    return np.concatenate(permutations)[: batch * iterations].reshape(iterations, batch)


@functools.partial(jax.jit, static_argnames=("width", "classes", "settings"))
def start(width: int, classes: int, settings: SGD, seed: int, feature_set: int = 0) -> Float[Array, "rates width classes"]:
    """Initial weights, normal with standard deviation 0.01 as in DINOv2 (intercepts start at 0)."""
    key = jax.random.fold_in(jax.random.key(seed), feature_set)
    return 0.01 * jax.random.normal(key, (len(settings.learning_rates), width, classes))


def fit(
    features: Sequence[Shaped[Array, "rows width"]], labels: Int[Array, "rows"], classes: int, settings: SGD, seed: int = 0
) -> tuple[Heads, ...]:
    """Trained heads of every feature set, with an axis of learning rates; all heads see the same minibatches. Float32.

    Each minibatch is read once for all heads. Memory besides the features: three times the heads (weights, velocity, gradient),
    batch x classes x heads floats of scores, and iterations x batch integers. Rows labelled -1 are padding.

    Raises:
        ValueError: a feature set is not [rows, width] with the labels' rows, there is none, or it holds NaN; labels are no integers,
            outside of -1 to `classes` - 1, all padding or all of one class.
    """
    checks.check_classes(classes)
    _check("features", features, "labels", labels, classes)
    checks.check_several_classes("labels", labels)
    order = minibatches(labels, settings.batch, settings.iterations, seed)
    starts = tuple(start(part.shape[1], classes, settings, seed, i) for i, part in enumerate(features))
    heads: tuple[Heads, ...] = train(tuple(features), labels, order, starts, settings)
    return heads


@functools.partial(jax.jit, static_argnames="settings")
def train(
    features: tuple[Shaped[Array, "rows width"], ...],
    labels: Int[Array, "rows"],
    order: Int[Array, "iterations batch"],
    starts: tuple[Float[Array, "rates width classes"], ...],
    settings: SGD,
) -> tuple[Heads, ...]:
    """`fit` as one program: heads from the rows of every minibatch (`minibatches`) and initial weights (`start`).

    Within the scan over minibatches classes come before width: both products of a step then run along rows of features.
    """
    unchanged = [(jnp.zeros(part.shape[1]), jnp.ones(part.shape[1])) for part in features]
    moments = [standardisation(part, labels >= 0) for part in features] if settings.standardise else unchanged
    rates = jnp.asarray(settings.learning_rates, jnp.float32)
    classes = starts[0].shape[2]

    def cross_entropy(parameters: _Parameters, rows: Int[Array, "batch"]) -> tuple[Array, list[Array]]:
        targets = one_hot(labels[rows], classes).T
        losses = []
        for part, (mean, scale), (weights, intercept) in zip(features, moments, parameters, strict=True):
            x = (part[rows].astype(jnp.float32) - mean) / scale
            scores = matmul(weights, x.T) + intercept[..., None]
            losses.append(-(targets * jax.nn.log_softmax(scores, axis=1)).sum(axis=1).mean(axis=1))
        return jnp.concatenate(losses).sum(), losses

    def step(carry: tuple[_Parameters, _Parameters], minibatch: tuple[Array, Array]) -> tuple[tuple[_Parameters, _Parameters], list[Array]]:
        (parameters, velocity), (iteration, rows) = carry, minibatch
        gradient, losses = jax.grad(cross_entropy, has_aux=True)(parameters, rows)
        factor = (1 + jnp.cos(jnp.pi * iteration / settings.iterations)) / 2 if settings.cosine else 1.0
        rate = rates * (settings.batch / 256) * factor
        velocity = jax.tree.map(lambda v, g: settings.momentum * v + g, velocity, gradient)
        parameters = jax.tree.map(lambda p, v: p - rate.reshape(-1, *[1] * (p.ndim - 1)) * v, parameters, velocity)
        return (parameters, velocity), losses

    before = [(weights.swapaxes(1, 2), jnp.zeros((len(rates), classes))) for weights in starts]
    at_rest = jax.tree.map(jnp.zeros_like, before)
    (trained, _), losses = jax.lax.scan(step, (before, at_rest), (jnp.arange(len(order)), order))
    return tuple(
        Heads(
            weights=weights.swapaxes(1, 2),
            intercept=intercept,
            mean=mean,
            scale=scale,
            learning_rate=rates,
            feature_set=jnp.int32(i),
            losses=set_losses.T,
        )
        for i, ((weights, intercept), (mean, scale), set_losses) in enumerate(zip(trained, moments, losses, strict=True))
    )


def _check_read(heads: Heads, features: Any) -> None:
    checks.check_read(heads.mean, features)


@checks.check_first(_check_read)
@jax.jit
def predict(heads: Heads, features: Shaped[Array, "rows width"]) -> Float[Array, "rows classes"]:
    """Logits of the classes, from the read-out of one learning rate and the features of its feature set.

    Raises:
        ValueError: features are of another width than those of the fit, or hold NaN.
    """
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
    """The SGD probe: heads trained on train, the best chosen on validation, scored on test. Rows labelled -1 are padding in any of them.

    Args:
        train, validation, test: the same feature sets of each split.

    Returns:
        The probe. `chosen` counts heads by feature set, and by learning rate (as in the settings) within a set; of equally good heads
        the first is chosen. `edge` is True if its learning rate is the smallest or largest. `readout.feature_set` is the position of
        the features that it reads.

    Raises:
        ValueError: see `fit`; or the splits have other feature sets.
    """
    checks.check_classes(classes)
    splits = {"train": (train, train_labels), "validation": (validation, validation_labels), "test": (test, test_labels)}
    for name, (features, labels) in splits.items():
        _check(name, features, f"{name}_labels", labels, classes)
        if [part.shape[1] for part in features] != [part.shape[1] for part in train]:
            raise ValueError("the feature sets of train, validation and test differ in number or width; give the same of each")
    checks.check_several_classes("train_labels", train_labels)
    heads = fit(train, train_labels, classes, settings, seed)
    hits = jnp.concatenate([_hits(*pair, validation_labels) for pair in zip(heads, validation, strict=True)])
    chosen = jnp.argmax(hits)
    feature_set, rate = divmod(int(chosen), len(settings.learning_rates))
    readout = heads[feature_set].at(rate)
    edge = jnp.bool_(settings.learning_rates[rate] in (min(settings.learning_rates), max(settings.learning_rates)))
    return Probe(top1(predict(readout, test[feature_set]), test_labels), chosen, edge, readout)


_Parameters = list[tuple[Float[Array, "rates classes width"], Float[Array, "rates classes"]]]
"""Weights and intercepts of the heads of every feature set."""


def _check(name: str, features: Any, labels_name: str, labels: Any, classes: int) -> None:
    """Refuse feature sets that are not all [rows, width], with the labels' rows."""
    if not isinstance(features, Sequence) or not features:
        given = f"an array of the shape {features.shape}" if hasattr(features, "shape") else repr(features)
        raise ValueError(f"{name} is {given}, not feature sets; give a list of at least one, each [rows, width]: [{name}]")
    for i, part in enumerate(features):
        checks.check_labelled(f"{name}[{i}]", part, labels_name, labels, classes)


@jax.jit
def _hits(heads: Heads, features: Shaped[Array, "rows width"], labels: Int[Array, "rows"]) -> Float[Array, "rates"]:
    """The number of rows that each head classifies right."""

    def count(rate: Int[Array, ""]) -> Float[Array, ""]:
        hits: Array = top1(predict(heads.at(rate), features), labels).sum()
        return hits

    hits: Array = jax.lax.map(count, jnp.arange(len(heads.learning_rate)))
    return hits
