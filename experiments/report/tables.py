"""The table of results as Markdown, in the README and in model cards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.analyses.ablation_table import full_table
from experiments.demo import label
from experiments.plotting import markdown
from experiments.plotting.columns import SCORE_COLUMNS, plain_heading
from experiments.plotting.hover import percent
from experiments.rows import Row

SHOWN_ROWS = Path("experiments/demo_results.jsonl")
"""The rows that the README's table and the model cards are made of, from the root of the checkout."""
_README_MARKS = ("<!-- demo table: begin -->", "<!-- demo table: end -->")


def markdown_table(rows: Sequence[Row]) -> str:
    """Scores of models and baselines without ablation, as a Markdown table: percent with 95 % intervals."""
    headings, lines = full_table(rows)
    heads = ["percent [95 % interval]", *map(plain_heading, headings)]
    return markdown.table(heads, [[label(model), *map(_cell, scores)] for model, scores in lines])


def _cell(row: Row | None) -> str:
    return "" if row is None else f"{percent(row['value'])} [{percent(row['ci_low'])}, {percent(row['ci_high'])}]"


def fill_readme(readme: Path, rows: Sequence[Row]) -> None:
    """Replace what stands between the marks of a README by the table.

    Raises:
        ValueError: the marks are not there.
    """
    markdown.fill_between(readme, _README_MARKS, markdown_table(rows))


def shown_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows that README and cards show: the scores of the table under every condition, and the attention flow from CLS."""
    keys = {column.key for column in SCORE_COLUMNS}
    return [r for r in rows if (r["task"], r["metric"], r["feature"]) in keys or (r["task"], r["metric"]) == ("attention_flow", "cls")]
