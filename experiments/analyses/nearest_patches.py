"""What a register resembles: the patches of a gallery of images that are nearest to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np

from experiments.demo import label
from experiments.features.conditions import FULL
from experiments.features.extraction import patch_grid
from experiments.plotting.controls import OUTDATED, Axis, not_shown, view, views
from experiments.plotting.escape import escaped
from experiments.plotting.pictures import definitions, drawn, outline, photograph, show_photograph
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
    "where it is nearest. The mean of that cosine over images is in results.jsonl. A cosine says how near, not why: choose other "
    "registers to see whether they differ."
)
KIND = "nearest_patches"
VERSION = 2
SHOWN = 5
_PLACES = ("places", "numbers", "patches", "cosines")
"""Of the shown patches, [registers, shown]: position of the image in `images`, its number in the gallery, the patch, its cosine."""


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
    nearest = np.argsort(-best, axis=1, kind="stable")[:, :SHOWN]  # [registers, shown]: images
    patches_there = np.take_along_axis(cosine.argmax(axis=2), nearest, axis=1)
    kept, places = np.unique(nearest, return_inverse=True)
    protocol = protocol_id("nearest_patch", query="mean register", average="mean over images of the best patch", **where)
    results = [MetricResult("top_cosine", _register(r), protocol, [mean_scores(scores)], Unit()) for r, scores in enumerate(best)]
    run = target.run_fields(FULL) | {"task": KIND, "analysis": KIND, "layer": target.layer}
    rows = compared_rows(run, results, target.inference)
    pictures = {
        "images": images[kept],
        "places": places.reshape(nearest.shape),
        "numbers": nearest,
        "patches": patches_there,
        "cosines": np.take_along_axis(best, nearest, axis=1),
        "grid": np.array(patch_grid(features.patches, images)[:2]),
    }
    return rows, {**pictures, **pack_scores(results)}


def _register(index: int) -> str:
    """The name of a register in rows and on the page."""
    return token_name(f"registers[{index}]")


def section(results: StudyResults) -> str:
    """For every register the images with the nearest patches: the patch in the whole image, and cut out with those around it."""
    cells = {cell.key["name"]: cell.arrays for cell in results.cells(KIND, VERSION)}
    shown = {f"m{i}": cells[model] for i, model in enumerate(results.models) if model in cells}
    outdated = results.outdated(KIND, VERSION)
    missing = not_shown(outdated, OUTDATED)
    if not shown:
        return missing
    names = {word: label(results.models[int(word[1:])]) for word in shown}
    most = max(len(arrays["places"]) for arrays in shown.values())
    registers = {f"r{r + 1}": _register(r) for r in range(most)}
    axes = (Axis("model", names, group="model"), Axis("register", registers, group="register"))
    photographs: dict[bytes, str] = {}  # models have images in common
    images, panels = [], ""
    for word, arrays in shown.items():
        for image in arrays["images"]:
            if image.tobytes() not in photographs:
                photographs[image.tobytes()] = name = f"gallery-{len(photographs)}"
                images.append(photograph(name, image))
        own = [photographs[image.tobytes()] for image in arrays["images"]]
        panels += "".join(_panel(view(axes, word, f"r{r + 1}"), names[word], r, arrays, own) for r in range(len(arrays["places"])))
    panels += '<p data-view="none">The chosen model has no such register.</p>'
    absent = [model for model in results.models if model not in cells and model not in outdated]
    missing += not_shown(absent, "they have no registers, or the pictures were not computed")
    return f"{definitions(images)}{views('nearest-patches', axes, panels)}{missing}"


def _panel(chosen: str, name: str, register: int, arrays: Arrays, photographs: Sequence[str]) -> str:
    """The images of one register, the nearest first."""
    rows, columns = map(int, arrays["grid"])
    tiles = ""
    for k, (place, number, patch, cosine) in enumerate(zip(*(arrays[n][register] for n in _PLACES), strict=True), start=1):
        row, column = divmod(int(patch), columns)
        body = show_photograph(photographs[place], rows, columns) + outline(row, column)
        where = f"image {number + 1}, row {row + 1}, column {column + 1}"
        whole = drawn(rows, columns, body, f"{where} outlined in the image")
        near = drawn(rows, columns, body, f"{where} with the patches around it", window=_window(row, column, rows, columns))
        tiles += f'<div class="tile"><b>{k}: cosine {cosine:.3f}</b>{whole}{near}<small>{where}</small></div>'
    caption = f"{escaped(name)}, {_register(register)}: above the image with the patch in its frame, below the patches around it."
    return f'<figure {chosen}><div class="tiles">{tiles}</div><figcaption>{caption}</figcaption></figure>'


def _window(row: int, column: int, rows: int, columns: int) -> tuple[int, int, int, int]:
    """Column, row, width and height of a patch with one more on each side; at the border of the image the window is moved inside."""
    width, height = min(3, columns), min(3, rows)
    return min(max(column - 1, 0), columns - width), min(max(row - 1, 0), rows - height), width, height
