"""Pieces of an HTML page: figures, inlined images, grids of images, cells of tables."""

from __future__ import annotations

import base64
import hashlib
import html
import io
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from PIL import Image

from experiments.plotting.colours import FONT
from experiments.plotting.escape import escaped, isolated
from experiments.plotting.hover import scaled
from experiments.rows import Row

SIGNIFICANT = 0.05
"""The family-wise error that tables call significant."""


def plot(figure: go.Figure) -> str:
    """A figure as a piece of a page that has plotly's script, in a box that it scrolls in where the screen is narrow."""
    figure.update_layout(font=FONT, paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)")
    # plotly's own ids are random: the page of the same results would never be the same file twice
    name = f"figure-{hashlib.sha256(figure.to_json().encode()).hexdigest()[:16]}"
    options = {"displayModeBar": False, "responsive": True}
    drawn = figure.to_html(full_html=False, include_plotlyjs=False, config=options, div_id=name)
    return f'<div class="scroll figure" tabindex="0" role="region" aria-label="figure">{drawn}</div>'


def picture(pixels: np.ndarray, text: str) -> str:
    """Pixels (uint8, or shares of 1) as an inlined image; `text` stands in for it where images are not shown."""
    if pixels.dtype != np.uint8:
        pixels = np.round(255 * np.clip(pixels, 0, 1)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return f'<img alt="{html.escape(isolated(text))}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def grid(lines: Sequence[tuple[str, Sequence[str]]]) -> str:
    """A grid of pictures: each line has a name and its pictures (HTML) from left to right. It scrolls in its own box where the screen is
    narrow."""
    across = max(len(pictures) for _, pictures in lines)
    cells = "".join(f"<div>{escaped(name)}</div>{''.join(pictures)}" for name, pictures in lines)
    return f'<div class="scroll"><div class="maps" style="grid-template-columns: 8rem repeat({across}, 1fr)">{cells}</div></div>'


def table(corner: str, headings: Sequence[str], lines: Sequence[tuple[str, Sequence[str]]]) -> str:
    """A table that scrolls in its own box where the screen is narrow.

    Args:
        corner: what the lines are, as text.
        headings: of the columns, as HTML.
        lines: the name of each, as text, and its cells, as HTML (`interval_cell`, `change_cell`).
    """
    heads = "".join(f'<th scope="col">{heading}</th>' for heading in headings)
    body = "".join(f'<tr><th scope="row">{escaped(name)}</th>{"".join(cells)}</tr>' for name, cells in lines)
    box = f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(isolated(corner))}">'
    return f'{box}<table><thead><tr><th scope="col">{escaped(corner)}</th>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


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
