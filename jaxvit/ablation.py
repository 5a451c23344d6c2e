"""`Ablation` and its constructors. An ablation is data, not a hook: composed with `&`, compared, hashed, written to JSON.

Every constructor takes `layers` in one of the forms of `jaxvit.specs.Layers`: "all", 6, [6, 7, 8] or "6-8". List and string of the
same blocks give equal ablations; -1 is the last block of whatever model it is lowered for. `at` is one of `jaxvit.sites.SITES`.

`heads=[3]` leaves all but some heads as they are, where heads are apart ("query", "key", "value", "head_output"); `channels=[287]` all but
some channels elsewhere: of the stream, or neurons at "mlp_hidden".

`norm="own"` rescales what a token becomes to the norm that it had, in float32: over the channels that are replaced, and where heads are
apart in each head. What is zero, or replaces zero, is zero. So `noise(..., norm="own")` is a random direction at the token's own length.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from jaxvit import serial
from jaxvit.calls import check_ablation, check_moments, check_selector
from jaxvit.checks import check_counts
from jaxvit.moments import Moments
from jaxvit.specs import Cut, Edit, Kind, Layers, Norm, Positions, RandomPatches, Replacement, Selection, StoredArray
from jaxvit.tokens import Selector


@dataclass(frozen=True, repr=False)
class Ablation:
    """Replacements of tokens and cuts of attention, in the order in which they apply. `a & b` applies `a`, then `b`; `Ablation()` changes
    nothing.

    Printed, it says what it does: `zero(registers) at block_output of blocks 6-11`.
    """

    replacements: tuple[Edit, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.replacements, tuple) or not all(isinstance(part, Edit) for part in self.replacements):
            raise ValueError("Ablation() is made by constructors: jaxvit.zero(...) & jaxvit.mean(...), or by Ablation.from_json")

    def __str__(self) -> str:
        return serial.in_words(self.replacements)

    def __repr__(self) -> str:
        return f"<Ablation: {self}>"

    def __and__(self, other: Ablation) -> Ablation:
        check_ablation(other, edits=False)
        return Ablation(self.replacements + other.replacements)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """Every array of the ablation by its SHA-256, as `from_json` takes them."""
        return {a.sha256: a.array for r in self.replacements if isinstance(r, Replacement) for a in r.stored}

    @property
    def functions(self) -> dict[str, Callable[..., Any]]:
        """Every function of the ablation by its name, as `from_json` takes them."""
        functions = [r.function for r in self.replacements if isinstance(r, Replacement) and r.function is not None]
        return {function.name: function.function for function in functions}

    def to_json(self) -> str:
        """The ablation as one line of JSON, which names arrays by their hash."""
        return serial.to_json(self.replacements)

    @classmethod
    def from_json(
        cls, text: str, arrays: Mapping[str, np.ndarray] | None = None, functions: Mapping[str, Callable[..., Any]] | None = None
    ) -> Ablation:
        """The ablation that `to_json` wrote.

        Args:
            arrays: SHA-256 -> array, for every array that the text names (`Ablation.arrays`).
            functions: name -> function, for every function that the text names (`Ablation.functions`); nothing is imported.

        Raises:
            ValueError: not such a text, or an array or a function is missing or is not the one that the hash names.
        """
        return cls(serial.from_json(text, arrays or {}, functions or {}))


def zero(
    tokens: Selection,
    layers: Layers = "all",
    at: str = "block_output",
    *,
    heads: Sequence[int] | None = None,
    channels: Sequence[int] | None = None,
    norm: Norm = None,
) -> Ablation:
    """Replace tokens by zero. A zeroed token still takes part in attention: LayerNorm maps it to its bias.

    Raises:
        ValueError: as every constructor, where `layers` has none of its forms, no model has such tokens, `at` is no site, or the site has
            no such heads or channels.
    """
    return single("zero", tokens, layers, at, heads, channels, norm=norm)


def constant(
    tokens: Selection,
    vector: Any,
    layers: Layers = "all",
    at: str = "block_output",
    *,
    heads: Sequence[int] | None = None,
    channels: Sequence[int] | None = None,
    norm: Norm = None,
) -> Ablation:
    """Replace tokens by a vector [C], by one vector per selected token [n, C] in order of position, or by those of each block [L, n, C].

    C is the width of the site, whatever heads or channels are chosen: at a site of heads that of all heads, one after the other.
    """
    return single("constant", tokens, layers, at, heads, channels, norm=norm, value=StoredArray.of(vector))


def mean(
    tokens: Selection,
    statistics: Moments,
    layers: Layers = "all",
    at: str = "block_output",
    any_size: bool = False,
    *,
    heads: Sequence[int] | None = None,
    channels: Sequence[int] | None = None,
    norm: Norm = None,
) -> Ablation:
    """Replace tokens by their dataset mean per layer and slot (all patches share one slot).

    Under RoPE patches have no mean at "query" and "key": every patch is rotated by its own angles.

    Args:
        statistics: of `jaxvit.calibrate`, with the site `at` among its sites.
        any_size: accept images of another size than that of the calibration.

    Raises:
        ValueError: the statistics lack the site.
    """
    value, _, size = _moments_at(statistics, at, any_size)
    return single("mean", tokens, layers, at, heads, channels, norm=norm, value=value, image_size=size)


def noise(
    tokens: Selection,
    statistics: Moments,
    seed: int = 0,
    layers: Layers = "all",
    at: str = "block_output",
    any_size: bool = False,
    *,
    heads: Sequence[int] | None = None,
    channels: Sequence[int] | None = None,
    norm: Norm = None,
) -> Ablation:
    """Replace tokens by Gaussian noise with their mean and variance per layer, slot and channel.

    Every example and layer has its own draw, from fold_in(seed, layer, example id), and every site besides those of the stream another
    one. Arguments and errors as for `mean`.
    """
    value, deviation, size = _moments_at(statistics, at, any_size)
    return single("noise", tokens, layers, at, heads, channels, norm=norm, seed=seed, value=value, deviation=deviation, image_size=size)


def shuffle(
    tokens: Selection,
    seed: int = 0,
    layers: Layers = "all",
    at: str = "block_output",
    same_donor: bool = False,
    *,
    heads: Sequence[int] | None = None,
    channels: Sequence[int] | None = None,
    norm: Norm = None,
) -> Ablation:
    """Replace tokens by those of another valid example of the same group (`forward(..., groups=...)`), by default of the batch.

    In each layer a random cycle through the valid examples of a group, drawn from (seed, layer, example ids), gives everyone its donor.

    Args:
        same_donor: draw one cycle from (seed, example ids) for all layers, so that an example's tokens come from one other example.
            Otherwise every layer has its own donors, and the streams are a mix of images that no run ever saw together.
    """
    return single("shuffle", tokens, layers, at, heads, channels, norm=norm, seed=seed, same_donor=same_donor)


def cut(
    queries: Selection,
    keys: Selection,
    layers: Layers = "all",
    heads: Sequence[int] | None = None,
    mass: Selector = "renormalise",
    itself: bool = True,
) -> Ablation:
    """Keep queries from reading keys: their attention weights become 0, after the softmax. What tokens hold is not touched.

    Everything that is read off attention reports the edited weights.

    Args:
        queries: the tokens that read.
        keys: the tokens that they no longer read. `jaxvit.Positions` reads both from arrays of the call: the sink of every image, say,
            or with per="head" that of every head. A receiver that is among them gets its share.
        heads: numbers of the heads; all of them by default.
        mass: what becomes of the weight. "renormalise": a row is scaled to the sum it had, which is minus infinity before the softmax.
            "lost": the other weights stay, and rows sum to less than 1. A selector, such as "cls": these tokens receive it in equal parts.
        itself: whether a query that is among the keys no longer reads itself either.

    Raises:
        ValueError: as `zero`. `lower` refuses receivers among the keys, and renormalised rows without any key left.
    """
    receivers = selector_of(mass)
    if isinstance(receivers, RandomPatches | Positions):
        raise ValueError('mass is "renormalise", "lost" or a selector of receivers, names and positions; random patches receive nothing')
    return Ablation((Cut(selector_of(queries), selector_of(keys), _blocks(layers), _numbers("heads", heads), receivers, itself),))


def random_patches(count: int, seed: int = 0) -> RandomPatches:
    """A selector of `count` random patches of every example.

    Raises:
        ValueError: count is no integer of at least 1.
    """
    check_counts(count=count)
    return RandomPatches(count, seed)


def single(
    kind: Kind,
    tokens: Selection,
    layers: Layers,
    at: str,
    heads: Sequence[int] | None,
    channels: Sequence[int] | None,
    **fields: Any,
) -> Ablation:
    """The ablation of one replacement, with its arguments in hashable form."""
    fields |= {"heads": _numbers("heads", heads), "channels": _numbers("channels", channels)}
    return Ablation((Replacement(kind, selector_of(tokens), _blocks(layers), at, **fields),))


def _numbers(name: str, numbers: Any) -> tuple[int, ...] | None:
    """Numbers of heads or channels in order, each once; None for all."""
    if numbers is None:
        return None
    entries = numbers.tolist() if hasattr(numbers, "tolist") else numbers
    if isinstance(entries, str) or not isinstance(entries, Iterable) or not all(map(_is_number, entries := list(entries))):
        text = " ".join(repr(numbers).split())
        raise ValueError(f"{name} is a list of whole numbers from 0, such as {name}=[3]; got {name}={text:.60}")
    return tuple(sorted({int(number) for number in entries}))


def _is_number(entry: Any) -> bool:
    """Whether an entry of a list is a whole number."""
    return isinstance(entry, (int, np.integer)) and not isinstance(entry, bool)


def _blocks(layers: Layers) -> Literal["all"] | tuple[int, ...]:
    """Block numbers in order, each once, or "all"."""
    if not isinstance(layers, str):
        entries = layers.tolist() if hasattr(layers, "tolist") else layers
        numbers = list(entries) if isinstance(entries, Iterable) else [entries]
        if not all(map(_is_number, numbers)):
            text = " ".join(repr(layers).split())
            raise ValueError(
                f'layers is "all", a block number, -1 for the last, a list of them, or a string such as "6-11"; got {text:.60}'
            )
        return tuple(sorted({int(number) for number in numbers}))
    if layers.strip() == "all":
        return "all"
    return tuple(sorted({block for entry in layers.split(",") for block in _range(entry.strip(), layers)}))


def _range(entry: str, layers: str) -> range:
    """The blocks of one entry, a number or a range, of the string `layers`."""
    match = re.fullmatch(r"([0-9]{1,4})(?:\s*-\s*([0-9]{1,4}))?", entry)  # four digits: a slip of the pen fills no memory
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
    if last < first:
        where = "" if entry == layers else f", where {entry!r} " + ("runs backwards" if match else "is no number and no range")
        raise ValueError(
            'layers is "all", a block number or a list of them, or a string of numbers from 0 to 9999 and ranges, low to high, such as '
            f'"0-2,5,8-11"; got {layers!r}{where}'
        )
    return range(first, last + 1)


def selector_of(tokens: Any) -> Any:
    """A selector without NumPy types and lists."""
    if isinstance(tokens, (str, RandomPatches, Positions)):
        return tokens
    if isinstance(tokens, (int, np.integer)) and not isinstance(tokens, bool):
        return int(tokens)
    check_selector(tokens)
    return tuple(t if isinstance(t, str) else int(t) for t in tokens)


def _moments_at(statistics: Moments, at: str, any_size: bool) -> tuple[StoredArray, StoredArray, tuple[int, int] | None]:
    """Mean and standard deviation at a site, and the image size that they are restricted to."""
    check_moments(statistics)
    if at not in statistics.mean:
        raise ValueError(f'the statistics hold no site "{at}", only {", ".join(statistics.mean)}; calibrate with sites=("{at}",)')
    deviation = np.sqrt(statistics.variance[at])
    return StoredArray.of(statistics.mean[at]), StoredArray.of(deviation), None if any_size else statistics.image_size
