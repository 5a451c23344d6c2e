"""The table of results, and the rows that it is made of."""

from __future__ import annotations

from experiments.report.tables import markdown_table, shown_rows
from tests.experiments.plotting.made_rows import made_flow, made_row


def test_the_table_shows_models_without_ablation_by_refitted_read_outs():
    rows = [
        made_row(model="demo_reg", condition="full"),
        made_row(model="demo_reg", readout="frozen"),
        made_row(model="raw_pixels", condition="full", task="knn", metric="top1_k20", value=0.25),
    ]
    assert markdown_table(rows).splitlines() == [
        "| percent [95 % interval] | linear probe CLS | k-NN (k 20) CLS |",
        "|---|---|---|",
        "| demo_reg | 50.0 [40.0, 60.0] |  |",
        "| raw_pixels |  | 25.0 [15.0, 35.0] |",
    ]


def test_rows_that_are_shown_are_scores_of_the_table_and_attention_of_cls():
    shown = [
        made_row(),
        made_row(condition="full"),
        made_row(readout="frozen"),
        made_flow("cls", "r1"),
        made_flow("cls", "registers"),
    ]
    others = [made_flow("r1", "cls"), made_row(metric="top1_ridge"), made_row(feature="r1")]
    assert shown_rows([*others, *shown]) == shown
