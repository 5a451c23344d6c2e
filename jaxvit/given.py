"""Arrays of a call, `forward(..., given={"donor": array})`: checked, split into those of all layers and those of each, looked up.

`jaxvit.patch` and `jaxvit.Positions` read them. An ablation, its JSON and its keys hold their names alone.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxvit.config import ViTConfig
from jaxvit.ops import EditOp, Edits
from jaxvit.sites import HEAD_SITES, width_at
from jaxvit.specs import Positions


@functools.partial(jax.tree_util.register_dataclass, data_fields=["array"], meta_fields=[])
@dataclass(frozen=True)
class PerLayer:
    """An array of a call with another entry for every layer, on its first axis."""

    array: Any


Given = Mapping[str, Any]
"""Arrays of a call by name; `per_layer(array)` has one for every layer."""


def per_layer(array: Any) -> PerLayer:
    """An array of a call that has one for every layer, such as a donor [L, B, n, C]: `given={"donor": per_layer(array)}`."""
    return PerLayer(array)


def selected(numbers: Int[Array, "*batch n"], tokens: int) -> Bool[Array, "*batch tokens"]:
    """Whether each of a number of tokens is among the numbers given for it; -1 is none."""
    return (numbers[..., :, None] == jnp.arange(tokens)).any(axis=-2)


def row_of(numbers: Int[Array, "*batch n"], tokens: int) -> Int[Array, "*batch tokens"]:
    """Where each token first stands among the numbers; 0 for one that does not."""
    return jnp.argmax(numbers[..., :, None] == jnp.arange(tokens), axis=-2)


def checked(given: Given | None, edits: Edits | None, config: ViTConfig, batch: int) -> dict[str, Any]:
    """The arrays that edits read, as JAX has them, by name.

    Raises:
        ValueError: an array is missing, is not read, or does not have the shape and type that is read.
    """
    given = {} if given is None else given
    if not isinstance(given, Mapping):
        raise ValueError(f'given is a dictionary such as {{"donor": array}}, got {type(given).__name__}; pass arrays by name')
    uses = list(_uses(edits, config, batch)) if edits is not None else []
    names = edits.given_names if edits is not None else ()
    for use in uses:
        if use.name not in given:
            has = f"given has only {_quoted(given)}" if given else "nothing was given"
            raise ValueError(f'the ablation reads "{use.name}", but {has}; pass given={{"{use.name}": array}}: {use}')
    if surplus := [name for name in given if name not in names]:
        reads = f"reads only {_quoted(names)}" if names else "reads nothing that is given"
        raise ValueError(f'given has "{surplus[0]}", but the ablation {reads}; leave it out, or name it in patch or Positions')
    arrays = {name: _array(name, given[name]) for name in names}
    for use in uses:
        _check(use, arrays[use.name], config.depth)
    if edits is not None:
        _check_numbers(edits, arrays)
    return arrays


def split(given: Mapping[str, Any] | None) -> tuple[dict[str, Array], dict[str, Array]]:
    """The arrays that are the same for all layers, and those that lead with the layer axis."""
    shared = {name: array for name, array in (given or {}).items() if not isinstance(array, PerLayer)}
    by_layer = {name: array.array for name, array in (given or {}).items() if isinstance(array, PerLayer)}
    return shared, by_layer


class _Use(NamedTuple):
    """One reading of an array of the call: its axes, each with its size if that is fixed, in the shapes that it may have."""

    name: str
    reader: str
    shapes: tuple[tuple[tuple[str, int | None], ...], ...]
    of_numbers: bool

    def __str__(self) -> str:
        shapes = " or ".join(f"[{', '.join(axis if size is None else f'{axis} {size}' for axis, size in shape)}]" for shape in self.shapes)
        return f"{self.reader} takes {'whole numbers ' if self.of_numbers else ''}{shapes}, or per_layer(array) with the blocks in front"


def _uses(edits: Edits, config: ViTConfig, batch: int) -> Iterator[_Use]:
    """Every reading of an array of the call by edits."""

    def numbers(positions: Positions, where: str) -> _Use:
        heads = (("heads", config.heads),) if positions.per else ()
        return _Use(positions.name, f"Positions {where}", ((("batch", batch), *heads, ("tokens", None)),), True)

    yield from (numbers(positions, "of a cut") for cut in edits.cuts for positions in cut.positions if positions is not None)
    for site, ops in edits.ops.items():
        for op in ops:
            if op.positions is not None:
                yield numbers(op.positions, f'at "{site}"')
            if op.given is not None:
                width = width_at(site, config)
                widths: list[tuple[tuple[str, int], ...]] = [(("channels", width),)]
                if site in HEAD_SITES:
                    widths.append((("heads", config.heads), ("head width", width // config.heads)))
                shapes = tuple((("batch", batch), ("tokens", op.count), *axes) for axes in widths)
                yield _Use(op.given, f'patch at "{site}"', shapes, False)


def _array(name: str, value: Any) -> Any:
    """A value of the call as an array of JAX."""
    try:
        return PerLayer(jnp.asarray(value.array)) if isinstance(value, PerLayer) else jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f'given["{name}"] is no array but {type(value).__name__}; pass an array of numbers') from error


def _check(use: _Use, value: Any, depth: int) -> None:
    """Refuse an array that is not what is read."""
    array, in_front = (value.array, (depth,)) if isinstance(value, PerLayer) else (value, ())
    what = f'given["{use.name}"] has shape {list(array.shape)}{" per layer" if in_front else ""} and type {array.dtype}'
    fits = any(
        array.ndim == len(in_front) + len(shape)
        and array.shape[: len(in_front)] == in_front
        and all(size in (None, length) for (_, size), length in zip(shape, array.shape[len(in_front) :], strict=True))
        for shape in use.shapes
    )
    of_type = jnp.issubdtype(array.dtype, jnp.integer) or (jnp.issubdtype(array.dtype, jnp.floating) and not use.of_numbers)
    if not fits or not of_type or 0 in array.shape:
        blocks = f" ({depth} blocks)" if in_front else ""
        raise ValueError(f"{what}, but {use}{blocks}; pass such an array")


def _check_numbers(edits: Edits, arrays: Mapping[str, Any]) -> None:
    """Refuse numbers of tokens that no image has, as far as they are known, and another count of them than of the donor's tokens."""
    names = [positions.name for cut in edits.cuts for positions in cut.positions if positions is not None]
    for site, op in ((site, op) for site, ops in edits.ops.items() for op in ops if op.positions is not None):
        assert op.positions is not None
        names.append(name := op.positions.name)
        count = _values(arrays[name]).shape[-1]
        if op.given is not None and (donors := _values(arrays[op.given]).shape[_token_axis(arrays[op.given])]) != count:
            raise ValueError(
                f'given["{op.given}"] has {donors} tokens, given["{name}"] {count} numbers; patch at "{site}" puts one token '
                "at each: pass as many"
            )
    for name in names:
        numbers = _values(arrays[name])
        if isinstance(numbers, jax.core.Tracer) or not numbers.is_fully_addressable:
            continue
        low, high = int(np.min(numbers)), int(np.max(numbers))
        if low < -1 or high >= edits.layout.tokens:
            raise ValueError(
                f'given["{name}"] has number {high if high >= edits.layout.tokens else low}; tokens are numbered 0 to '
                f"{edits.layout.tokens - 1}, and -1 selects none"
            )


def _values(value: Any) -> Any:
    return value.array if isinstance(value, PerLayer) else value


def _token_axis(value: Any) -> int:
    """The axis of tokens of a donor."""
    return 2 if isinstance(value, PerLayer) else 1


def _quoted(names: Any) -> str:
    return ", ".join(f'"{name}"' for name in names)


def selected_by_head(positions: Positions, given: Mapping[str, Array], tokens: int) -> Bool[Array, "batch heads tokens"]:
    """Which tokens are selected in one layer, of every example and head; of one head that stands for all without `per="head"`."""
    return selected(_by_head(positions, given), tokens)


def rows_at_positions(op: EditOp, given: Mapping[str, Array], tokens: int) -> Int[Array, "batch heads tokens"]:
    """Which row of its given array an op puts at each token, where `positions` say it."""
    assert op.positions is not None
    return row_of(_by_head(op.positions, given), tokens)


def _by_head(positions: Positions, given: Mapping[str, Array]) -> Int[Array, "batch heads n"]:
    numbers = given[positions.name]
    return numbers if positions.per else numbers[:, None]
