"""Published numbers, each with its source, attached to the measured rows that they can be compared with."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from experiments.rows import Row

_KEY = ("model", "condition", "task", "metric", "feature")
_PUBLISHED_AS = {"layer_correspondence": "correspondence"}
"""Tasks of a study, and the task under whose name their numbers are published."""


@dataclass(frozen=True)
class Published:
    """One number as somebody published it.

    Two versions of a number are two entries, told apart by `source`; a source that is not known is said to be so there.

    Attributes:
        model: name in `jaxvit.MODELS`.
        condition: as in the rows of a study, for instance "zero_r1_to_r3" (registers 1 to 3), "zero_single_mean" (mean over zeroing each
            register alone), "fix_reg_mean" (Sun et al. 2024: registers at the input of every block are their mean there).
        task, metric, feature: as in the rows of a study. For "attention_flow", metric and feature are source and target, "registers" the
            four together; for "register_cosine" they are the two registers, the lower first.
        layer: block whose output is read, from 0.
        value: a share of 1 for accuracies, PCK, mIoU and attention; an effective rank or a cosine as it is.
        source: who published it, and where.
        protocol: what is known of how it was measured.
        n: test images or pairs, None where unpublished.
        note: what a reader must know about this number.
    """

    model: str
    condition: str
    task: str
    metric: str
    feature: str
    layer: int
    value: float
    source: str
    protocol: str
    n: int | None
    note: str = ""


@functools.cache
def published() -> tuple[Published, ...]:
    """All entries: Parodi & Segado (post, 2026) and its successor (arXiv 2604.14433), Sun et al. 2024 (arXiv 2402.17762)."""
    table = json.loads((files("experiments.study") / "published.json").read_text(encoding="utf-8"))
    entries = []
    for group in table["groups"]:
        shared = {name: group[name] for name in ("task", "source", "protocol", "n")}
        # a row without a note is one shorter than the columns
        entries += [Published(**shared, **dict(zip(table["columns"], row, strict=False))) for row in group["rows"]]
    return tuple(entries)


def attach_published(rows: Iterable[Row]) -> list[Row]:
    """Rows of a study; those with a published counterpart get an additional field `published`.

    A counterpart has the same model, condition, task, metric, feature and layer (of flows and cosines, see `Published`).

    Returns:
        The rows in their order. `published` lists {value, source, protocol, difference, in_interval}, and note where there is one, for
        every source that has the number; `difference` is the measured value minus the published one, `in_interval` whether the 95 %
        interval of the measured one holds it: it does not cover that protocols differ.
    """
    return [row | {"published": counterparts} if (counterparts := _counterparts(row)) else row for row in rows]


def _counterparts(row: Row) -> list[dict[str, Any]]:
    frozen = "_frozen" if row["readout"] == "frozen" else ""
    metric, feature = row["source"] or row["register_a"] or f"{row['metric']}{frozen}", row["target"] or row["register_b"] or row["feature"]
    index = "" if row["index"] is None else f"[{row['index']}]"
    task = _PUBLISHED_AS.get(row["task"], row["task"])
    key = (row["model"], row["condition"], task, f"{metric}{index}", feature, row["layer"])
    return [
        {"value": entry.value, "source": entry.source, "protocol": entry.protocol, "difference": row["value"] - entry.value}
        | {"in_interval": row["ci_low"] <= entry.value <= row["ci_high"]}
        | ({"note": entry.note} if entry.note else {})
        for entry in _index().get(key, ())
    ]


@functools.cache
def _index() -> dict[tuple[Any, ...], list[Published]]:
    index: dict[tuple[Any, ...], list[Published]] = {}
    for entry in published():
        index.setdefault((*(getattr(entry, name) for name in _KEY), entry.layer), []).append(entry)
    return index
