"""Rows made by hand."""

from __future__ import annotations

from typing import Any

from experiments.rows import Row, make_row

SHARE = {"unit": "%", "scale": 100.0, "higher_is_better": True}
PLAIN = {"unit": "", "scale": 1.0, "higher_is_better": None}
"""Fields of a number that is no share of 1."""


def made_row(**changes: Any) -> Row:
    """A row with every field, of a comparison with the full condition; an interval of 0.1 on each side of its value."""
    row = {"model": "model", "condition": "zero_cls", "tokens": "cls", "ablation": ["a" * 20], "window": "all"}
    row |= {"task": "linear_probe", "metric": "top1", "feature": "cls", "readout": "refitted", "layer": 5} | SHARE
    row |= {"primary": False, "value": 0.5, "ci_covers": "units", "n": 30, "n_unit": "images", "seeds": 1, "by_seed": [0.5]}
    row |= {"delta": -0.25, "delta_ci_low": -0.375, "delta_ci_high": -0.125, "p_value": 0.01, "p_holm": 0.02, "holm_tests": 2}
    row |= {"reference": {"model": "model", "condition": "full", "value": 0.75}, "holm_family": "secondary: top1 of linear_probe of model"}
    row |= {"by_construction": False, "protocol": "ridge(select=val)", "cell": "0" * 20, "quick": False} | changes
    return make_row(**({"ci_low": row["value"] - 0.1, "ci_high": row["value"] + 0.1} | row))


def made_flow(source: str, target: str, **changes: Any) -> Row:
    """A row of the attention that one token group gives another."""
    fields = {"task": "attention_flow", "metric": "attention", "feature": None, "readout": None, "higher_is_better": None}
    return made_row(**fields, source=source, target=target, **changes)
