"""What a register is like: the patches of a gallery that are nearest to it."""

from __future__ import annotations

import html
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from experiments import dense
from experiments.cells import Store
from experiments.demo import label
from experiments.figures import Finished, grid, picture
from experiments.measures import protocol_id
from experiments.study import Arrays, Job, Row, Subject, key, plain_rows
from jaxvit.geometry import unit
from jaxvit.statistics import mean_scores

TITLE = "Patches nearest to a register"
NOTE = (
    "The patch of each gallery image that is nearest (cosine) to the register's mean over the gallery; shown are the "
    "five images where it is nearest, cut out with the patches around it. The mean over images of that cosine stands in results.jsonl."
)
KIND = "nearest_patches"
SHOWN = 5


def jobs(subject: Subject) -> Iterator[Job]:
    """The gallery of a model with registers."""
    if not subject.baseline and subject.model is not None and subject.model.config.registers:
        cell = key(subject, KIND, resamples=subject.settings.resamples)
        count = subject.data.size["gallery"]
        yield Job(cell, f"{subject.name}: patches nearest to registers", 1, lambda store: _compute(subject, store), count)


def _compute(subject: Subject, store: Store) -> tuple[list[Row], Arrays]:
    features, images = subject.reader("full", subject.settings.seed).sample(subject.data.size["gallery"]), subject.data.parts["test"].images
    count = subject.data.size["gallery"]
    patches = unit(jnp.asarray(features.patches[:count]))
    registers = unit(jnp.asarray(features.registers[:count]).mean(axis=0))
    cosine = np.asarray(jnp.einsum("ipd,rd->rip", patches, registers))
    best = cosine.max(axis=2)
    _, columns, side = dense.grid_of(features.patches, images)
    crops = []
    for r in range(len(cosine)):
        nearest = np.argsort(-best[r], kind="stable")[:SHOWN]
        crops.append([_crop(images[i], *divmod(int(cosine[r, i].argmax()), columns), side) for i in nearest])
    told = protocol_id(
        "nearest_patch", query="mean register", average="mean over images of the best patch", **subject.settings.readouts.where
    )
    found = [
        ("top_cosine", f"registers[{r}]", subject.settings.readouts.where["layer"], told, mean_scores(best[r])) for r in range(len(best))
    ]
    return plain_rows(subject, "full", KIND, found), {"crops": np.array(crops), "best": best}


def _crop(image: np.ndarray, row: int, column: int, side: int) -> np.ndarray:
    """The patch and the one around it on each side, moved inside the image at its border."""
    window = min(3 * side, *image.shape[:2])
    top = int(np.clip((row - 1) * side, 0, image.shape[0] - window))
    left = int(np.clip((column - 1) * side, 0, image.shape[1] - window))
    return image[top : top + window, left : left + window]


def section(study: Finished) -> str:
    """A line of crops for each register."""
    page = ""
    for cell in study.cells(KIND):
        crops = cell.arrays()["crops"]
        lines = [(f"R{r + 1}", [picture(crop, f"patch near R{r + 1}") for crop in line]) for r, line in enumerate(crops)]
        page += f"<h3>{html.escape(label(cell.key['model']['name']))}</h3>{grid(lines)}"
    return page


if __name__ == "__main__":
    from experiments.reproduce import alone

    alone("nearest_patches", __doc__)
