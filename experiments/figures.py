"""What the figures of all experiments share: rows of `results.jsonl`, their texts on hover, colours, and the way into a page."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from PIL import Image

from experiments.demo import label

Row = dict[str, Any]

HEAT_COLUMNS = (
    ("linear_probe", "top1", "cls", "linear probe<br>CLS"),
    ("linear_probe", "top1_frozen", "cls", "frozen probe<br>CLS"),
    ("linear_probe", "top1", "patch_mean", "linear probe<br>patch mean"),
    ("knn", "top1_k20", "cls", "k-NN (k 20)<br>CLS"),
    ("retrieval", "recall_at_1", "cls", "Recall@1<br>CLS"),
    ("correspondence", "accuracy", "patches", "corre-<br>spondence<br>all patches"),
    ("correspondence", "accuracy", "digit_patches", "corre-<br>spondence<br>digit patches"),
    ("spair", "pck_0.1", "patches", "keypoints<br>PCK@0.1 box"),
    ("segmentation", "miou", "patches", "mIoU<br>linear head"),
    ("segmentation", "miou_frozen", "patches", "mIoU<br>frozen head"),
    ("segmentation", "miou_retrieval", "patches", "mIoU<br>retrieval"),
)
"""(task, metric, feature, heading) of the metrics in the ablation table; all are shares of 1."""

FONT = {"family": "system-ui, sans-serif", "size": 13}
COLOURS = ("#1f4e79", "#c0504d", "#7f9f3f", "#7b5ea7", "#d9903d", "#3a9a9a", "#8c6d5a", "#555555", "#b05fa0")


class Cell(NamedTuple):
    """A finished cell of a study: its key and its file of arrays."""

    key: dict[str, Any]
    path: Path

    def arrays(self) -> dict[str, np.ndarray]:
        with np.load(self.path) as arrays:
            return dict(arrays)


class Finished(NamedTuple):
    """A finished study as a page sees it.

    Attributes:
        rows: of `results.jsonl`.
        manifest: `run.json`.
        folder: where it lies.
        models: those that are ablated, in order.
    """

    rows: list[Row]
    manifest: dict[str, Any]
    folder: Path
    models: list[str]

    def cells(self, kind: str) -> Iterator[Cell]:
        """The finished cells of a kind, in the order of the study."""
        for name, of in self.manifest["cells"]:
            if of == kind:
                path = self.folder / "cells" / name
                yield Cell(json.loads(path.with_suffix(".json").read_text())["key"], path.with_suffix(".npz"))

    def conditions(self, model: str, task: str) -> list[str]:
        return list(dict.fromkeys(r["condition"] for r in select(self.rows, model=model, task=task)))


def read(folder: Path) -> Finished:
    """What lies in the folder of a finished study.

    Raises:
        ValueError: there is none.
    """
    try:
        manifest = json.loads((folder / "run.json").read_text())
        rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} holds no finished study ({type(error).__name__}); run python -m experiments.reproduce first") from error
    return Finished(rows, manifest, folder, list(manifest["models"]))


def group_label(name: str) -> str:
    """Token groups as the conditions name them: registers[0] is R1."""
    return f"R{int(name[10:-1]) + 1}" if name.startswith("registers[") else {"cls": "CLS"}.get(name, name.replace("_", " "))


def select(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """Rows whose fields have the wanted values."""
    return [row for row in rows if all(row[k] == v for k, v in wanted.items())]


def percent(value: float) -> str:
    """A share as a percentage with one decimal."""
    return f"{100 * value:.1f}"


def plain(heading: str) -> str:
    """A heading without its line breaks."""
    return heading.replace("-<br>", "").replace("<br>", " ")


def columns(rows: Sequence[Row]) -> list[tuple[str, str, str, str]]:
    """The columns of the ablation table that a study has numbers for."""
    there = {(r["task"], r["metric"], r["feature"]) for r in rows}
    return [c for c in HEAT_COLUMNS if c[:3] in there]


def interval(row: Row, scale: float = 100) -> str:
    """Value and interval."""
    return f"{scale * row['value']:.3f} [{scale * row['ci_low']:.3f}, {scale * row['ci_high']:.3f}]"


def hover(row: Row | None, scale: float = 100) -> str:
    """Everything that is known of a number."""
    if row is None:
        return "not run"
    lines = [f"{label(row['model'])} · {row['condition']}", f"{row['task']}: {row['metric']} of {row['feature']}, layer {row['layer']}"]
    lines += [row["protocol"][i : i + 90] for i in range(0, len(row["protocol"]), 90)]
    lines.append(f"value {interval(row, scale)}, n = {row['n']}")
    if row["seeds"] > 1:
        lines.append(f"mean over {row['seeds']} seeds, from {scale * min(row['by_seed']):.3f} to {scale * max(row['by_seed']):.3f}")
    if row["delta"] is not None:
        corrected = "" if row["p_holm"] is None else f", by Holm over {row['holm_tests']} {row['p_holm']:.4f}"
        change = [scale * row[k] for k in ("delta", "delta_ci_low", "delta_ci_high")]
        lines.append(f"against full {change[0]:+.3f} [{change[1]:+.3f}, {change[2]:+.3f}], p = {row['p_value']:.4f}{corrected}")
    for other in row.get("published", ()):
        lines.append(f"published {scale * other['value']:.2f} ({scale * other['difference']:+.2f} here): {other['source'][:80]}")
    lines += [f"{mark} {row[name]}" for mark, name in (("†", "note"), ("‡", "flag"), ("", "detail")) if row.get(name)]
    return "<br>".join([*lines, f"cell {row['cell']}"])


def meter_lines(rows: Sequence[Row]) -> dict[tuple[str, str], str]:
    """The off-manifold meter of every condition at the last block, as a line."""
    last: dict[tuple[str, str], dict[str, Row]] = {}
    for row in select(rows, task="off_manifold"):
        last.setdefault((row["model"], row["condition"]), {})[row["metric"]] = row  # layers come in order
    return {
        key: "off manifold, last block: " + ", ".join(f"{name.replace('_', ' ')} {r['value']:.3f}" for name, r in found.items())
        for key, found in last.items()
    }


def errors(rows: Sequence[Row], scale: float = 100) -> dict[str, Any]:
    """Intervals as error bars."""
    return {
        "array": [scale * (r["ci_high"] - r["value"]) for r in rows],
        "arrayminus": [scale * (r["value"] - r["ci_low"]) for r in rows],
        "thickness": 1,
    }


def delta_errors(rows: Sequence[Row], scale: float = 100) -> dict[str, Any]:
    """Intervals of differences as error bars; none where a row is not compared."""
    return {
        "array": [scale * ((r["delta_ci_high"] or 0) - (r["delta"] or 0)) for r in rows],
        "arrayminus": [scale * ((r["delta"] or 0) - (r["delta_ci_low"] or 0)) for r in rows],
        "thickness": 1,
    }


def plot(figure: go.Figure) -> str:
    """A figure as a piece of a page that has plotly."""
    figure.update_layout(font=FONT)
    return figure.to_html(full_html=False, include_plotlyjs=False, config={"displayModeBar": False, "responsive": True})


def picture(pixels: np.ndarray, text: str) -> str:
    """Pixels (uint8, or shares of 1) as an inlined image."""
    if pixels.dtype != np.uint8:
        pixels = np.round(255 * np.clip(pixels, 0, 1)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return f'<img alt="{text}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def grid(lines: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Rows of pictures, each with a name."""
    across = max(len(pictures) for _, pictures in lines)
    cells = "".join(f"<div>{name}</div>{''.join(pictures)}" for name, pictures in lines)
    return f'<div class="maps" style="grid-template-columns: 8rem repeat({across}, 1fr)">{cells}</div>'
