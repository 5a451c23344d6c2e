"""Pieces of an HTML page: figures, inlined images, grids of images, cells of tables."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from experiments.plotting.escape import escaped
from experiments.plotting.hover import scaled
from experiments.rows import Row


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
    box = f'<div class="scroll" tabindex="0" role="region" aria-label="{escaped(about or corner)}">'
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
