"""Do intervals and tests keep their word? Simulations through the functions that a study calls: `python -m experiments.simulations`.

Every kind of interval is made many times on data of known truth: a 95 % interval should hold the truth in 95 % of runs, and a test should
reject a true null hypothesis at 5 % in 5 %. Numbers of units are those at which a study is small.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.datasets.base import Shown
from experiments.plotting.markdown import fill_between, table
from experiments.program import run
from experiments.study.changes import change_rows
from experiments.study.compare import Inference, compared_rows
from experiments.tasks.base import MetricResult
from jaxvit.files import write_text
from jaxvit.inference import Scores, mean_scores, median_scores, ratio_scores
from jaxvit.metrics import mean_iou

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "simulations.json", HERE.parent / "docs" / "intervals.md"
MARKS = ("<!-- simulations: begin -->", "<!-- simulations: end -->")
COVERAGE, REJECTION = (0.93, 0.97), (0.04, 0.06)
"""What is accepted of 95 % intervals, and of tests at 5 %."""
_RUN = {"model": "model", "condition": "condition", "task": "simulation"}
_CLASSES = 4


class Sample(NamedTuple):
    """Data of one run, under no condition and under one that changes nothing in the mean.

    Attributes:
        full, ablated: scores of every draw.
        shown: numbers of the things that units show; None where units are independent.
        draws: whether the scores are draws of a read-out.
    """

    full: Sequence[Scores]
    ablated: Sequence[Scores]
    shown: np.ndarray | None = None
    draws: bool = False


@dataclass(frozen=True)
class Kind:
    """A kind of interval.

    Attributes:
        what: it is, for the table.
        sample: the data of a run, from its generator.
        truth: the value that both conditions have in the population.
        apart: outcomes that are known not to be what is accepted; the docs say why.
    """

    what: str
    sample: Callable[[np.random.Generator], Sample]
    truth: float
    apart: tuple[str, ...] = ()


def _means(units: int, binary: bool, generator: np.random.Generator) -> Sample:
    common = generator.normal(size=units)

    def scores() -> Scores:
        own = common + generator.normal(size=units)
        return mean_scores((own < 1.0).astype(float) if binary else own)

    return Sample([scores()], [scores()])


def _near_ceiling(generator: np.random.Generator) -> Sample:
    full, ablated = (mean_scores((generator.random(471) < 0.995).astype(float)) for _ in range(2))
    return Sample([full], [ablated])


def _ratios(units: int, generator: np.random.Generator) -> Sample:
    points, skill = generator.integers(1, 30, units), generator.beta(6, 3, units)
    full, ablated = (ratio_scores(generator.binomial(points, skill), points) for _ in range(2))
    return Sample([full], [ablated])


def _confusion(units: int, generator: np.random.Generator) -> np.ndarray:
    """Confusion matrices of images that show some classes more than others and are segmented with different skill."""
    shares, skill = generator.dirichlet(np.full(_CLASSES, 0.5), units), generator.beta(8, 4, units)
    predicted = np.eye(_CLASSES) * skill[:, None, None] + (1 - skill)[:, None, None] / _CLASSES
    chances = (shares[:, :, None] * predicted).reshape(units, -1)
    return np.stack([generator.multinomial(200, chance).reshape(_CLASSES, _CLASSES) for chance in chances])


def _mious(units: int, generator: np.random.Generator) -> Sample:
    first, second = (_confusion(units, generator) for _ in range(2))
    swap = generator.integers(0, 2, units).astype(bool)[:, None, None]  # the two conditions are exchangeable within an image
    return Sample([Scores(np.where(swap, first, second), mean_iou)], [Scores(np.where(swap, second, first), mean_iou)])


def _medians(units: int, generator: np.random.Generator) -> Sample:
    common = generator.gamma(4.0, size=units)
    full, ablated = (median_scores(common + generator.gamma(1.0, size=units)) for _ in range(2))
    return Sample([full], [ablated])


def _shared(things: int, units: int, draws: int, generator: np.random.Generator) -> Sample:
    """Scenes that share what they show; with draws, of which each moves all scores, under each condition in its own way."""
    number = np.concatenate([np.arange(things), generator.integers(0, things, units - things)])
    common, moved = 0.3 * generator.normal(size=things), 0.15 * generator.normal(size=draws) * (draws > 1)

    def scores() -> list[Scores]:
        shown = (common + 0.3 * generator.normal(size=things))[number, None]
        drawn = moved + 0.1 * generator.normal(size=draws) * (draws > 1)
        return [mean_scores(draw) for draw in (shown + drawn + generator.normal(size=(units, draws))).T]

    return Sample(scores(), scores(), number[:, None], draws > 1)


def _crossed(units: int, draws: int, spread: float, generator: np.random.Generator) -> Sample:
    """Units x draws: a draw of a read-out moves the scores of all units, partly alike under both conditions."""
    unit, draw = generator.normal(size=(units, 1)), generator.normal(size=draws)

    def scores() -> list[Scores]:
        moved = spread * (draw + generator.normal(size=draws))
        own = unit + 0.5 * generator.normal(size=(units, 1))
        return [mean_scores(column) for column in (own + moved + generator.normal(size=(units, draws))).T]

    return Sample(scores(), scores(), draws=True)


def _pairs(images: int, partners: int, spread: float, generator: np.random.Generator) -> Sample:
    """Pairs of images that are sources and targets of several pairs each."""
    offsets = generator.permutation(np.arange(1, images))[:partners]
    pairs = np.concatenate([np.stack([np.arange(images), (np.arange(images) + offset) % images], axis=1) for offset in offsets])
    common = generator.normal(size=images)

    def hits() -> Scores:
        effect = spread * (common + generator.normal(size=images))
        return ratio_scores(5 + effect[pairs].sum(axis=1) + generator.normal(size=len(pairs)), np.full(len(pairs), 10.0))

    return Sample([hits()], [hits()], pairs)


@functools.cache
def kinds() -> dict[str, Kind]:
    """The kinds of intervals of a study, by name."""
    population = _confusion(200_000, np.random.default_rng(0)).sum(axis=0)
    many = np.random.default_rng(0).gamma(4.0, size=2_000_000) + np.random.default_rng(1).gamma(1.0, size=2_000_000)
    return {
        "mean_15": Kind("mean, 15 units", partial(_means, 15, False), 0.0),
        "mean_300": Kind("mean, 300 units", partial(_means, 300, False), 0.0),
        "accuracy_50": Kind("accuracy of 76 %, 50 units", partial(_means, 50, True), 0.5 * math.erfc(-0.5)),
        "accuracy_500": Kind("accuracy of 76 %, 500 units", partial(_means, 500, True), 0.5 * math.erfc(-0.5)),
        "accuracy_99": Kind("accuracy of 99.5 %, 471 units", _near_ceiling, 0.995, ("value", "rejected", "change_rejected")),
        "ratio_15": Kind("hits over points, 15 units", partial(_ratios, 15), 6 / 9),
        "ratio_100": Kind("hits over points, 100 units", partial(_ratios, 100), 6 / 9),
        "miou_30": Kind("mIoU, 30 images", partial(_mious, 30), float(mean_iou(population))),
        "miou_200": Kind("mIoU, 200 images", partial(_mious, 200), float(mean_iou(population))),
        "median_100": Kind("median, 100 images", partial(_medians, 100), float(np.median(many)), ("delta", "change")),
        "digits_15": Kind("40 scenes of 15 digits", partial(_shared, 15, 40, 1), 0.0),
        "digits_150": Kind("400 scenes of 150 digits", partial(_shared, 150, 400, 1), 0.0),
        "pairs_15_weak": Kind("pairs of 15 images that matter little", partial(_pairs, 15, 4, 0.1), 0.5),
        "pairs_40_weak": Kind("pairs of 40 images that matter little", partial(_pairs, 40, 6, 0.1), 0.5),
        "pairs_40": Kind("pairs of 40 images that matter", partial(_pairs, 40, 6, 0.5), 0.5),
        "pairs_100": Kind("pairs of 100 images that matter much", partial(_pairs, 100, 8, 2.0), 0.5),
        "draws_8_none": Kind("100 units x 8 draws that move nothing", partial(_crossed, 100, 8, 0.0), 0.0),
        "draws_8": Kind("100 units x 8 draws that matter", partial(_crossed, 100, 8, 0.2), 0.0),
        "draws_8_most": Kind("100 units x 8 draws that matter most", partial(_crossed, 100, 8, 1.0), 0.0),
        "draws_5": Kind("15 units x 5 draws that matter", partial(_crossed, 15, 5, 0.3), 0.0),
        "digits_draws": Kind("400 scenes of 150 digits x 8 draws", partial(_shared, 150, 400, 8), 0.0),
    }


def simulate(kind: Kind, seed: int, resamples: int = 1_000) -> dict[str, bool]:
    """One run: whether the intervals of the value and of the difference hold the truth, whether the test rejects; the same of the
    difference of two models' differences."""
    generator = np.random.default_rng(seed)
    samples = [kind.sample(generator) for _ in range(2)]
    first = samples[0]
    shown = {} if first.shown is None else {"test": Shown("things", first.shown)}
    inference = Inference(resamples, seed, shown)
    results = [_result(sample) for sample in samples]
    (row,) = compared_rows(_RUN, [results[0]], inference, [first.full])
    outcome = {
        "value": row["ci_low"] <= kind.truth <= row["ci_high"],
        "delta": row["delta_ci_low"] <= 0 <= row["delta_ci_high"],
        "rejected": row["p_value"] <= 0.05,
    }
    if first.shown is None:  # the other model is measured on the same units, which are independent here whatever they show there
        changes, others = ({result.identity: (result, sample.full)} for result, sample in zip(results, samples, strict=True))
        (change,) = change_rows(_RUN, "other", changes, others, inference, 0)
        outcome |= {"change": change["delta_ci_low"] <= 0 <= change["delta_ci_high"], "change_rejected": change["p_value"] <= 0.05}
    return outcome


def _result(sample: Sample) -> MetricResult:
    return MetricResult("score", "cls", "simulation()", sample.ablated, draws=tuple(range(len(sample.ablated))) if sample.draws else ())


def simulate_all(name: str, runs: int) -> dict[str, float]:
    """Shares of the outcomes of a kind over runs."""
    kind, first = kinds()[name], 1_000_000 * list(kinds()).index(name)
    outcomes = [simulate(kind, first + run) for run in range(runs)]
    return {outcome: float(np.mean([one[outcome] for one in outcomes])) for outcome in outcomes[0]}


def met(outcome: str, share: float, runs: int = 0) -> bool:
    """Whether a share is what is accepted; with few runs, within two standard errors of that."""
    low, high = REJECTION if outcome.endswith("rejected") else COVERAGE
    slack = 2 * math.sqrt(high * (1 - high) / runs) if runs else 0.0
    return low - slack <= share <= high + slack


_HEADS = {
    "value": "value: coverage",
    "delta": "difference: coverage",
    "rejected": "its test: rejects",
    "change": "difference of differences: coverage",
    "change_rejected": "its test: rejects",
}


def page_table(results: dict[str, Any]) -> str:
    """The table of the simulations, as Markdown; what is not accepted is bold."""
    lines = [[kinds()[name].what, *(_cell(shares, outcome) for outcome in _HEADS)] for name, shares in results["kinds"].items()]
    return f"{results['runs']:,} runs each, percent.\n\n{table(['kind', *_HEADS.values()], lines)}"


def _cell(shares: dict[str, float], outcome: str) -> str:
    if outcome not in shares:
        return ""
    text = f"{100 * shares[outcome]:.1f}"
    return text if met(outcome, shares[outcome]) else f"**{text}**"


@dataclass(frozen=True)
class Options:
    """How often to simulate.

    Attributes:
        runs: of every kind.
        only: names of kinds; by default all. Others keep what they have.
        out: file of results; the table is written into docs/intervals.md as well, unless it is another one.
        processes: that share the kinds.
    """

    runs: int = 2_000
    only: tuple[str, ...] = ()
    out: Path = RESULTS
    processes: int = 2


def main(options: Options) -> None:
    """Simulate, then write the results and the table.

    Raises:
        ValueError: an unknown kind.
    """
    names = options.only or tuple(kinds())
    if unknown := [name for name in names if name not in kinds()]:
        raise ValueError(f'unknown kind "{unknown[0]}"; known are {", ".join(kinds())}')
    earlier = json.loads(options.out.read_text())["kinds"] if options.out.exists() else {}
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        for name, shares in zip(names, pool.map(partial(simulate_all, runs=options.runs), names), strict=True):
            earlier[name] = shares
            print(f"{name}: {', '.join(f'{outcome} {100 * share:.1f} %' for outcome, share in shares.items())}", flush=True)
    results = {"runs": options.runs, "kinds": {name: earlier[name] for name in kinds() if name in earlier}}
    write_text(options.out, json.dumps(results, indent=1) + "\n")
    if options.out == RESULTS:
        fill_between(PAGE, MARKS, page_table(results))


if __name__ == "__main__":
    run(main, Options, __doc__)
