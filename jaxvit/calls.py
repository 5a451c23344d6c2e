"""Checks of calls: one line that says which argument is not what it should be, and how to make it so.

What has a sensible reading is accepted: lists of numbers for each image, a released model's name or a model where a config is read.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxvit.checks import values
from jaxvit.config import MODELS, ViTConfig

Function = TypeVar("Function", bound=Callable[..., Any])

_FARTHEST = 25.0
"""No normalised pixel is as far from zero: white is 2.2 to 2.7 under the models' own normalisations."""


def checked_run(function: Function) -> Function:
    """A decorator of functions that run a model on images: looks at the arguments `model`, `images`, `ablation`, `example_ids`, `valid` and
    `groups` first, and makes arrays of lists of the last three."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs)
        arguments = call.arguments
        model, images = arguments["model"], arguments["images"]
        check_model(model)
        check_images(images, arguments.get("valid"))
        for name in ("example_ids", "valid", "groups"):
            if arguments.get(name) is not None:
                arguments[name] = per_image(name, arguments[name], len(images))
        if arguments.get("ablation") is not None:
            check_ablation(arguments["ablation"], stacked=False)
        elif "ablation" in arguments and signature.parameters["ablation"].default is inspect.Parameter.empty:
            raise ValueError("ablation is None; pass one, such as jaxvit.zero(...), or run the model alone: jaxvit.forward(model, images)")
        return function(*call.args, **call.kwargs)

    return cast(Function, checked)


def check_model(model: Any) -> None:
    """Check that an argument is a model.

    Raises:
        ValueError: it is a config, a name, or anything else.
    """
    if hasattr(model, "blocks") and isinstance(getattr(model, "config", None), ViTConfig):
        return
    if isinstance(model, ViTConfig):
        raise ValueError("model is a ViTConfig, which has no weights; make a model: jaxvit.create(config), or jaxvit.load(path)")
    if isinstance(model, str | os.PathLike):
        raise ValueError(f'model is "{model}", a name or path; open it: jaxvit.load("{model}")')
    raise ValueError(
        f"model is {described(model)}; a model comes first, of jaxvit.load(path) or jaxvit.create(config), then what it runs on"
    )


def as_config(model: Any) -> ViTConfig:
    """The config of a model, of a released model's name, or the config itself.

    Raises:
        ValueError: it is anything else.
    """
    config = MODELS.get(model) if isinstance(model, str) else getattr(model, "config", model)
    if isinstance(config, ViTConfig):
        return config
    if isinstance(model, str):
        raise ValueError(f'unknown model "{model}"; known are {", ".join(MODELS)}, or open a checkpoint: jaxvit.load("{model}")')
    raise ValueError(f"{described(model)} stands where a model is expected; pass a model, a ViTConfig or a released model's name")


def as_image_size(image_size: Any) -> tuple[int, int]:
    """Height and width in pixels, from a side or both.

    Raises:
        ValueError: it is anything else.
    """
    sides = image_size.tolist() if isinstance(image_size, np.ndarray) else image_size
    sides = (sides, sides) if isinstance(sides, int | np.integer) else sides
    if isinstance(sides, Sequence) and len(sides) == 2 and all(isinstance(side, int | np.integer) for side in sides):
        return int(sides[0]), int(sides[1])
    remedy = "give images.shape[1:3]" if getattr(image_size, "ndim", 0) > 1 else "give a side, or (height, width)"
    what = image_size if isinstance(image_size, float | tuple | list) else described(image_size)
    raise ValueError(f"image_size is {what}; {remedy} in whole pixels")


def check_ablation(ablation: Any, edits: bool = True, stacked: bool = True) -> None:
    """Check that an argument is an ablation.

    Args:
        edits: an ablation that is lowered will do.
        stacked: so will several that are stacked.

    Raises:
        ValueError: it is something else.
    """
    if hasattr(ablation, "replacements"):
        return
    if hasattr(ablation, "ops"):
        if not edits:
            raise ValueError("these are edits, lowered already; pass them to jaxvit.forward as they are")
        if not stacked and ablation.conditions:
            raise ValueError(
                f"these edits are {ablation.conditions[0]} conditions (jaxvit.stack); run all: "
                "jax.vmap(lambda edits: jaxvit.forward(model, images, edits))(edits), or pass one ablation"
            )
        return
    if isinstance(ablation, str):
        raise ValueError(f'ablation is the string "{ablation:.60}"; say what becomes of tokens: jaxvit.zero("registers"), for example')
    if isinstance(ablation, list | tuple) and ablation and all(hasattr(part, "replacements") for part in ablation):
        raise ValueError(f"ablation is {described(ablation)}; apply all in order as a & b, or run each: jaxvit.stack and jax.vmap")
    call = "; call it: " if callable(ablation) else "; pass an ablation, such as "
    raise ValueError(f'ablation is {described(ablation)}{call}jaxvit.zero("registers")')


def check_seed(seed: Any) -> None:
    """Check a seed, from which a key is made.

    Raises:
        ValueError: it is no whole number.
    """
    if not isinstance(seed, int | np.integer | jax.core.Tracer) or isinstance(seed, bool):
        raise ValueError(f"seed is {seed if isinstance(seed, float) else described(seed)}; give a whole number, such as 0")


def check_path(path: Any, call: str) -> None:
    """Check a path or name.

    Args:
        call: how the function is called.

    Raises:
        ValueError: it is no text.
    """
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"{described(path)} stands where a path is expected: {call}")


def check_several(ablations: Any) -> list[Any]:
    """Several ablations, single ones, as a list.

    Raises:
        ValueError: there is none, or one is something else.
    """
    if hasattr(ablations, "replacements") or hasattr(ablations, "ops"):
        raise ValueError("stack takes several ablations: jaxvit.stack([a, b], model, image_size)")
    if isinstance(ablations, str) or not isinstance(ablations, Iterable):
        raise ValueError(f"stack takes several ablations, got {described(ablations)}: jaxvit.stack([a, b], model, image_size)")
    several = list(ablations.values() if isinstance(ablations, dict) else ablations)
    if not several:
        raise ValueError("stack needs at least one ablation, got none")
    for ablation in several:
        if ablation is None:
            raise ValueError("one of the ablations is None; an empty jaxvit.Ablation() changes nothing")
        check_ablation(ablation, stacked=False)
    return several


def check_selector(tokens: Any) -> None:
    """Check a list of token names and positions.

    Raises:
        ValueError: it is anything else.
    """
    entries = tokens.tolist() if hasattr(tokens, "tolist") else tokens
    several = isinstance(entries, Sequence | set | frozenset)
    wrong = [t for t in entries if not isinstance(t, str | int | np.integer) or isinstance(t, bool)] if several else [tokens]
    if wrong:
        mask = isinstance(wrong[0], bool)
        remedy = "positions of a mask are np.flatnonzero(mask)" if mask else "use names, positions or a list of those"
        raise ValueError(f"{wrong[0] if isinstance(wrong[0], float | bool) else described(wrong[0])} selects no token; {remedy}")


def check_moments(statistics: Any) -> None:
    """Check that an argument is moments of activations.

    Raises:
        ValueError: it is anything else.
    """
    if not hasattr(statistics, "mean") or not hasattr(statistics, "variance") or not isinstance(statistics.mean, dict):
        raise ValueError(f"statistics is {described(statistics)}; after the tokens, pass what jaxvit.calibrate(model, batches) returned")


def as_batches(batches: Any) -> Iterable[Any]:
    """Batches to iterate over.

    Raises:
        ValueError: they are one array, or one batch.
    """
    if hasattr(batches, "shape") or (isinstance(batches, tuple) and len(batches) == 2 and hasattr(batches[0], "shape")):
        raise ValueError("batches are a list of (images, valid), and this is one batch; pass [(images, None)] where nothing is padding")
    if isinstance(batches, str) or not isinstance(batches, Iterable):
        raise ValueError(f"batches are {described(batches)}; pass a list of (images, valid), such as [(images, None)]")
    return batches


def as_pair(batch: Any) -> tuple[Any, Any]:
    """Images and which of them are no padding, of one batch.

    Raises:
        ValueError: it is no such pair.
    """
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1]
    raise ValueError(f"a batch is {described(batch)}; a batch is a pair (images, valid), such as (images, None) where nothing is padding")


def check_images(images: Any, valid: Any = None) -> None:
    """Check a batch of normalised images. Values are looked at where that waits for nothing.

    Args:
        valid: which of them are not padding; padding may hold anything.

    Raises:
        ValueError: no such array, an empty one, pixels that are not normalised, or NaN or infinity.
    """
    check_numpy("images", images)
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be normalised floats, got {images.dtype}; use jaxvit.normalise(images, model.config)")
    check_axes("images", images)
    if not len(images):
        raise ValueError(f"images has the shape {tuple(images.shape)}, no image; give at least one")
    array = _at_hand(images)
    if array is None or not array.size:
        return
    lowest, highest = array.min(), array.max()
    if lowest >= 0 and highest > _FARTHEST:
        raise ValueError(
            f"images range from {lowest:g} to {highest:g}, as pixels do that are not normalised; "
            "use jaxvit.normalise(images.astype(np.uint8), model.config)"
        )
    if not np.isfinite(lowest) or not np.isfinite(highest):
        bad = ~np.isfinite(array).all(axis=(1, 2, 3))
        numbers = None if valid is None else values(np.asarray(valid) if isinstance(valid, list | tuple) else valid, fetch=False)
        bad &= True if numbers is None or numbers.shape != bad.shape else numbers.astype(bool)
        if bad.any():
            raise ValueError(f"NaN or infinity in {bad.sum()} of {len(bad)} images, first in image {bad.argmax()}; leave these out")


def per_image(name: str, numbers: Any, count: int) -> Any:
    """An array of whole numbers, one for each image; for "valid" of booleans, or of 0 and 1.

    Raises:
        ValueError: it is anything else.
    """
    array = numbers if isinstance(numbers, np.ndarray | jax.Array) else np.asarray(numbers)
    if tuple(array.shape) != (count,):
        raise ValueError(f"{name} must have one entry per image ({count}), got shape {tuple(array.shape)}")
    known = values(array, fetch=False)
    if name == "valid":
        if array.dtype != bool and not (jnp.issubdtype(array.dtype, jnp.integer) and (known is None or np.isin(known, (0, 1)).all())):
            raise ValueError("valid must be True where an image is no padding and False elsewhere, got " + _sample(array))
        return array.astype(bool)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(f"{name} must be whole numbers, got {_sample(array)}; number them: np.arange({count})")
    if known is not None and known.size and (known.min() < -(2**31) or known.max() >= 2**32):
        raise ValueError(f"{name} must fit in 32 bits, got {known[np.abs(known.astype(np.float64)).argmax()]}; number them from 0")
    return array


def check_numpy(name: str, array: Any) -> None:
    """Check that an argument is an array of NumPy or JAX.

    Raises:
        ValueError: it is a torch tensor, a list, or anything else.
    """
    if isinstance(array, np.ndarray | jax.Array):
        return
    if type(array).__module__.partition(".")[0] == "torch":
        raise ValueError(f"{name} is a torch tensor; pass {name}.detach().cpu().numpy()")
    if isinstance(array, list | tuple):
        several = len(array) and hasattr(array[0], "shape")
        raise ValueError(f"{name} is a {type(array).__name__}, not an array; pass np.{'stack' if several else 'asarray'}({name})")
    raise ValueError(f"{name} is {described(array)}, not an array; pass a NumPy or JAX array")


def check_axes(name: str, images: Any, any_batch: bool = False) -> None:
    """Check the axes of images: colours last, and one axis of a batch (or any, with `any_batch`).

    Raises:
        ValueError: one image alone, colours first, or anything else.
    """
    shape = tuple(images.shape)
    if shape[-1:] == (3,) and (len(shape) == 4 or (any_batch and len(shape) >= 3)):
        return
    remedy = ""
    if shape[-1:] == (3,) and len(shape) == 3:
        remedy = f"; one image is a batch of one: {name}[None]"
    elif len(shape) in (3, 4) and shape[-3] == 3:
        remedy = f"; colours come last: {name}.transpose({'0, 2, 3, 1' if len(shape) == 4 else '1, 2, 0'})"
    elif len(shape) == 4 and shape[-1] in (1, 4):
        remedy = f"; for grey images {name}.repeat(3, axis=-1)" if shape[-1] == 1 else f"; leave out transparency: {name}[..., :3]"
    raise ValueError(f"{name} must be [{'...' if any_batch else 'batch'}, height, width, 3], got {shape}{remedy}")


def check_pixels(name: str, images: Any, any_batch: bool = False) -> None:
    """Check pixels as they are stored, uint8 [batch, height, width, 3] (or [..., height, width, 3], with `any_batch`).

    Raises:
        ValueError: they are anything else.
    """
    check_numpy(name, images)
    if images.dtype != np.uint8:
        floats = jnp.issubdtype(images.dtype, jnp.floating)
        remedy = "floats may already be normalised" if floats else f"if they are pixels: {name}.astype(np.uint8)"
        raise ValueError(f"{name} must be pixels as stored, uint8 in 0..255, got {images.dtype}; {remedy}")
    check_axes(name, images, any_batch)


def described(value: Any) -> str:
    """What something is, in a few words."""
    if value is None:
        return "None"
    if isinstance(value, str):
        return f'the string "{value:.60}"'
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array {list(value.shape)}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}" + (f" of {len(value)}" if isinstance(value, list | tuple | dict) else "")


def _at_hand(images: Any) -> np.ndarray | None:
    """Images whose values can be looked at at no cost: on the host, computed already, and not spread over devices."""
    if isinstance(images, jax.Array) and not isinstance(images, jax.core.Tracer):
        ready: Callable[[], bool] = getattr(images, "is_ready", lambda: False)
        if len(images.devices()) > 1 or not ready():
            return None
    return values(images, fetch=False)


def _sample(array: Any) -> str:
    known = values(array, fetch=False)
    return str(array.dtype) if known is None else f"{known[0]!r}, ..." if known.dtype.kind in "USO" else f"{known.dtype}, {known[0]}, ..."
