"""The summary's first sentence, and its caution about scores that need no trained model; both by fixed rules from the rows alone."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.demo import label
from experiments.plotting.columns import score_key
from experiments.plotting.escape import isolated
from experiments.report import wording
from experiments.report.summary import CHARTED, Change, Finding, falls, largest_loss, main_scores, spared
from experiments.report.wording import listed, reach_text, signed
from experiments.study.results import StudyResults


def headline(changes: Sequence[Change], models: Sequence[str]) -> str:
    """What zeroing registers, replacing them, and zeroing CLS does to the main scores, as one sentence of plain text; empty where none of
    it was measured. Models are named by what is shown of them: that a score falls, that none does, or neither."""
    clauses = [clause for name in reversed(CHARTED) if (clause := _zeroing(changes, models, name))]
    if replaced := _replacing(changes, models):
        clauses.insert(1, replaced)
    sentence = "; ".join(clauses)
    return f"{sentence[0].upper()}{sentence[1:]}." if sentence else ""


def _zeroing(changes: Sequence[Change], models: Sequence[str], condition: str) -> str:
    lowered, kept, unclear = [], [], []
    for model in models:
        counted = [c for c in changes if (c.model, c.condition) == (model, condition) and not c.by_construction]
        name = isolated(label(model))
        if fallen := [c for c in counted if falls(c)]:
            numbers = {"count": len(fallen), "total": len(counted), "loss": _largest(fallen)}
            lowered.append(wording.LOWERS.format(model=name, **numbers))
        elif counted and all(map(spared, counted)):
            kept.append((name, largest_loss(counted)))
        elif counted:
            unclear.append(name)
    parts = []
    if lowered:
        parts.append(wording.LOWERS_SCORES.format(models=listed(lowered)))
    if kept:
        parts.append(wording.LOWERS_NONE.format(reach=reach_text(max(loss for _, loss in kept)), models=listed([name for name, _ in kept])))
    if unclear:
        parts.append(wording.LOWERS_UNCLEAR.format(models=listed(unclear)))
    return f"{wording.HEADLINE[condition]} {', '.join(parts)}" if parts else ""


def _replacing(changes: Sequence[Change], models: Sequence[str]) -> str:
    """The models in which a replacement of registers lowers scores that zeros do not."""
    lowered = [c for c in changes if c.model in models and c.condition in wording.REPLACEMENTS and falls(c)]
    zeroed = {(c.model, c.score) for c in changes if c.condition == "zero_registers" and falls(c)}
    alone = [c for c in lowered if (c.model, c.score) not in zeroed]
    if not alone:
        return ""
    names = dict.fromkeys(wording.REPLACEMENTS[c.condition] for c in alone)
    of_models = list(dict.fromkeys(isolated(label(c.model)) for c in alone))
    return wording.REPLACED_ALONE.format(names=" or ".join(names), models=listed(of_models), loss=_largest(alone))


def _largest(fallen: Sequence[Change]) -> str:
    """The largest loss, in points."""
    return signed(-min(c.delta for c in fallen)).removeprefix("+")


def untrained_scores(results: StudyResults, models: Sequence[str]) -> Finding | None:
    """The main scores in which a random initialisation or raw pixels reach a model: they tell little of what it has learnt."""
    scores = main_scores(results.columns)
    full = {
        (row["model"], score_key(row)): row
        for row in results.rows
        if row["condition"] == "full" and row["analysis"] is None and score_key(row) in scores and row["higher_is_better"]
    }
    lines = []
    for key, score in scores.items():
        baselines = {model: row for (model, other), row in full.items() if other == key and model not in results.models}
        if not baselines:
            continue
        best, reached = max(baselines.items(), key=lambda item: item[1]["value"])
        overtaken = [m for m in models if (row := full.get((m, key))) is not None and reached["value"] >= row["value"]]
        if overtaken:
            values = [f"{isolated(label(m))} {_value(full[m, key])}" for m in overtaken]
            lines.append((score.name, wording.REACHED.format(baseline=isolated(best), value=_value(reached), models=listed(values))))
    return Finding(wording.UNTRAINED, wording.UNTRAINED_LEAD, tuple(lines)) if lines else None


def _value(row: dict) -> str:
    return f"{row['scale'] * row['value']:.1f}"
