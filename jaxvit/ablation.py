"""Ablations as data: small frozen specs, composed with `&`, that go to JSON and back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jaxvit.tokens import Selector
from jaxvit.vit import SITES

if TYPE_CHECKING:
    from jaxvit.calibration import Statistics

Kind = Literal["zero", "constant", "mean", "noise", "shuffle"]
Layers = Literal["all"] | Sequence[int]
FORMAT = 1


@dataclass(frozen=True)
class RandomPatches:
    """Selector of `count` patches per example, drawn from (seed, example id), the same at all layers."""

    count: int
    seed: int = 0


@dataclass(frozen=True)
class StoredArray:
    """An array known by its content: equal and hashed by SHA-256, never embedded in JSON."""

    sha256: str
    array: np.ndarray = field(compare=False, repr=False)

    @classmethod
    def of(cls, array: Any) -> StoredArray:
        array = np.ascontiguousarray(array, dtype=np.float32)
        return cls(hashlib.sha256(repr(array.shape).encode() + array.tobytes()).hexdigest(), array)


@dataclass(frozen=True)
class Replacement:
    """One overwrite of chosen tokens at one site of chosen layers.

    Attributes:
        kind: what stands in the place of the token.
        tokens: a selector (see `jaxvit.tokens`), or `RandomPatches`.
        layers: "all", or block numbers from 0.
        at: "block_output", "block_input", "attention_output" or "mlp_output".
        seed: of noise and shuffle.
        value: constant vector [D] or one per token [n, D]; dataset mean [L, slots, D] for mean and noise.
        deviation: standard deviation [L, slots, D] for noise.
        image_size: image size the statistics were made at, or None where any is allowed.
    """

    kind: Kind
    tokens: str | int | tuple[str | int, ...] | RandomPatches
    layers: Literal["all"] | tuple[int, ...] = "all"
    at: str = "block_output"
    seed: int = 0
    value: StoredArray | None = None
    deviation: StoredArray | None = None
    image_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.at not in SITES:
            raise ValueError(f'unknown site "{self.at}"; at is one of {", ".join(SITES)}')
        for seed in (self.seed, self.tokens.seed if isinstance(self.tokens, RandomPatches) else 0):
            if not 0 <= seed < 2**32:
                raise ValueError(f"seed {seed} is out of range; use 0 to 2^32 - 1")


@dataclass(frozen=True)
class Ablation:
    """Replacements applied in order. `a & b` applies `a`, then `b`, wherever both act."""

    replacements: tuple[Replacement, ...] = ()

    def __and__(self, other: Ablation) -> Ablation:
        return Ablation(self.replacements + other.replacements)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """Every array the ablation needs, by SHA-256: what `from_json` asks for."""
        stored = [a for r in self.replacements for a in (r.value, r.deviation) if a is not None]
        return {a.sha256: a.array for a in stored}

    def to_json(self) -> str:
        """One line of JSON; arrays are named by their hash."""
        return json.dumps({"format": FORMAT, "replacements": [_to_dict(r) for r in self.replacements]}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, arrays: Mapping[str, np.ndarray] | None = None) -> Ablation:
        """The ablation that `to_json` wrote.

        Args:
            arrays: SHA-256 -> array, for every array that the text names (`Ablation.arrays`).

        Raises:
            ValueError: not such a text, or an array is missing or is not the one that the hash names.
        """
        try:
            data = json.loads(text)
            if data["format"] != FORMAT:
                raise ValueError(f"ablation format {data['format']} is unknown; this version reads format {FORMAT}")
            return cls(tuple(_from_dict(d, arrays or {}) for d in data["replacements"]))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"not an ablation in JSON ({type(error).__name__}: {error}); pass what Ablation.to_json wrote") from error


def zero(tokens: Selector | RandomPatches, layers: Layers = "all", at: str = "block_output") -> Ablation:
    """Overwrite tokens with zero. Keys of a zeroed token stay in attention: LayerNorm maps zero to its bias."""
    return _one("zero", tokens, layers, at)


def constant(tokens: Selector | RandomPatches, vector: Any, layers: Layers = "all", at: str = "block_output") -> Ablation:
    """Overwrite tokens with a vector [D], or with one vector per selected token [n, D] in order of position."""
    return _one("constant", tokens, layers, at, value=StoredArray.of(vector))


def mean(
    tokens: Selector | RandomPatches, statistics: Statistics, layers: Layers = "all", at: str = "block_output", any_size: bool = False
) -> Ablation:
    """Overwrite tokens with their dataset mean per layer and slot (all patches share one slot).

    Args:
        statistics: of `jaxvit.calibrate`, with the site `at` among its sites.
        any_size: accept images of another size than the statistics were made at.

    Raises:
        ValueError: the statistics lack the site.
    """
    value, _, size = _statistics_of(statistics, at, any_size)
    return _one("mean", tokens, layers, at, value=value, image_size=size)


def noise(
    tokens: Selector | RandomPatches,
    statistics: Statistics,
    seed: int = 0,
    layers: Layers = "all",
    at: str = "block_output",
    any_size: bool = False,
) -> Ablation:
    """Overwrite tokens with Gaussian noise of their mean and variance per layer, slot and channel.

    A fresh draw per example and layer, from fold_in(seed, layer, example id). Arguments and errors as for `mean`.
    """
    value, deviation, size = _statistics_of(statistics, at, any_size)
    return _one("noise", tokens, layers, at, seed=seed, value=value, deviation=deviation, image_size=size)


def shuffle(tokens: Selector | RandomPatches, seed: int = 0, layers: Layers = "all", at: str = "block_output") -> Ablation:
    """Overwrite tokens with those of another valid example of the batch: a new random cycle per layer."""
    return _one("shuffle", tokens, layers, at, seed=seed)


def random_patches(count: int, seed: int = 0) -> RandomPatches:
    """Selector of `count` random patches of every example.

    Raises:
        ValueError: count is not positive.
    """
    if count < 1:
        raise ValueError(f"random_patches needs a positive count, got {count}")
    return RandomPatches(count, seed)


def _one(kind: Kind, tokens: Selector | RandomPatches, layers: Layers, at: str, **more: Any) -> Ablation:
    if isinstance(layers, str) and layers != "all":
        raise ValueError(f'layers is "all" or a list of block numbers, got "{layers}"')
    chosen: Literal["all"] | tuple[int, ...] = "all" if isinstance(layers, str) else tuple(sorted({int(layer) for layer in layers}))
    names = tokens if isinstance(tokens, (str, RandomPatches)) else _plain(tokens)
    return Ablation((Replacement(kind, names, chosen, at, **more),))


def _plain(tokens: Any) -> int | tuple[str | int, ...]:
    if isinstance(tokens, (int, np.integer)):
        return int(tokens)
    return tuple(t if isinstance(t, str) else int(t) for t in tokens)


def _statistics_of(statistics: Statistics, at: str, any_size: bool) -> tuple[StoredArray, StoredArray, tuple[int, int] | None]:
    if at not in statistics.mean:
        have = ", ".join(statistics.mean)
        raise ValueError(f'the statistics hold no site "{at}", only {have}; calibrate with sites=("{at}",)')
    deviation = np.sqrt(statistics.variance[at])
    return StoredArray.of(statistics.mean[at]), StoredArray.of(deviation), None if any_size else statistics.image_size


def _to_dict(r: Replacement) -> dict[str, Any]:
    tokens: Any = r.tokens
    if isinstance(tokens, RandomPatches):
        tokens = {"random_patches": tokens.count, "seed": tokens.seed}
    data = {"kind": r.kind, "tokens": tokens, "layers": r.layers, "at": r.at, "seed": r.seed, "image_size": r.image_size}
    return data | {"value": r.value and r.value.sha256, "deviation": r.deviation and r.deviation.sha256}


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
    layers = data["layers"] if data["layers"] == "all" else tuple(data["layers"])
    size = data["image_size"] and (data["image_size"][0], data["image_size"][1])
    return Replacement(data["kind"], tokens, layers, data["at"], data["seed"], stored(data["value"]), stored(data["deviation"]), size)
