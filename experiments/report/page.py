"""The page of a study: what a reader must know before any number, then one section for each analysis."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from experiments.analyses.base import Analysis
from experiments.analyses.presets import ANALYSES
from experiments.datasets.preprocess import different_protocols
from experiments.demo import NOTES, label
from experiments.plugins import load_plugin
from experiments.study.results import StudyResults, read_results
from jaxvit.files import write_text

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
_QUICK = (
    "<b>A quick look</b>: few images, one seed, few resamples. Intervals are wide and small effects are missed; run "
    "<code>python -m experiments.reproduce</code> for the whole demo study."
)
_DEMO = (
    "These are demo numbers: tiny models after a short training on composed scenes of handwritten digits. They exercise every path of the "
    "study with meaningful scores. They do not replicate published results on DINO models, and a register that no other token reads "
    "shows no effect. One training seed of each model is measured (the model cards beside the weights show others)."
)
_BASELINES = (
    "Models that do not beat random initialisation (<i>_random</i>) and raw pixels on a task say little there. Models of one architecture "
    "have one random initialisation."
)
_RANDOM_WEIGHTS = "<b>Random weights</b>: the models were never trained. The numbers show that the study runs, and nothing else."
_INTERVALS = (
    "Intervals are 95 % intervals over independent units: test images or, where several images show one thing, what they show (digits of "
    "scenes, both images of pairs with keypoints). Where a read-out is drawn (memories of patches, images of a few shots) it is drawn at "
    "least 8 times, and its intervals and tests cover these draws too, as they cover those of noise, shuffle and random patches from 5 "
    "seeds on; with fewer the draws stand apart, on hover. Paired p-values are given uncorrected and corrected by Holm. <b>Primary</b> are "
    "the main scores (linear probe and k-NN of CLS, linear probe of patch mean, Recall@1, correspondence, keypoints, mIoU of linear "
    "head and retrieval, refitted): one family over all models and conditions of the study. All other numbers are secondary: their "
    "families are a metric of one model by one read-out, over its conditions and features. How well intervals and tests keep their word "
    "was simulated (docs/intervals.md)."
)


def write(folder: Path, analyses: Mapping[str, Analysis] | None = None) -> Path:
    """Write `report.html` from `results.jsonl`, `run.json` and the pictures in `cells/`; returns its path. It has a section for each
    analysis that was run, also in earlier runs in the folder.

    Args:
        analyses: by name, besides the study's own; by default those of the plug-ins that run.json names.

    Raises:
        ValueError: the folder holds no finished study.
    """
    results = read_results(folder)
    known = {**ANALYSES, **(analyses or {})}
    absent = []
    for source, sha256 in results.manifest["plugins"].items():
        try:
            plugin = load_plugin(source)
        except ValueError as error:
            absent.append(f"plug-in {source} is not here, and what it would show is left out: {error}")
            continue
        known = {**plugin.analyses, **known}
        if plugin.sha256 != sha256:
            absent.append(f"plug-in {source} has changed since the study ran")
    run = dict.fromkeys(name for entry in results.manifest["runs"] for name in entry["only"])
    absent += [f"section {name} is left out: its analysis is not here" for name in run if name not in known]
    ordered = [name for name in ANALYSES if name in run] + [name for name in run if name not in ANALYSES and name in known]
    sections = [(known[name], known[name].section(results)) for name in ordered]
    written = [f'<h2>{analysis.TITLE}</h2><p class="note">{analysis.NOTE}</p>{body}' for analysis, body in sections if body]
    path = folder / "report.html"
    write_text(path, _page(written, results, absent))
    return path


def _page(sections: Sequence[str], results: StudyResults, absent: Sequence[str]) -> str:
    manifest, models = results.manifest, ", ".join(label(m) for m in results.models)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>jaxvit: {manifest["study"]["preset"]} study</title>'
        f"<style>{_STYLE}</style><script>{get_plotlyjs()}</script></head><body>"
        f"<h1>What do the tokens do?</h1><p>Token ablations of {models} on {_images(manifest)}.</p>"
        f'<p class="note">{html.escape(manifest["protocol"])}</p>{"".join(_cautions(results))}'
        f"{_lines(absent)}"
        f"{''.join(sections)}<footer>{_provenance(results)}</footer></body></html>"
    )


def _cautions(results: StudyResults) -> list[str]:
    """What a reader must know before any number, most important first."""
    texts = []
    if results.manifest["random_weights"]:
        texts.append(_RANDOM_WEIGHTS)
    if results.manifest["study"].get("quick"):
        texts.append(_QUICK)
    if all(model in NOTES for model in results.models):
        texts.append(_DEMO)
    if any(row["model"].endswith("_random") for row in results.rows):
        texts.append(_BASELINES)
    texts += [_INTERVALS, *(f"<b>{label(m)}</b>: {NOTES[m]}" for m in results.models if m in NOTES)]
    texts += map(html.escape, (*different_protocols(results.manifest.get("prepared", {})), *results.manifest.get("notes", ())))
    return [f'<p class="note caution">{text}</p>' for text in texts]


def _provenance(results: StudyResults) -> str:
    """The study's hash, and device, versions and precision of its numbers."""
    manifest = results.manifest
    machine = manifest["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    device = f"{machine['devices']} x {html.escape(machine['device'])}"
    return f"study {manifest['hash']} · {device} · python {machine['python']}, {versions} · {html.escape(manifest['precision'])}"


def _lines(texts: Sequence[str]) -> str:
    return "".join(f'<p class="note caution">{html.escape(text)}</p>' for text in texts)


def _images(manifest: Mapping[str, Any]) -> str:
    """What the images are, their size, and how many there are for what."""
    height, width = manifest["image_size"]
    counts = manifest["image_counts"]
    use = f"{counts['train']:,} to fit on, {counts['val']:,} to choose on, {counts['test']:,} to report"
    return f"{html.escape(manifest['images'])} ({width} x {height} px; {use})"
