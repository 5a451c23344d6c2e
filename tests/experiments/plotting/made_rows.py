"""Rows made by hand, and what a page's figures show of them."""

from __future__ import annotations

import json
import re
from typing import Any

from experiments.rows import Row


def made_row(**changes: Any) -> Row:
    """A row with every field, of a comparison with the full condition; an interval of 0.1 on each side of its value."""
    row = {"model": "model", "condition": "zero_cls", "tokens": "cls", "task": "linear_probe", "metric": "top1", "feature": "cls"}
    row |= {"protocol": "ridge(select=val)", "layer": "last", "value": 0.5, "n": 30, "seed": 0, "seeds": 1, "by_seed": [0.5]}
    row |= {"delta": -0.25, "delta_ci_low": -0.375, "delta_ci_high": -0.125, "p_value": 0.01, "p_holm": 0.02, "holm_tests": 2}
    row |= {"cell": "0" * 20} | changes
    return {"ci_low": row["value"] - 0.1, "ci_high": row["value"] + 0.1} | row


def traces(page: str) -> list[dict[str, Any]]:
    """The traces of all figures of a piece of a page, in order, as plotly reads them."""
    starts = re.finditer(r'Plotly\.newPlot\(\s*"[^"]+",\s*', page)
    return [trace for start in starts for trace in json.JSONDecoder().raw_decode(page, start.end())[0]]
