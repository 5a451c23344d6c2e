"""The shape of patch features: effective rank and spectra, norms and outliers, cosines of registers."""

from __future__ import annotations

import html
import itertools
from collections.abc import Iterator, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from experiments import table
from experiments.demo import label
from experiments.figures import COLOURS, Finished, Row, errors, hover, plot, select
from experiments.study import Job, Subject

TITLE = "Effective rank, spectra and norms of patches"
NOTE = (
    "Effective rank: exp of the entropy of the Gram eigenvalues of an image's patch features (not centred), median over images with 95 % "
    "intervals. Its mean, the form by singular values (Roy & Vetterli) and the participation ratio stand beside it in results.jsonl. "
    "Spectra are shares of the Gram eigenvalues in the full condition. Norms are of patches before and after the final norm; outliers are "
    "patches longer than 150 before it: the threshold that Darcet et al. 2024 chose for DINOv2's ViT-g, which says nothing where all norms "
    "have another size. Outliers are not expected in models as small as S and B."
)
TASKS = ("effective_rank", "patch_norms", "register_cosine")


def jobs(subject: Subject) -> Iterator[Job]:
    """Geometry under every condition."""
    return table.jobs(subject, tasks=TASKS)


def section(study: Finished) -> str:
    """Bars of effective rank, spectra, and a table of norms and register cosines."""
    models = [m for m in study.models if study.conditions(m, "effective_rank")]
    if not models:
        return ""
    return plot(_ranks(study, models)) + plot(_spectra(study, models)) + _norms(study, models) + _cosines(study, models)


def _ranks(study: Finished, models: Sequence[str]) -> go.Figure:
    figure = go.Figure()
    for colour, model in zip(itertools.cycle(COLOURS), models, strict=False):
        found = select(study.rows, model=model, task="effective_rank", metric="gram_eigenvalues")
        bars = go.Bar(
            x=[r["condition"] for r in found],
            y=[r["value"] for r in found],
            error_y=errors(found, 1),
            customdata=[hover(r, scale=1) for r in found],
            hovertemplate="%{customdata}<extra></extra>",
            name=label(model),
            marker_color=colour,
        )
        figure.add_trace(bars)
    figure.update_layout(height=400, margin={"t": 20, "b": 40}, template="plotly_white", barmode="group")
    figure.update_yaxes(title_text="effective rank")
    return figure


def _spectra(study: Finished, models: Sequence[str]) -> go.Figure:
    figure = make_subplots(1, 1)
    for colour, model in zip(itertools.cycle(COLOURS), models, strict=False):
        full = select(study.rows, model=model, task="effective_rank", condition="full")
        found = [r for r in full if r["metric"].startswith("spectrum[")]
        line = go.Scatter(
            x=[1 + number for number in range(len(found))],
            y=[r["value"] for r in found],
            error_y=errors(found, 1),
            customdata=[hover(r, scale=1) for r in found],
            hovertemplate="%{customdata}<extra></extra>",
            name=label(model),
            line={"color": colour},
            mode="lines+markers",
        )
        figure.add_trace(line)
    figure.update_layout(height=340, margin={"t": 20, "b": 40}, template="plotly_white")
    figure.update_yaxes(title_text="share of the eigenvalues", type="log")
    figure.update_xaxes(title_text="number of the eigenvalue", dtick=1)
    return figure


def _norms(study: Finished, models: Sequence[str]) -> str:
    metrics = (("norm_before_final", "norm before<br>the final norm"), ("norm", "norm of<br>what is read"), ("outlier_share", "outliers"))
    lines = [(m, select(study.rows, model=m, condition="full", task="patch_norms")) for m in models]
    body = "".join(
        f"<tr><td>{html.escape(label(model))}</td>{''.join(_shown(rows, metric) for metric, _ in metrics)}</tr>" for model, rows in lines
    )
    return f"<table><tr><th>full</th>{''.join(f'<th>{heading}</th>' for _, heading in metrics)}</tr>{body}</table>"


def _shown(rows: Sequence[Row], metric: str) -> str:
    (row,) = select(rows, metric=metric)
    return f"<td>{row['value']:.3f}<small>{row['ci_low']:.3f} – {row['ci_high']:.3f}</small></td>"


def _cosines(study: Finished, models: Sequence[str]) -> str:
    lines = [(m, select(study.rows, model=m, condition="full", task="register_cosine")) for m in models]
    names = list(dict.fromkeys((r["metric"], r["feature"]) for _, rows in lines for r in rows))
    if not names:
        return ""
    body = ""
    for model, rows in lines:
        by_pair = {(r["metric"], r["feature"]): r for r in rows}
        if by_pair:
            cells = "".join(f"<td>{by_pair[pair]['value']:.2f}</td>" if pair in by_pair else "<td></td>" for pair in names)
            body += f"<tr><td>{html.escape(label(model))}</td>{cells}</tr>"
    heads = "".join(f"<th>R{int(a[10:-1]) + 1} R{int(b[10:-1]) + 1}</th>" for a, b in names)
    return f"<p></p><table><tr><th>cosine of registers</th>{heads}</tr>{body}</table>"


if __name__ == "__main__":
    from experiments.reproduce import alone

    alone("patch_geometry", __doc__)
