"""Pictures of patch features: principal components as colours, norms, and where CLS and registers attend, with and without ablation."""

from __future__ import annotations

import html
from collections.abc import Iterator

import numpy as np
from jaxtyping import Array, Float

from experiments.demo import label
from experiments.figures import Finished, grid, picture
from experiments.study import Arrays, Job, Row, Subject, key
from jaxvit import geometry
from jaxvit.capture import BlockState

TITLE = "Patch features as pictures"
NOTE = (
    "First three principal components of the patch features as red, green and blue: each image has one basis and one scale for all its "
    "conditions, so compare colours down a column, not along a row. Norms are before the final norm, on one scale for an image. "
    "Attention of the last block over patches, mean over heads: of CLS, and mean of the registers, each scaled to its own maximum."
)
KIND = "maps"
IMAGES = 6
CONDITIONS = ("full", "zero_cls", "zero_registers", "mean_registers")
_BASIS = "principal components of each image, shared by its conditions"


def jobs(subject: Subject) -> Iterator[Job]:
    """Pictures of a few test images."""
    if not subject.baseline and subject.model is not None:
        names = [c for c in CONDITIONS if c in subject.conditions]
        cell = key(subject, KIND, basis=_BASIS, conditions=names)
        yield Job(cell, f"{subject.name}: feature maps", 1, lambda store: _compute(subject, names), IMAGES * len(names))


def attention_rows(state: BlockState) -> Float[Array, "batch prefix patches"]:
    """Attention of CLS and each register over patches, mean over heads. A capture."""
    prefix = state.layout.prefix
    return state.attention[:, :, :prefix, prefix:].mean(axis=1)


def _compute(subject: Subject, names: list[str]) -> tuple[list[Row], Arrays]:
    assert subject.model is not None
    found = [subject.sample(c, subject.settings.seed, {"rows": attention_rows}, IMAGES) for c in names]
    layout = subject.model.config.grid(*subject.data.sample.shape[1:3])
    patches = np.stack([f.patches for f in found])
    count = patches.shape[1]
    colours = np.stack([geometry.pca_rgb(patches[:, i].reshape(-1, patches.shape[-1])) for i in range(count)])
    rows = found[0].captured["rows"][-1]
    attention = [rows[:, :1]] + ([rows[:, 1:].mean(axis=1, keepdims=True)] if rows.shape[1] > 1 else [])
    return [], {
        "images": subject.data.sample[:count],
        "conditions": np.array(names),
        "maps": colours.reshape(count, len(names), *layout, 3).swapaxes(0, 1),
        "norms": np.stack([f.patch_norms for f in found]).reshape(len(names), count, *layout),
        "attention": np.concatenate(attention, axis=1).reshape(count, -1, *layout),
    }


def section(study: Finished) -> str:
    """One grid of pictures for each model."""
    return "".join(_grid(label(cell.key["model"]["name"]), cell.arrays()) for cell in study.cells(KIND))


def _grid(name: str, arrays: Arrays) -> str:
    norms = arrays["norms"] / np.maximum(arrays["norms"].max(axis=(0, 2, 3), keepdims=True), 1e-12)
    lines = [("image", [picture(image, "input image") for image in arrays["images"]])]
    lines += [
        (str(condition), [picture(m, f"{condition} map") for m in maps])
        for condition, maps in zip(arrays["conditions"], arrays["maps"], strict=True)
    ]
    lines += [
        (f"norm, {condition}", [picture(_grey(m), f"{condition} norms") for m in maps])
        for condition, maps in zip(arrays["conditions"], norms, strict=True)
    ]
    for source, of in zip(("CLS", "registers"), arrays["attention"].swapaxes(0, 1), strict=False):
        scaled = of / np.maximum(of.max(axis=(1, 2), keepdims=True), 1e-12)
        lines.append((f"attention of {source}", [picture(_grey(m), f"attention of {source}") for m in scaled]))
    return f"<h3>{html.escape(name)}</h3>{grid(lines)}"


def _grey(shares: np.ndarray) -> np.ndarray:
    return np.repeat(shares[..., None], 3, axis=-1)


if __name__ == "__main__":
    from experiments.reproduce import alone

    alone("feature_maps", __doc__)
