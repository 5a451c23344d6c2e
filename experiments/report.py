"""The page of a study, and its tables, from what lies in its folder: `python -m experiments.report runs/demo`."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from PIL import Image
from plotly.offline import get_plotlyjs

from experiments import figures
from experiments.cells import write_text
from experiments.demo import NOTES, label
from experiments.figures import HEAT_COLUMNS, Row, percent, select
from experiments.program import run

TABLE_COLUMNS = [c for c in HEAT_COLUMNS if c[2] != "patch_mean" and not c[1].endswith("_frozen")]
"""(task, metric, feature, heading) of the table's columns."""
SHOWN_ROWS = Path("experiments/demo_results.jsonl")
"""The rows that the README's table and the model cards are made of, from the root of the checkout."""
_README_MARKS = ("<!-- demo table: begin -->", "<!-- demo table: end -->")
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 1120px; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: .2rem; } h2 { margin-top: 2.6rem; border-bottom: 1px solid #ddd; }
.note { color: #555; max-width: 52rem; } .caution { background: #fff6e0; border-left: 4px solid #d9903d; padding: .6rem 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #eee; }
th:first-child, td:first-child { text-align: left; } td small { color: #777; display: block; }
.maps { display: grid; gap: 6px; align-items: center; } .maps img { width: 100%; image-rendering: pixelated; display: block; }
.maps div { font-size: .85rem; } footer { margin-top: 3rem; color: #777; font-size: .85rem; }
"""


@dataclass(frozen=True)
class Report:
    """Rebuild the page of a study from its folder.

    Attributes:
        folder: the study's folder, such as runs/demo.
        readme: also write the table of results into this file, between its marks, and what it and the cards show to `SHOWN_ROWS`.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    readme: Path | None = None


def write(folder: Path) -> Path:
    """Write `report.html` from `results.jsonl`, `run.json` and the maps in `cells/`; returns its path.

    Raises:
        ValueError: the folder holds no finished study.
    """
    rows, manifest = read(folder)
    models = [m for m in dict.fromkeys(r["model"] for r in rows) if select(rows, model=m, task="layer_probe")]
    sections = [
        _section("Are the models worth ablating?", _BASELINE_NOTE, html_table(rows)),
        _section("What an ablation costs", _ABLATION_NOTE, _plot(figures.ablation_heat_map(rows, models))),
        _section("How far from the usual an ablation goes", _METER_NOTE, meter_table(rows, models)),
        _section("Where attention flows", _FLOW_NOTE, _plot(figures.attention_flow(rows, models))),
        _section("What CLS and registers know, layer by layer", _PROBE_NOTE, _plot(figures.layer_probes(rows, models))),
        _section("Patch features as colours", _MAP_NOTE, "".join(_maps(folder, manifest, rows))),
        _section("Effective rank of the patch features", _RANK_NOTE, _plot(figures.effective_rank(rows, models))),
    ]
    page = folder / "report.html"
    write_text(page, _page(sections, manifest))
    return page


def read(folder: Path) -> tuple[list[Row], dict[str, Any]]:
    """Rows and manifest of a finished study.

    Raises:
        ValueError: there is none.
    """
    try:
        manifest = json.loads((folder / "run.json").read_text())
        rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} holds no finished study ({type(error).__name__}); run python -m experiments.reproduce first") from error
    return rows, manifest


def markdown_table(rows: Sequence[Row]) -> str:
    """The full condition of models and baselines as a Markdown table: percent with 95 % intervals."""
    heads = [heading.replace("<br>", " ") for *_, heading in TABLE_COLUMNS]
    lines = ["| percent [95 % interval] | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name, cells in _table(rows):
        shown = [f"{percent(c['value'])} [{percent(c['ci_low'])}, {percent(c['ci_high'])}]" for c in cells]
        lines.append(f"| {label(name)} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def html_table(rows: Sequence[Row]) -> str:
    """The same as HTML."""
    heads = "".join(f"<th>{heading}</th>" for *_, heading in TABLE_COLUMNS)
    body = ""
    for name, cells in _table(rows):
        shown = [f"<td>{percent(c['value'])}<small>{percent(c['ci_low'])} – {percent(c['ci_high'])}</small></td>" for c in cells]
        body += f"<tr><td>{html.escape(label(name))}</td>{''.join(shown)}</tr>"
    return f"<table><tr><th>full, percent</th>{heads}</tr>{body}</table>"


def meter_table(rows: Sequence[Row], models: Sequence[str]) -> str:
    """The off-manifold meter of every condition at the last block as HTML."""
    heads = "".join(f"<th>{heading}</th>" for _, heading in figures.METER)
    body = ""
    for model in models:
        for condition in dict.fromkeys(r["condition"] for r in select(rows, model=model, task="off_manifold")):
            cells = figures.meter_rows(rows, model, condition)
            shown = [f"<td>{r['value']:.3f}<small>{r['ci_low']:.3f} – {r['ci_high']:.3f}</small></td>" for r in cells]
            body += f"<tr><td>{html.escape(label(model))} · {condition}</td>{''.join(shown)}</tr>"
    return f"<table><tr><th>last block</th>{heads}</tr>{body}</table>"


def fill_readme(readme: Path, rows: Sequence[Row]) -> None:
    """Replace what stands between the marks of a README by the table.

    Raises:
        ValueError: the marks are not there.
    """
    text = readme.read_text()
    begin, end = _README_MARKS
    if begin not in text or end not in text:
        raise ValueError(f"{readme} lacks the marks {begin} and {end}")
    before, after = text.split(begin)[0], text.split(end)[1]
    write_text(readme, f"{before}{begin}\n{markdown_table(rows)}\n{end}{after}")


def shown_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows of the table's columns under every condition, and the attention of CLS."""
    columns = {column[:3] for column in TABLE_COLUMNS}
    return [r for r in rows if (r["task"], r["metric"], r["feature"]) in columns or (r["task"], r["metric"]) == ("attention_flow", "cls")]


def _table(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    names = dict.fromkeys(r["model"] for r in rows)
    return [(m, [select(rows, model=m, condition="full", task=t, metric=k, feature=f)[0] for t, k, f, _ in TABLE_COLUMNS]) for m in names]


def _maps(folder: Path, manifest: dict[str, Any], rows: Sequence[Row]) -> list[str]:
    """One grid of pictures per model: the images, then one row per condition."""
    grids = []
    for name in manifest["cells"]:
        cell = json.loads((folder / "cells" / f"{name}.json").read_text())
        if cell["key"]["kind"] != "maps":
            continue
        with np.load(folder / "cells" / f"{name}.npz") as arrays:
            images, conditions, maps = arrays["images"], arrays["conditions"], arrays["maps"]
        pictures = ["<div>image</div>", *(_picture(image, "input image") for image in images)]
        for condition, row in zip(conditions, maps, strict=True):
            pictures += [f"<div>{condition}</div>", *(_picture(np.round(255 * m).astype(np.uint8), f"{condition} map") for m in row)]
        model = html.escape(label(cell["key"]["model"]["name"]))
        columns = f"grid-template-columns: 8rem repeat({len(images)}, 1fr)"
        grids.append(f'<h3>{model}</h3><div class="maps" style="{columns}">{"".join(pictures)}</div>')
    return grids


def _picture(pixels: np.ndarray, text: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return f'<img alt="{text}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _plot(figure: Any) -> str:
    return figure.to_html(full_html=False, include_plotlyjs=False, config={"displayModeBar": False, "responsive": True})


def _section(title: str, note: str, body: str) -> str:
    return f'<h2>{title}</h2><p class="note">{note}</p>{body}'


def _page(sections: Sequence[str], manifest: dict[str, Any]) -> str:
    machine = manifest["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    foot = f"study {manifest['hash']} · {machine['devices']} x {html.escape(machine['device'])} · python {machine['python']}, {versions}"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>jaxvit: {manifest["study"]["preset"]} study</title>'
        f"<style>{_STYLE}</style><script>{get_plotlyjs()}</script></head><body>"
        f"<h1>What do the tokens do?</h1><p>Token ablations of {', '.join(manifest['study']['models'])} on digit scenes.</p>"
        f'<p class="note caution">{_CAUTION}</p>{_cautions(manifest["study"]["models"])}'
        f"{''.join(sections)}<footer>{foot}</footer></body></html>"
    )


def _cautions(models: Sequence[str]) -> str:
    """What a reader must know about each bundled model on the page."""
    known = [m for m in models if m in NOTES]
    return "".join(f'<p class="note caution"><b>{label(m)}</b>: {NOTES[m]}</p>' for m in known)


_CAUTION = (
    "These are demo numbers: tiny models after a short training, on composed scenes of handwritten digits. They exercise "
    "every path of the study with meaningful scores. They do not replicate published results on DINO models, and a register "
    "that nothing reads shows no effect. One training seed of each model (the model cards beside the weights tell of others) and one seed "
    "for noise, shuffle and patch choice. Hovers show p-values as they are and corrected by Holm over all comparisons of a model."
)
_BASELINE_NOTE = (
    "Frozen features without any ablation, beside the same architecture at random initialisation (<i>_random</i>) and raw "
    "pixels. A model that does not beat both on a task says little there. Small print: 95 % bootstrap intervals over "
    "images (over pairs for correspondence and Recall@1); they cover test sampling only. demo_reg_read has the architecture of "
    "demo_reg, and so the same random initialisation."
)
_ABLATION_NOTE = (
    "Tokens are overwritten at the output of every block. Point at a cell for the exact value, its interval, and the paired "
    "difference from the full condition with its permutation p-value. Read-outs are refitted for each condition; <i>frozen</i> "
    "ones are those of the full condition, applied as they are: they say what changed, not what is still there. † by "
    "construction: with CLS overwritten by a constant, a read-out of CLS can only name the majority class, so only the dense "
    "tasks say anything about zero_cls and mean_cls. A zeroed token is not gone: LayerNorm maps it to its bias, so it still "
    "acts as a constant key."
)
_METER_NOTE = (
    "Patches leaving the last block, before the final norm, under each condition: mean over test scenes with 95 % intervals. An ablation "
    "that leaves the manifold (low cosine, changed norm, many standard deviations) shows what a model does with input it never saw, "
    "not what the token carries. What calibration saw lies about 1 s.d. from its mean. All blocks stand in results.jsonl."
)
_FLOW_NOTE = (
    "Share of the attention that goes from a source (row) to a target (column): mean over heads, queries of the source and "
    "images, summed over the keys of the target. Every row sums to 100. Move the slider through the blocks."
)
_PROBE_NOTE = "Top-1 of a ridge probe on standardised block outputs, with 95 % bootstrap intervals over test scenes."
_MAP_NOTE = (
    "First three principal components of the patch features (after the final norm) as red, green and blue. Each image "
    "has one basis and one scale for all its conditions: compare colours down a column, not along a row."
)
_RANK_NOTE = (
    "exp of the entropy of the Gram eigenvalues of an image's patch features (after the final norm, not centred), mean over "
    "test scenes with 95 % intervals. The form by singular values (Roy & Vetterli) and the participation ratio stand beside it in "
    "results.jsonl."
)


def _main(report: Report) -> None:
    page = write(report.folder)
    if report.readme:
        shown = shown_rows(read(report.folder)[0])
        fill_readme(report.readme, shown)
        write_text(report.readme.parent / SHOWN_ROWS, "".join(json.dumps(row) + "\n" for row in shown))
    print(page)


if __name__ == "__main__":
    run(_main, Report, __doc__)
