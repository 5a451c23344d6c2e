"""Ablations to JSON and back, and in words. JSON names arrays by their SHA-256; the arrays themselves are passed separately."""

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


def in_words(replacements: Sequence[Replacement]) -> str:
    """What an ablation does, for people: "zero(registers) at block_output of blocks 6-11 & noise(cls, seed=1) at value of all blocks";
    "nothing" for an empty one."""
    return " & ".join(map(_one_in_words, replacements)) or "nothing"


def _one_in_words(r: Replacement) -> str:
    if isinstance(r.tokens, RandomPatches):
        tokens = f"{r.tokens.count} random patches"
    elif isinstance(r.tokens, tuple):
        tokens = f"[{', '.join(map(str, r.tokens))}]"
    else:
        tokens = str(r.tokens)
    details = [tokens] + [f"seed={r.seed}"] * (r.kind in ("noise", "shuffle")) + ["same_donor=True"] * r.same_donor
    details += [f"{name}={_few(numbers)}" for name, numbers in (("heads", r.heads), ("channels", r.channels)) if numbers is not None]
    blocks = block_ranges(r.layers)
    where = "all blocks" if blocks == "all" else f"block{'' if blocks.isdigit() else 's'} {blocks}"
    return f"{r.kind}({', '.join(details)}) at {r.at} of {where}"


def _few(numbers: Sequence[int]) -> str:
    """The first numbers of a list, and how many there are where that is not all."""
    shown = ", ".join(map(str, numbers[:6]))
    return f"[{shown}]" if len(numbers) <= 6 else f"[{shown}, ...; {len(numbers)} of them]"


def block_ranges(layers: str | Sequence[int]) -> str:
    """Block numbers in order as text: "all", "3", "0-2,5"."""
    if isinstance(layers, str):
        return layers
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
