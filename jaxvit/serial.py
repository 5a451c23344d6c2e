"""Ablations to JSON and back, and in words. JSON names arrays by their SHA-256; the arrays themselves are passed separately."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxvit.functions import NamedFunction
from jaxvit.specs import Cut, Edit, Positions, RandomPatches, Replacement, StoredArray, Tokens

FORMATS = (1, 2, 3, 4, 5)
"""2 has the field "same_donor", 3 "heads" or "channels", 4 cuts, 5 all later kinds, selectors and fields; texts without them stay as they
were."""


def to_json(replacements: Sequence[Edit]) -> str:
    """The parts of an ablation as one line of JSON, which names arrays by their hash."""
    version = max(map(_format, replacements), default=1)
    return json.dumps({"format": version, "replacements": [_to_dict(r) for r in replacements]}, sort_keys=True)


def _format(r: Edit) -> int:
    """The first format that can hold a part."""
    if isinstance(r, Cut):
        return 5 if any(isinstance(tokens, Positions) for tokens in (r.queries, r.keys)) else 4
    if r.kind in ("patch", "add", "scale", "swap", "custom") or isinstance(r.tokens, Positions) or r.norm is not None:
        return 5
    return 3 if r.heads is not None or r.channels is not None else 2 if r.same_donor else 1


def from_json(text: str, arrays: Mapping[str, np.ndarray], functions: Mapping[str, Callable[..., Any]] | None = None) -> tuple[Edit, ...]:
    """The parts that `to_json` wrote.

    Args:
        arrays: SHA-256 -> array, for every array that the text names.
        functions: name -> function, for every function that the text names.

    Raises:
        ValueError: not such a text, or an array or a function is missing or is not the one that the hash names.
    """
    try:
        data = json.loads(text)
        if data["format"] not in FORMATS:
            raise ValueError(f"ablation format {data['format']} is unknown; this version reads formats {FORMATS[0]} to {FORMATS[-1]}")
        return tuple(_from_dict(entry, arrays, functions or {}) for entry in data["replacements"])
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
        **({} if r.given is None else {"given": r.given}),
        **({"factor": r.factor} if r.kind in ("add", "scale") else {}),
        **({} if r.partners is None else {"partners": r.partners}),
        **({} if r.norm is None else {"norm": r.norm}),
        **({} if r.function is None else _function_fields(r.function)),
        **({"arrays": {name: array.sha256 for name, array in r.arrays}} if r.arrays else {}),
    }


def _tokens_to_json(tokens: Tokens | Positions) -> Any:
    if isinstance(tokens, Positions):
        return {"positions": tokens.name, **({"per": tokens.per} if tokens.per else {})}
    return {"random_patches": tokens.count, "seed": tokens.seed} if isinstance(tokens, RandomPatches) else tokens


def _tokens_from_json(tokens: Any) -> Any:
    if isinstance(tokens, dict) and "positions" in tokens:
        return Positions(tokens["positions"], tokens.get("per"))
    if isinstance(tokens, dict):
        return RandomPatches(tokens["random_patches"], tokens["seed"])
    return tuple(tokens) if isinstance(tokens, list) else tokens


def _function_fields(function: NamedFunction) -> dict[str, Any]:
    return {"function": {"name": function.name, "source": function.source, "version": function.version}}


def _function(data: dict[str, Any], functions: Mapping[str, Callable[..., Any]]) -> NamedFunction:
    name = data["name"]
    if name not in functions:
        raise ValueError(f'the ablation names function {name}, which was not given; pass functions={{"{name}": function}}')
    return NamedFunction(name, data["source"], data["version"], functions[name]).with_function(functions[name])


def _from_dict(data: dict[str, Any], arrays: Mapping[str, np.ndarray], functions: Mapping[str, Callable[..., Any]]) -> Edit:
    if data["kind"] == "cut":
        names = ("queries", "keys", "layers", "heads", "mass")
        return Cut(**{name: _tokens_from_json(data[name]) for name in names}, itself=data["itself"])

    def stored(sha256: str) -> StoredArray:
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
        value=stored(data["value"]) if data["value"] else None,
        deviation=stored(data["deviation"]) if data["deviation"] else None,
        image_size=data["image_size"] and (data["image_size"][0], data["image_size"][1]),
        same_donor=data.get("same_donor", False),
        heads=tuple(data["heads"]) if "heads" in data else None,
        channels=tuple(data["channels"]) if "channels" in data else None,
        given=data.get("given"),
        factor=data.get("factor", 1.0),
        partners=tuple(data["partners"]) if isinstance(data.get("partners"), list) else data.get("partners"),
        norm=data.get("norm"),
        function=_function(data["function"], functions) if "function" in data else None,
        arrays=tuple((name, stored(sha256)) for name, sha256 in sorted(data.get("arrays", {}).items())),
    )


def in_words(replacements: Sequence[Edit]) -> str:
    """What an ablation does, for people: "zero(registers) at block_output of blocks 6-11 & cut(cls -> registers) of all blocks"; "nothing"
    for an empty one."""
    return " & ".join(map(_one_in_words, replacements)) or "nothing"


def tokens_in_words(tokens: Tokens | Positions) -> str:
    """Which tokens a selector chooses, for people: "registers", "[cls, 3]", "4 random patches", "tokens of "sink" per head"."""
    if isinstance(tokens, RandomPatches):
        return f"{tokens.count} random patches"
    if isinstance(tokens, Positions):
        return f'tokens of "{tokens.name}"{" per head" if tokens.per else ""}'
    return f"[{', '.join(map(str, tokens))}]" if isinstance(tokens, tuple) else str(tokens)


def _one_in_words(r: Edit) -> str:
    blocks = block_ranges(r.layers)
    where = "all blocks" if blocks == "all" else f"block{'s' if len(r.layers) != 1 else ''} {blocks}"
    if isinstance(r, Cut):
        details = [f"{tokens_in_words(r.queries)} -> {tokens_in_words(r.keys)}"] + ([] if r.heads is None else [f"heads={_few(r.heads)}"])
        details += [f"mass={tokens_in_words(r.mass)}"] * (r.mass != "renormalise") + ["itself=False"] * (not r.itself)
        return f"cut({', '.join(details)}) of {where}"
    if r.function is None:
        details = [tokens_in_words(r.tokens)] + ([] if r.given is None else [f'"{r.given}"'])
        details += [] if r.partners is None else [tokens_in_words(r.partners)]
    else:
        details = [str(r.function), *(name for name, _ in r.arrays)]
    details += [f"{'strength' if r.kind == 'add' else 'factor'}={r.factor:g}"] if r.kind in ("add", "scale") else []
    details += [f"seed={r.seed}"] * (r.kind in ("noise", "shuffle")) + ["same_donor=True"] * r.same_donor
    details += [f"{name}={_few(numbers)}" for name, numbers in (("heads", r.heads), ("channels", r.channels)) if numbers is not None]
    details += [] if r.norm is None else [f'norm="{r.norm}"']
    return f"{r.kind}({', '.join(details)}) at {r.at} of {where}"


def _few(numbers: Sequence[int]) -> str:
    """The first numbers of a list, and how many there are where that is not all."""
    shown = ", ".join(map(str, numbers[:6]))
    return f"[{shown}]" if len(numbers) <= 6 else f"[{shown}, ...; {len(numbers)} of them]"


def block_ranges(layers: str | Sequence[int]) -> str:
    """Block numbers in order as text: "all", "3", "0-2,5"; those that count from the end one by one: "-2,-1"."""
    if isinstance(layers, str):
        return layers
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1 and runs[-1][0] >= 0:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
