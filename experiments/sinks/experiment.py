"""The experiment on one token group of one model: every row under every read-out, with contrasts, as rows of results."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

import jaxvit
from experiments.datasets.base import first_id
from experiments.features.conditions import Optimal
from experiments.features.overwritten import overwritten_patches
from experiments.features.recipes import Recipe
from experiments.preemption import check_preempted
from experiments.rows import Row
from experiments.sinks import rows as table
from experiments.sinks import rules
from experiments.sinks.measure import Tokens, of_one_structure, tokens_under
from experiments.sinks.readings import Labelled, Reading, fit, readings, score
from experiments.sinks.rows import Edit, Group
from experiments.study.compare import compared_rows
from experiments.study.jobs import Arrays
from experiments.study.target import Target
from experiments.tasks.base import FROZEN, REFITTED, MetricResult, Unit, pack_scores, protocol_id
from jaxvit import Ablation, Moments, TokenLayout, ViTConfig
from jaxvit.inference import Scores, mean_scores
from jaxvit.probes import ridge

TASK = "content_or_sink"
VERSION = 1
METER = "patch_mahalanobis"
ATTENTION = "largest_attention"
ATTENTION_IMAGES = 64
"""Leading test images whose attention is read."""


class Spec(NamedTuple):
    """One row of a group: the edit, where, and by which read-outs it is scored.

    Attributes:
        name: of the row, "value_mean", say; those of windows end in ".early".
        edit: of the table; None for the optimal constant and what joins two groups.
        layers: blocks, or "all".
        readouts: by which it is read.
    """

    name: str
    edit: Edit | None
    layers: str | Sequence[int]
    readouts: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """One token group of one model of a study.

    Attributes:
        brief: only the rows that rules read are run, at all blocks.
    """

    target: Target
    group: Group
    brief: bool = False

    @property
    def config(self) -> ViTConfig:
        assert self.target.model is not None
        return self.target.model.config

    @property
    def seed(self) -> int:
        return self.target.settings.seed

    @property
    def moments(self) -> Moments:
        return self.target.moments_at(table.SITES)

    @functools.cached_property
    def readings(self) -> list[Reading]:
        """How tokens are read. Groups besides all registers are asked about on half as many images, unless the whole table is made."""
        part = 1 if self.brief or self.target.settings.sink_scope == "whole" or self.group.name == table.REGISTERS else 2
        found = readings(self.target.data, self.config.patch_size, part)
        return [_without_overwritten(self, reading) for reading in found]

    @functools.cached_property
    def edits(self) -> dict[str, Edit]:
        return table.edits_of(self.group, self.config)

    @functools.cached_property
    def other(self) -> Group | None:
        """The group that may carry the same: CLS, and for CLS the registers."""
        wanted = table.REGISTERS if self.group.name == table.CLS else table.CLS
        return next((group for group in table.groups(self.config, self.seed, False) if group.name == wanted), None)

    @property
    def has_optimal(self) -> bool:
        """Whether a constant is fitted for it; of CLS only for the whole table."""
        return self.group.name == table.REGISTERS or (self.group.name == table.CLS and self.target.settings.sink_scope == "whole")

    @property
    def joins(self) -> bool:
        """Whether what both it and the other group carry is asked for here."""
        return self.group.name == table.REGISTERS and self.other is not None

    def specs(self) -> list[Spec]:
        """The rows that are run, by the scope of the study."""
        scope, both = self.target.settings.sink_scope, (REFITTED, FROZEN)
        single = self.group.name.startswith("r") and self.group.name[1:].isdigit()
        if single and scope != "whole":
            return [Spec(name, self.edits[name], "all", (FROZEN,)) for name in (rules.LOST, rules.VALUE_MEAN)]
        specs = [Spec(name, edit, "all", both) for name, edit in self.edits.items()]
        if self.has_optimal:
            specs.insert(2, Spec(table.OPTIMAL, None, "all", both))
        if self.joins:
            specs += [Spec(name, None, "all", (REFITTED,)) for name in (_OTHER_LOST, _BOTH_LOST)]
        if self.brief:
            decide = {*table.DECIDING, _OTHER_LOST, _BOTH_LOST}
            return [spec for spec in specs if spec.name in decide or spec.name.startswith(table.LOST_BY)]
        if scope == "whole" or (scope == "groups" and self.group.name == table.REGISTERS):
            for window, layers in table.windows(self.config.depth).items():
                readouts = both if scope == "whole" else (FROZEN,)
                specs += [Spec(f"{name}.{window}", self.edits[name], layers, readouts) for name in table.IN_WINDOWS]
        return specs

    def build(self, spec: Spec, moments: Moments) -> Ablation:
        """The ablation of a row."""
        if spec.edit is not None:
            return spec.edit.build(moments, self.seed, spec.layers)
        assert self.other is not None or spec.name == table.OPTIMAL
        if spec.name == table.OPTIMAL:
            return self.target.optimal_constant(self.group.name)
        if spec.name == _OTHER_LOST:
            return table.edits_of(self.other, self.config)[rules.LOST].build(moments, self.seed, "all")  # type: ignore[arg-type]
        return table.joint_cut(self.group, self.other)  # type: ignore[arg-type]

    def recipe(self, spec: Spec) -> Recipe:
        """The definition of a row's ablation; runs nothing."""
        calibration = self.target.calibration_key
        if spec.name == table.OPTIMAL:
            return table.recipe(Optimal(self.group.name), "", self.config, self.target.image_size, self.seed, calibration)
        rule = spec.edit.rule if spec.edit else ""
        return table.recipe(
            lambda config, moments, seed: self.build(spec, moments), rule, self.config, self.target.image_size, self.seed, calibration
        )


_OTHER_LOST, _BOTH_LOST = "other_cut_lost", "both_cut_lost"


def questions(target: Target) -> Iterator[Question]:
    """The token groups of a model that its study asks about; none where images have neither classes nor masks."""
    if target.baseline or target.model is None:
        return
    if not readings(target.data, target.model.config.patch_size):
        return
    scope = target.settings.sink_scope
    found = table.groups(target.model.config, target.settings.seed, singles=scope != "registers")
    for group in found[:1] if scope == "registers" else found:
        yield Question(target, group)


def images_run(question: Question) -> int:
    """Images that go through the model for one group, for the estimate of cost."""
    specs, counts = question.specs(), [max(getattr(reading, part).images for reading in question.readings) for part in ("train", "test")]
    refitted = 1 + sum(REFITTED in spec.readouts for spec in specs)
    return refitted * counts[0] + (1 + len(specs)) * counts[1]


def compute(question: Question) -> tuple[list[Row], Arrays]:
    """Rows and scores of one group."""
    specs, found = question.specs(), question.readings
    ablations = {spec.name: question.build(spec, question.moments) for spec in specs}
    edits = _edits(question, specs, ablations)
    clean_train, clean = (_tokens(question, found, part, Ablation(), None) for part in ("train", "test"))
    frozen = [_fitted(reading, clean_train) for reading in found]
    full = [score(probe, _read(reading, clean, reading.test), reading.test) for probe, reading in zip(frozen, found, strict=True)]
    results = [_attention(question)]
    scored: dict[tuple[str, str], Scores] = {}
    for spec in specs:
        check_preempted()
        fields = _fields(question, spec)
        test = _tokens(question, found, "test", ablations[spec.name], edits[spec.name])
        train = _tokens(question, found, "train", ablations[spec.name], edits[spec.name]) if REFITTED in spec.readouts else None
        for reading, probe, reference in zip(found, frozen, full, strict=True):
            constructed = _by_construction(question, spec, reading)
            for readout in spec.readouts:
                own = probe if train is None or readout == FROZEN else _fitted(reading, train)
                scores = score(own, _read(reading, test, reading.test), reading.test)
                if readout == REFITTED:
                    scored[spec.name, reading.target] = scores
                result = reading.result(scores, readout)
                results.append(
                    result._replace(reference=[reference], by_construction=constructed, fields=fields, detail=_detail(question, spec))
                )
        results.append(_meter(test.meter, clean.meter)._replace(fields=fields))
    for reading, reference in zip(found, full, strict=True):
        scores_of = {name: scores for (name, of), scores in scored.items() if of == reading.target}
        results += _contrasts(question, reading, scores_of, reference)
    return _rows(question, results), pack_scores(results)


def _rows(question: Question, results: Sequence[MetricResult]) -> list[Row]:
    """The results as rows; those of contrasts name what they are compared with."""
    run: dict[str, Any] = {"model": question.target.name, "task": TASK, "analysis": TASK, "layer": question.target.layer}
    run |= {"tokens": "", "ablation": None, "window": None}
    rest = [result.reference for result in results]
    rows = compared_rows(run, results[:1], question.target.inference)
    rows += compared_rows(run, results[1:], question.target.inference, rest[1:])
    for i, row in enumerate(rows):
        row["scores_array"] = f"scores/{i}"
        for name, (_, against) in _CONTRASTS.items():
            if row["condition"] == f"{question.group.name}.{name}":
                row["reference"] = {**row["reference"], "condition": f"{question.group.name}.{against}"}
    return rows


def _tokens(question: Question, found: Sequence[Reading], part: str, ablation: Ablation, edits: Any) -> Tokens:
    """Tokens of the leading images of a part."""
    target = question.target
    labelled = [getattr(reading, part) for reading in found]
    count = max(entry.images for entry in labelled)
    chosen = next((entry.places for entry in labelled if entry.places is not None), None)
    if chosen is not None and len(chosen) < count:  # images without masks: what is read of them counts nowhere
        chosen = np.concatenate([chosen, np.zeros((count - len(chosen), chosen.shape[1]), np.int32)])
    images = target.data.parts[part].images[:count]
    norm = target.settings.readouts.norm
    return tokens_under(target.runner, images, ablation, edits, question.moments, first_id(part), chosen, norm)


def _read(reading: Reading, tokens: Tokens, entry: Labelled) -> np.ndarray:
    """What a reading reads of some images, [images, places, width]."""
    return (tokens.cls[:, None] if reading.target == "cls" else tokens.patches)[: entry.images]


def _fitted(reading: Reading, train: Tokens) -> ridge.Ridge:
    return fit(_read(reading, train, reading.train), reading.train, reading.classes)


def _edits(question: Question, specs: Sequence[Spec], ablations: Mapping[str, Ablation]) -> dict[str, Any]:
    """Edits by row. All rows of the table are lowered, also those that are not run: groups then share their programs."""
    assert question.target.model is not None
    everything = {name: edit.build(question.moments, question.seed, "all") for name, edit in question.edits.items()} | dict(ablations)
    families = {name: edit.family for name, edit in question.edits.items()}
    families |= {spec.name: spec.edit.family if spec.edit else "fixed" if spec.name == table.OPTIMAL else "cut" for spec in specs}
    if question.other is not None and question.group.name != table.RANDOM_PATCHES:
        everything.setdefault(_BOTH_LOST, table.joint_cut(question.group, question.other))
        families[_BOTH_LOST] = "cut"
    return of_one_structure(everything, families, question.target.model, question.target.image_size)


def _without_overwritten(question: Question, reading: Reading) -> Reading:
    """The reading without patches that edits of the group overwrite: what is read there is what was written there."""
    if question.group.name != table.RANDOM_PATCHES or reading.test.places is None:
        return reading
    marker = jaxvit.zero(question.group.tokens)

    def without(entry: Labelled) -> Labelled:
        ids = first_id(entry.part) + np.arange(entry.images)
        marks = overwritten_patches(marker, question.config, question.target.image_size, ids)
        assert marks is not None
        assert entry.places is not None
        return entry._replace(counted=entry.counted & ~np.take_along_axis(marks, entry.places, axis=1))

    return reading._replace(train=without(reading.train), test=without(reading.test))


def _by_construction(question: Question, spec: Spec, reading: Reading) -> bool:
    """Whether an edit writes what is then read."""
    if reading.target not in question.group.members:
        return False
    return any(getattr(part, "at", "") == "block_output" for part in question.build(spec, question.moments).replacements)


def _fields(question: Question, spec: Spec) -> dict[str, Any]:
    found = question.recipe(spec)
    fields = {"condition": f"{question.group.name}.{spec.name}", "tokens": found.tokens, "ablation": [found.hash], "window": found.window}
    return fields | ({"index": _channel(question)[0]} if spec.name in (rules.MASS, rules.BUT) else {})


def _channel(question: Question) -> tuple[int, float]:
    return table.largest_channel(question.group, question.moments, question.config)


def _detail(question: Question, spec: Spec) -> str:
    return f"{_channel(question)[1]:.1f} times the median channel" if spec.name in (rules.MASS, rules.BUT) else ""


_CONTRASTS = {
    rules.CONSTANT: (rules.LOST, rules.VALUE_MEAN),
    rules.SINK: (rules.RENORMALISED, rules.LOST),
    rules.JOINT: (_BOTH_LOST, "sum of both"),
}
"""Contrasts: the row, and what it is compared with."""


def _contrasts(question: Question, reading: Reading, scores: Mapping[str, Scores], full: Scores) -> Iterator[MetricResult]:
    """C = LOST - VM, S = REN - LOST, and what both groups cost beyond the sum, as differences of refitted scores."""
    for name, (row, against) in _CONTRASTS.items():
        if row not in scores or (against not in scores and name != rules.JOINT):
            continue
        reference = scores[against] if name != rules.JOINT else _expected(scores[rules.LOST], scores[_OTHER_LOST], full)
        fields = {"condition": f"{question.group.name}.{name}", "tokens": question.group.name, "window": "all"}
        yield reading.result(scores[row], REFITTED)._replace(reference=[reference], fields=fields)


def _expected(first: Scores, second: Scores, full: Scores) -> Scores:
    """The score if two costs added up."""
    right = [np.asarray(scores.contributions)[:, 0] for scores in (first, second, full)]
    counted = np.asarray(full.contributions)[:, 1]
    return full._replace(contributions=np.stack([right[0] + right[1] - right[2], counted], axis=1))


def _meter(edited: np.ndarray, clean: np.ndarray) -> MetricResult:
    protocol = protocol_id(METER, of="patches leaving the last block, from their calibrated mean, mean over patches", norm="none")
    return MetricResult(METER, "patches", protocol, [mean_scores(edited)], Unit("s.d."), reference=[mean_scores(clean)])


def _attention(question: Question) -> MetricResult:
    """The largest share of attention from another kind of token to the group, over heads and blocks."""
    target, group = question.target, question.group
    flow = target.runner.extract(
        target.data.parts["test"].images[:ATTENTION_IMAGES], Ablation(), first_id("test"), "attention_flow", patch_images=0
    ).captured["attention_flow"]  # [layers, images, heads, sources, targets]
    names = TokenLayout.of(question.config, target.image_size).groups
    registers = [i for i, name in enumerate(names) if name.startswith("registers")]
    kinds = {"cls": [0], "registers": registers, "patches": [len(names) - 1]}
    to = kinds.get(group.name) or ([int(group.name[1:])] if group.name != table.RANDOM_PATCHES else kinds["patches"])
    patches = TokenLayout.of(question.config, target.image_size).patches
    part = group.tokens.count / patches if isinstance(group.tokens, jaxvit.specs.RandomPatches) else 1.0
    shares = {reader: part * flow[..., kinds[reader], :][..., to].mean(axis=3).sum(axis=3) for reader in group.readers}
    reader, largest = max(shares.items(), key=lambda entry: float(entry[1].mean(axis=1).max()))
    layer, head = np.unravel_index(int(largest.mean(axis=1).argmax()), largest.mean(axis=1).shape)
    protocol = protocol_id("largest_attention", over="readers, heads and blocks", images=flow.shape[1])
    fields = {"condition": f"{group.name}.attention", "source": reader, "target": group.name, "layer": int(layer), "head": int(head)}
    return MetricResult(ATTENTION, None, protocol, [mean_scores(largest[layer, :, head])], Unit("%", 100.0), fields=fields)
