"""Do the rules find what is known? Every constructed model and its verdict: `python -m experiments.sinks`."""

from __future__ import annotations

import json
from dataclasses import dataclass
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
from experiments.sinks.rules import Verdict
from experiments.sinks.verdicts import all_verdicts
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
    train: int = 256
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
    wanted = {**CONSTRUCTED, **TRAINED}[name].group
    group = next(group for group in names.groups(model.config, 0, False) if group.name == wanted)
    rows, _ = compute(Question(target, group, brief=True))
    return add_holm(rows)


def entry_of(name: str, rows: list[Row]) -> dict[str, Any]:
    """What the file of results says of a model: its words, the words expected, and the numbers that decide."""
    construction = {**CONSTRUCTED, **TRAINED}[name]
    verdicts: dict[str, Verdict] = all_verdicts(rows)[name][construction.group]
    costs = {
        f"{row['condition'].partition('.')[2]}, {row['feature']}": [
            round(-row["scale"] * row[field], 2) for field in ("delta", "delta_ci_high", "delta_ci_low")
        ]
        for row in rows
        if row["readout"] == "refitted" and row["reference"]
    }
    clean = {
        row["feature"]: round(100 * row["reference"]["value"], 1) for row in rows if row["condition"].endswith(".zero") and row["readout"]
    }
    return {
        "model": name,
        "group": construction.group,
        "truth": construction.truth,
        "clean": clean,
        "expected": construction.words,
        "expected_notes": construction.notes,
        "words": {target: verdict.words for target, verdict in verdicts.items()},
        "notes": {target: verdict.notes for target, verdict in verdicts.items()},
        "as_expected": as_expected(construction, verdicts),
        "costs": costs,
    }


def as_expected(construction: Construction, verdicts: dict[str, Verdict]) -> bool:
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
            entry["truth"],
            ", ".join(f"{score:.1f}" for score in entry["clean"].values()),
            said(entry, "cls"),
            said(entry, "patches"),
            "-" if not entry["expected"] else "yes" if entry["as_expected"] else "**no**",
        ]
        for entry in entries
    ]
    headings = ["model", "what is so by construction", "clean CLS, patches", "words, CLS", "words, patches", "as expected"]
    return table(headings, lines)


def main(options: Options) -> None:
    """Run the models, print their words and, where asked to, write them down."""
    prepare_devices()
    entries = []
    for name in options.models or (*CONSTRUCTED, *TRAINED):
        with pinned_numerics():
            entry = entry_of(name, rows_of(name, options))
        entries.append(entry)
        print(
            name,
            entry["clean"],
            {t: (w, entry["notes"][t]) for t, w in entry["words"].items()},
            "ok" if entry["as_expected"] else "NOT AS EXPECTED",
            flush=True,
        )
        if options.write:
            write_text(RESULTS, json.dumps({"train": options.train, "test": options.test, "models": entries}, indent=1) + "\n")
    if options.write:
        fill_between(PAGE, MARKS, page_table(entries))


if __name__ == "__main__":
    run(main, Options, __doc__)
