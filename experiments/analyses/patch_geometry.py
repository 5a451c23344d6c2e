"""The geometry of patch features: effective rank and spectrum, norms and outliers; and cosines between registers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from experiments.demo import label
from experiments.plotting import dots
from experiments.plotting.controls import not_shown
from experiments.plotting.elements import interval_cell, table
from experiments.plotting.escape import joined
from experiments.plotting.hover import shown
from experiments.plotting.layer_lines import Along, LogScale, layer_chart, legend, lines_of, side_by_side
from experiments.plotting.shares import share_cell, share_table
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
EIGENVALUES = Along("index", "number of the eigenvalue", 1)
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
    """Effective rank of every condition, spectra, and tables of norms and of cosines between registers."""
    models = [model for model in results.models if results.conditions(model, "effective_rank")]
    if not models:
        return ""
    rows = results.rows
    parts = [
        ("Effective rank", _ranks(rows, models) + _spectra(rows, models)),
        ("Norms of patches", _norm_table(rows, models)),
        ("Cosines of registers", _cosine_tables(rows, models)),
    ]
    page = "".join(f"<h3>{heading}</h3>{part}" for heading, part in parts if part)
    return page + not_shown([model for model in results.models if model not in models])


def _ranks(rows: Sequence[Row], models: Sequence[str]) -> str:
    """Dots with intervals: a panel for each model, a line for each condition; the line of the full condition is drawn through all."""
    panels = []
    for model in models:
        by_condition = {r["condition"]: r for r in select(rows, model=model, task="effective_rank", metric="gram_eigenvalues")}
        full = by_condition["full"]["value"] if "full" in by_condition else None
        entries = []
        for name, r in by_condition.items():
            says = f"{joined(label(model), name)}: {shown(r)}"
            entries.append(dots.Entry(name, "", r["value"], r["ci_low"], r["ci_high"], f"{r['value']:.2f}", "value", says))
        panels.append(dots.Panel(label(model), entries, reference=full))
    ends = dots.extent(panels)
    caption = "Effective rank of an image's patches, median over images with 95 % intervals. The dashed line is the full condition."
    return dots.figure([panel._replace(ends=ends) for panel in panels], "effective rank", caption)


def _spectra(rows: Sequence[Row], models: Sequence[str]) -> str:
    """Lines of the leading eigenvalues, one for each model."""
    full = select(rows, task="effective_rank", metric="spectrum", condition="full")
    lines = lines_of([r for r in full if r["value"] > 0], "model", {model: label(model) for model in models})
    if not lines:
        return ""
    numbers = [row[field] for line in lines for row in line.rows for field in ("value", "ci_low", "ci_high") if row[field] > 0]
    chart = layer_chart("spectrum", lines, (0.8 * min(numbers), 1.0), along=EIGENVALUES, scale=LogScale)
    caption = "Share of each of the leading Gram eigenvalues, mean over images with 95 % intervals, full condition."
    return f"<figure><figcaption>{caption}</figcaption>{legend(lines)}{side_by_side(chart, 'spectra')}</figure>"


def _norm_table(rows: Sequence[Row], models: Sequence[str]) -> str:
    norms = select(rows, condition="full", task="patch_norms")
    metrics = [metric for metric in NORM_HEADINGS if any(r["metric"] == metric for r in norms)]
    lines = []
    for model in models:
        by_metric = {r["metric"]: r for r in select(norms, model=model)}
        lines.append((label(model), [interval_cell(by_metric.get(metric)) for metric in metrics]))
    return table("full", [NORM_HEADINGS[metric] for metric in metrics], lines) if metrics else ""


def _cosine_tables(rows: Sequence[Row], models: Sequence[str]) -> str:
    """Mean cosine of every two registers without ablation, a table for each model; empty where no model has two."""
    cosines = select(rows, condition="full", task="register_cosine")
    tables = "".join(_cosine_table(label(model), of_model) for model in models if (of_model := select(cosines, model=model)))
    return f'<div class="tables">{tables}</div>' if tables else ""


def _cosine_table(name: str, rows: Sequence[Row]) -> str:
    """The cosines of a model's registers, each in both of its places."""
    by_pair = {pair: r for r in rows for pair in ((r["register_a"], r["register_b"]), (r["register_b"], r["register_a"]))}
    registers = sorted({token for pair in by_pair for token in pair}, key=lambda token: int(token[1:]))

    def cell(pair: tuple[str, str]) -> str:
        row = by_pair.get(pair)
        return "<td>–</td>" if row is None else share_cell(row["value"], f"{row['value']:.2f}".replace("-", "−"), shown(row))

    lines = [(a, [cell((a, b)) for b in registers]) for a in registers]
    return share_table(f"{name}: mean cosine of registers", "register", registers, lines)
