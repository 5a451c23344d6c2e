"""The page of a study: contents, summary, a section for each analysis, the method. Its text and style are the files beside this one."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
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
from experiments.report.headline import headline, untrained_scores
from experiments.report.summary import ALPHA, CHARTED, MARGIN, changes_of, summarise
from experiments.report.token_data import token_scripts
from experiments.report.wording import signed
from experiments.study.results import StudyResults, read_results
from jaxvit.files import write_text


class Section(NamedTuple):
    """One analysis on the page.

    Attributes:
        name: its anchor.
        title: as text.
        note, body: as HTML, made by the analysis.
        open: whether it is unfolded at first.
    """

    name: str
    title: str
    note: Markup
    body: Markup
    open: bool


STYLES = ("style.css", "figures.css", "pictures.css", "microscope.css")
SCRIPTS = ("page.js", "notes.js", "figures.js")
"""Files of this package that are part of the page as they are, in order."""
MICROSCOPE, MICROSCOPE_SCRIPTS = "token_microscope", ("microscope_data.js", "microscope_view.js", "microscope.js")
"""The section whose data are not HTML, and the scripts of pages that have it."""
OPEN = (MICROSCOPE, "ablation_table")
"""Sections that are unfolded at first."""
DEMO_MEGABYTES, MEGABYTES = 5.0, 12.0
"""What a page may weigh unless it is said: where all models are the bundled ones, and else."""


def write(folder: Path, analyses: Mapping[str, Analysis] | None = None, megabytes: float | None = None) -> Path:
    """Write `report.html` from `results.jsonl`, `run.json` and the arrays in `cells/`; returns its path. It has a section for each
    analysis that was run, also in earlier runs in the folder.

    Args:
        analyses: by name, besides the study's own; by default those of the plug-ins that run.json names.
        megabytes: that the page may weigh (of 10^6 bytes): what the other sections leave is for the data of the token microscope, of
            which as much is kept as fits. By default 5 for the bundled demo models, 12 for others.

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
    if megabytes is None:
        megabytes = DEMO_MEGABYTES if all(model in NOTES for model in results.models) else MEGABYTES
    write_text(path, _page(results, {name: known[name] for name in ordered}, absent, round(1e6 * megabytes)))
    return path


def _page(results: StudyResults, analyses: Mapping[str, Analysis], absent: list[str], size: int) -> str:
    """The page as HTML, of at most `size` bytes where its sections leave room for them. Everything is escaped but what analyses and
    charts give as HTML, and the files of this package."""
    environment = Environment(
        loader=PackageLoader("experiments.report", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"isolated": isolated, "label": label, "signed": signed}
    manifest, sections = results.manifest, list(_sections(results, analyses))
    with_tokens = any(section.name == MICROSCOPE for section in sections)
    render = functools.partial(
        environment.get_template("page.html").render,
        style=_files(STYLES),
        script=_files((*SCRIPTS, *MICROSCOPE_SCRIPTS) if with_tokens else SCRIPTS),
        manifest=manifest,
        models=results.models,
        demo=[model for model in results.models if model in NOTES],
        notes={model: NOTES[model] for model in results.models if model in NOTES},
        baselines=any(row["model"].endswith("_random") for row in results.rows),
        warnings=[*different_protocols(manifest.get("prepared", {})), *manifest.get("notes", ()), *absent],
        panels=list(_panels(results)),
        verdicts=[(analysis.TITLE, line) for analysis in analyses.values() for line in _verdicts(analysis, results)],
        sections=sections,
        empty=[analysis.TITLE for name, analysis in analyses.items() if name not in {section.name for section in sections}],
        alpha=ALPHA,
        margin=MARGIN,
    )
    page = render(tokens="")
    return render(tokens=token_scripts(results, size - len(page.encode()))) if with_tokens else page


def _files(names: Sequence[str]) -> Markup:
    """Files of this package one after the other, as they are."""
    folder = files("experiments.report")
    return Markup("\n").join(Markup((folder / name).read_text(encoding="utf-8")) for name in names)


def _sections(results: StudyResults, analyses: Mapping[str, Analysis]) -> Iterator[Section]:
    """The analyses that have something to show."""
    for name, analysis in analyses.items():
        if body := analysis.section(results):
            yield Section(name, analysis.TITLE, Markup(analysis.NOTE), Markup(body), name in OPEN)


def _verdicts(analysis: Analysis, results: StudyResults) -> list[str]:
    return list(getattr(analysis, "verdicts", lambda results: ())(results))


def _panels(results: StudyResults) -> Iterator[dict[str, Any]]:
    """The findings and the chart of the study's models, then those of the models in which an effect was induced: their effects are large,
    and on one scale they would hide all others."""
    for induced in (False, True):
        models = [model for model in results.models if (model in INDUCED) == induced]
        findings = [*summarise(results, models), *filter(None, [untrained_scores(results, models)])]
        changes = changes_of(results, models)
        sentence = headline(changes, models)
        changes = [c for c in changes if c.condition in CHARTED]
        charts = [Markup(zeroing_chart(changes, models, narrow)) for narrow in (False, True)] if changes else []
        if models or not (induced or results.models):
            yield {"induced": induced, "models": models, "headline": sentence, "findings": findings, "charts": charts, "changes": changes}
