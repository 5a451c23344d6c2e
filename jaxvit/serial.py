"""Ablations to JSON and back, and in words. JSON names arrays by their SHA-256; the arrays themselves are passed separately."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxvit.specs import Cut, Edit, RandomPatches, Replacement, StoredArray, Tokens

FORMATS = (1, 2, 3, 4)  # 2 has the field "same_donor", 3 "heads" or "channels", 4 cuts; texts without them stay as they were


def to_json(replacements: Sequence[Edit]) -> str:
    """The parts of an ablation as one line of JSON, which names arrays by their hash."""
    version = max(map(_format, replacements), default=1)
    return json.dumps({"format": version, "replacements": [_to_dict(r) for r in replacements]}, sort_keys=True)


def _format(r: Edit) -> int:
    """The first format that can hold a part."""
    if isinstance(r, Cut):
        return 4
    return 3 if r.heads is not None or r.channels is not None else 2 if r.same_donor else 1


def from_json(text: str, arrays: Mapping[str, np.ndarray]) -> tuple[Edit, ...]:
    """The parts that `to_json` wrote.

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


def _to_dict(r: Edit) -> dict[str, Any]:
    if isinstance(r, Cut):
        tokens = {"queries": _tokens_to_json(r.queries), "keys": _tokens_to_json(r.keys)}
        return {"kind": "cut", **tokens, "layers": r.layers, "heads": r.heads, "mass": r.mass, "itself": r.itself}
    return {
        "kind": r.kind,
        "tokens": _tokens_to_json(r.tokens),
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


def _tokens_to_json(tokens: Tokens) -> Any:
    return {"random_patches": tokens.count, "seed": tokens.seed} if isinstance(tokens, RandomPatches) else tokens


def _tokens_from_json(tokens: Any) -> Any:
    if isinstance(tokens, dict):
        return RandomPatches(tokens["random_patches"], tokens["seed"])
    return tuple(tokens) if isinstance(tokens, list) else tokens


def _from_dict(data: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> Edit:
    if data["kind"] == "cut":
        names = ("queries", "keys", "layers", "heads", "mass")
        return Cut(**{name: _tokens_from_json(data[name]) for name in names}, itself=data["itself"])

    def stored(sha256: str | None) -> StoredArray | None:
        if sha256 is None:
            return None
        if sha256 not in arrays:
            raise ValueError(f"the ablation names array {sha256}, which was not given; pass arrays={{sha256: array}} (Ablation.arrays)")
        array = StoredArray.of(arrays[sha256])
        if array.sha256 != sha256:
            raise ValueError(f"the array given for {sha256} has hash {array.sha256}; pass the array that the ablation was written with")
        return array

    return Replacement(
        kind=data["kind"],
        tokens=_tokens_from_json(data["tokens"]),
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


def in_words(replacements: Sequence[Edit]) -> str:
    """What an ablation does, for people: "zero(registers) at block_output of blocks 6-11 & cut(cls -> registers) of all blocks"; "nothing"
    for an empty one."""
    return " & ".join(map(_one_in_words, replacements)) or "nothing"


def tokens_in_words(tokens: Tokens) -> str:
    """Which tokens a selector chooses, for people."""
    if isinstance(tokens, RandomPatches):
        return f"{tokens.count} random patches"
    return f"[{', '.join(map(str, tokens))}]" if isinstance(tokens, tuple) else str(tokens)


def _one_in_words(r: Edit) -> str:
    blocks = block_ranges(r.layers)
    where = "all blocks" if blocks == "all" else f"block{'' if blocks.isdigit() else 's'} {blocks}"
    if isinstance(r, Cut):
        details = [f"{tokens_in_words(r.queries)} -> {tokens_in_words(r.keys)}"] + ([] if r.heads is None else [f"heads={_few(r.heads)}"])
        details += [f"mass={tokens_in_words(r.mass)}"] * (r.mass != "renormalise") + ["itself=False"] * (not r.itself)
        return f"cut({', '.join(details)}) of {where}"
    details = [tokens_in_words(r.tokens)] + [f"seed={r.seed}"] * (r.kind in ("noise", "shuffle")) + ["same_donor=True"] * r.same_donor
    details += [f"{name}={_few(numbers)}" for name, numbers in (("heads", r.heads), ("channels", r.channels)) if numbers is not None]
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
