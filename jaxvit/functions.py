"""`NamedFunction`: a user's function as data, known by its name and the hash of its source or a version."""

from __future__ import annotations

import functools
import hashlib
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class NamedFunction:
    """A function identified by its name, the SHA-256 of its source and a version: equality, hash and JSON use those.

    The hash covers the function's own source, decorators included. What it calls or reads from elsewhere is not seen: change `version`
    with that.

    Attributes:
        name: module and qualified name.
        source: SHA-256 of its source, or None where that does not say what it does: for lambdas, partials, methods, functions inside
            others, and where there is no source.
        version: the user's own.
    """

    name: str
    source: str | None
    version: str | None
    function: Callable[..., Any] = field(compare=False, repr=False)

    @classmethod
    def of(cls, function: Callable[..., Any], version: str | None = None) -> NamedFunction:
        """A function with its name and hash.

        Raises:
            ValueError: no function, or no version of one whose source does not say what it does.
        """
        if not callable(function):
            raise ValueError(f"custom takes a function (x, context, arrays) -> x, got {' '.join(repr(function).split()):.60}")
        if version is not None and (not isinstance(version, str) or not version):
            raise ValueError(f'version is a string such as version="1", got {version!r:.60}')
        name, source = _name(function), _source(function)
        if source is None and version is None:
            raise ValueError(
                f'the source of {name} does not say what it does, or there is none; pass version="1", and another one whenever it changes, '
                "or a function of a module"
            )
        return cls(name, source, version, function)

    def with_function(self, function: Callable[..., Any]) -> NamedFunction:
        """The same, with a function that was looked up by its name.

        Raises:
            ValueError: the function's source is another one.
        """
        given = NamedFunction.of(function, self.version or "any")
        if self.source is not None and given.source != self.source:
            raise ValueError(
                f'the function given for "{self.name}" has another source than the one that the ablation was written with; '
                "pass that one, or write the ablation again"
            )
        return NamedFunction(self.name, self.source, self.version, function)

    def __str__(self) -> str:
        return self.name if self.version is None else f'{self.name}, version="{self.version}"'


def _name(function: Callable[..., Any]) -> str:
    if isinstance(function, functools.partial):
        return _name(function.func)
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def _source(function: Callable[..., Any]) -> str | None:
    """SHA-256 of the source of a function of a module, or None."""
    inner = inspect.unwrap(function)  # jax.jit wraps
    if not inspect.isfunction(inner) or "<" in inner.__qualname__:  # <lambda>, <locals>
        return None
    try:
        return hashlib.sha256(textwrap.dedent(inspect.getsource(inner)).encode()).hexdigest()
    except (OSError, TypeError):
        return None
