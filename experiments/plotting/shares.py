"""Tables whose cells are coloured by their numbers."""

from __future__ import annotations

import html
from collections.abc import Sequence

from experiments.plotting.escape import escaped


def share_table(caption: str, corner: str, columns: Sequence[str], lines: Sequence[tuple[str, Sequence[str]]]) -> str:
    """A table that scrolls in its own box where the screen is narrow.

    Args:
        caption: what it shows, as text.
        corner: what the lines are; columns: what the columns are, as text.
        lines: the name of each, as text, and its cells, as HTML (`share_cell`).
    """
    heads = "".join(f'<th scope="col">{escaped(name)}</th>' for name in columns)
    body = "".join(f'<tr><th scope="row">{escaped(name)}</th>{"".join(cells)}</tr>' for name, cells in lines)
    box = f'<div class="scroll" tabindex="0" role="region" aria-label="{escaped(caption)}">'
    head = f'<thead><tr><th scope="col">{escaped(corner)}</th>{heads}</tr></thead>'
    return f'{box}<table class="shares"><caption>{escaped(caption)}</caption>{head}<tbody>{body}</tbody></table></div>'


def share_cell(share: float, shown: str, says: str = "") -> str:
    """A cell.

    Args:
        share: how strongly it is coloured, from -1 to 1: below 0 in another colour.
        shown: its content, as HTML.
        says: what it says where it is pointed at, as text.
    """
    kind = ' class="below"' if share < 0 else ""
    title = f' title="{html.escape(says)}"' if says else ""
    return f'<td{kind} style="--p:{100 * abs(share):.3g}"{title}>{shown}</td>'
