"""Ablations to JSON and back. The text names arrays by their SHA-256; the arrays themselves are passed separately."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxvit.specs import RandomPatches, Replacement, StoredArray

FORMAT = 1


def to_json(replacements: Sequence[Replacement]) -> str:
    """The replacements as one line of JSON, which names arrays by their hash."""
    return json.dumps({"format": FORMAT, "replacements": [_to_dict(r) for r in replacements]}, sort_keys=True)


def from_json(text: str, arrays: Mapping[str, np.ndarray]) -> tuple[Replacement, ...]:
    """The replacements that `to_json` wrote.

    Args:
        arrays: SHA-256 -> array, for every array that the text names.

    Raises:
        ValueError: not such a text, or an array is missing or is not the one that the hash names.
    """
    try:
        data = json.loads(text)
        if data["format"] != FORMAT:
            raise ValueError(f"ablation format {data['format']} is unknown; this version reads format {FORMAT}")
        return tuple(_from_dict(entry, arrays) for entry in data["replacements"])
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"not an ablation in JSON ({type(error).__name__}: {error}); pass what Ablation.to_json wrote") from error


def _to_dict(r: Replacement) -> dict[str, Any]:
    tokens: Any = r.tokens
    if isinstance(tokens, RandomPatches):
        tokens = {"random_patches": tokens.count, "seed": tokens.seed}
    return {
        "kind": r.kind,
        "tokens": tokens,
        "layers": r.layers,
        "at": r.at,
        "seed": r.seed,
        "value": r.value and r.value.sha256,
        "deviation": r.deviation and r.deviation.sha256,
        "image_size": r.image_size,
    }


def _from_dict(data: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> Replacement:
    def stored(sha256: str | None) -> StoredArray | None:
        if sha256 is None:
            return None
        if sha256 not in arrays:
            raise ValueError(f"the ablation names array {sha256}, which was not given; pass arrays={{sha256: array}} (Ablation.arrays)")
        array = StoredArray.of(arrays[sha256])
        if array.sha256 != sha256:
            raise ValueError(f"the array given for {sha256} has hash {array.sha256}; pass the array that the ablation was written with")
        return array

    tokens = data["tokens"]
    if isinstance(tokens, dict):
        tokens = RandomPatches(tokens["random_patches"], tokens["seed"])
    elif isinstance(tokens, list):
        tokens = tuple(tokens)
    return Replacement(
        kind=data["kind"],
        tokens=tokens,
        layers=data["layers"] if data["layers"] == "all" else tuple(data["layers"]),
        at=data["at"],
        seed=data["seed"],
        value=stored(data["value"]),
        deviation=stored(data["deviation"]),
        image_size=data["image_size"] and (data["image_size"][0], data["image_size"][1]),
    )
