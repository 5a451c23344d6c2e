"""The parts of an ablation as small, frozen, hashable data, independent of any model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from jaxvit.sites import HEAD_SITES, SITES, check_site
from jaxvit.tokens import split_name

Kind = Literal["zero", "constant", "mean", "noise", "shuffle"]
Layers = str | Sequence[int]
"""Which blocks an ablation applies to: "all", a list of block numbers from 0, or a string of numbers and ranges that include both ends,
such as "6-11" or "0-2, 5, 8-11"."""


@dataclass(frozen=True)
class RandomPatches:
    """A selector of `count` random patches per example, drawn from (seed, example id), the same in all layers."""

    count: int
    seed: int = 0


Tokens = str | int | tuple[str | int, ...] | RandomPatches
"""Which tokens, in hashable form: a selector of `jaxvit.tokens`, or random patches."""
Mass = Literal["renormalise", "lost"] | int | tuple[str | int, ...] | str
"""What becomes of attention that is cut: "renormalise", "lost", or a selector of the tokens that receive it in equal parts."""


@dataclass(frozen=True)
class StoredArray:
    """An array identified by the SHA-256 of its shape and values: equality, hash and JSON use that, not the array."""

    sha256: str
    array: np.ndarray = field(compare=False, repr=False)

    @classmethod
    def of(cls, array: Any) -> StoredArray:
        """The array in float32, with its hash."""
        array = np.ascontiguousarray(array, dtype=np.float32)
        return cls(hashlib.sha256(repr(array.shape).encode() + array.tobytes()).hexdigest(), array)


@dataclass(frozen=True)
class Replacement:
    """The replacement of some tokens, or of some of their channels, at one site of some layers.

    Attributes:
        kind: what the tokens are replaced by.
        tokens: a selector (see `jaxvit.tokens`), or `RandomPatches`.
        layers: "all", or block numbers from 0.
        at: one of `jaxvit.sites.SITES`.
        seed: of the draws of noise and shuffle.
        value: a constant vector [C], one per token [n, C] or per layer and token [L, n, C]; the dataset mean [L, slots, C] for mean and
            noise. C is the width of the site (`jaxvit.sites.width_at`).
        deviation: the standard deviation [L, slots, C] for noise.
        image_size: height and width in pixels that the moments were measured at, or None where any is allowed.
        same_donor: a shuffle takes one donor for all layers.
        heads: numbers of the heads that are replaced at a head site, or None for all.
        channels: numbers of the channels that are replaced at another site, or None for all.

    Raises:
        ValueError: an unknown site, a token name that no model has, a seed outside 0 to 2^32 - 1, or heads or channels at a
            site that has none.
    """

    kind: Kind
    tokens: Tokens
    layers: Literal["all"] | tuple[int, ...] = "all"
    at: str = "block_output"
    seed: int = 0
    value: StoredArray | None = None
    deviation: StoredArray | None = None
    image_size: tuple[int, int] | None = None
    same_donor: bool = False
    heads: tuple[int, ...] | None = None
    channels: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_site(self.at)
        if self.heads is not None and self.at not in HEAD_SITES:
            raise ValueError(
                f'heads={list(self.heads)} is not possible at "{self.at}"; heads are apart at {", ".join(HEAD_SITES)}; '
                "elsewhere choose channels=[...]"
            )
        if self.channels is not None and self.at in HEAD_SITES:
            raise ValueError(
                f'channels={list(self.channels)} is not possible at "{self.at}", where heads=[...] chooses heads; channels are chosen at '
                f"{', '.join(site for site in SITES if site not in HEAD_SITES)}"
            )
        for name, numbers in (("head", self.heads), ("channel", self.channels)):
            if numbers and min(numbers) < 0:
                raise ValueError(f"{name} {min(numbers)} does not exist; {name}s are numbered from 0")
        _check_tokens(self.tokens)
        _check_seed(self.seed)


@dataclass(frozen=True)
class Cut:
    """Queries kept from reading keys, in the attention of some heads and layers.

    Attributes:
        queries, keys: which tokens read, and what they no longer read.
        layers: "all", or block numbers from 0.
        heads: numbers of the heads, or None for all.
        mass: what becomes of the weight that is cut.
        itself: a query that is among the keys no longer reads itself either.

    Raises:
        ValueError: a token name that no model has, a head below 0, or a seed outside 0 to 2^32 - 1.
    """

    queries: Tokens
    keys: Tokens
    layers: Literal["all"] | tuple[int, ...] = "all"
    heads: tuple[int, ...] | None = None
    mass: Mass = "renormalise"
    itself: bool = True

    def __post_init__(self) -> None:
        for tokens in (self.queries, self.keys) + ((self.mass,) if self.mass not in ("renormalise", "lost") else ()):
            _check_tokens(tokens)
        if self.heads and min(self.heads) < 0:
            raise ValueError(f"head {min(self.heads)} does not exist; heads are numbered from 0")


Edit = Replacement | Cut
"""A part of an ablation."""


def blocks_of(layers: Literal["all"] | tuple[int, ...], depth: int) -> tuple[int, ...]:
    """The numbers of the blocks that `layers` names in a model of `depth` blocks.

    Raises:
        ValueError: the model has no such block.
    """
    if layers == "all":
        return tuple(range(depth))
    for layer in layers:
        if not 0 <= int(layer) < depth:
            raise ValueError(f"layer {layer} does not exist; this model has blocks 0 to {depth - 1}")
    return layers


def check_count(tokens: Tokens, patches: int) -> None:
    """Refuse more random patches than an image has.

    Raises:
        ValueError: there are fewer.
    """
    if isinstance(tokens, RandomPatches) and tokens.count > patches:
        raise ValueError(f"{tokens.count} random patches asked for, but an image of this size has {patches}")


def _check_tokens(tokens: Tokens) -> None:
    """Refuse names that no model has, and seeds that are none."""
    for token in tokens if isinstance(tokens, tuple) else (tokens,):
        if isinstance(token, str):
            split_name(token)
    if isinstance(tokens, RandomPatches):
        _check_seed(tokens.seed)


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed {seed} is out of range; use 0 to 2^32 - 1")
