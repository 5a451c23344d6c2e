"""`TokenLayout`: which positions of a token sequence are CLS, registers and patches, and how token names become positions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxvit.config import ViTConfig

Selector = str | int | Sequence["str | int"]
"""A token name ("cls", "registers", "registers[1]", "patches", "patches[7]"), a position, or a list of those."""


@dataclass(frozen=True)
class TokenLayout:
    """The token sequence of one image: CLS, registers, patches (row by row).

    Attributes:
        registers: number of register tokens.
        rows, columns: grid of patches.
    """

    registers: int
    rows: int
    columns: int

    @classmethod
    def of(cls, config: ViTConfig, image_size: int | tuple[int, int]) -> TokenLayout:
        """The layout of a model at an image size in pixels (a side, or height and width).

        Raises:
            ValueError: the size is no multiple of the patch size.
        """
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        return cls(config.registers, *config.grid(height, width))

    @property
    def patches(self) -> int:
        return self.rows * self.columns

    @property
    def prefix(self) -> int:
        """Number of tokens before the patches: CLS and the registers."""
        return 1 + self.registers

    @property
    def tokens(self) -> int:
        return self.prefix + self.patches

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the token groups of attention flow and calibration: CLS, each register, all patches together."""
        return ("cls", *(f"registers[{i}]" for i in range(self.registers)), "patches")

    def group_of(self) -> np.ndarray:
        """For every position the index of its group in `groups`, int [tokens]."""
        return np.minimum(np.arange(self.tokens), self.prefix)

    def positions(self, selector: Selector) -> tuple[int, ...]:
        """The positions that a selector names, sorted, without repeats.

        Raises:
            ValueError: the name is unknown, or the model has no such token.
        """
        if isinstance(selector, str):
            return self._named(selector)
        if isinstance(selector, (int, np.integer)):
            if not 0 <= selector < self.tokens:
                raise ValueError(f"position {selector} is not a token; there are {self.tokens}, numbered from 0")
            return (int(selector),)
        return tuple(sorted({position for entry in selector for position in self.positions(entry)}))

    def in_order(self, selector: Selector) -> tuple[int, ...]:
        """The positions that a selector names, in the order in which it names them.

        Raises:
            ValueError: as `positions`, or a position is named twice.
        """
        if isinstance(selector, (str, int, np.integer)):
            return self.positions(selector)
        ordered = [position for entry in selector for position in self.positions(entry)]
        if twice := [position for position in ordered if ordered.count(position) > 1]:
            raise ValueError(
                f"position {twice[0]} is selected twice in {list(selector)}; the order says which value is whose: name it once"
            )
        return tuple(ordered)

    def _named(self, name: str) -> tuple[int, ...]:
        group, number = split_name(name)
        start, count = {"cls": (0, 1), "registers": (1, self.registers), "patches": (self.prefix, self.patches)}[group]
        if group == "registers" and not count:
            raise ValueError(f'"{name}" selects registers, but this model has none; choose "cls", "patches" or a model with registers')
        if number is None:
            return tuple(range(start, start + count))
        if number >= count:
            raise ValueError(f'"{name}" is out of range; {group} are numbered 0 to {count - 1}')
        return (start + number,)


def split_name(name: str) -> tuple[str, int | None]:
    """The group of a token name, and the number in its brackets if any: "registers[1]" is ("registers", 1).

    Raises:
        ValueError: the name is of no model's tokens.
    """
    match = re.fullmatch(r"(cls|registers|patches)(?:\[(\d+)\])?", name)
    if not match:
        raise ValueError(
            f'unknown token name "{name}"; use "cls", "registers", "registers[1]", "patches", "patches[7]", positions or a list'
        )
    return match[1], None if match[2] is None else int(match[2])
