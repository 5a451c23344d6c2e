"""Patch features as pictures, with and without ablation: principal components as colours, norms, and attention of CLS and registers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Array, Float

from experiments.demo import label
from experiments.plotting.controls import OUTDATED, Axis, not_shown, view, views
from experiments.plotting.escape import escaped
from experiments.plotting.pictures import definitions, drawn, photograph, ramp, ramp_bar, sheet, show_photograph, steps, thumbnail
from experiments.rows import Row
from experiments.study.jobs import Arrays, Job, rows_key
from experiments.study.results import StudyResults
from experiments.study.target import Target
from jaxvit import geometry
from jaxvit.capture import BlockState

TITLE = "Patch features, norms and attention as pictures"
NOTE = (
    "The first three principal components of the patch features as red, green and blue. Each image of a model has one basis and one scale "
    "for all its conditions: compare colours among these, not among images. Norms are before the final norm, on one scale for an image "
    "and model. Point at a patch, or choose a picture with Tab and a patch with the arrow keys, to read its norm or attention."
)
ATTENTION_NOTE = (
    "Attention of CLS, of the registers (their mean) and of each register over patches, without ablation: mean over heads, after the "
    "softmax over all tokens. Each picture is scaled to its own largest share, which stands below: where that is small, bright is little."
)
KIND = "maps"
VERSION = 2
IMAGES = 6
BLOCKS = 12
"""Most blocks of a model whose attention is on the page; the cell has all."""
CONDITIONS = ("full", "zero_cls", "zero_registers", "mean_registers")


def jobs(target: Target) -> Iterator[Job]:
    """Pictures of a few test images."""
    if not target.baseline and target.model is not None:
        names = [condition for condition in CONDITIONS if condition in target.conditions]
        ablations = [target.ablation_key(name, target.settings.seed) for name in names]
        key = rows_key(target, KIND, version=VERSION, images=IMAGES, conditions=names, ablations=ablations)
        label = f"{target.name}: feature maps"
        yield Job(key, target.name, label, 1, lambda store: _compute(target, names), IMAGES * len(names), apart=True)


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
    attention = features[0].captured["rows"]  # [layers, images, CLS and registers, patches]
    return [], {
        "images": target.data.analysis_images[:count],
        "conditions": np.array(names),
        "maps": colours.reshape(count, len(names), *patch_rows_columns, 3).swapaxes(0, 1),
        "norms": np.stack([f.patch_norms for f in features]).reshape(len(names), count, *patch_rows_columns),
        "attention": attention.reshape(*attention.shape[:3], *patch_rows_columns),
    }


def section(results: StudyResults) -> str:
    """Components and norms of a model and image under every condition, and attention over the photograph at every block; of the run with
    the most conditions where there are several in the folder."""
    cells = sorted(results.cells(KIND, VERSION), key=lambda cell: len(cell.key["conditions"]))
    by_model = {cell.key["name"]: cell.arrays for cell in cells}
    shown = {f"m{i}": by_model[model] for i, model in enumerate(results.models) if model in by_model}
    outdated = results.outdated(KIND, VERSION)
    missing = not_shown(outdated, OUTDATED)
    if not shown:
        return missing
    missing += not_shown([model for model in results.models if model not in by_model and model not in outdated])
    names = {word: label(results.models[int(word[1:])]) for word in shown}
    photographs = next(iter(shown.values()))["images"]
    icons = {str(i): thumbnail(f"map-photo-{i}") for i in range(len(photographs))}
    depth = max(len(arrays["attention"]) for arrays in shown.values())
    blocks = shown_blocks(depth)
    axes = (
        Axis("model", names, next((word for word in shown if shown[word]["attention"].shape[2] > 1), ""), group="model"),
        Axis("image", {str(i): str(i + 1) for i in range(len(photographs))}, group="map-image", icons=icons),
    )
    with_block = (*axes, Axis("block", {str(n): str(n) for n in blocks}, str(depth - 1), slider=True, group="block"))
    features, attention = "", ""
    images = [ramp(), *(photograph(f"map-photo-{i}", image) for i, image in enumerate(photographs))]
    for word, arrays in shown.items():
        of_features, feature_sheets = _feature_panels(word, names[word], arrays, axes)
        of_attention, attention_sheet = _attention_panels(word, names[word], arrays["attention"], with_block)
        features, attention = features + of_features, attention + of_attention
        images += [*feature_sheets, attention_sheet]
    none = '<p data-view="none">This model has no such block.</p>'
    return (
        f"{definitions(images)}{views('feature-maps', axes, features)}<h3>Attention on the image</h3>"
        f'<p class="note">{ATTENTION_NOTE}</p>{views("attention-maps", with_block, attention + none)}{missing}'
    )


def _feature_panels(word: str, name: str, arrays: Arrays, axes: Sequence[Axis]) -> tuple[str, list[str]]:
    """Panels of a model, one for each image: components and norms under every condition; and the sheets that they show."""
    conditions, norms = list(map(str, arrays["conditions"])), arrays["norms"]
    count, rows, columns = norms.shape[1:]
    low, high = norms.min(axis=(0, 2, 3)), norms.max(axis=(0, 2, 3))
    coloured = np.round(255 * np.clip(arrays["maps"], 0, 1)).astype(np.uint8).reshape(-1, rows, columns, 3)
    components, components_sheet = sheet(f"{word}-components", coloured)
    lengths, lengths_sheet = sheet(f"{word}-norms", steps(norms, low[:, None, None], high[:, None, None]).reshape(-1, rows, columns))
    panels = ""
    for i in range(count):
        photo = drawn(rows, columns, show_photograph(f"map-photo-{i}", rows, columns), f"image {i + 1}")
        tiles = f'<div class="tile"><b>image {i + 1}</b>{photo}</div>'
        ends = f' data-low="{low[i]:.4g}" data-high="{high[i]:.4g}"'
        for c, condition in enumerate(conditions):
            here = norms[c, i]
            said = f"norm {here.min():.3g} to {here.max():.3g}, median {np.median(here):.3g}"
            tiles += (
                f'<div class="tile"><b>{escaped(condition)}</b>'
                f"{drawn(rows, columns, components.show(c * count + i), f'principal components, {condition}')}"
                f"{drawn(rows, columns, lengths.show(c * count + i), f'norms, {condition}: {said}', ends, 'map')}"
                f"<small>{said}</small></div>"
            )
        caption = f"{escaped(name)}, image {i + 1}: components above, norms below, {ramp_bar(f'{low[i]:.3g}', f'{high[i]:.3g}')}"
        panels += _figure(view(axes, word, str(i)), tiles, caption)
    return panels, [components_sheet, lengths_sheet]


def _attention_panels(word: str, name: str, attention: np.ndarray, axes: Sequence[Axis]) -> tuple[str, str]:
    """Panels of a model, one for each image and block: the attention of every source over patches; and the sheet that they show."""
    attention, sources = with_mean_register(attention)
    blocks = [int(block) for block in axes[-1].options if int(block) < len(attention)]
    if not blocks:
        return "", ""
    attention = attention[blocks]
    _, count, _, rows, columns = attention.shape
    high = attention.max(axis=(3, 4))
    maps, maps_sheet = sheet(f"{word}-attention", steps(attention, 0.0, high[..., None, None]).reshape(-1, rows, columns))
    panels = ""
    for i in range(count):
        for place, layer in enumerate(blocks):
            tiles = ""
            for s, source in enumerate(sources):
                largest = f"{100 * high[place, i, s]:.3g}"
                shown = show_photograph(f"map-photo-{i}", rows, columns) + maps.show((place * count + i) * len(sources) + s)
                picture = drawn(rows, columns, shown, f"{source}: 0 to {largest} %", f' data-high="{largest}"', "map")
                tiles += f'<div class="tile"><b>{source}</b>{picture}<small>up to {largest} %</small></div>'
            caption = f"{escaped(name)}, image {i + 1}, block {layer}: attention to a patch, {ramp_bar('0', 'the largest of the picture')}"
            panels += _figure(view(axes, word, str(i), str(layer)), tiles, caption, " %")
    return panels, maps_sheet


def shown_blocks(depth: int) -> list[int]:
    """Blocks whose attention is on the page, at most `BLOCKS` in equal steps up to the last: a deep model's would make it heavy."""
    step = -(-depth // BLOCKS)
    return list(range((depth - 1) % step, depth, step))


def with_mean_register(attention: Float[np.ndarray, "layers images prefix rows columns"]) -> tuple[np.ndarray, list[str]]:
    """Attention of CLS, of the mean register where there are registers, and of each, with their names."""
    registers = attention.shape[2] - 1
    if not registers:
        return attention, ["CLS"]
    mean = attention[:, :, 1:].mean(axis=2, keepdims=True)
    names = ["CLS", "mean register", *(f"r{r + 1}" for r in range(registers))]
    return np.concatenate([attention[:, :, :1], mean, attention[:, :, 1:]], axis=2), names


def _figure(chosen: str, tiles: str, caption: str, unit: str = "") -> str:
    """Pictures side by side with their caption, and the place where the number under the pointer is said."""
    said = f' data-unit="{unit}"' if unit else ""
    output = '<output class="value"></output>'
    return f'<figure {chosen}{said}><div class="tiles">{tiles}</div><figcaption>{caption}{output}</figcaption></figure>'
