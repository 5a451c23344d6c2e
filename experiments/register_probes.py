"""What CLS and each register know, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from experiments import probing
from experiments.cells import Store
from experiments.data import first_id
from experiments.demo import label
from experiments.figures import COLOURS, Finished, Row, errors, group_label, hover, plot, select
from experiments.measures import TOLD, as_one
from experiments.study import Arrays, Job, Subject, key, rows_of
from jaxvit import Ablation
from jaxvit.statistics import value

TITLE = "What CLS and registers know, layer by layer"
NOTE = "Top-1 of linear probes on block outputs (before the final norm), with 95 % intervals over test images; whiskers are not seeds."
TASK = "layer_probe"


def jobs(subject: Subject) -> Iterator[Job]:
    """Probes at every layer of a model without ablation."""
    if not subject.baseline and subject.model is not None:
        images = sum(len(subject.data.parts[part].images) for part in probing.PARTS)
        cell = key(subject, TASK, resamples=subject.settings.resamples)
        yield Job(cell, f"{subject.name}: probes at every layer", 8, lambda store: _compute(subject, store), images)


def _compute(subject: Subject, store: Store) -> tuple[list[Row], Arrays]:
    captured = []
    for part in probing.PARTS:
        images = subject.data.parts[part].images
        found = subject.runner.extract(images, Ablation(), first_id(part), ("cls", "patch_mean", "registers"), dense=0)
        captured.append(found.captured)
    probes = list(probing.layer_probes(captured, subject.context))
    told = [{name: getattr(m, name) for name in TOLD} | {"layer": layer, "by_seed": [value(s) for s in m.scores]} for layer, m in probes]
    return rows_of(subject, "full", TASK, told, [as_one(m.scores) for _, m in probes]), {}


def section(study: Finished) -> str:
    """Lines over blocks of CLS and each register."""
    return lines(study, TASK, "top1", lambda feature: feature == "cls" or feature.startswith("registers["), "top-1, percent")


def lines(study: Finished, task: str, metric: str, wanted: Callable[[str], bool], title: str) -> str:
    """One panel for each model: a metric of the wanted features over blocks."""
    rows = [r for r in select(study.rows, task=task, metric=metric) if wanted(r["feature"])]
    models = [m for m in study.models if select(rows, model=m)]
    if not models:
        return ""
    figure = make_subplots(1, len(models), subplot_titles=[label(m) for m in models], shared_yaxes=True, horizontal_spacing=0.04)
    seen: set[str] = set()
    for colour, feature in zip(COLOURS, dict.fromkeys(r["feature"] for r in rows), strict=False):
        for column, model in enumerate(models, start=1):
            found = select(rows, model=model, feature=feature)
            if found:
                figure.add_trace(_line(found, colour, feature not in seen), row=1, col=column)
                seen.add(feature)
    figure.update_layout(height=420, margin={"t": 40, "b": 40}, template="plotly_white")
    figure.update_xaxes(title_text="block", dtick=1)
    figure.update_yaxes(title_text=title, col=1)
    return plot(figure)


def _line(rows: Sequence[Row], colour: str, named: bool) -> go.Scatter:
    return go.Scatter(
        x=[r["layer"] for r in rows],
        y=[100 * r["value"] for r in rows],
        error_y=errors(rows),
        customdata=[hover(r) for r in rows],
        hovertemplate="%{customdata}<extra></extra>",
        name=group_label(rows[0]["feature"]),
        legendgroup=rows[0]["feature"],
        showlegend=named,
        line={"color": colour},
        mode="lines+markers",
    )


if __name__ == "__main__":
    from experiments.reproduce import alone

    alone("register_probes", __doc__)
