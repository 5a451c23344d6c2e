"""From rows of results to verdicts: what the rules read of every token group, and their words."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.rows import Row
from experiments.sinks import rows as names
from experiments.sinks import rules
from experiments.sinks.experiment import ATTENTION, METER, TASK
from experiments.sinks.rules import Cost, Evidence, Verdict
from experiments.tasks.base import FROZEN, REFITTED

_SAME = ("metric", "feature", "readout")


def evidence_of(rows: Sequence[Row], model: str, group: str, target: str) -> Evidence | None:
    """What the rows of a study say of one token group of a model; None where they say nothing."""
    of_model = [row for row in rows if row["model"] == model and row["task"] == TASK]
    of_group = {}
    for row in of_model:
        name, _, edit = row["condition"].partition(".")
        if name == group or (edit == rules.JOINT and group == names.CLS):
            of_group[edit, row["metric"], row["feature"], row["readout"]] = row
    meters = {edit: row["value"] / row["reference"]["value"] for (edit, metric, *_), row in of_group.items() if metric == METER}

    def p_holm(row: Row) -> float | None:
        """Of a row, or of the one that it repeats: one intervention is one test."""
        same = [r["p_holm"] for r in of_model if r["condition"] == row["repeats"] and all(r[name] == row[name] for name in _SAME)]
        return same[0] if same else row["p_holm"]

    def costs(readout: str) -> dict[str, Cost]:
        chosen = {edit: row for (edit, _, feature, of), row in of_group.items() if of == readout and target_of(feature) == target}
        return {edit: _cost(row, p_holm(row), meters.get(edit, 1.0)) for edit, row in chosen.items() if not row["by_construction"]}

    refitted, frozen = costs(REFITTED), costs(FROZEN)
    attention = next((row["value"] for (_, metric, *_), row in of_group.items() if metric == ATTENTION), None)
    read = [row for (edit, *_, of), row in of_group.items() if of == REFITTED and target_of(row["feature"]) == target and row["reference"]]
    clean = next((row["reference"]["value"] for row in read if row["reference"]["condition"] == "full"), None)
    if attention is None or clean is None or not refitted:
        return None
    readers = [edit.removeprefix(names.LOST_BY) for edit in refitted if edit.startswith(names.LOST_BY) and "." not in edit]
    channel = next((row for (edit, *_), row in of_group.items() if edit == rules.MASS and row["index"] is not None), None)
    return Evidence(
        attention,
        refitted,
        frozen,
        100 * clean,
        _chance(read),
        own=f"{names.LOST_BY}{target}" if target in readers else None,
        others={_name(reader): f"{names.LOST_BY}{reader}" for reader in readers if reader != target},
        carriers={_name(names.REGISTERS if group == names.CLS else names.CLS): rules.JOINT} if rules.JOINT in refitted else {},
        channel=None if channel is None else channel["index"],
        massive=1.0 if channel is None or not channel["detail"] else float(channel["detail"].split()[0]),
    )


def _chance(rows: Sequence[Row]) -> float:
    """The score of the most frequent class, in points, from the notes of rows."""
    return next((float(row["note"].split()[-2]) for row in rows if row["note"] and row["note"].startswith("chance")), 0.0)


def target_of(feature: str | None) -> str | None:
    """The target whose tokens a feature is."""
    return {"cls": "cls", "patches": "patches", "patch_mean": "patches"}.get(feature or "")


def _cost(row: Row, p_holm: float | None, meter: float) -> Cost:
    delta, low, high = (-row["scale"] * row[name] for name in ("delta", "delta_ci_low", "delta_ci_high"))
    return Cost(delta, high, low, p_holm, meter)


def _name(kind: str) -> str:
    return "CLS" if kind == "cls" else kind


def reasons_of(rows: Sequence[Row], model: str, group: str, target: str, verdict: Verdict) -> str:
    """The costs that decide a verdict, in words."""
    evidence = evidence_of(rows, model, group, target)
    assert evidence is not None
    if verdict.words == (rules.NOT_READ,):
        return f"at most {100 * evidence.attention:.2g} % of attention in any head and block"
    costs = [(names.label_of(row), evidence.rows[row]) for row in rules.deciding(evidence, verdict)]
    rounded = [(label, *(round(x, 1) + 0.0 for x in (cost.estimate, cost.low, cost.high))) for label, cost in costs]  # 0.0 for -0.0
    return "; ".join(f"{label} {estimate:.1f} [{low:.1f}, {high:.1f}]" for label, estimate, low, high in rounded)


def all_verdicts(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, Verdict]]]:
    """The verdict on every group of every model, for each target, from the rows of a study."""
    found: dict[str, dict[str, dict[str, Verdict]]] = {}
    for model in dict.fromkeys(row["model"] for row in rows if row["task"] == TASK):
        groups = dict.fromkeys(row["condition"].partition(".")[0] for row in rows if row["task"] == TASK and row["model"] == model)
        for group in groups:
            for target in names.TARGETS:
                if evidence := evidence_of(rows, model, group, target):
                    found.setdefault(model, {}).setdefault(group, {})[target] = rules.decide(evidence)
    return found
