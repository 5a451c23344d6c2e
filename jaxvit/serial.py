"""Ablations to JSON and back. The text names arrays by their SHA-256; the arrays themselves are passed separately."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxvit.specs import RandomPatches, Replacement, StoredArray

FORMATS = (1, 2, 3)  # 2 has the field "same_donor", 3 "heads" or "channels"; texts without them stay as they were


def to_json(replacements: Sequence[Replacement]) -> str:
    """The replacements as one line of JSON, which names arrays by their hash."""
    chosen = any(r.heads is not None or r.channels is not None for r in replacements)
    version = 3 if chosen else 2 if any(r.same_donor for r in replacements) else 1
    return json.dumps({"format": version, "replacements": [_to_dict(r) for r in replacements]}, sort_keys=True)


def from_json(text: str, arrays: Mapping[str, np.ndarray]) -> tuple[Replacement, ...]:
    """The replacements that `to_json` wrote.

    Args:
        arrays: SHA-256 -> array, for every array that the text names.

    Raises:
        ValueError: not such a text, or an array is missing or is not the one that the hash names.
    """
    try:
        data = json.loads(text)
        if data["format"] not in FORMATS:
            raise ValueError(f"ablation format {data['format']} is unknown; this version reads formats {FORMATS[0]} to {FORMATS[-1]}")
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
        **({"same_donor": True} if r.same_donor else {}),
        **({} if r.heads is None else {"heads": r.heads}),
        **({} if r.channels is None else {"channels": r.channels}),
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
        same_donor=data.get("same_donor", False),
        heads=tuple(data["heads"]) if "heads" in data else None,
        channels=tuple(data["channels"]) if "channels" in data else None,
    )
