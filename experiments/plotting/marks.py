"""What the colour and the filling of a mark say of a difference."""

from __future__ import annotations

from experiments.rows import Row

SIGNIFICANT = 0.05
"""The family-wise error that tables and charts call significant."""


def significant(row: Row) -> bool:
    """Whether p after Holm is below the family-wise error."""
    return row["p_holm"] is not None and row["p_holm"] < SIGNIFICANT


def direction(row: Row) -> str:
    """Whether a difference is one for the worse: "costs" or "gains". Of a score of which neither direction is better, less is "costs"."""
    return "gains" if (row["delta"] < 0) == (row["higher_is_better"] is False) else "costs"


def kind_of(row: Row) -> str:
    """Whether a difference is significant and has its interval on one side of 0: "costs", "gains", or else "same"."""
    return "same" if not significant(row) or row["delta_ci_low"] <= 0 <= row["delta_ci_high"] else direction(row)
