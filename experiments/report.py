"""The page of a study, and its tables, from what lies in its folder: `python -m experiments.report runs/demo`."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from plotly.offline import get_plotlyjs

from experiments.ablation_table import table_lines
from experiments.cells import fill_between, write_text
from experiments.demo import NOTES, label
from experiments.figures import HEAT_COLUMNS, Finished, Row, percent, plain, read
from experiments.presets import EXPERIMENTS
from experiments.program import run

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
    """Write `report.html` from `results.jsonl`, `run.json` and the pictures in `cells/`; returns its path.

    Raises:
        ValueError: the folder holds no finished study.
    """
    study = read(folder)
    parts = [(experiment, experiment.section(study)) for experiment in EXPERIMENTS]
    sections = [f'<h2>{e.TITLE}</h2><p class="note">{e.NOTE}</p>{body}' for e, body in parts if body]
    page = folder / "report.html"
    write_text(page, _page(sections, study))
    return page


def markdown_table(rows: Sequence[Row]) -> str:
    """The full condition of models and baselines as a Markdown table: percent with 95 % intervals."""
    headings, lines = table_lines(rows)
    heads = [plain(heading) for heading in headings]
    text = ["| percent [95 % interval] | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name, cells in lines:
        shown = ["" if c is None else f"{percent(c['value'])} [{percent(c['ci_low'])}, {percent(c['ci_high'])}]" for c in cells]
        text.append(f"| {label(name)} | " + " | ".join(shown) + " |")
    return "\n".join(text)


def fill_readme(readme: Path, rows: Sequence[Row]) -> None:
    """Replace what stands between the marks of a README by the table.

    Raises:
        ValueError: the marks are not there.
    """
    fill_between(readme, _README_MARKS, markdown_table(rows))


def shown_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows of the table's columns under every condition, and the attention of CLS."""
    columns = {column[:3] for column in HEAT_COLUMNS}
    return [r for r in rows if (r["task"], r["metric"], r["feature"]) in columns or (r["task"], r["metric"]) == ("attention_flow", "cls")]


def _page(sections: Sequence[str], study: Finished) -> str:
    manifest = study.manifest
    machine, preset = manifest["machine"], manifest["study"]["preset"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    foot = f"study {manifest['hash']} · {machine['devices']} x {html.escape(machine['device'])} · python {machine['python']}, {versions}"
    foot += f" · {html.escape(manifest.get('precision', 'float32'))}"  # there was no other when studies did not say so
    models = ", ".join(label(m) for m in study.models)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>jaxvit: {preset} study</title>'
        f"<style>{_STYLE}</style><script>{get_plotlyjs()}</script></head><body>"
        f"<h1>What do the tokens do?</h1><p>Token ablations of {models} on {html.escape(manifest['images'])}.</p>"
        f'<p class="note">{html.escape(manifest["protocol"])}</p>{"".join(_cautions(manifest, study.models))}'
        f"{''.join(sections)}<footer>{foot}</footer></body></html>"
    )


def _cautions(manifest: dict[str, Any], models: Sequence[str]) -> list[str]:
    """What a reader must know before any number."""
    told = [_INTERVALS]
    if manifest["study"]["preset"] == "demo":
        told.insert(0, _DEMO)
    if manifest["random_weights"]:
        told.insert(0, "<b>Random weights</b>: the models were never trained. The numbers show that the study runs, and nothing else.")
    told += [f"<b>{label(m)}</b>: {NOTES[m]}" for m in models if m in NOTES]
    return [f'<p class="note caution">{text}</p>' for text in told]


_DEMO = (
    "These are demo numbers: tiny models after a short training, on composed scenes of handwritten digits. They exercise "
    "every path of the study with meaningful scores. They do not replicate published results on DINO models, and a register "
    "that nothing reads shows no effect. One training seed of each model (the model cards beside the weights tell of others). Models that "
    "do not beat random initialisation (<i>_random</i>) and raw pixels on a task say little there; demo_reg_read has the architecture of "
    "demo_reg, and so the same random initialisation."
)
_INTERVALS = (
    "Intervals are 95 % bootstrap intervals over test images (over source images for correspondence and keypoints). They cover test "
    "sampling only; what seeds do (of noise, shuffle, patch choice and random read-outs) is told on hover. P-values are of paired "
    "permutation tests, as they are and corrected by Holm over all conditions and features of a metric of a model."
)


def _main(report: Report) -> None:
    page = write(report.folder)
    if report.readme:
        shown = shown_rows(read(report.folder).rows)
        fill_readme(report.readme, shown)
        write_text(report.readme.parent / SHOWN_ROWS, "".join(json.dumps(row) + "\n" for row in shown))
    print(page)


if __name__ == "__main__":
    run(_main, Report, __doc__)
