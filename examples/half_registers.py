"""A plug-in with a condition and an analysis of its own: are registers needed in all blocks, or in the late ones alone?

python -m experiments.reproduce --quick --plugin examples/half_registers.py --only half_registers
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import plotly.graph_objects as go

import jaxvit
from experiments.demo import label
from experiments.plotting.elements import plot
from experiments.plotting.escape import escaped
from experiments.plotting.hover import delta_errors, hover
from experiments.rows import select
from experiments.study import grid
from experiments.study.jobs import Job
from experiments.study.results import StudyResults
from experiments.study.target import Target

HALVES = ("mean_early", "mean_late", "mean_registers")


def mean_early(config: jaxvit.ViTConfig, moments: jaxvit.Moments, seed: int) -> jaxvit.Ablation:
    """Registers are their mean at the output of the first half of the blocks."""
    return jaxvit.mean("registers", moments, layers=range(config.depth // 2))


def mean_late(config: jaxvit.ViTConfig, moments: jaxvit.Moments, seed: int) -> jaxvit.Ablation:
    """Registers are their mean at the output of the second half of the blocks."""
    return jaxvit.mean("registers", moments, layers=range(config.depth // 2, config.depth))


def jobs(target: Target) -> Iterator[Job]:
    """All tasks under both halves and under the whole; what another analysis has computed is not computed again."""
    return grid.jobs(target, HALVES)


def section(results: StudyResults) -> str:
    """Dots with intervals: what one score of each model loses in each window, a main score where one was run."""
    rows = [row for row in results.rows if row["condition"] in HALVES and row["delta"] is not None and not row["by_construction"]]
    if not rows:
        return ""
    rows.sort(key=lambda row: not row["primary"])  # main scores first, else in the order of the study
    score = {name: rows[0][name] for name in ("task", "metric", "feature", "readout")}
    figure = go.Figure()
    for model in results.models:
        shown = select(rows, model=model, **score)
        dots = go.Scatter(
            x=[f"{row['condition']} (blocks {row['window']})" for row in shown],
            y=[row["scale"] * row["delta"] for row in shown],
            error_y=delta_errors(shown),
            customdata=[hover(row) for row in shown],
            hovertemplate="%{customdata}<extra></extra>",
            mode="markers",
            name=escaped(label(model)),
        )
        figure.add_trace(dots)
    figure.update_yaxes(title_text=f"{score['task']}, {score['metric']} of {score['feature']}: difference")
    figure.update_layout(template="plotly_white", height=380)
    return plot(figure)


CONDITIONS = {"mean_early": mean_early, "mean_late": mean_late}
ANALYSES = {
    "half_registers": SimpleNamespace(
        TITLE="Registers replaced in half of the blocks",
        NOTE="Difference from the full condition with 95 % intervals of the paired difference: registers are their mean in the first half "
        "of the blocks, in the second half, or in all.",
        jobs=jobs,
        section=section,
    )
}
