"""Rows as the text and the error bars of a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments.demo import label
from experiments.rows import Row, select

_WRAP = 90  # characters in a line of a hover text


def token_label(name: str) -> str:
    """The name of a token or feature as figures show it: "cls" is "CLS", "register_mean" is "register mean", "r1" stays."""
    return "CLS" if name == "cls" else name.replace("_", " ")


def percent(value: float) -> str:
    """A share of 1 as a percentage with one decimal."""
    return f"{100 * value:.1f}"


def interval(row: Row, scale: float = 100) -> str:
    """The value of a row and its 95 % interval."""
    return f"{scale * row['value']:.3f} [{scale * row['ci_low']:.3f}, {scale * row['ci_high']:.3f}]"


def hover(row: Row | None, scale: float = 100) -> str:
    """Everything that is known of a number, as lines of HTML: what it is, its interval, its comparison, published counterparts."""
    if row is None:
        return "not run"
    lines = [f"{label(row['model'])} · {row['condition']}", f"{row['task']}: {row['metric']} of {row['feature']}, layer {row['layer']}"]
    lines += [row["protocol"][start : start + _WRAP] for start in range(0, len(row["protocol"]), _WRAP)]
    lines.append(f"value {interval(row, scale)}, n = {row['n']}")
    if row["seeds"] > 1:
        lines.append(f"mean over {row['seeds']} seeds, from {scale * min(row['by_seed']):.3f} to {scale * max(row['by_seed']):.3f}")
    if row["delta"] is not None:
        corrected = "" if row["p_holm"] is None else f", by Holm over {row['holm_tests']} {row['p_holm']:.4f}"
        change, low, high = (scale * row[name] for name in ("delta", "delta_ci_low", "delta_ci_high"))
        lines.append(f"against full {change:+.3f} [{low:+.3f}, {high:+.3f}], p = {row['p_value']:.4f}{corrected}")
    for other in row.get("published", ()):
        lines.append(f"published {scale * other['value']:.2f} ({scale * other['difference']:+.2f} here): {other['source'][:80]}")
    lines += [f"{mark} {row[name]}" for mark, name in (("†", "note"), ("‡", "flag"), ("", "detail")) if row.get(name)]
    return "<br>".join([*lines, f"cell {row['cell']}"])


def meter_lines(rows: Sequence[Row]) -> dict[tuple[str, str], str]:
    """The off-manifold metrics of every (model, condition) at the last block, as one line of text each."""
    last: dict[tuple[str, str], dict[str, Row]] = {}
    for row in select(rows, task="off_manifold"):
        last.setdefault((row["model"], row["condition"]), {})[row["metric"]] = row  # layers come in order
    return {
        run: "off manifold, last block: " + ", ".join(f"{metric.replace('_', ' ')} {r['value']:.3f}" for metric, r in by_metric.items())
        for run, by_metric in last.items()
    }


def errors(rows: Sequence[Row], scale: float = 100) -> dict[str, Any]:
    """The intervals of values as plotly error bars."""
    return {
        "array": [scale * (r["ci_high"] - r["value"]) for r in rows],
        "arrayminus": [scale * (r["value"] - r["ci_low"]) for r in rows],
        "thickness": 1,
    }


def delta_errors(rows: Sequence[Row], scale: float = 100) -> dict[str, Any]:
    """The intervals of differences from the full condition as plotly error bars; of length 0 where a row is not compared."""
    return {
        "array": [scale * ((r["delta_ci_high"] or 0) - (r["delta"] or 0)) for r in rows],
        "arrayminus": [scale * ((r["delta"] or 0) - (r["delta_ci_low"] or 0)) for r in rows],
        "thickness": 1,
    }
