"""Columns of tables."""

from __future__ import annotations

import json

from experiments.plotting.columns import Column, filled, plain_heading, refitted, score_key
from experiments.tasks.table import TASKS, score_columns
from tests.experiments.plotting.made_rows import made_row


def test_a_study_has_the_columns_of_its_scores_in_their_order():
    rows = [
        made_row(task="knn", metric="top1_k20"),
        made_row(readout="frozen"),
        made_row(),
        made_row(metric="top1_ridge"),
    ]
    shown = filled(score_columns(), rows)
    assert [(column.metric, column.readout) for column in shown] == [("top1", "refitted"), ("top1", "frozen"), ("top1_k20", "refitted")]
    assert [column.metric for column in refitted(shown)] == ["top1", "top1_k20"]
    assert {column.key for column in shown} == {score_key(row) for row in rows[:3]}


def test_no_score_has_two_columns():
    assert len({column.key for column in score_columns()}) == len(score_columns())


def test_columns_are_those_that_tasks_declare_with_the_names_of_the_tasks():
    chosen = {name: TASKS[name] for name in ("segmentation", "retrieval")}
    assert [column.task for column in score_columns(chosen)] == ["segmentation"] * 4 + ["retrieval"]
    assert [column._replace(task="") for column in score_columns(chosen)] == [*TASKS["segmentation"].columns, *TASKS["retrieval"].columns]


def test_columns_survive_the_manifest_of_a_study():
    stored = json.loads(json.dumps([tuple(column) for column in score_columns()]))
    assert [Column(*column) for column in stored] == score_columns()


def test_a_plain_heading_is_one_line():
    assert plain_heading("corre-<br>spondence<br>all patches") == "correspondence all patches"
