"""What are registers for: their content, a constant, or a place for attention to go? Edits inside attention tell."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from experiments.demo import label
from experiments.plotting.elements import empty_cell, table
from experiments.plotting.escape import escaped, joined
from experiments.plotting.heat import Protocols, Shades, heat_cell
from experiments.rows import Row
from experiments.sinks import experiment, rules
from experiments.sinks.rows import LABELS, TARGETS, label_of
from experiments.sinks.verdicts import all_verdicts, reasons_of, target_of
from experiments.study.jobs import Arrays, Job, rows_key
from experiments.study.results import StudyResults
from experiments.study.target import Target
from experiments.tasks.base import FROZEN, REFITTED

TITLE = "Content or sink: what registers are for"
NOTE = "Verdicts by fixed rules, from edits inside attention; the reasons and all numbers are below them."
TASK = experiment.TASK
_WHY = (
    "<p><b>Why zero, mean, noise and shuffle cannot decide.</b> All four replace the whole token and leave it standing where it was: "
    "attention can go on flowing to it. If only the place matters (a sink, which takes attention that would do harm elsewhere), a "
    "register of mean or noise or of another image serves as well as its own; if the content matters but any constant will do, it does "
    "too. <i>Replacing them costs nothing</i> is what both predict, as long as attention goes on as before, and zero, which no "
    "register ever was, may cost because it is strange.</p><p><b>What edits inside attention add.</b> A register is read in two steps: "
    "a query decides how much (keys), and takes what is there (values). These edits touch one step alone, at all blocks.</p>"
)
_HOW = (
    "<ul><li><b>Value: mean</b>, or <b>another image's</b>: attention stays, what is taken is no longer this image's. A cost means "
    "that registers carry content of the image.</li><li><b>Cut, weight lost</b>: CLS and patches take nothing from registers, all "
    "other attention stays. What this costs beyond the value mean is the cost of losing a <i>constant</i>.</li><li><b>Cut, weight "
    "renormalised</b>: the freed attention goes to other tokens. What this costs beyond the lost cut is harm that registers kept away: "
    "they were a <i>sink</i>. It may cost less, too: the freed heads find the source themselves (<i>a way round opens</i>).</li></ul>"
)
_READING = (
    "<p>Changes in points from the model without edits, with paired 95 % intervals; bold: p below 0.05 after Holm over all rows of the "
    f"model and probe. A cost is significant and at least {rules.MARGIN:g} points; a row is free where a cost of {rules.MARGIN:g} "
    "points is excluded (95 %, one side). <i>Refitted</i> probes (ridge regression, fitted under the edit) decide; they find any trace "
    "that can be read linearly. <i>Frozen</i> ones were fitted without edits and fall whenever features move, even by a constant. The "
    "last column is the distance of patches from their usual mean, as a multiple of the unedited model's (below 1: nearer to it): "
    "edits of sinks and constants are off the manifold by nature, so that it is a caution and no veto. <i>Not read</i>: less than 1 % "
    "of attention in every head and block. Rules, and models of known truth that test them: docs/content_or_sink.md.</p>"
)
_SETTLED = (
    "<p><b>What these edits test of the post.</b> That replaced registers cost nothing does not show that their content is fungible: "
    "where a verdict is not <i>open</i>, it says which of content, constant and sink is lost. A share of attention (28.7 % from CLS) "
    "says nothing of who needs it: readers are cut one by one. Registers are cut as a group, and one by one where single registers "
    "were asked about; sums of single drops are not needed. Holm is over all rows of a model and a probe. One seed of what is random "
    "remains.</p>"
)


def jobs(target: Target) -> Iterator[Job]:
    """One cell for each token group of a model whose images have classes."""
    for question in experiment.questions(target):
        recipes = {spec.name: question.recipe(spec) for spec in question.specs()}
        texts = {recipe.hash: recipe.text for recipe in recipes.values()}
        definition = {"group": question.group.name, "ablations": {name: recipe.hash for name, recipe in recipes.items()}}
        key = rows_key(target, TASK, version=experiment.VERSION, scope=target.settings.sink_scope, **definition)
        images = experiment.images_run(question)
        compute = functools.partial(_compute, question)
        label = f"{target.name}, {question.group.name}: content or sink"
        yield Job(key, target.name, label, 8, compute, images, ablations=texts, apart=True)


def _compute(question: experiment.Question, store: object) -> tuple[list[Row], Arrays]:
    return experiment.compute(question)


def verdict_words(results: StudyResults) -> dict[str, Any]:
    """The verdicts as run.json holds them: words by model, group and target."""
    return {
        model: {group: {target: str(verdict) for target, verdict in of_group.items()} for group, of_group in of_model.items()}
        for model, of_model in all_verdicts(results.rows).items()
    }


def verdicts(results: StudyResults) -> list[str]:
    """One line for each group of each model."""
    lines = []
    for model, of_model in all_verdicts(results.rows).items():
        for group, of_group in of_model.items():
            said = [f"{'CLS' if target == 'cls' else target}: {verdict}" for target, verdict in of_group.items()]
            lines.append(f"{joined(label(model), _group_name(group))}: for {' | for '.join(said)}")
    return lines


def section(results: StudyResults) -> str:
    """The verdicts, why the edits can tell, and all rows."""
    lines = verdicts(results)
    if not lines:
        return ""
    said = "<ul>" + "".join(f"<li>{escaped(line)}</li>" for line in lines) + "</ul>" + _decided(results)
    shades, protocols = Shades([row for row in results.rows if row["task"] == TASK and row["metric"] != experiment.METER]), Protocols()
    groups = [(model, group) for model, of_model in all_verdicts(results.rows).items() for group in of_model]
    tables = "".join(_table(results, *one, shades, protocols) for one in groups)
    return f'{said}{_WHY}{_drawing()}{_HOW}{_READING}<div class="heats">{tables}</div>{protocols.listed()}{_SETTLED}'


def _decided(results: StudyResults) -> str:
    """The costs that each verdict rests on."""
    lines = [
        (
            joined(label(model), _group_name(group)),
            "CLS" if target == "cls" else target,
            reasons_of(results.rows, model, group, target, verdict),
        )
        for model, of_model in all_verdicts(results.rows).items()
        for group, of_group in of_model.items()
        for target, verdict in of_group.items()
    ]
    entries = "".join(f"<li>{escaped(of)}, for {target}: {escaped(why)}</li>" for of, target, why in lines if why)
    heading = "What they rest on: costs in points, refitted probes, paired 95 % intervals"
    return f"<details><summary>{heading}</summary><ul>{entries}</ul></details>"


def _group_name(group: str) -> str:
    return "CLS" if group == "cls" else group.replace("_", " ")


def _table(results: StudyResults, model: str, group: str, shades: Shades, protocols: Protocols) -> str:
    """All rows of one group of a model, those at all blocks first."""
    rows: dict[str, dict[tuple[str | None, str | None], Row]] = {}
    for row in results.rows:
        name, _, edit = row["condition"].partition(".")
        if row["task"] == TASK and row["model"] == model and name == group and row["reference"]:
            kind = experiment.METER if row["metric"] == experiment.METER else target_of(row["feature"])
            rows.setdefault(edit, {})[kind, row["readout"]] = row
    order = sorted(rows, key=lambda edit: ("." in edit, _position(edit)))
    columns = [(target, readout) for target in TARGETS for readout in (REFITTED, FROZEN)]
    headings = [f"{'CLS' if target == 'cls' else target}<br>{readout}" for target, readout in columns] + ["distance<br>from mean"]
    lines = [
        (
            label_of(edit),
            [
                *(heat_cell(rows[edit].get(column), _score(*column), shades, protocols, values=False) for column in columns),
                _meter_cell(rows[edit].get((experiment.METER, None))),
            ],
        )
        for edit in order
    ]
    name = joined(label(model), _group_name(group))
    opened = " open" if group == "registers" else ""
    return f"<details{opened}><summary>{escaped(name)}</summary>{table(name, headings, lines)}</details>"


def _position(edit: str) -> tuple[int, str]:
    names = list(LABELS)
    base = edit.partition(".")[0]
    base = base.partition("_by_")[0]
    return (names.index(base) if base in names else len(names), edit)


def _score(target: str, readout: str) -> str:
    return f"probe of {'CLS' if target == 'cls' else target}, {readout}"


def _meter_cell(row: Row | None) -> str:
    return empty_cell() if row is None else f"<td>x {row['value'] / row['reference']['value']:.2f}</td>"


def _drawing() -> str:
    """What each kind of edit leaves of a query's reading: attention as arrows, what tokens hold as boxes."""
    panels = [
        ("no edit", "own", "to register", "to others"),
        ("whole token replaced", "new", "to register", "to others"),
        ("value replaced", "new value", "to register", "to others"),
        ("cut, weight lost", "own", "", "to others"),
        ("cut, renormalised", "own", "", "to others, more"),
    ]
    drawn = "".join(_panel(150 * i, *panel) for i, panel in enumerate(panels))
    alternative = (
        "A query reads a register and other tokens. Replacing the register, or its value, leaves the arrow to it; a lost cut takes the "
        "arrow away; a renormalised cut takes it away and makes the other one thicker."
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="What each edit leaves">'
        f'<svg role="img" aria-label="{alternative}" viewBox="0 0 750 118" width="750" height="118" '
        f'style="max-width:none;color:var(--ink, currentColor);font:12px sans-serif" fill="none" stroke="currentColor">{drawn}</svg></div>'
    )


def _panel(left: int, title: str, holds: str, to_register: str, to_others: str) -> str:
    replaced = ' stroke-dasharray="3 3"' if holds != "own" else ""
    text = 'stroke="none" fill="currentColor" text-anchor="middle"'
    name = "register" if holds == "own" else holds
    thick = 5 if to_others.endswith("more") else 2
    arrow = '<path d="M{x} 78 L{to} 48" stroke-width="{width}"/><circle cx="{to}" cy="47" r="3" fill="currentColor"/>'
    to = arrow.format(x=left + 66, to=left + 40, width=3) if to_register else ""
    return (
        f'<text x="{left + 72}" y="112" {text}>{title}</text>'
        f'<rect x="{left + 8}" y="16" width="60" height="26"{replaced}/><text x="{left + 38}" y="33" {text}>{name}</text>'
        f'<rect x="{left + 78}" y="16" width="56" height="26"/><text x="{left + 106}" y="33" {text}>others</text>'
        f'<rect x="{left + 46}" y="78" width="52" height="20"/><text x="{left + 72}" y="92" {text}>query</text>'
        f"{to}{arrow.format(x=left + 78, to=left + 104, width=thick)}"
    )
