"""Numbers on the page are those of `results.jsonl`."""

from __future__ import annotations

import re

import pytest

from experiments.demo import label
from experiments.rows import select

pytestmark = pytest.mark.browser


def number(text: str) -> float:
    return float(text.replace("−", "-").rstrip("†").replace("\n", ""))


@pytest.mark.parametrize("shown", ["delta", "raw"])
def test_the_table_of_costs_is_that_of_the_results(show, results, shown):
    """Every cell of every model's table of main scores, in both views."""
    tab = show(at="ablation_table")
    section = tab.locator("#ablation_table")
    section.locator(f".switch input[value={shown}]").first.check(force=True)
    compared = 0
    for table in section.locator("table:visible").all():
        heading = table.locator("xpath=preceding::h3[1]").inner_text()
        models = [model for model in results.models if re.sub("[\u2066-\u2069]", "", heading) == label(model)]
        if not models:
            continue
        heads = [re.sub(r"\s|\u00ad|-", "", head) for head in table.locator("thead th").all_inner_texts()[1:]]
        columns = {re.sub(r"<br>|\s|-", "", column.heading): column for column in results.columns}
        for line in table.locator("tbody tr").all():
            condition = re.sub(r"\s|\u200b", "", line.locator("th").inner_text())
            for head, text in zip(heads, line.locator("td").all_inner_texts(), strict=True):
                column = columns[head]
                rows = [
                    row
                    for row in select(results.rows, model=models[0], condition=condition, task=column.task, metric=column.metric)
                    if row["feature"] == column.feature and row["readout"] == column.readout
                ]
                if len(rows) != 1 or not re.match(r"^[+−]?\d", text.strip()):
                    continue
                field = "value" if shown == "raw" or condition == "full" else "delta"
                assert number(text.strip()) == pytest.approx(100 * rows[0][field], abs=0.051), (condition, head)
                compared += 1
    assert compared > 20 * len(results.models) / 3
