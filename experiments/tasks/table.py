"""The tasks of the study, by name: a new one (depth, say) is a line in `TASKS` that names the `run` function of its own file."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from experiments.datasets.base import StudyData
from experiments.features.conditions import RANDOM_PATCHES
from experiments.tasks import classification, correspondence, geometry, keypoints, retrieval, segmentation
from experiments.tasks.base import Task
from jaxvit.probes import sgd
from jaxvit.probes.few_shot import BIG_VISION_PENALTY

CONSTANTS = {
    "outlier_norm": geometry.OUTLIER_NORM,
    "random_patches": RANDOM_PATCHES,
    "sgd": dataclasses.asdict(sgd.PARODI),
    "dinov2_grid": dataclasses.asdict(sgd.DINOV2_GRID),
    "big_vision_penalty": BIG_VISION_PENALTY,
    "segmentation_l2": segmentation.L2,
    "segmentation_neighbours": segmentation.NEIGHBOURS,
    "segmentation_temperature": segmentation.TEMPERATURE,
    "foreground_share": correspondence.FOREGROUND,
}
"""Settings that numbers depend on and that no option changes; in the key of every cell."""


def _always(data: StudyData) -> bool:
    return True


def _has_views(data: StudyData) -> bool:
    return data.views is not None


def _labelled(data: StudyData) -> Sequence[str]:
    return classification.PARTS


def _views(data: StudyData) -> Sequence[str]:
    return correspondence.VIEWS


def _masked(data: StudyData) -> Sequence[str]:
    return (data.masks.train_part, data.masks.test_part) if data.masks else ()


def _analysis(data: StudyData) -> Sequence[str]:
    return ("analysis",)


TASKS = {
    "linear_probe": Task(classification.linear_probe, _always, _labelled),
    "dinov2_grid": Task(classification.dinov2_grid, _always, _labelled),
    "few_shot": Task(classification.few_shot, _always, _labelled),
    "knn": Task(classification.nearest_neighbours, _always, _labelled),
    "retrieval": Task(retrieval.retrieval, _has_views, _views),
    "correspondence": Task(correspondence.correspondence, _has_views, _views),
    "spair": Task(keypoints.keypoints, lambda data: data.keypoints is not None, lambda data: ("keypoints",)),
    "segmentation": Task(segmentation.segment, lambda data: data.masks is not None, _masked),
    "effective_rank": Task(geometry.effective_rank, _always, _analysis),
    "patch_norms": Task(geometry.patch_norms, _always, _analysis),
    "register_cosine": Task(geometry.register_cosine, _always, _analysis),
}
"""Task(run, possible, parts) by name, in the order in which they run; the first pays for most features."""
