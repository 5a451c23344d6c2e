"""Do the rules find what is known? Every constructed model and its verdict: `python -m experiments.sinks`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jaxvit
from experiments.datasets.base import DataSize
from experiments.datasets.digits import DEMO_SIZE, digit_scenes
from experiments.numerics import pinned_numerics
from experiments.plotting.markdown import fill_between, table
from experiments.program import prepare_devices, run
from experiments.rows import Row
from experiments.sinks import rows as names
from experiments.sinks.constructed import CONSTRUCTED, Construction, constructed
from experiments.sinks.experiment import Question, compute
from experiments.sinks.rules import Cost, Evidence, Verdict, decide
from experiments.sinks.verdicts import evidence_of
from experiments.study.compare import add_holm
from experiments.study.target import Settings, Target
from experiments.tasks.base import Readouts
from jaxvit.files import write_text
from jaxvit.sharding import batch_mesh

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "constructed.json", HERE.parents[1] / "docs" / "content_or_sink.md"
MARKS = ("<!-- constructed: begin -->", "<!-- constructed: end -->")
TRAINED = {
    "demo_reg": Construction(lambda draft: None, "trained; nothing in its training asks for registers to be read", {}),
    "demo_reg_read": Construction(lambda draft: None, "trained so that registers are read (induced)", {}),
}
"""The bundled models with registers, beside the constructed ones."""
ALL = {**CONSTRUCTED, **TRAINED}


@dataclass(frozen=True)
class Options:
    """What is run.

    Attributes:
        models: names; by default all.
        train: scenes that read-outs are fitted on.
        test: scenes that are scored.
        resamples: of intervals and tests.
        write: write the file of results, and the table in the docs.
    """

    models: tuple[str, ...] = ()
    train: int = 128
    test: int = 1000
    resamples: int = 10_000
    write: bool = False


def rows_of(name: str, options: Options) -> list[Row]:
    """All rows of the group of a constructed model (or of registers of a bundled one) that the rules read."""
    model = constructed(name) if name in CONSTRUCTED else jaxvit.load(name)
    size = DataSize(
        train=options.train, test=options.test, segmentation=options.train, segmentation_test=options.test,
        sink_train=options.train, sink_test=options.test, calibration=options.train, val=16, pairs=2, gallery=2, analysis_images=64,
    )  # fmt: skip
    settings = Settings(0, 1, 128, options.resamples, "float32", Readouts(), sink_scope="registers")
    target = Target(name, model, batch_mesh(), digit_scenes(size, 0, DEMO_SIZE), settings)
    wanted = ALL[name].group
    group = next(group for group in names.groups(model.config, 0, False) if group.name == wanted)
    rows, _ = compute(Question(target, group, brief=True))
    return add_holm(rows)


def entry_of(name: str, rows: list[Row]) -> dict[str, Any]:
    """What the file of results says of a model: its words, and the evidence that decides, costs as [estimate, low, high, Holm p, meter]."""
    construction = ALL[name]
    evidence = {target: evidence_of(rows, name, construction.group, target) for target in names.TARGETS}
    verdicts = {target: decide(found) for target, found in evidence.items() if found is not None}
    return {
        "model": name,
        "group": construction.group,
        "words": {target: verdict.words for target, verdict in verdicts.items()},
        "notes": {target: verdict.notes for target, verdict in verdicts.items()},
        "as_expected": as_expected(construction, verdicts),
        "evidence": {target: rounded(asdict(found)) for target, found in evidence.items() if found is not None},
    }


def rounded(entry: Any) -> Any:
    """Numbers to five digits, which is more than rules need."""
    if isinstance(entry, dict):
        return {name: rounded(value) for name, value in entry.items()}
    if isinstance(entry, list | tuple):
        return [rounded(value) for value in entry]
    return float(f"{entry:.5g}") if isinstance(entry, float) else entry


def evidence_in(entry: Mapping[str, Any], target: str) -> Evidence:
    """The evidence that the file of results has of a model."""
    stored: dict[str, Any] = dict(entry["evidence"][target])
    for kind in ("rows", "frozen"):
        stored[kind] = {name: Cost(*numbers) for name, numbers in stored[kind].items()}
    return Evidence(**stored)


def as_expected(construction: Construction, verdicts: Mapping[str, Verdict]) -> bool:
    """Whether verdicts are the words that a model was made for, and the notes are among them."""
    return all(
        (not words or verdicts[target].words == words)
        and all(any(note in found for found in verdicts[target].notes) for note in construction.notes)
        for target, words in construction.words.items()
    )


def page_table(entries: list[dict[str, Any]]) -> str:
    """The table of the docs."""

    def said(entry: dict[str, Any], target: str) -> str:
        return "; ".join([" + ".join(entry["words"][target]), *entry["notes"][target]])

    lines = [
        [
            entry["model"],
            ALL[entry["model"]].truth + (" (asked of CLS)" if entry["group"] == "cls" else ""),
            ", ".join(f"{entry['evidence'][target]['clean']:.1f}" for target in names.TARGETS),
            said(entry, "cls"),
            said(entry, "patches"),
            "-" if not ALL[entry["model"]].words else "yes" if entry["as_expected"] else "**no**",
        ]
        for entry in entries
    ]
    headings = ["model", "what is so by construction", "clean CLS, patches", "words, CLS", "words, patches", "as expected"]
    return table(headings, lines)


def main(options: Options) -> None:
    """Run the models, print their words and, where asked to, write them down."""
    prepare_devices()
    entries = []
    for name in options.models or ALL:
        with pinned_numerics():
            entry = entry_of(name, rows_of(name, options))
        entries.append(entry)
        said = {target: str(Verdict(tuple(entry["words"][target]), tuple(entry["notes"][target]))) for target in entry["words"]}
        print(name, said, "as expected" if entry["as_expected"] else "NOT as expected", flush=True)
        if options.write:
            write_text(RESULTS, json.dumps({"train": options.train, "test": options.test, "models": entries}, indent=1) + "\n")
    if options.write:
        fill_between(PAGE, MARKS, page_table(entries))


if __name__ == "__main__":
    run(main, Options, __doc__)
