"""What tokens are under every edit of a group: features, the meter, and attention to the group; one program for edits of one structure."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import jaxvit
from experiments.features.extraction import Norm, Runner
from jaxvit import Ablation, Edits, Moments, ViT
from jaxvit.batching import Images, shuffle_groups
from jaxvit.geometry import mahalanobis


class Tokens(NamedTuple):
    """Tokens of the last block of many images.

    Attributes:
        cls: of every image.
        patches: those that are read, or their mean.
        meter: distance of all patches from their calibrated mean in standard deviations, before the final norm, mean over patches.
    """

    cls: Float[np.ndarray, "images width"]
    patches: Float[np.ndarray, "images places width"]
    meter: Float[np.ndarray, "images"]


def _tokens_of_share(
    norm: Norm, shared: dict[str, Any], model: ViT, images: Array, edits: Edits, ids: Array, valid: Array
) -> dict[str, Array]:
    output = jaxvit.forward(
        model, jaxvit.normalise(images, model.config), edits, example_ids=ids, valid=valid, groups=shuffle_groups(len(images))
    )
    tokens, prefix = output.tokens if norm == "final" else output.prenorm, output.layout.prefix
    patches = tokens[:, prefix:]
    if shared["places"] is None:
        read = patches.mean(axis=1, keepdims=True)
    else:
        read = jnp.take_along_axis(patches, shared["places"][ids - shared["first_id"]][..., None], axis=1)
    meter = mahalanobis(output.prenorm[:, prefix:], shared["mean"], shared["variance"]).mean(axis=-1)
    return {"cls": tokens[None, :, 0], "patches": read[None], "meter": meter[None]}


_PROGRAMS = {norm: functools.partial(_tokens_of_share, norm) for norm in ("final", "none")}
"""Made once, so that a program is compiled only once."""

_PLACES_STEP = 1024
"""The table of places that are read has a multiple of so many rows."""


def tokens_under(
    runner: Runner,
    images: Images,
    ablation: Ablation,
    edits: Edits,
    statistics: Moments,
    first_id: int,
    places: np.ndarray | None,
    norm: Norm = "final",
) -> Tokens:
    """Tokens of images under an edit.

    Args:
        edits: the ablation's, of the structure of its family (`of_one_structure`).
        places: patches that are read of each image; None for their mean.
    """
    mean, variance = statistics.mean["block_output"][-1, -1], statistics.variance["block_output"][-1, -1]
    if places is not None:  # parts of other sizes then share the program
        places = np.pad(places, ((0, -len(places) % _PLACES_STEP), (0, 0)))
    shared = {"places": places, "first_id": np.int32(first_id), "mean": mean, "variance": variance}
    arrays = runner.map_batches(_PROGRAMS[norm], shared, images, ablation, first_id, edits)
    return Tokens(**{name: array[0] for name, array in arrays.items()})


def of_one_structure(ablations: Mapping[str, Ablation], families: Mapping[str, str], model: ViT, size: tuple[int, int]) -> dict[str, Edits]:
    """The edits of ablations by name; those of a family have one structure, and share a program."""
    edits: dict[str, Edits] = {}
    for family in dict.fromkeys(families.values()):
        names = [name for name in ablations if families[name] == family]
        stacked = jax.device_get(jaxvit.stack([ablations[name] for name in names], model, size))
        edits |= {name: jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i, name in enumerate(names)}
    return edits
