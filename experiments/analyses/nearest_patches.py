"""What a register resembles: the patches of a gallery of images that are nearest to it."""

from __future__ import annotations

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from experiments.demo import label
from experiments.features.conditions import FULL
from experiments.features.extraction import patch_grid
from experiments.plotting.elements import grid, picture
from experiments.plotting.escape import escaped
from experiments.rows import Row, token_name
from experiments.study.compare import compared_rows
from experiments.study.jobs import Arrays, Job, rows_key
from experiments.study.results import StudyResults
from experiments.study.target import Target
from experiments.tasks.base import MetricResult, Unit, pack_scores, protocol_id
from jaxvit.geometry import unit
from jaxvit.inference import mean_scores

TITLE = "Patches nearest to each register"
NOTE = (
    "In each gallery image, the patch that is nearest (by cosine) to the register's mean over the gallery. Shown are the five images "
    "where it is nearest, each cut out with the patches around it. The mean of that cosine over images is in results.jsonl."
)
KIND = "nearest_patches"
VERSION = 1
SHOWN = 5


def jobs(target: Target) -> Iterator[Job]:
    """The nearest patches of a model with registers."""
    if not target.baseline and target.model is not None and target.model.config.registers:
        count = target.data.size["gallery"]
        key, label = rows_key(target, KIND, version=VERSION, shown=SHOWN), f"{target.name}: patches nearest to registers"
        yield Job(key, target.name, label, 1, lambda store: _compute(target), count)


def _compute(target: Target) -> tuple[list[Row], Arrays]:
    count, where = target.data.size["gallery"], target.settings.readouts.where
    features, images = target.features("full", target.settings.seed).first_test(count), target.data.parts["test"].images
    patches = unit(jnp.asarray(features.patches[:count]))
    registers = unit(jnp.asarray(features.registers[:count]).mean(axis=0))
    cosine = np.asarray(jnp.einsum("ipd,rd->rip", patches, registers))
    best = cosine.max(axis=2)
    _, columns, side = patch_grid(features.patches, images)
    crops = []
    for r in range(len(cosine)):
        nearest = np.argsort(-best[r], kind="stable")[:SHOWN]
        crops.append([_crop(images[i], *divmod(int(cosine[r, i].argmax()), columns), side) for i in nearest])
    protocol = protocol_id("nearest_patch", query="mean register", average="mean over images of the best patch", **where)
    results = [MetricResult("top_cosine", _register(r), protocol, [mean_scores(scores)], Unit()) for r, scores in enumerate(best)]
    run = target.run_fields(FULL) | {"task": KIND, "analysis": KIND, "layer": target.layer}
    rows = compared_rows(run, results, target.inference)
    return rows, {"crops": np.array(crops), **pack_scores(results)}


def _register(index: int) -> str:
    """The name of a register in rows and on the page."""
    return token_name(f"registers[{index}]")


def _crop(image: np.ndarray, row: int, column: int, side: int) -> np.ndarray:
    """A patch with one more on each side; at the border of the image the window is moved inside."""
    window = min(3 * side, *image.shape[:2])
    top = int(np.clip((row - 1) * side, 0, image.shape[0] - window))
    left = int(np.clip((column - 1) * side, 0, image.shape[1] - window))
    return image[top : top + window, left : left + window]


def section(results: StudyResults) -> str:
    """A line of crops for each register."""
    page = ""
    for cell in results.cells(KIND):
        lines = []
        for r, crops in enumerate(cell.arrays["crops"]):
            lines.append((_register(r), [picture(crop, f"patch near {_register(r)}") for crop in crops]))
        page += f"<h3>{escaped(label(cell.key['name']))}</h3>{grid(lines)}"
    return page
