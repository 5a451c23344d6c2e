"""The scores that tables and bars show, in the order of their columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from experiments.rows import Row


class Column(NamedTuple):
    """One score of a table: the task, metric and feature of its rows, and its heading (HTML); the score is a share of 1."""

    task: str
    metric: str
    feature: str
    heading: str

    @property
    def key(self) -> tuple[str, str, str]:
        """Task, metric and feature."""
        return self.task, self.metric, self.feature


SCORE_COLUMNS = (
    Column("linear_probe", "top1", "cls", "linear probe<br>CLS"),
    Column("linear_probe", "top1_frozen", "cls", "frozen probe<br>CLS"),
    Column("linear_probe", "top1", "patch_mean", "linear probe<br>patch mean"),
    Column("knn", "top1_k20", "cls", "k-NN (k 20)<br>CLS"),
    Column("retrieval", "recall_at_1", "cls", "Recall@1<br>CLS"),
    Column("correspondence", "accuracy", "patches", "corre-<br>spondence<br>all patches"),
    Column("correspondence", "accuracy", "digit_patches", "corre-<br>spondence<br>digit patches"),
    Column("spair", "pck_0.1", "patches", "keypoints<br>PCK@0.1 box"),
    Column("segmentation", "miou", "patches", "mIoU<br>linear head"),
    Column("segmentation", "miou_frozen", "patches", "mIoU<br>frozen head"),
    Column("segmentation", "miou_retrieval", "patches", "mIoU<br>retrieval"),
)


def columns(rows: Sequence[Row]) -> list[Column]:
    """The columns that a study has scores for."""
    keys = {(r["task"], r["metric"], r["feature"]) for r in rows}
    return [column for column in SCORE_COLUMNS if column.key in keys]


def refitted_columns(rows: Sequence[Row]) -> list[Column]:
    """The columns that a study has scores for, without those of frozen read-outs."""
    return [column for column in columns(rows) if not column.metric.endswith("_frozen")]


def plain_heading(heading: str) -> str:
    """A heading without its line breaks."""
    return heading.replace("-<br>", "").replace("<br>", " ")
