"""Pieces of an HTML page: figures, inlined images, grids of images, cells of tables."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from PIL import Image

from experiments.plotting.colours import FONT
from experiments.plotting.hover import scaled
from experiments.rows import Row

SIGNIFICANT = 0.05
"""The family-wise error that tables call significant."""


def plot(figure: go.Figure) -> str:
    """A figure as a piece of a page that has plotly's script."""
    figure.update_layout(font=FONT)
    # plotly's own ids are random: the page of the same results would never be the same file twice
    name = f"figure-{hashlib.sha256(figure.to_json().encode()).hexdigest()[:16]}"
    options = {"displayModeBar": False, "responsive": True}
    return figure.to_html(full_html=False, include_plotlyjs=False, config=options, div_id=name)


def picture(pixels: np.ndarray, text: str) -> str:
    """Pixels (uint8, or shares of 1) as an inlined image; `text` stands in for it where images are not shown."""
    if pixels.dtype != np.uint8:
        pixels = np.round(255 * np.clip(pixels, 0, 1)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return f'<img alt="{text}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def grid(lines: Sequence[tuple[str, Sequence[str]]]) -> str:
    """A grid of pictures: each line has a name and its pictures from left to right."""
    across = max(len(pictures) for _, pictures in lines)
    cells = "".join(f"<div>{name}</div>{''.join(pictures)}" for name, pictures in lines)
    return f'<div class="maps" style="grid-template-columns: 8rem repeat({across}, 1fr)">{cells}</div>'


def change_cell(row: Row | None) -> str:
    """The difference of a row and its 95 % interval in its unit as a cell of a table, bold where p after Holm is below 0.05; an empty cell
    where there is no row."""
    if row is None:
        return "<td></td>"
    delta, low, high = (scaled(row, field, "+.1f") for field in ("delta", "delta_ci_low", "delta_ci_high"))
    bold = row["p_holm"] is not None and row["p_holm"] < SIGNIFICANT
    return f"<td>{f'<b>{delta}</b>' if bold else delta}<small>{low} to {high}</small></td>"


def interval_cell(row: Row | None, form: str = ".3f") -> str:
    """The value of a row and its 95 % interval in its unit as a cell of a table; an empty cell where there is no row."""
    if row is None:
        return "<td></td>"
    value, low, high = (scaled(row, field, form) for field in ("value", "ci_low", "ci_high"))
    return f"<td>{value}<small>{low} – {high}</small></td>"
