"""The table of results as Markdown, in the README and in model cards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from experiments.analyses.ablation_table import full_table
from experiments.demo import label
from experiments.plotting import markdown
from experiments.plotting.columns import plain_heading, score_key
from experiments.plotting.hover import scaled
from experiments.rows import FIELDS, Row
from experiments.tasks.table import score_columns

SHOWN_ROWS = Path("experiments/demo_results.jsonl")
"""The rows that the README's table and the model cards are made of, from the root of the checkout."""
_README_MARKS = ("<!-- demo table: begin -->", "<!-- demo table: end -->")


def markdown_table(rows: Sequence[Row]) -> str:
    """Scores of models and baselines without ablation, as a Markdown table: percent with 95 % intervals."""
    headings, lines = full_table(rows, score_columns())
    heads = ["percent [95 % interval]", *map(plain_heading, headings)]
    return markdown.table(heads, [[label(model), *map(_cell, scores)] for model, scores in lines])


def _cell(row: Row | None) -> str:
    return "" if row is None else f"{scaled(row)} [{scaled(row, 'ci_low')}, {scaled(row, 'ci_high')}]"


def fill_readme(readme: Path, rows: Sequence[Row]) -> None:
    """Replace what stands between the marks of a README by the table.

    Raises:
        ValueError: the marks are not there.
    """
    markdown.fill_between(readme, _README_MARKS, markdown_table(rows))


def rows_table() -> str:
    """The fields of rows as a Markdown table: name, types, meaning."""
    lines = [[f"`{field.name}`", " or ".join(_type_in_words(kind) for kind in field.types), field.meaning] for field in FIELDS]
    return markdown.table(["field", "type", "meaning"], lines)


def _type_in_words(kind: Any) -> str:
    if get_origin(kind) is list:
        return f"list of {_type_in_words(get_args(kind)[0])}s"
    words = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "null"}
    return words.get(kind, "object")


def shown_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows that README and cards show: the scores of the table under every condition, and the attention flow from CLS."""
    keys = {column.key for column in score_columns()}
    return [r for r in rows if score_key(r) in keys or (r["task"], r["source"]) == ("attention_flow", "cls")]


def fill_docs(page: Path) -> None:
    """Write the table of fields into the page that explains results.

    Raises:
        ValueError: the marks are not there.
    """
    markdown.fill_between(page, ("<!-- row fields: begin -->", "<!-- row fields: end -->"), rows_table())


if __name__ == "__main__":
    fill_docs(Path("docs/results.md"))
