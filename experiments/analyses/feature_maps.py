"""Patch features as pictures, with and without ablation: principal components as colours, norms, and attention of CLS and registers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Array, Float

from experiments.demo import label
from experiments.plotting.elements import grid, picture
from experiments.plotting.escape import escaped
from experiments.rows import Row
from experiments.study.jobs import Arrays, Job, rows_key
from experiments.study.results import StudyResults
from experiments.study.target import Target
from jaxvit import geometry
from jaxvit.capture import BlockState

TITLE = "Patch features as pictures"
NOTE = (
    "The first three principal components of the patch features as red, green and blue. Each image has one basis and one scale for all "
    "its conditions: compare colours down a column, not along a row. Norms are before the final norm, on one scale for each image. "
    "Attention of the last block over patches, mean over heads: of CLS, and mean of the registers, each scaled to its own maximum."
)
KIND = "maps"
VERSION = 1
IMAGES = 6
CONDITIONS = ("full", "zero_cls", "zero_registers", "mean_registers")


def jobs(target: Target) -> Iterator[Job]:
    """Pictures of a few test images."""
    if not target.baseline and target.model is not None:
        names = [condition for condition in CONDITIONS if condition in target.conditions]
        ablations = [target.ablation_key(name, target.settings.seed) for name in names]
        key = rows_key(target, KIND, version=VERSION, images=IMAGES, conditions=names, ablations=ablations)
        yield Job(key, target.name, f"{target.name}: feature maps", 1, lambda store: _compute(target, names), IMAGES * len(names))


def attention_rows(state: BlockState) -> Float[Array, "batch prefix patches"]:
    """Attention of CLS and each register over patches, mean over heads. A capture."""
    prefix = state.layout.prefix
    return state.attention[:, :, :prefix, prefix:].mean(axis=1)


def _compute(target: Target, names: Sequence[str]) -> tuple[list[Row], Arrays]:
    assert target.model is not None
    features = [target.extract_analysis(name, target.settings.seed, {"rows": attention_rows}, IMAGES) for name in names]
    patch_rows_columns = target.model.config.grid(*target.data.analysis_images.shape[1:3])
    patches = np.stack([f.patches for f in features])
    count = patches.shape[1]
    colours = np.stack([geometry.pca_rgb(patches[:, i].reshape(-1, patches.shape[-1])) for i in range(count)])
    rows = features[0].captured["rows"][-1]
    attention = [rows[:, :1]] + ([rows[:, 1:].mean(axis=1, keepdims=True)] if rows.shape[1] > 1 else [])
    return [], {
        "images": target.data.analysis_images[:count],
        "conditions": np.array(names),
        "maps": colours.reshape(count, len(names), *patch_rows_columns, 3).swapaxes(0, 1),
        "norms": np.stack([f.patch_norms for f in features]).reshape(len(names), count, *patch_rows_columns),
        "attention": np.concatenate(attention, axis=1).reshape(count, -1, *patch_rows_columns),
    }


def section(results: StudyResults) -> str:
    """One grid of pictures for each model, of the run with the most conditions where there are several in the folder."""
    cells = sorted(results.cells(KIND), key=lambda cell: len(cell.key["conditions"]))
    by_model = {cell.key["name"]: cell for cell in cells}
    return "".join(_model_grid(label(model), by_model[model].arrays) for model in results.models if model in by_model)


def _model_grid(name: str, arrays: Arrays) -> str:
    """The images, then a line for each condition of components and of norms, then attention."""
    norms = arrays["norms"] / np.maximum(arrays["norms"].max(axis=(0, 2, 3), keepdims=True), 1e-12)
    lines = [("image", [picture(image, "input image") for image in arrays["images"]])]
    for condition, maps in zip(arrays["conditions"], arrays["maps"], strict=True):
        lines.append((str(condition), [picture(m, f"{condition} map") for m in maps]))
    for condition, maps in zip(arrays["conditions"], norms, strict=True):
        lines.append((f"norm, {condition}", [picture(_grey(m), f"{condition} norms") for m in maps]))
    sources = ("CLS", "registers")[: arrays["attention"].shape[1]]  # a model without registers has no second
    for source, maps in zip(sources, arrays["attention"].swapaxes(0, 1), strict=True):
        scaled = maps / np.maximum(maps.max(axis=(1, 2), keepdims=True), 1e-12)
        lines.append((f"attention of {source}", [picture(_grey(m), f"attention of {source}") for m in scaled]))
    return f"<h3>{escaped(name)}</h3>{grid(lines)}"


def _grey(shares: np.ndarray) -> np.ndarray:
    """Values in 0..1 as grey pixels."""
    return np.repeat(shares[..., None], 3, axis=-1)
