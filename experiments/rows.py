"""Rows of results: one dictionary per number, a line of `results.jsonl`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def select(rows: Sequence[Row], **fields: Any) -> list[Row]:
    """Rows whose fields have these values."""
    return [row for row in rows if all(row[name] == value for name, value in fields.items())]


def token_name(group: str) -> str:
    """The name of a token group in rows and for people: register selectors count from 0 ("registers[0]"), names from 1 ("r1")."""
    match = re.fullmatch(r"registers\[(\d+)\]", group)
    return f"r{int(match[1]) + 1}" if match else group
