"""The parts of an ablation as small, frozen, hashable data, independent of any model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from jaxvit.functions import NamedFunction
from jaxvit.sites import HEAD_SITES, SITES, check_site
from jaxvit.tokens import Selector, split_name

Kind = Literal["zero", "constant", "mean", "noise", "shuffle", "patch", "add", "scale", "swap", "custom"]
Norm = Literal["own"] | None
"""The length of what tokens are replaced by: its own, or with "own" that of what it replaces."""
Layers = str | int | Sequence[int]
"""Which blocks an ablation applies to: "all", a block number from 0 or a list of them, -1 for the last, or a string of numbers and ranges
that include both ends, such as "6-11" or "0-2, 5, 8-11"."""


CLEAN = "clean"
"""What a patch takes its values from in place of an array: the clean stream of `contrast`."""


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
class Positions:
    """A selector of tokens by number that differ between examples, read from an array of the call: `forward(..., given={name: numbers})`.

    Attributes:
        name: of the array, int [B, n]; -1 selects nothing, so that examples may have different counts. `jaxvit.per_layer` puts the
            numbers of every layer in front, [L, B, n].
        per: "head" for other tokens in every head, [B, H, n] or [L, B, H, n]: possible at the sites where heads are apart.

    Raises:
        ValueError: `name` is no name, or `per` is something else.
    """

    name: str
    per: Literal["head"] | None = None

    def __post_init__(self) -> None:
        check_given_name(self.name, "Positions")
        if self.per not in (None, "head"):
            raise ValueError(f'per={self.per!r} is not possible; per="head" reads numbers [B, H, n] of every head, None [B, n] for all')


Selection = Selector | RandomPatches | Positions
"""What a constructor takes as tokens: names and positions, or a selector of other tokens in every example."""


@dataclass(frozen=True)
class StoredArray:
    """An array identified by the SHA-256 of its shape and values: equality, hash and JSON use that, not the array."""

    sha256: str
    array: np.ndarray = field(compare=False, repr=False)

    @classmethod
    def of(cls, array: Any) -> StoredArray:
        """The array in float32, with its hash."""
        try:
            array = np.ascontiguousarray(array, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{' '.join(repr(array).split()):.60} is no array of numbers ({error}); pass numbers of equal rows") from None
        return cls(hashlib.sha256(repr(array.shape).encode() + array.tobytes()).hexdigest(), array)


@dataclass(frozen=True)
class Replacement:
    """The replacement of some tokens, or of some of their channels, at one site of some layers.

    Attributes:
        kind: what the tokens are replaced by.
        tokens: a selector (see `jaxvit.tokens`), `RandomPatches` or `Positions`.
        layers: "all", or block numbers: from 0, or -1 for the last, -2 for the one before.
        at: one of `jaxvit.sites.SITES`.
        seed: of the draws of noise and shuffle.
        value: a constant vector [C], one per token [n, C] or per layer and token [L, n, C]; the dataset mean [L, slots, C] for mean and
            noise. C is the width of the site (`jaxvit.sites.width_at`).
        deviation: the standard deviation [L, slots, C] for noise.
        image_size: height and width in pixels that the moments were measured at, or None where any is allowed.
        same_donor: a shuffle takes one donor for all layers.
        heads: numbers of the heads that are replaced at a head site, or None for all.
        channels: numbers of the channels that are replaced at another site, or None for all.
        given: name of the array that a patch takes its values from, which is no part of the ablation but an argument of the call; or
            `CLEAN`.
        factor: what the vector of an add, or the tokens of a scale, are multiplied by.
        partners: the tokens that a swap exchanges with `tokens`, one for each in the order in which they are given.
        norm: "own" rescales what a token becomes to the norm of what it was, over the channels that are replaced; where heads are apart,
            in each head.
        function, arrays: of a custom edit, which is of all tokens (`tokens` is empty), and its arrays [L, ...] by name.

    Raises:
        ValueError: an unknown site, a token name that no model has, a seed outside 0 to 2^32 - 1, heads or channels at a site that
            has none, or a norm of what has none of its own.
    """

    kind: Kind
    tokens: Tokens | Positions
    layers: Literal["all"] | tuple[int, ...] = "all"
    at: str = "block_output"
    seed: int = 0
    value: StoredArray | None = None
    deviation: StoredArray | None = None
    image_size: tuple[int, int] | None = None
    same_donor: bool = False
    heads: tuple[int, ...] | None = None
    channels: tuple[int, ...] | None = None
    given: str | None = None
    factor: float = 1.0
    partners: str | int | tuple[str | int, ...] | None = None
    norm: Norm = None
    function: NamedFunction | None = None
    arrays: tuple[tuple[str, StoredArray], ...] = ()

    @property
    def stored(self) -> tuple[StoredArray, ...]:
        """Every array of the replacement."""
        return tuple(array for array in (self.value, self.deviation, *(array for _, array in self.arrays)) if array is not None)

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
        if isinstance(self.tokens, Positions) and self.tokens.per == "head" and self.at not in HEAD_SITES:
            raise ValueError(
                f'Positions("{self.tokens.name}", per="head") is not possible at "{self.at}"; heads are apart at {", ".join(HEAD_SITES)}; '
                f'elsewhere use Positions("{self.tokens.name}")'
            )
        for name, numbers in (("head", self.heads), ("channel", self.channels)):
            if numbers and min(numbers) < 0:
                raise ValueError(f"{name} {min(numbers)} does not exist; {name}s are numbered from 0")
        _check_tokens(self.tokens)
        if self.partners is not None:
            _check_tokens(self.partners)
        _check_seed(self.seed)
        self._check_norm()

    def _check_norm(self) -> None:
        if self.norm not in (None, "own"):
            raise ValueError(
                f'norm={self.norm!r} is not possible; norm="own" gives a token the norm that it had, None leaves what replaces it'
            )
        if self.norm and self.kind == "zero":
            raise ValueError('zero has no direction that norm="own" could give a length; use constant, noise or scale')
        if self.norm and self.kind == "scale":
            raise ValueError('scale(..., norm="own") would take back what it does; leave norm out')


@dataclass(frozen=True)
class Cut:
    """Queries kept from reading keys, in the attention of some heads and layers.

    Attributes:
        queries, keys: which tokens read, and what they no longer read.
        layers: "all", or block numbers: from 0, or -1 for the last, -2 for the one before.
        heads: numbers of the heads, or None for all.
        mass: what becomes of the weight that is cut.
        itself: a query that is among the keys no longer reads itself either.

    Raises:
        ValueError: a token name that no model has, a head below 0, or a seed outside 0 to 2^32 - 1.
    """

    queries: Tokens | Positions
    keys: Tokens | Positions
    layers: Literal["all"] | tuple[int, ...] = "all"
    heads: tuple[int, ...] | None = None
    mass: Mass = "renormalise"
    itself: bool = True

    def __post_init__(self) -> None:
        for tokens in (self.queries, self.keys):
            if not isinstance(tokens, Positions):
                _check_tokens(tokens)
        if self.mass not in ("renormalise", "lost"):
            try:
                _check_tokens(self.mass)
            except ValueError as error:
                raise ValueError(f'mass is "renormalise", "lost" or the tokens that receive it, got {self.mass!r:.60}: {error}') from None
        if self.heads and min(self.heads) < 0:
            raise ValueError(f"head {min(self.heads)} does not exist; heads are numbered from 0")
        if not isinstance(self.itself, bool):
            raise ValueError(f"itself is {self.itself!r:.60}; use False to let every query read itself, or True")


Edit = Replacement | Cut
"""A part of an ablation."""


def blocks_of(layers: Literal["all"] | tuple[int, ...], depth: int) -> tuple[int, ...]:
    """The numbers of the blocks that `layers` names in a model of `depth` blocks, in order.

    Raises:
        ValueError: the model has no such block.
    """
    if layers == "all":
        return tuple(range(depth))
    numbers = [int(layer) for layer in layers]
    if missing := [number for number in numbers if not -depth <= number < depth]:
        from_end = f", or {-depth} to -1 from its end" if missing[0] < 0 else ""
        raise ValueError(f"layer {missing[0]} does not exist; this model has blocks 0 to {depth - 1}{from_end}")
    return tuple(sorted({number % depth for number in numbers}))


def check_count(tokens: Tokens | Positions, patches: int) -> None:
    """Refuse more random patches than an image has.

    Raises:
        ValueError: there are fewer.
    """
    if isinstance(tokens, RandomPatches) and tokens.count > patches:
        raise ValueError(f"{tokens.count} random patches asked for, but an image of this size has {patches}")


def _check_tokens(tokens: Tokens | Positions) -> None:
    """Refuse names that no model has, and seeds that are none."""
    for token in tokens if isinstance(tokens, tuple) else (tokens,):
        if isinstance(token, str):
            split_name(token)
    if isinstance(tokens, RandomPatches):
        _check_seed(tokens.seed)


def _check_seed(seed: int) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise ValueError(f"seed is {seed!r:.60}; use a whole number, 0 to 2^32 - 1")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed {seed} is out of range; use 0 to 2^32 - 1")


def check_number(name: str, number: Any) -> float:
    """A finite number as a float.

    Raises:
        ValueError: it is none.
    """
    if isinstance(number, bool) or not isinstance(number, (int, float, np.integer, np.floating)) or not np.isfinite(number):
        raise ValueError(f"{name} is a finite number, such as {name}=2; got {' '.join(repr(number).split()):.60}")
    return float(number)


def check_given_name(name: Any, where: str) -> None:
    """Refuse what cannot name an array of a call.

    Raises:
        ValueError: not a string, or an empty one, or "clean", which is no array.
    """
    if not isinstance(name, str) or not name:
        text = " ".join(repr(name).split())
        raise ValueError(
            f'{where} takes the name of an array of the call, such as "donor", and forward(..., given={{"donor": array}}) the array; '
            f"got {text:.60}"
        )
    if name == CLEAN:
        raise ValueError(f'"clean" names the clean stream of `contrast` and cannot name an array; {where} needs another name')
