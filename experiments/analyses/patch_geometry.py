"""The geometry of patch features: effective rank and spectrum, norms and outliers; and cosines between registers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import plotly.graph_objects as go

from experiments.demo import label
from experiments.plotting.colours import style
from experiments.plotting.elements import interval_cell, plot, table
from experiments.plotting.escape import escaped
from experiments.plotting.hover import errors, hover
from experiments.rows import Row, select
from experiments.study import grid
from experiments.study.jobs import Job
from experiments.study.results import StudyResults
from experiments.study.target import Target
from experiments.tasks.geometry import OUTLIER_MADS, OUTLIER_NORM

TITLE = "Effective rank, spectra and norms of patches"
NOTE = (
    "Effective rank: exp of the entropy of the Gram eigenvalues of an image's patch features (not centred); shown is the median over "
    "images with 95 % intervals. Its mean, the form by singular values (Roy & Vetterli) and the participation ratio are in results.jsonl. "
    "Spectra are shares of the Gram eigenvalues in the full condition. Norms are of patches before and after the final norm. Outliers are "
    f"patches whose norm before the final norm is above the median by more than {OUTLIER_MADS} median absolute deviations, of the patches "
    f"of all images. For DINOv2's L and g also those above {OUTLIER_NORM:g}, the cut-off that Darcet et al. 2024 chose for ViT-g; it means "
    "nothing for models whose norms are of another size. Outliers are not expected in models as small as S and B."
)
TASKS = ("effective_rank", "patch_norms", "register_cosine")
NORM_HEADINGS = {
    "norm_before_final": "norm before<br>the final norm",
    "norm": "norm of<br>what is read",
    f"outlier_share_{OUTLIER_MADS}_mad": f"outliers by {OUTLIER_MADS} MAD,<br>percent",
    f"outlier_share_above_{OUTLIER_NORM:g}": f"outliers above {OUTLIER_NORM:g},<br>percent",
}
"""The metrics of the table of norms, with their headings."""


def jobs(target: Target) -> Iterator[Job]:
    """Geometry under every condition."""
    return grid.jobs(target, tasks=TASKS)


def section(results: StudyResults) -> str:
    """Bars of effective rank, lines of spectra, and tables of norms and of cosines between registers."""
    models = [model for model in results.models if results.conditions(model, "effective_rank")]
    if not models:
        return ""
    rows = results.rows
    return plot(_rank_bars(rows, models)) + plot(_spectrum_lines(rows, models)) + _norm_table(rows, models) + _cosine_table(rows, models)


def _rank_bars(rows: Sequence[Row], models: Sequence[str]) -> go.Figure:
    figure = go.Figure()
    for index, model in enumerate(models):
        ranks, look = select(rows, model=model, task="effective_rank", metric="gram_eigenvalues"), style(index)
        bars = go.Bar(
            x=[escaped(r["condition"]) for r in ranks],
            y=[r["value"] for r in ranks],
            error_y=errors(ranks, 1),
            customdata=[hover(r) for r in ranks],
            hovertemplate="%{customdata}<extra></extra>",
            name=escaped(label(model)),
            marker={"color": look.colour, "pattern": {"shape": look.pattern}},
        )
        figure.add_trace(bars)
    figure.update_layout(height=400, margin={"t": 20, "b": 40}, template="plotly_white", barmode="group")
    figure.update_yaxes(title_text="effective rank")
    return figure


def _spectrum_lines(rows: Sequence[Row], models: Sequence[str]) -> go.Figure:
    figure = go.Figure()
    for index, model in enumerate(models):
        full, look = select(rows, model=model, task="effective_rank", condition="full"), style(index)
        spectrum = select(full, metric="spectrum")
        line = go.Scatter(
            x=list(range(1, 1 + len(spectrum))),
            y=[r["value"] for r in spectrum],
            error_y=errors(spectrum, 1),
            customdata=[hover(r) for r in spectrum],
            hovertemplate="%{customdata}<extra></extra>",
            name=escaped(label(model)),
            line={"color": look.colour, "dash": look.dash},
            mode="lines+markers",
        )
        figure.add_trace(line)
    figure.update_layout(height=340, margin={"t": 20, "b": 40}, template="plotly_white")
    figure.update_yaxes(title_text="share of the eigenvalues", type="log", dtick=1)
    figure.update_xaxes(title_text="number of the eigenvalue", dtick=1)
    return figure


def _norm_table(rows: Sequence[Row], models: Sequence[str]) -> str:
    lines = []
    for model in models:
        by_metric = {r["metric"]: r for r in select(rows, model=model, condition="full", task="patch_norms")}
        lines.append((label(model), [interval_cell(by_metric.get(metric)) for metric in NORM_HEADINGS]))
    return table("full", list(NORM_HEADINGS.values()), lines)


def _cosine_table(rows: Sequence[Row], models: Sequence[str]) -> str:
    """Mean cosine of every pair of registers without ablation; empty where no model has two."""
    cosines = select(rows, condition="full", task="register_cosine")
    by_model = {m: {(r["register_a"], r["register_b"]): r["value"] for r in select(cosines, model=m)} for m in models}
    pairs = dict.fromkeys(pair for values in by_model.values() for pair in values)
    if not pairs:
        return ""
    cells = {m: [f"<td>{values[pair]:.2f}</td>" if pair in values else "<td></td>" for pair in pairs] for m, values in by_model.items()}
    lines = [(label(model), line) for model, line in cells.items() if by_model[model]]
    return table("cosine of registers", [f"{first} {second}" for first, second in pairs], lines)
