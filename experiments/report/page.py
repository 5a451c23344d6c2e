"""The page of a study: contents, summary, a section for each analysis, the method. Its text and style are the files beside this one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from experiments.analyses.base import Analysis
from experiments.analyses.presets import ANALYSES
from experiments.datasets.preprocess import different_protocols
from experiments.demo import INDUCED, NOTES, label
from experiments.plotting.escape import isolated
from experiments.plugins import load_plugin
from experiments.report.chart import zeroing_chart
from experiments.report.summary import ALPHA, CHARTED, MARGIN, changes_of, summarise
from experiments.report.wording import signed
from experiments.study.results import StudyResults, read_results
from jaxvit.files import write_text

STYLES = ("style.css", "figures.css", "pictures.css")
SCRIPTS = ("page.js", "notes.js", "figures.js")
"""Files of this package that are the style and the script of the page, in their order."""


class Section(NamedTuple):
    """One analysis on the page.

    Attributes:
        name: its anchor.
        title: as text.
        note, body: as HTML, made by the analysis.
    """

    name: str
    title: str
    note: Markup
    body: Markup


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
    path = folder / "report.html"
    write_text(path, _page(results, {name: known[name] for name in ordered}, absent))
    return path


def _page(results: StudyResults, analyses: Mapping[str, Analysis], absent: list[str]) -> str:
    """The page as HTML. Everything is escaped but what analyses and charts give as HTML, and the files of this package."""
    environment = Environment(
        loader=PackageLoader("experiments.report", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"isolated": isolated, "label": label, "signed": signed}
    manifest = results.manifest
    return environment.get_template("page.html").render(
        style=Markup("").join(map(_file, STYLES)),
        script=Markup("").join(map(_file, SCRIPTS)),
        manifest=manifest,
        models=results.models,
        demo=[model for model in results.models if model in NOTES],
        notes={model: NOTES[model] for model in results.models if model in NOTES},
        baselines=any(row["model"].endswith("_random") for row in results.rows),
        warnings=[*different_protocols(manifest.get("prepared", {})), *manifest.get("notes", ()), *absent],
        panels=list(_panels(results)),
        verdicts=[(analysis.TITLE, line) for analysis in analyses.values() for line in _verdicts(analysis, results)],
        sections=list(_sections(results, analyses)),
        alpha=ALPHA,
        margin=MARGIN,
    )


def _file(name: str) -> Markup:
    """A file of this package, which is part of the page as it is."""
    return Markup((files("experiments.report") / name).read_text(encoding="utf-8"))


def _sections(results: StudyResults, analyses: Mapping[str, Analysis]) -> Iterator[Section]:
    """The analyses that have something to show."""
    for name, analysis in analyses.items():
        if body := analysis.section(results):
            yield Section(name, analysis.TITLE, Markup(analysis.NOTE), Markup(body))


def _verdicts(analysis: Analysis, results: StudyResults) -> list[str]:
    return list(getattr(analysis, "verdicts", lambda results: ())(results))


def _panels(results: StudyResults) -> Iterator[dict[str, Any]]:
    """The findings and the chart of the study's models, then those of the models in which an effect was induced: their effects are large,
    and on one scale they would hide all others."""
    for induced in (False, True):
        models = [model for model in results.models if (model in INDUCED) == induced]
        findings = summarise(results, models)
        changes = [c for c in changes_of(results, models) if c.condition in CHARTED]
        charts = [Markup(zeroing_chart(changes, models, narrow)) for narrow in (False, True)] if changes else []
        if models or not (induced or results.models):
            yield {"induced": induced, "models": models, "findings": findings, "charts": charts, "changes": changes}
