"""Constructors of ablations whose new tokens are no stored value: those of another run (`patch`), what stands there and more (`add`,
`scale`), other tokens of the example (`swap`), or what a function makes of them (`custom`).

`layers`, `at`, `heads`, `channels` and `norm` are those of `jaxvit.ablation`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxvit.ablation import Ablation, selector_of, single
from jaxvit.functions import NamedFunction
from jaxvit.serial import tokens_in_words
from jaxvit.specs import CLEAN, Layers, Norm, Positions, RandomPatches, Selection, StoredArray, check_given_name, check_number
from jaxvit.tokens import Selector


def patch(
    tokens: Selection,
    source: str,
    layers: Layers = "all",
    at: str = "block_output",
    *,
    heads: Sequence[int] | None = None,
    channels: Sequence[int] | None = None,
    norm: Norm = None,
) -> Ablation:
    """Replace tokens by those of another run (activation patching, causal tracing, interchange interventions).

    Args:
        tokens: rows of the array follow the order in which tokens are given: `["registers[1]", "cls"]` takes row 0 for register 1. With
            `Positions` they follow its numbers, of which the first one counts where one stands twice.
        source: name of the array [B, n, C] of the call, `forward(..., given={source: array})`; `jaxvit.per_layer` marks one [L, B, n, C].
            C is the width of the site, whatever heads or channels are chosen; where heads are apart [B, n, heads, head width] is taken
            as well. "clean" is no array but the clean stream of `jaxvit.contrast`: the same tokens at the same place, without a
            second run.

    Raises:
        ValueError: as every constructor, or `source` is no name, or the tokens are drawn at random.
    """
    reads_array = not (isinstance(source, str) and source == CLEAN)
    if reads_array:
        check_given_name(source, "patch")
    if reads_array and isinstance(tokens, RandomPatches):
        raise ValueError(
            f"patch of {tokens_in_words(tokens)} is not possible: they have no order; select tokens by name or position, or draw their "
            "numbers yourself and pass them by jaxvit.Positions"
        )
    return single("patch", tokens, layers, at, heads, channels, norm=norm, given=source)


def add(
    tokens: Selection,
    vector: Any,
    strength: float = 1.0,
    layers: Layers = "all",
    at: str = "block_output",
    *,
    heads: Sequence[int] | None = None,
    channels: Sequence[int] | None = None,
    norm: Norm = None,
) -> Ablation:
    """Add a vector, times a strength, to tokens (steering).

    Args:
        vector: [C], one per selected token [n, C] in order of position, or those of each block [L, n, C], as `jaxvit.constant` takes them.
        norm: "own" gives the sum the norm that the token had: it is turned, not lengthened.

    Raises:
        ValueError: as every constructor, or the strength is no finite number.
    """
    return single(
        "add", tokens, layers, at, heads, channels, norm=norm, value=StoredArray.of(vector), factor=check_number("strength", strength)
    )


def scale(
    tokens: Selection,
    factor: float,
    layers: Layers = "all",
    at: str = "block_output",
    *,
    heads: Sequence[int] | None = None,
    channels: Sequence[int] | None = None,
    norm: Norm = None,
) -> Ablation:
    """Multiply tokens by a factor.

    Raises:
        ValueError: as every constructor, or the factor is no finite number.
    """
    return single("scale", tokens, layers, at, heads, channels, norm=norm, factor=check_number("factor", factor))


def swap(
    a: Selector,
    b: Selector,
    layers: Layers = "all",
    at: str = "block_output",
    *,
    heads: Sequence[int] | None = None,
    channels: Sequence[int] | None = None,
    norm: Norm = None,
) -> Ablation:
    """Exchange tokens within every example: the first of `a` with the first of `b`, in the order in which they are given, and so on.

    Raises:
        ValueError: as every constructor, or tokens are selected that differ between examples. `lower` refuses lists of different
            lengths, and tokens that are selected twice.
    """
    for tokens in (a, b):
        if isinstance(tokens, (RandomPatches, Positions)):
            raise ValueError(
                f"swap of {tokens_in_words(tokens)} is not possible; select tokens that are the same in every example, or use patch"
            )
    return single("swap", a, layers, at, heads, channels, norm=norm, partners=selector_of(b))


def custom(
    function: Callable[..., Any],
    at: str = "block_output",
    layers: Layers = "all",
    arrays: Mapping[str, Any] | None = None,
    *,
    version: str | None = None,
) -> Ablation:
    """Replace all tokens by what a function makes of them.

    It runs in the chosen layers alone, so that what it does elsewhere (a division by zero, say) reaches no gradient; in conditions that
    `jax.vmap` maps over it runs in all layers, and its result is used in those alone.

    Args:
        function: (x, context, arrays) -> x, pure and of a module. `x` is [B, T, C], where heads are apart [B, T, heads, head width];
            `context` the `jaxvit.ops.BlockContext` with number of the layer, example ids and token layout; `arrays` those of this
            layer. Its result has the shape of x and is cast to its type.
        arrays: [L, ...] by name, stored in float32.
        version: becomes part of the definition. JSON and keys otherwise hold the function's name and the hash of its own source: of
            what it calls or reads from elsewhere nothing is seen. Lambdas, partials, methods, functions inside others and those without
            source need one.

    Raises:
        ValueError: as every constructor, or no function, or a version is missing. `lower` refuses arrays that do not lead with the layers.
    """
    stored = tuple((name, StoredArray.of(array)) for name, array in sorted((arrays or {}).items()))
    return single("custom", (), layers, at, None, None, function=NamedFunction.of(function, version), arrays=stored)
