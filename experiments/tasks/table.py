"""The tasks of the study, by name. A new one is its own file and a line here, or a plug-in."""

from __future__ import annotations

from collections.abc import Mapping

from experiments.plotting.columns import Column
from experiments.tasks.base import Task
from experiments.tasks.correspondence import CORRESPONDENCE
from experiments.tasks.dinov2_grid import DINOV2_GRID
from experiments.tasks.few_shot import FEW_SHOT
from experiments.tasks.geometry import EFFECTIVE_RANK, PATCH_NORMS, REGISTER_COSINE
from experiments.tasks.keypoints import KEYPOINTS
from experiments.tasks.linear_probe import LINEAR_PROBE
from experiments.tasks.nearest_neighbours import KNN
from experiments.tasks.retrieval import RETRIEVAL
from experiments.tasks.segmentation import SEGMENTATION

TASKS: dict[str, Task] = {
    "linear_probe": LINEAR_PROBE,
    "dinov2_grid": DINOV2_GRID,
    "few_shot": FEW_SHOT,
    "knn": KNN,
    "retrieval": RETRIEVAL,
    "correspondence": CORRESPONDENCE,
    "spair": KEYPOINTS,
    "segmentation": SEGMENTATION,
    "effective_rank": EFFECTIVE_RANK,
    "patch_norms": PATCH_NORMS,
    "register_cosine": REGISTER_COSINE,
}
"""In the order in which they run; the first pays for most features."""


def score_columns(tasks: Mapping[str, Task] = TASKS) -> list[Column]:
    """The columns that tasks declare, in order."""
    return [column._replace(task=name) for name, task in tasks.items() for column in task.columns]
