"""Whether a value of an expression is of the type that a function asks for, and what such a type is called."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any, Literal, Union, get_args, get_origin

from jaxvit.specs import Positions, RandomPatches

_UNWRITABLE = (types.NoneType, Positions)
"""Types that no expression has values of: there is no None in it, and nothing is given at call time."""
_WORDS: dict[Any, tuple[str, str]] = {
    str: ("a string", "strings"),
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    bool: ("True or False", "True or False"),
    RandomPatches: ("random_patches(count)", "random_patches(count)"),
}


def fits(value: Any, hint: Any) -> bool:
    """Whether a literal or selector is of a type; true of types that this function does not know."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return isinstance(value, list) and all(fits(entry, parts[0]) for entry in value)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return hint is Any or not isinstance(hint, type) or isinstance(value, hint)


def in_words(hint: Any, plural: bool = False) -> str:
    """A type for people, such as "a string, an integer or a list of integers"."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        *first, last = [in_words(part, plural) for part in parts if part not in _UNWRITABLE]
        return f"{', '.join(first)} or {last}" if first else last
    if origin is Literal:
        return " or ".join(f'"{part}"' for part in parts)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return f"{'lists' if plural else 'a list'} of {in_words(parts[0], plural=True)}"
    one, many = _WORDS.get(hint, (str(hint), str(hint)))
    return many if plural else one
