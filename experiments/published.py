"""Published numbers, each with its source, and how they stand beside measured ones."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jaxvit import MODELS

_KEY = ("model", "condition", "task", "metric", "feature")
_SAME_TASK = {"layer_correspondence": "correspondence"}
"""Tasks of a study that are published under another task's name."""


@dataclass(frozen=True)
class Published:
    """One number as somebody published it.

    Two versions of a number are two entries, told apart by `source`; a source that is not known is said to be so there.

    Attributes:
        model: name in `jaxvit.MODELS`.
        condition: name of the condition here. Beside those of a study: "zero_r1_r2" and "zero_r1_r3" (registers 1 to 2, 1 to 3),
            "zero_single_mean" (mean over zeroing each register alone), "fix_reg_mean" (Sun et al. 2024: registers at the input of every
            block are their mean there).
        task, metric, feature: as in the rows of a study. For "attention_flow", metric and feature are source and target, "registers" the
            four together; for "register_cosine" the two registers, the lower first.
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
    table = json.loads((files("experiments") / "published.json").read_text(encoding="utf-8"))
    entries = []
    for group in table["groups"]:
        shared = {name: group[name] for name in ("task", "source", "protocol", "n")}
        # a row without a note is one shorter than the columns
        entries += [Published(**shared, **dict(zip(table["columns"], row, strict=False))) for row in group["rows"]]
    return tuple(entries)


def beside(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a study, those with a published counterpart with a field `published` more.

    A counterpart has the same model, condition, task, metric, feature and layer; layer "last" is the model's last block.

    Returns:
        The rows in their order. `published` lists {value, source, protocol, difference}, and note where there is one, for every
        source that has the number; `difference` is the measured value minus the published one.
    """
    return [row | {"published": found} if (found := _counterparts(row)) else row for row in rows]


def _counterparts(row: dict[str, Any]) -> list[dict[str, Any]]:
    config = MODELS.get(row["model"])
    layer = config.depth - 1 if config and row["layer"] == "last" else row["layer"]
    row = row | {"task": _SAME_TASK.get(row["task"], row["task"])}
    return [
        {"value": entry.value, "source": entry.source, "protocol": entry.protocol, "difference": row["value"] - entry.value}
        | ({"note": entry.note} if entry.note else {})
        for entry in _index().get((*(row[name] for name in _KEY), layer), ())
    ]


@functools.cache
def _index() -> dict[tuple[Any, ...], list[Published]]:
    index: dict[tuple[Any, ...], list[Published]] = {}
    for entry in published():
        index.setdefault((*(getattr(entry, name) for name in _KEY), entry.layer), []).append(entry)
    return index
