"""A plug-in with a task of its own: does an image's feature say by how much the image was rotated?

    python -m experiments.reproduce --quick --plugin examples/rotation_task.py --tasks rotation knn

Every image is shown as it is and rotated by a quarter, a half and three quarters of a turn; a ridge probe is fitted on the train images
and says of every test image which of the four it is.
"""

from __future__ import annotations

import numpy as np

from experiments.plotting.columns import Column
from experiments.tasks.base import (
    FROZEN,
    REFITTED,
    Context,
    FeatureSource,
    FrozenReadouts,
    MetricResult,
    Readouts,
    Task,
    constant_fields,
    pack_readout,
    protocol_id,
    unpack_readout,
)
from jaxvit.inference import mean_scores
from jaxvit.probes import ridge
from jaxvit.probes.selection import one_hot

TURNS = 4
PENALTY = 0.1
MOST = 256
"""Images of a part that are turned."""


def rotation(features: FeatureSource, context: Context, frozen_readouts: FrozenReadouts) -> list[MetricResult]:
    """Share of test images of which the turn is named right, mean over the four turns; by CLS and by the mean patch."""
    turned = {part: _turned(features, context, part) for part in ("train", "test")}
    results = []
    for name in ("cls", "patch_mean"):
        train, test = (np.concatenate([getattr(turn, name) for turn in turned[part]]) for part in ("train", "test"))
        train_turns, test_turns = (np.repeat(np.arange(TURNS), len(array) // TURNS) for array in (train, test))
        probe = ridge.fit(train, one_hot(train_turns, TURNS), (PENALTY,)).at(0)
        readouts = {REFITTED: probe}
        if frozen_readouts:
            readouts[FROZEN] = unpack_readout(name, frozen_readouts, ridge.Ridge)
        for kind, readout in readouts.items():
            correct = np.argmax(ridge.predict(readout, test), axis=1) == test_turns
            scores = mean_scores(correct.reshape(TURNS, -1).mean(axis=0))  # the unit is the image, not its turn
            protocol = protocol_id(
                "rotation", turns=TURNS, most=MOST, penalty=PENALTY, fit="condition" if kind == REFITTED else "full", **context.where
            )
            result = MetricResult("top1_rotation", name, protocol, [scores], readout=kind, **constant_fields(train))
            results.append(result._replace(readouts=pack_readout(name, readout) if kind == REFITTED else {}))
    return results


def _turned(features: FeatureSource, context: Context, part: str) -> list:
    """Features of the leading images of a part after every number of quarter turns."""
    images = context.data.parts[part].images[:MOST]
    return [features.of_images(np.rot90(images, turn, axes=(1, 2)), part) for turn in range(TURNS)]


def _settings(readouts: Readouts) -> dict[str, float]:
    return {"turns": TURNS, "penalty": PENALTY, "most": MOST}


TASKS = {
    "rotation": Task(
        rotation,
        parts=lambda data: ("train", "test"),
        possible=lambda data: data.analysis_images.shape[1] == data.analysis_images.shape[2],  # a turned image has the same shape
        settings=_settings,
        made_images=lambda data: TURNS * sum(min(MOST, len(data.parts[part].images)) for part in ("train", "test")),
        columns=(
            Column("top1_rotation", "cls", "rotation<br>CLS", REFITTED),
            Column("top1_rotation", "patch_mean", "rotation<br>patch mean", REFITTED),
        ),
    )
}
