"""The token microscope: what every token of a few images attends to, what resembles it, and what each condition changes of that."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import jaxvit
from experiments.datasets.base import first_id
from experiments.features.conditions import FULL
from experiments.features.token_codes import (
    MOST_DIMS,
    attention_codes,
    colours,
    cosine_errors,
    feature_codes,
    leading_directions,
    norm_codes,
    unit_vectors,
)
from experiments.rows import Row
from experiments.study.jobs import Arrays, Job, rows_key
from experiments.study.results import StudyResults
from experiments.study.target import Target
from jaxvit import TokenLayout
from jaxvit.capture import BlockState, Capture, block_output
from jaxvit.specs import Cut

TITLE = "Token microscope"
NOTE = (
    "Choose a token of an image: what it attends to, what resembles it, and what an ablation changes of that, at every block. Attention is "
    "as the block uses it, after edits; cosines, norms and colours are of the tokens as they leave the block, after edits and before the "
    "final norm. Colours: three principal components of the patches of one image and block in the full condition, on one scale for all "
    "conditions. Random conditions are one draw of theirs; a shuffle exchanges tokens among these images."
)
KIND = "tokens"
VERSION = 1
FEW_TOKENS = 128
IMAGES = {True: 6, False: 3}
"""Test images that are kept, by whether they have few tokens."""
DIMS = (MOST_DIMS, 32, 16)
"""Numbers of coordinates that a page may choose from."""
FIRST = (FULL, "zero_cls", "zero_registers", "mean_registers")
"""Conditions whose attention is kept before that of others; cuts come right after "full"."""
HEAD_CONDITIONS = 4
"""Conditions under which attention is kept by head, in the same order."""
_MOST_ATTENTION, _MOST_HEADS = 2**26, 2**24  # bytes of codes in a cell
_ERROR_TOKENS = 128  # whose cosines are compared with exact ones


def jobs(target: Target) -> Iterator[Job]:
    """Token data of a few test images under every condition."""
    if not target.baseline and target.model is not None:
        names, images = list(target.conditions), _images(target)
        ablations = [target.ablation_key(name, target.settings.seed) for name in names]
        key = rows_key(target, KIND, version=VERSION, images=images, conditions=names, ablations=ablations)
        label = f"{target.name}: token microscope"
        yield Job(key, target.name, label, 2, lambda store: _compute(target, names), images * len(names), apart=True)


def head_mean(state: BlockState) -> Float[Array, "batch tokens tokens"]:
    """Attention, mean over heads. A capture."""
    return state.attention.mean(axis=1)


def every_head(state: BlockState) -> Float[Array, "batch heads tokens tokens"]:
    """Attention of every head. A capture."""
    return state.attention


def attention_order(names: Sequence[str], cutting: Sequence[str]) -> list[str]:
    """Conditions in the order in which their attention is worth keeping.

    Args:
        cutting: those that cut attention.
    """
    return list(dict.fromkeys(name for name in (FULL, *cutting, *FIRST, *names) if name in names))


def _layout(target: Target) -> TokenLayout:
    assert target.model is not None
    return TokenLayout.of(target.model.config, target.image_size)


def _images(target: Target) -> int:
    return min(IMAGES[_layout(target).tokens <= FEW_TOKENS], len(target.data.analysis_images))


def _compute(target: Target, names: Sequence[str]) -> tuple[list[Row], Arrays]:
    assert target.model is not None
    config, layout, seed, images = target.model.config, _layout(target), target.settings.seed, _images(target)
    cutting = [name for name in names if any(isinstance(part, Cut) for part in target.ablation(name, seed).replacements)]
    order = attention_order(names, cutting)
    size = config.depth * images * layout.tokens**2
    with_attention, with_heads = order[: _MOST_ATTENTION // size], order[: min(HEAD_CONDITIONS, _MOST_HEADS // (size * config.heads))]
    maps_of = every_head if with_heads else head_mean
    norms, units, attention, heads = [], [], {}, {}
    for name, captured in _runs(target, names, images, lambda name: {"attention": maps_of} if name in with_attention else {}):
        tokens = np.nan_to_num(captured["tokens"].astype(np.float32))
        norms.append(np.linalg.norm(tokens, axis=-1))
        units.append(unit_vectors(tokens).astype(np.float16))
        if name in with_attention:
            maps = captured["attention"]
            attention[name] = attention_codes(maps.mean(axis=2) if with_heads else maps)
        if name in with_heads:
            heads[name] = attention_codes(maps)
    coded = norm_codes(np.stack(norms))
    features, errors = _features(units)
    arrays = {
        "images": np.asarray(target.data.analysis_images[:images]),
        "grid": np.array([layout.prefix, layout.rows, layout.columns, config.heads]),
        "conditions": np.array(names),
        "ablated": np.array([target.recipe(name, seed).tokens for name in names]),
        "norms": coded.codes,
        "norm_range": np.array([coded.low, coded.high]),
        "features": features,
        "cosine_errors": errors,
        "colours": _colours(units, layout.prefix),
        "attention_conditions": np.array(with_attention, dtype=np.str_),
        "head_conditions": np.array(with_heads, dtype=np.str_),
    }
    for array, coded_maps, order in (("attention", attention, with_attention), ("heads", heads, with_heads)):
        if order:
            arrays[array] = np.stack([coded_maps[name].codes for name in order])
            arrays[f"{array}_sums"] = np.stack([coded_maps[name].sums for name in order])
    return [], arrays


def _runs(
    target: Target, names: Sequence[str], images: int, captures: Callable[[str], dict[str, Capture]]
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """What each condition captures of the leading test images, its tokens and what is asked for besides, by layer first.

    All conditions share one program (`jaxvit.stack`): compiling one for each would take longer than to run them. A shuffle exchanges tokens
    among these images.
    """
    model, size = target.runner.model, target.image_size
    edits = jaxvit.stack([target.ablation(name, target.settings.seed) for name in names], model, size)
    pixels = jaxvit.normalise(np.asarray(target.data.analysis_images[:images]), model)
    ids = jnp.asarray(first_id("test") + np.arange(images))
    for number, name in enumerate(names):
        of_condition = jax.tree.map(lambda leaf, number=number: leaf[number], edits)
        captured = jaxvit.forward(model, pixels, of_condition, {"tokens": block_output, **captures(name)}, ids).captured
        yield name, {key: np.asarray(array) for key, array in captured.items()}


def _features(units: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Codes of features, int8 [conditions, layers, images, tokens, dims], on directions that every layer has of its own, and the 99th
    percentile of the errors of cosines for each of `DIMS`."""
    layers, errors = [], []
    for layer in range(len(units[0])):
        of_layer = [condition[layer] for condition in units]  # [images, tokens, width] of each condition
        directions = leading_directions([part.reshape(-1, part.shape[-1]) for part in of_layer])
        layers.append(np.stack([feature_codes(part, directions) for part in of_layer]))
        errors.append(cosine_errors(of_layer[0][0, :_ERROR_TOKENS], layers[-1][0, 0, :_ERROR_TOKENS], DIMS))
    return np.stack(layers, axis=1), np.percentile(np.concatenate(errors, axis=1), 99, axis=1)


def _colours(units: Sequence[np.ndarray], prefix: int) -> np.ndarray:
    """uint8 [conditions, layers, images, tokens, 3]."""
    layers, images = units[0].shape[:2]
    by_layer = [
        np.stack([colours(np.stack([condition[layer, image] for condition in units]), prefix) for image in range(images)], axis=1)
        for layer in range(layers)
    ]
    return np.stack(by_layer, axis=1)


def section(results: StudyResults) -> str:
    """The controls, which the page's script fills with the data that `experiments.report.token_data` chooses from the cells."""
    if not any(True for _ in results.cells(KIND)):
        return ""
    return (files("experiments.analyses") / "token_microscope.html").read_text(encoding="utf-8")
