"""Conditions written on the command line, such as `both=zero("cls") & mean("registers", layers="6-11")`.

An expression is parsed, never run: a walk over its syntax tree knows calls of the functions in `FUNCTIONS`, literals and `&`, and refuses
everything else. What a function takes is read off its signature, so that a new argument needs no change here, and a new constructor one
entry in the table.
"""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_type_hints

import numpy as np

import jaxvit
from experiments.features.argument_types import fits, in_words
from experiments.features.conditions import Condition
from experiments.features.recipes import made_up_moments
from jaxvit import Ablation, Moments, ViTConfig
from jaxvit.sites import width_at
from jaxvit.specs import RandomPatches, Replacement

FUNCTIONS: dict[str, Callable[..., Ablation | RandomPatches]] = {
    "zero": jaxvit.zero,
    "constant": jaxvit.constant,
    "mean": jaxvit.mean,
    "noise": jaxvit.noise,
    "shuffle": jaxvit.shuffle,
    "add": jaxvit.add,
    "scale": jaxvit.scale,
    "swap": jaxvit.swap,
    "cut": jaxvit.cut,
    "random_patches": jaxvit.random_patches,
}
"""What an expression may call: constructors of ablations, and of selectors of tokens. Their argument `statistics` is the study's, `seed`
too unless it is given."""

_PYTHON_ONLY = {
    "custom": "it takes a Python function; put the condition into a file and pass that with --plugin",
    "patch": "it takes an array at call time, which a study has not; call jaxvit.forward(..., given=...) from Python",
    "Positions": "it reads an array at call time, which a study has not; call jaxvit.forward(..., given=...) from Python",
}
"""Why constructors cannot stand in an expression."""

_FORM = f'an expression is calls of {", ".join(FUNCTIONS)} joined by &, such as zero("cls") & mean("registers", layers="6-11")'
_TRIAL = ViTConfig(patch_size=8, width=4, depth=64, heads=1, mlp_dim=4, registers=4, image_size=64)
"""A made-up model that expressions are tried on; constructors do not compare layers or positions with it, `inapplicable` does."""
_MOST_CHARACTERS = 4_000
_MOST_LEVELS = 50
"""Depth of the syntax tree: every `&` is one level."""
_VECTOR = float | Sequence[float] | Sequence[Sequence[float]] | Sequence[Sequence[Sequence[float]]]
_LARGEST_NUMBER = 1e38
"""Values of a constant are float32."""


class Expression(NamedTuple):
    """A condition of the command line.

    Attributes:
        name: what it is called in results.
        text: the expression, the same whatever the spacing and quotes.
        build: makes the ablation.
        random: the study's seed matters: noise, shuffle or random_patches occurs without a seed of its own.
    """

    name: str
    text: str
    build: Condition
    random: bool


def parse_condition(argument: str) -> Expression:
    """The condition that `name=expression` describes.

    Layers, registers and patches may be more than a model has: see `inapplicable`.

    Raises:
        ValueError: not of this form, or a constructor refuses its arguments. The message is one line.
    """
    try:
        name, text = _split(argument)
        tree = _parse(text)
        trial = _Study(_TRIAL, made_up_moments(_TRIAL, (_TRIAL.image_size, _TRIAL.image_size)), 0)
        _ablation(tree, trial)
        return Expression(name, ast.unparse(tree), functools.partial(_build, tree), trial.seed_was_used)
    except (RecursionError, MemoryError):
        reason = f"it has more than {_MOST_LEVELS} levels, of which every & is one; split it into several conditions; {_FORM}"
    except ValueError as error:
        reason = str(error)
    raise ValueError(_one_line(f"cannot read condition {_quote(argument)}: {reason}"))


def inapplicable(ablation: Ablation, config: ViTConfig, image_size: int | tuple[int, int] | None = None) -> str:
    """Why a model of this shape cannot run an ablation, in a few words, or "" if it can.

    Args:
        ablation: built with this `config` and moments of its shape (`recipes.made_up_moments` will do).
        image_size: of the study in pixels; by default that of the ablation's moments, else the nominal one of the model.

    Raises:
        ValueError: the image size is no multiple of the patch size.
    """
    calibrated = (r.image_size for r in ablation.replacements if isinstance(r, Replacement) and r.image_size)
    size = image_size or next(calibrated, config.image_size)
    jaxvit.TokenLayout.of(config, size)
    try:
        edits = jaxvit.lower(ablation, config, size)
    except ValueError as error:
        return _one_line(_reason(str(error), config))
    if edits.reads_clean:
        return "the condition reads the clean stream of jaxvit.contrast, which the tasks of a study have not"
    if edits.given_names:
        return _one_line(f'the condition reads "{edits.given_names[0]}" at call time, which a study has not; run it with jaxvit.forward')
    return ""


@dataclass
class _Study:
    """What the study supplies to expressions, and whether its seed was used."""

    config: ViTConfig
    moments: Moments
    seed: int
    seed_was_used: bool = False


def _build(tree: ast.expr, config: ViTConfig, moments: Moments, seed: int) -> Ablation:
    """The ablation of a parsed expression."""
    return _ablation(tree, _Study(config, moments, seed))


def _split(argument: str) -> tuple[str, str]:
    """Name and expression."""
    name, equals, text = argument.partition("=")
    if not equals or "(" in name:
        raise ValueError(f"it has no name; write name=expression; {_FORM}")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_+.-]*", name.strip()):
        raise ValueError(f"{_quote(name)} is no name; names are letters, digits and _ - + . and begin with a letter, such as no_cls")
    return name.strip(), text.strip()


def _parse(text: str) -> ast.expr:
    """The syntax tree of an expression, strings in one notation."""
    if len(text) > _MOST_CHARACTERS:
        raise ValueError(f"it has {len(text):,} characters, more than {_MOST_CHARACTERS:,}; make it shorter")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd but valid literals
            tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        piece = (error.text or "")[max(0, (error.offset or 1) - 1) :].strip()
        where = f" at {_quote(piece)}" if piece else ""
        raise ValueError(f"{error.msg.split('. ')[0]}{where}; {_FORM}") from None
    except ValueError as error:
        raise ValueError(f"{error}; {_FORM}") from None
    level: list[ast.AST] = [tree]
    for _ in range(_MOST_LEVELS):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    if level:
        raise RecursionError
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):
            node.kind = None  # u"cls" is "cls"
    return tree


def _ablation(node: ast.expr, study: _Study) -> Ablation:
    """The value of an expression that has to be an ablation."""
    value = _value(node, study)
    if isinstance(value, RandomPatches):
        raise ValueError(f"{_piece(node)} selects tokens and does nothing to them; write for example zero({ast.unparse(node)})")
    if not isinstance(value, Ablation):
        raise ValueError(f"{_piece(node)} is no ablation; {_FORM}")
    return value


def _value(node: ast.expr, study: _Study) -> Any:
    """The value of an expression: an ablation, a selector or a literal."""
    match node:
        case ast.BinOp(left, ast.BitAnd(), right):
            return _ablation(left, study) & _ablation(right, study)
        case ast.Call(ast.Name(name), arguments, keywords):
            return _call(name, arguments, keywords, study)
        case ast.List(entries) | ast.Tuple(entries):
            return [_value(entry, study) for entry in entries]
        case ast.Constant(str() | bool() as value):
            return value
        case ast.Constant(int() | float() as number):
            return _number(number)
        case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as number)) if not isinstance(number, bool):
            return -_number(number)
        case ast.Name(name):
            hint = f"write {name}(...)" if name in FUNCTIONS else "put words in double quotes, and the whole condition in single quotes"
            raise ValueError(f"{_piece(node)} stands alone; {hint}; {_FORM}")
        case _:
            raise ValueError(f"{_piece(node)} is not possible; {_FORM}, with strings, numbers and lists of them as arguments")


def _number(number: float) -> float:
    if abs(number) > _LARGEST_NUMBER:
        raise ValueError(f"a number beyond {_LARGEST_NUMBER:g} is not possible; use a smaller one")
    return number


def _call(name: str, positional: Sequence[ast.expr], keywords: Sequence[ast.keyword], study: _Study) -> Ablation | RandomPatches:
    """The result of a function with the arguments of the expression and those of the study."""
    if name in _PYTHON_ONLY:
        raise ValueError(f"{name} is not possible here: {_PYTHON_ONLY[name]}; possible here are {', '.join(FUNCTIONS)}")
    if name not in FUNCTIONS:
        raise ValueError(f"there is no {_quote(name)}{_nearest(name, FUNCTIONS)}; possible are {', '.join(FUNCTIONS)}")
    function = FUNCTIONS[name]
    parameters = inspect.signature(function).parameters
    arguments = {
        parameter: _argument(name, parameter, node, study) for parameter, node in _assign(name, parameters, positional, keywords).items()
    }
    if "vector" in arguments:
        arguments["vector"] = _vector(arguments["vector"], width_at(arguments.get("at", parameters["at"].default), study.config))
    if "statistics" in parameters:
        at = arguments.get("at", parameters["at"].default)
        if at not in study.moments.mean:
            raise ValueError(f"{name} is possible at {', '.join(study.moments.mean)}; not at {_quote(at)}")
        arguments["statistics"] = study.moments
    if "seed" in parameters and "seed" not in arguments:
        arguments["seed"] = study.seed
        study.seed_was_used = True
    try:
        return function(**arguments)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"{name} does not take these arguments: {error}") from None


def _assign(
    name: str, parameters: Mapping[str, inspect.Parameter], positional: Sequence[ast.expr], keywords: Sequence[ast.keyword]
) -> dict[str, ast.expr]:
    """The node of each parameter of a function that the expression gives."""
    possible = [parameter for parameter in parameters if parameter != "statistics"]
    takes = f"{name} takes {', '.join(possible)}"
    by_position = [parameter for parameter in possible if parameters[parameter].kind is not inspect.Parameter.KEYWORD_ONLY]
    if len(positional) > len(by_position):
        raise ValueError(f"{_piece(positional[len(by_position)])} is one argument too many; {takes}")
    nodes = dict(zip(by_position, positional, strict=False))
    for keyword in keywords:
        if keyword.arg == "statistics":
            raise ValueError(f"statistics are the study's own; leave them out; {takes}")
        if keyword.arg not in possible:
            given = f"argument {_quote(keyword.arg)}{_nearest(keyword.arg, possible)}" if keyword.arg else "argument with **"
            raise ValueError(f"{name} has no {given}; {takes}")
        if keyword.arg in nodes:
            raise ValueError(f"{name} is given {keyword.arg} twice; leave one out; {takes}")
        nodes[keyword.arg] = keyword.value
    missing = [parameter for parameter in possible if parameters[parameter].default is inspect.Parameter.empty and parameter not in nodes]
    if missing:
        raise ValueError(f"{name} needs {' and '.join(missing)}; {takes}")
    return nodes


def _argument(name: str, parameter: str, node: ast.expr, study: _Study) -> Any:
    """The value of an argument, which has to be of the type that the function asks for."""
    value, hint = _value(node, study), _hints(name)[parameter]
    if not fits(value, hint):
        raise ValueError(f"{name} cannot take {_piece(node)} as {parameter}; {parameter} is {in_words(hint)}")
    return value


@functools.cache
def _hints(name: str) -> dict[str, Any]:
    """The type of each argument of a function; in an expression the vector of a constant is numbers, or one for every channel."""
    return get_type_hints(FUNCTIONS[name]) | {"vector": _VECTOR}


def _reason(message: str, config: ViTConfig) -> str:
    """What `lower` says, as what the model lacks."""
    if missing := re.match(r"layer (-?\d+) does not exist", message):
        return f"it has blocks 0 to {config.depth - 1}, not {missing[1]}"
    if missing := re.match(r"head (\d+) does not exist", message):
        return f"it has heads 0 to {config.heads - 1}, not {missing[1]}"
    if "but this model has none" in message:
        return "it has no registers"
    if re.match(r'"registers\[\d+\]" is out of range', message):
        last = config.registers - 1
        return (
            f"it has registers 1 to {last + 1}, written registers[0] to registers[{last}]" if last else "it has one register, registers[0]"
        )
    return message


def _vector(value: float | list, width: int) -> np.ndarray:
    """A vector, one for each token, or those of each block; a number is the value of every channel."""
    try:
        return np.full(width, value, np.float32) if isinstance(value, (int, float)) else np.asarray(value, np.float32)
    except ValueError:
        raise ValueError("the vectors of a constant differ in length; give each the width of the site, and every block as many") from None


def _nearest(name: str, possible: Iterable[str]) -> str:
    """The name that may have been meant, as a question."""
    near = difflib.get_close_matches(name, list(possible), 1)
    return f' (did you mean "{near[0]}"?)' if near else ""


def _piece(node: ast.expr) -> str:
    """A part of the expression, in quotes."""
    return _quote(ast.unparse(node))


def _quote(text: object) -> str:
    text = str(text)
    return f'"{text if len(text) <= 60 else text[:57] + "..."}"'


def _one_line(message: str) -> str:
    """A message without line breaks and control characters, whatever it quotes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
