"""How results print: shapes and names in one line, in place of numbers by the page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax

from jaxvit.tokens import TokenLayout


def shape_in_words(leaf: Any) -> str:
    """The shape of an array, also of one that JAX traces; of several arrays their number; else what it is."""
    if hasattr(leaf, "shape") and not callable(leaf.shape):
        return f"[{', '.join(map(str, leaf.shape))}]"
    leaves = jax.tree.leaves(leaf)
    if leaves == [leaf] or not leaves:
        return type(leaf).__name__ if leaf is not None else "None"
    return f"({', '.join(map(shape_in_words, leaves))})" if len(leaves) <= 4 else f"({len(leaves)} arrays)"


def named_shapes(arrays: Any) -> str:
    """Names and shapes of arrays by name: "cls [16, 96], patches [16, 64, 96]"."""
    if not isinstance(arrays, Mapping):  # a transformation of JAX has put something in its place
        return shape_in_words(arrays)
    return ", ".join(f"{name} {shape_in_words(array)}" for name, array in arrays.items())


def layout_in_words(layout: TokenLayout) -> str:
    """What tokens there are: "cls, 4 registers, 8x8 patches"."""
    count = layout.registers
    registers = f"{count} register{'s' if count > 1 else ''}, " if count else ""
    return f"cls, {registers}{layout.rows}x{layout.columns} patches"


def captured_in_words(captured: Any) -> str:
    """What was captured, for the end of a line; nothing where nothing was."""
    return f"; captured {named_shapes(captured)}" if captured else ""


def weights_in_words(model: Any) -> str:
    """Number and dtype of a model's weights: "1.2M weights, float32"."""
    leaves = [leaf for leaf in jax.tree.leaves(model) if hasattr(leaf, "shape") and hasattr(leaf, "dtype")]
    count = sum(math.prod(leaf.shape) for leaf in leaves)
    size = next((f"{count / unit:.3g}{letter}" for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if count >= unit), str(count))
    return f"{size} weights" + (f", {max(leaves, key=lambda leaf: math.prod(leaf.shape)).dtype}" if leaves else "")
