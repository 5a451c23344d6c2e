"""Markdown: tables, and generated text between marks of a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxvit.files import write_text


def table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table of these headings and lines of cells."""
    written = [f"| {' | '.join(cells)} |" for cells in (heads, *lines)]
    return "\n".join([written[0], "|---" * len(heads) + "|", *written[1:]])


def fill_between(path: Path, marks: tuple[str, str], text: str) -> None:
    """Replace what stands between two marks of a file.

    Raises:
        ValueError: the marks are not there.
    """
    old, (begin, end) = path.read_text(encoding="utf-8"), marks
    if begin not in old or end not in old:
        raise ValueError(f"{path} lacks the marks {begin} and {end}; add them where the table shall stand")
    before, after = old.split(begin, 1)[0], old.split(end, 1)[1]
    write_text(path, f"{before}{begin}\n{text}\n{end}{after}")
