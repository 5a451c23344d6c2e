"""How often rules find something where nothing is: the decision list on scores that no edit changes but by chance."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from experiments.sinks import rules
from experiments.sinks.rows import DECIDING, LOST_BY
from experiments.sinks.rules import Cost, Evidence, decide
from jaxvit.inference import Scores, compare_all, holm, mean_scores

CLEAN, REDRAWN = 0.9, 0.06
"""Share of images that are read right, and share of those whose reading an edit draws anew, right as often as before."""
GROUPS, SHOWN = 3, 13
"""Token groups of a model, and rows of each that no rule reads, but which are tests of the family all the same."""
FALSE = {rules.CONTENT_VALUES, rules.CONTENT_REPLACEABLE, rules.CONTENT_KEYS, rules.IS_CONSTANT, rules.IS_SINK}
"""Words for what is not there."""


class Null(NamedTuple):
    """What came of runs without any effect.

    Attributes:
        runs: studies, each of several groups.
        verdicts: groups of all runs.
        false: verdicts with a word for what is not there.
        free: verdicts that say that nothing is lost.
    """

    runs: int
    verdicts: int
    false: int
    free: int

    @property
    def share(self) -> float:
        return self.false / self.verdicts


def simulate(runs: int, images: int, resamples: int = 2000, seed: int = 0) -> Null:
    """The decision list, with Holm over all rows and contrasts of one target, on as many studies without an effect."""
    said = [words for run in range(runs) for words in _study(np.random.default_rng((seed, run)), images, resamples)]
    return Null(runs, len(said), sum(bool(FALSE & set(words)) for words in said), sum(words == (rules.NOTHING_LOST,) for words in said))


def _study(generator: np.random.Generator, images: int, resamples: int) -> list[tuple[str, ...]]:
    """The words for each group of one study."""
    clean = generator.random(images) < CLEAN

    def edited() -> Scores:
        return mean_scores(np.where(generator.random(images) < REDRAWN, generator.random(images) < CLEAN, clean))

    pairs: dict[tuple[int, str], tuple[Scores, Scores]] = {}
    names = [*DECIDING, *(f"{LOST_BY}{reader}" for reader in ("cls", "patches")), *(f"shown_{i}" for i in range(SHOWN))]
    for group in range(GROUPS):
        scores = {name: edited() for name in names}
        pairs |= {(group, name): (mean_scores(clean), score) for name, score in scores.items()}
        pairs[group, rules.CONSTANT] = scores[rules.VALUE_MEAN], scores[rules.LOST]
        pairs[group, rules.SINK] = scores[rules.LOST], scores[rules.RENORMALISED]
    compared = compare_all([first for first, _ in pairs.values()], [second for _, second in pairs.values()], resamples)
    adjusted = holm([comparison.p_value for comparison in compared])
    costs = {key: Cost(-100 * c.delta, -100 * c.high, -100 * c.low, float(p)) for key, c, p in zip(pairs, compared, adjusted, strict=True)}
    return [
        decide(Evidence(0.5, {name: cost for (of, name), cost in costs.items() if of == group}, {}, 100 * CLEAN, 10.0)).words
        for group in range(GROUPS)
    ]
