"""Pieces of an HTML page: figures, inlined images, grids of images, cells of tables."""

from __future__ import annotations

import base64
import hashlib
import html
import io
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from PIL import Image

from experiments.plotting.colours import FONT
from experiments.plotting.escape import escaped, isolated
from experiments.plotting.hover import scaled
from experiments.rows import Row


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


def table(
    corner: str,
    headings: Sequence[str],
    lines: Sequence[tuple[str, Sequence[str]]],
    about: str = "",
    notes: Mapping[str, str] | None = None,
) -> str:
    """A table that scrolls in its own box where the screen is narrow.

    Args:
        corner: what the lines are, as text.
        headings: of the columns, as HTML.
        lines: the name of each, as text, and its cells, as HTML (`interval_cell`, `heat.heat_cell`).
        about: what the table is, as text; by default its corner.
        notes: what the names of lines say where they are pointed at, as text, by name.
    """
    heads = "".join(f'<th scope="col">{heading}</th>' for heading in headings)
    said = {name: f' title="{html.escape(text)}"' for name, text in (notes or {}).items() if text}
    body = "".join(f'<tr><th scope="row"{said.get(name, "")}>{_breakable(name)}</th>{"".join(cells)}</tr>' for name, cells in lines)
    box = f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(isolated(about or corner))}">'
    return f'{box}<table><thead><tr><th scope="col">{escaped(corner)}</th>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def _breakable(name: str) -> str:
    """The name of a line as HTML: where there is little room, a new line may begin after its underscores."""
    return escaped(name).replace("_", "_<wbr>")


def interval_cell(row: Row | None, form: str = ".3f") -> str:
    """The value of a row and its 95 % interval in its unit as a cell of a table; words where there is no row."""
    if row is None:
        return empty_cell()
    value, low, high = (scaled(row, field, form) for field in ("value", "ci_low", "ci_high"))
    return f"<td>{value}<small>{low} – {high}</small></td>"


def empty_cell(words: str = "not run") -> str:
    """The cell of a number that there is none of: it says why."""
    return f'<td class="none">{words}</td>'
