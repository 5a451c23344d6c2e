"""The findings of a study by fixed rules, as sentences, from its rows alone.

Scores are the study's main scores that are shares and that are better when higher; those of patches are dense, the others global. A change
is the paired difference from the full condition. Every sentence says what the interval of its numbers allows: a cost is a significant one,
the absence of an effect is a bound on its size, and what is neither is called open.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import NamedTuple

from experiments.demo import INDUCED, label
from experiments.plotting.columns import Column, ScoreKey, plain_heading, refitted, score_key
from experiments.plotting.escape import isolated
from experiments.plotting.marks import SIGNIFICANT
from experiments.report import wording
from experiments.report.wording import listed, reach_text, signed
from experiments.rows import Row, select
from experiments.study.changes import KIND, METRIC_ENDING
from experiments.study.results import StudyResults

ALPHA = SIGNIFICANT
"""Family-wise error of what is called a cost or a gain."""
MARGIN = 2.0
"""Points: a smaller change is not called a fall, and a bound up to here is called no difference."""
CHARTED = ("zero_cls", "zero_registers")
"""Conditions of the chart, and of the double dissociation."""
_MOST_SAID = ("segmentation", "miou", "patches", "refitted")
"""The score of the comparison between models, where the study has it."""


class Score(NamedTuple):
    """One main score: how tables call it, and whether patches are read."""

    name: str
    dense: bool


class Change(NamedTuple):
    """What a condition changes in one score of one model, in points, with the paired 95 % interval and the p-value after Holm."""

    model: str
    condition: str
    score: Score
    delta: float
    low: float
    high: float
    p_holm: float | None
    by_construction: bool


class Verdict(Enum):
    """What may be said of a change, in the order in which it is said."""

    BY_CONSTRUCTION = "by construction"
    COSTS = "costs"
    NO_DIFFERENCE = "no difference larger than a bound"
    GAINS = "gains"
    OPEN = "open"


class Finding(NamedTuple):
    """One point of the summary: its title, a sentence on all models (or none), and a line for each model, of which the first member is
    what the line is about (or empty)."""

    title: str
    lead: str
    lines: tuple[tuple[str, str], ...]


def verdict(change: Change) -> Verdict:
    """A cost or a gain is significant after Holm and has its whole interval on one side of 0."""
    if change.by_construction:
        return Verdict.BY_CONSTRUCTION
    if change.p_holm is not None and change.p_holm < ALPHA and (change.high < 0 or change.low > 0):
        return Verdict.COSTS if change.high < 0 else Verdict.GAINS
    return Verdict.NO_DIFFERENCE if reach([change]) <= MARGIN else Verdict.OPEN


def reach(changes: Sequence[Change]) -> float:
    """The end of an interval that is farthest from 0."""
    return max(max(abs(change.low), abs(change.high)) for change in changes)


def falls(change: Change) -> bool:
    """Whether it is a cost, of the margin or more."""
    return verdict(change) is Verdict.COSTS and change.delta <= -MARGIN


def spared(change: Change) -> bool:
    """Whether its interval excludes a loss of more than the margin."""
    return change.low >= -MARGIN


def summarise(results: StudyResults, models: Sequence[str]) -> list[Finding]:
    """The findings on some models, by the rules below in their order; those that have nothing to say are left out."""
    changes = changes_of(results, models)
    rules: list[Callable[[], Finding | None]] = [
        lambda: zeroing(changes, models, "zero_registers"),
        lambda: zeroing(changes, models, "zero_cls"),
        lambda: dissociation(changes, models),
        lambda: replacing(changes, models),
        lambda: between_models(results.rows, results.columns, models),
    ]
    return [finding for rule in rules if (finding := rule()) is not None]


def changes_of(results: StudyResults, models: Sequence[str]) -> list[Change]:
    """The changes of the main scores of some models, under all conditions. A number that repeats another condition's has its p-value."""
    scores = main_scores(results.columns)
    rows = [r for r in results.rows if r["delta"] is not None and r["analysis"] is None and score_key(r) in scores and _is_share(r)]
    by_run = {(r["model"], r["condition"], *score_key(r)): r for r in rows}
    changes = []
    for model in models:
        for row in select(rows, model=model):
            tested = by_run.get((model, row["repeats"], *score_key(row)), row)
            delta, low, high = (row["scale"] * row[name] for name in ("delta", "delta_ci_low", "delta_ci_high"))
            score = scores[score_key(row)]
            changes.append(Change(model, row["condition"], score, delta, low, high, tested["p_holm"], row["by_construction"]))
    return changes


def main_scores(columns: Sequence[Column]) -> dict[ScoreKey, Score]:
    """The main scores by their keys: the primary columns, by refitted read-outs."""
    primary = [column for column in refitted(columns) if column.primary]
    return {column.key: Score(plain_heading(column.heading), (column.feature or "").endswith("patches")) for column in primary}


def _is_share(row: Row) -> bool:
    """Whether points are its unit and more of them are better: the margin says something about these alone."""
    return row["unit"] == "%" and row["higher_is_better"] is True


def zeroing(changes: Sequence[Change], models: Sequence[str], condition: str) -> Finding | None:
    """Rules 1 and 2: in how many scores of each model a condition costs, gains, makes no difference larger than a bound, or is open."""
    lines, constructed = [], False
    for model in models:
        run = [c for c in changes if (c.model, c.condition) == (model, condition)]
        counted = [c for c in run if not c.by_construction]
        constructed |= len(counted) < len(run)
        if run:
            lines.append((label(model), _counts(counted) if counted else wording.NOTHING_COUNTED))
    lead = wording.BY_CONSTRUCTION if constructed else ""
    return Finding(wording.ZEROING[condition], lead, tuple(lines)) if lines else None


def _counts(changes: Sequence[Change]) -> str:
    """One model's scores, counted by verdict."""
    by = {kind: [c for c in changes if verdict(c) is kind] for kind in Verdict}
    counts = {kind: str(len(of_kind)) for kind, of_kind in by.items()}
    first = next(kind for kind in Verdict if by[kind])
    counts[first] = wording.FIRST_COUNT.format(count=len(by[first]), total=len(changes))
    parts = []
    if costs := by[Verdict.COSTS]:
        parts.append(wording.COSTS.format(count=counts[Verdict.COSTS], extreme=_worst(costs)))
    if same := by[Verdict.NO_DIFFERENCE]:
        parts.append(wording.NO_DIFFERENCE.format(count=counts[Verdict.NO_DIFFERENCE], reach=reach_text(reach(same))))
    if gains := by[Verdict.GAINS]:
        parts.append(wording.GAINS.format(count=counts[Verdict.GAINS], extreme=_largest(gains)))
    if still_open := by[Verdict.OPEN]:
        parts.append(wording.OPEN.format(count=counts[Verdict.OPEN], reach=reach_text(reach(still_open))))
    return listed(parts)


def dissociation(changes: Sequence[Change], models: Sequence[str]) -> Finding | None:
    """Rule 3: in which models every dense score is spared under zero_cls and any falls under zero_registers, else the first reason why
    not."""
    lines, yes = [], 0
    for model in models:
        dense = [c for c in changes if c.model == model and c.score.dense and not c.by_construction]
        without_cls, without_registers = ([c for c in dense if c.condition == name] for name in CHARTED)
        if without_cls and without_registers:
            holds, text = _dissociated(without_cls, without_registers)
            yes += holds
            lines.append((label(model), text))
    if not lines:
        return None
    lead = wording.DISSOCIATION_LEAD.format(count=yes, total=len(lines), models="model" if len(lines) == 1 else "models")
    return Finding(wording.DISSOCIATION, lead, tuple(lines))


def _dissociated(without_cls: Sequence[Change], without_registers: Sequence[Change]) -> tuple[bool, str]:
    fallen = [c for c in without_registers if falls(c)]
    if not fallen:
        may = [c for c in without_registers if not spared(c)]
        if not may:
            return False, wording.NO_FALL.format(reach=reach_text(largest_loss(without_registers)))
        return False, wording.FALL_OPEN.format(margin=f"{MARGIN:g}", open=len(may), total=len(without_registers), extreme=_at_worst(may))
    if any(falls(c) for c in without_cls):
        return False, wording.CLS_COSTS.format(extreme=_worst([c for c in without_cls if falls(c)]))
    if not all(map(spared, without_cls)):
        return False, wording.CLS_OPEN.format(margin=f"{MARGIN:g}", extreme=_at_worst([c for c in without_cls if not spared(c)]))
    bound = reach_text(largest_loss(without_cls))
    return True, wording.DISSOCIATED.format(reach=bound, fallen=len(fallen), total=len(without_registers), extreme=_worst(fallen))


def replacing(changes: Sequence[Change], models: Sequence[str]) -> Finding | None:
    """Rule 4: which of the scores that fall with zeroed registers are spared by replacements of them, and which others fall with these."""
    lines = []
    for model in models:
        of_model = {(c.condition, c.score): c for c in changes if c.model == model}
        zeroed = [c for (condition, _), c in of_model.items() if condition == "zero_registers"]
        pairs = {
            name: [(c, other) for c in zeroed if (other := of_model.get((condition, c.score)))]
            for condition, name in wording.REPLACEMENTS.items()
        }
        if said := _spared(pairs, sum(map(falls, zeroed))) + _fall_alone(pairs):
            lines.append((label(model), "; ".join(said)))
    return Finding(wording.REPLACING, wording.REPLACING_LEAD, tuple(lines)) if lines else None


def _spared(pairs: dict[str, list[tuple[Change, Change]]], total: int) -> list[str]:
    """What each replacement spares of the scores that fall with zeros.

    Args:
        pairs: of each replacement, a score's change by zeros and by it.
        total: number of scores that fall with zeros.
    """
    fallen = {name: those for name, of_name in pairs.items() if (those := [pair for pair in of_name if falls(pair[0])])}
    if not fallen:
        return []
    parts = listed([_spared_by(name, [other for _, other in of_name]) for name, of_name in fallen.items()])
    worse = [name for name, of_name in fallen.items() if any(other.high < zeroed.low for zeroed, other in of_name)]
    text = wording.WORSE.format(parts=parts, names=listed(worse)) if worse else parts
    return [wording.REPLACED.format(total=total, parts=text)]


def _fall_alone(pairs: dict[str, list[tuple[Change, Change]]]) -> list[str]:
    """What falls with a replacement, and not with zeros."""
    parts = []
    for name, of_name in pairs.items():
        if alone := [other for zeroed, other in of_name if falls(other) and not falls(zeroed)]:
            parts.append(wording.FALL_ALONE.format(name=name, count=len(alone), total=len(of_name), extreme=_worst(alone)))
    return [wording.FALLS_ALONE.format(parts=listed(parts))] if parts else []


def _spared_by(name: str, changes: Sequence[Change]) -> str:
    kept = sum(map(spared, changes))
    still_open = sum(not spared(c) and verdict(c) is not Verdict.COSTS for c in changes)
    return (wording.SPARED_AND_OPEN if still_open else wording.SPARED_BY).format(
        name=name, spared=kept, total=len(changes), open=still_open
    )


def between_models(rows: Sequence[Row], columns: Sequence[Column], models: Sequence[str]) -> Finding | None:
    """Rule 5: the difference of two models' changes, with its interval. The pair is the first whose second model (or, of models in which
    an effect was induced, whose any model) is among `models`; registers go before CLS, and the mIoU of the linear head before others."""
    scores = main_scores(columns)
    induced = bool(set(models) & set(INDUCED))
    for condition in ("zero_registers", "zero_cls"):
        found: dict[tuple[str, str], dict[ScoreKey, Row]] = {}
        for row in select(rows, analysis=KIND, condition=condition):
            key = score_key({**row, "metric": row["metric"].removesuffix(METRIC_ENDING)})
            pair = row["model"], row["reference"]["model"]
            asked = (any if induced else all)(model in models for model in pair)
            if asked and key in scores and _is_share(row):
                found.setdefault(pair, {})[key] = row
        if found:
            of_pair = next(iter(found.values()))
            key = min(of_pair, key=lambda key: (key != _MOST_SAID, not scores[key].dense))  # the first of those that are as good
            return Finding(wording.BETWEEN, wording.BETWEEN_LEAD, (("", _apart(of_pair[key], scores[key])),))
    return None


def _apart(row: Row, score: Score) -> str:
    difference, low, high = (row["scale"] * row[name] for name in ("delta", "delta_ci_low", "delta_ci_high"))
    numbers = {"difference": signed(difference), "low": signed(low), "high": signed(high), "reach": reach_text(max(abs(low), abs(high)))}
    said = verdict(Change(row["model"], row["condition"], score, difference, low, high, row["p_holm"], False))
    words = {Verdict.NO_DIFFERENCE: wording.NOT_APART, Verdict.OPEN: wording.APART_OPEN}.get(said, wording.APART)
    change, other = (signed(row["scale"] * value) for value in (row["value"], row["reference"]["value"]))
    names = {"model": isolated(label(row["model"])), "other": isolated(label(row["reference"]["model"]))}
    what = wording.ZEROING[row["condition"]]
    return wording.BETWEEN_CHANGE.format(what=what, score=score.name, change=change, other_change=other, **names) + words.format(**numbers)


def largest_loss(changes: Sequence[Change]) -> float:
    """The largest loss that an interval holds, in points; 0 where none does."""
    return max(0.0, *(-change.low for change in changes))


def _at(change: Change) -> str:
    """A change with its interval and its score."""
    numbers = {"delta": signed(change.delta), "low": signed(change.low), "high": signed(change.high)}
    return wording.AT.format(score=isolated(change.score.name), **numbers)


def _at_worst(changes: Sequence[Change]) -> str:
    return _at(min(changes, key=lambda change: change.low))


def _worst(changes: Sequence[Change]) -> str:
    return wording.WORST.format(at=_at(min(changes, key=lambda change: change.delta)))


def _largest(changes: Sequence[Change]) -> str:
    return wording.LARGEST.format(at=_at(max(changes, key=lambda change: change.delta)))
