"""The few-shot probe of big_vision: linear regression on a few examples of every class, for several draws of them.

The original is `big_vision/evaluators/fewshot_lsr.py`: features standardised by the mean and standard deviation (plus 1e-5) of
the drawn examples, targets -1 and 1, a constant feature of 100 for the bias, least squares with a squared-norm penalty that is
not per example, and the accuracy of the largest score. `ridge.fit` with lambda = penalty / (shots x classes) predicts the same
classes: all classes have the same number of examples, so that bias and target offset are equal for all and do not change which
score is largest.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxvit import checks
from jaxvit.metrics import top1
from jaxvit.probes import ridge
from jaxvit.probes.ridge import Ridge
from jaxvit.probes.selection import Probe, choose_and_score, one_hot

BIG_VISION_PENALTY = 2.0**10
"""The fixed penalty of big_vision (`configs/common_fewshot.py`), which has shots 1, 5, 10, 25 and seeds 0, 1, 2."""

BIG_VISION_PENALTIES = tuple(2.0**i for i in range(-10, 20))
"""The grid of its predecessor (`scenic/train_lib/transfer/fewshot_utils.py`). There the penalty is chosen, for every number of shots, by
the mean rank of its accuracy over several data sets ON THE TEST SPLITS that are reported; here it is chosen on a validation split."""

_EPSILON = 1e-5


class FewShot(NamedTuple):
    """The results of few-shot probes, with leading axes of numbers of shots and of seeds.

    Attributes:
        correct: 1 where the test example was classified right, else 0 (padding too).
        chosen: position of the chosen penalty in the grid.
        edge: whether that is the smallest or largest of the grid.
        readout: the chosen read-outs, for use on other conditions.
    """

    correct: Float[Array, "shots seeds test"]
    chosen: Int[Array, "shots seeds"]
    edge: Bool[Array, "shots seeds"]
    readout: Ridge

    def at(self, shots: int, seed: int) -> Probe[Ridge]:
        """The result of one probe, by its positions among the numbers of shots and among the seeds."""
        one: FewShot = jax.tree.map(lambda leaf: leaf[shots, seed], self)
        return Probe(one.correct, one.chosen, one.edge, one.readout)


def few_shot(
    train: Shaped[Array, "train width"],
    train_labels: Int[Array, "train"],
    test: Shaped[Array, "test width"],
    test_labels: Int[Array, "test"],
    classes: int,
    validation: Shaped[Array, "validation width"] | None = None,
    validation_labels: Int[Array, "validation"] | None = None,
    shots: Sequence[int] = (1, 5, 10, 25),
    seeds: Sequence[int] = (0, 1, 2),
    penalties: tuple[float, ...] = (BIG_VISION_PENALTY,),
) -> FewShot:
    """Probes fitted on a few examples of every class, a new draw for every seed, and scored on test. Rows labelled -1 are padding.

    By default the protocol of big_vision, whose penalty is fixed. Several penalties need a validation split, on which one is chosen
    for every draw by accuracy (of equals the largest), never on test. The drawn examples are those that big_vision draws for a seed
    from the same rows in the same order; the examples of fewer shots are among those of more.

    Args:
        penalties: of the squared norm of the weights, relative to the sum (not the mean) of squared errors over the examples.

    Raises:
        ValueError: a class has fewer training examples than shots; shots, seeds or penalties are empty, or shots or penalties not
            positive; several penalties without a validation split; or see `selection.check_splits`.
    """
    checks.check_splits(_splits(train, train_labels, validation, validation_labels, test, test_labels), classes)
    checks.check_listed(shots=shots, seeds=seeds, penalties=penalties)
    checks.check_positive("penalties", penalties)
    if not shots or not seeds or min(shots) < 1:
        raise ValueError(f"shots are {tuple(shots)} and seeds {tuple(seeds)}; give at least one of each, and shots of at least 1")
    if len(penalties) > 1 and (validation is None or validation_labels is None):
        raise ValueError(f"{len(penalties)} penalties, no validation split to choose on; give one that is not reported, or one penalty")
    probes = []
    for count in shots:
        rows = np.stack([draw(train_labels, classes, count, seed) for seed in seeds])
        lambdas = tuple(penalty / (count * classes) for penalty in penalties)
        probes.append(probe_draws(train, train_labels, rows, validation, validation_labels, test, test_labels, classes, lambdas))
    stacked: Probe[Ridge] = _stack(probes)
    return FewShot(stacked.correct, stacked.chosen, stacked.edge, stacked.readout)


def draw(labels: Int[Array, "rows"], classes: int, shots: int, seed: int) -> Int[np.ndarray, "examples"]:
    """The drawn rows, class by class: the first `shots` of a permutation of each class's rows, which depends on the seed.

    Raises:
        ValueError: a class has fewer rows, labels are no integers, or there is one class only.
    """
    checks.check_classes(classes)
    checks.check_integers("labels", labels)
    checks.check_counts(shots=shots)
    generator = np.random.default_rng(seed)
    permuted = [generator.permutation(np.flatnonzero(np.asarray(labels) == label)) for label in range(classes)]
    fewest = min(range(classes), key=lambda label: len(permuted[label]))
    if len(permuted[fewest]) < shots:
        raise ValueError(
            f"class {fewest} has {len(permuted[fewest])} training examples, fewer than {shots} shots; give more or ask for fewer"
        )
    return np.concatenate([rows[:shots] for rows in permuted])


def _splits(
    train: Any, train_labels: Any, validation: Any, validation_labels: Any, test: Any, test_labels: Any
) -> dict[str, tuple[Any, Any]]:
    """Features and labels of the splits that are given, by name.

    Raises:
        ValueError: validation features without labels, or labels without features.
    """
    if (validation is None) != (validation_labels is None):
        raise ValueError("validation and validation_labels belong together; give both, or neither and one penalty")
    chosen_on = {} if validation is None else {"validation": (validation, validation_labels)}
    return {"train": (train, train_labels), **chosen_on, "test": (test, test_labels)}


def _check_draws(
    train: Any,
    train_labels: Any,
    rows: Any,
    validation: Any,
    validation_labels: Any,
    test: Any,
    test_labels: Any,
    classes: int,
    lambdas: tuple[float, ...],
) -> None:
    checks.check_splits(_splits(train, train_labels, validation, validation_labels, test, test_labels), classes)
    checks.check_integers("rows", rows)
    if (numbers := checks.values(rows)) is not None and not ((numbers >= 0) & (numbers < len(train))).all():
        raise ValueError(f"rows are {numbers.min()} to {numbers.max()}, and train has {len(train)} rows, counted from 0; see draw")
    if len(lambdas) > 1 and validation is None:
        raise ValueError(f"{len(lambdas)} lambdas and no validation split to choose on; give one that is not reported, or one lambda")


@checks.check_first(_check_draws)
@functools.partial(jax.jit, static_argnames=("classes", "lambdas"))
def probe_draws(
    train: Shaped[Array, "train width"],
    train_labels: Int[Array, "train"],
    rows: Int[Array, "seeds examples"],
    validation: Shaped[Array, "validation width"] | None,
    validation_labels: Int[Array, "validation"] | None,
    test: Shaped[Array, "test width"],
    test_labels: Int[Array, "test"],
    classes: int,
    lambdas: tuple[float, ...],
) -> Probe[Ridge]:
    """One probe for every draw of examples, with one number of shots, as one program.

    Args:
        rows: of the examples that each seed draws.
        lambdas: as in `ridge.fit`; several need a validation split.

    Raises:
        ValueError: a drawn row is none of train; several lambdas without a validation split; or see `selection.check_splits`.
    """

    def probe(drawn: Array) -> Probe[Ridge]:
        path: Ridge = ridge.fit(train[drawn], one_hot(train_labels[drawn], classes), lambdas, epsilon=_EPSILON)
        if validation is None or validation_labels is None:
            readout = path.at(0)
            return Probe(top1(ridge.predict(readout, test), test_labels), jnp.int32(0), jnp.bool_(True), readout)
        return choose_and_score(path, ridge.predict, path.lambdas, validation, validation_labels, test, test_labels, classes)

    probes: Probe[Ridge] = jax.lax.map(probe, rows)
    return probes


@jax.jit
def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
