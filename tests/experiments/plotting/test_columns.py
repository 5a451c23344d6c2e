"""Columns of tables."""

from __future__ import annotations

from experiments.plotting.columns import SCORE_COLUMNS, columns, plain_heading, refitted_columns
from tests.experiments.plotting.made_rows import made_row


def test_a_study_has_the_columns_of_its_scores_in_their_order():
    rows = [made_row(task="knn", metric="top1_k20"), made_row(metric="top1_frozen"), made_row(), made_row(metric="top1_ridge")]
    assert [column.metric for column in columns(rows)] == ["top1", "top1_frozen", "top1_k20"]
    assert [column.metric for column in refitted_columns(rows)] == ["top1", "top1_k20"]


def test_no_score_has_two_columns():
    assert len({column.key for column in SCORE_COLUMNS}) == len(SCORE_COLUMNS)


def test_a_plain_heading_is_one_line():
    assert plain_heading("corre-<br>spondence<br>all patches") == "correspondence all patches"
