"""Checks of what read-outs and metrics are given: one line that says which argument is wrong, where, and what to do.

Types and shapes are checked always, values where there are any: an argument of a function that JAX transforms (`jax.jit`, `jax.vmap`)
has none. Values on an accelerator are looked at where a read-out is fitted (`fetch`), which takes far longer than fetching them, and
nowhere else: a metric of one batch must not wait for the device. A batch may also be all padding, and what is fitted on may not.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])


def check_first(check: Callable[..., None]) -> Callable[[Function], Function]:
    """A decorator that calls `check` before the function, with those of its arguments that `check` needs.

    It stands above `jax.jit`, because a compiled function sees no values.
    """
    names = [name for name, parameter in inspect.signature(check).parameters.items() if parameter.default is inspect.Parameter.empty]

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            arguments = signature.bind(*args, **kwargs)
            arguments.apply_defaults()
            check(**{name: arguments.arguments[name] for name in names})
            return function(*args, **kwargs)

        return cast(Function, checked)

    return decorate


def check_features(
    name: str,
    features: Any,
    dims: str = "rows width",
    labels: Any = None,
    valid: Any = None,
    valid_name: str = "valid",
    fetch: bool = True,
) -> None:
    """Check numbers with these named axes, none of which may be empty.

    Args:
        labels: of the rows (`check_labels`); those labelled -1 are padding, whose features may be anything.
        valid: in place of labels, which rows are not padding; or their weights, which are 0 for padding.
        fetch: look at values on an accelerator too.

    Raises:
        ValueError: no array of numbers, another shape, or NaN or infinity in a row that is not padding.
    """
    check_array(name, features, dims)
    check_mask(valid_name, valid, name, features, fetch)
    if not any(jnp.issubdtype(features.dtype, kind) for kind in (np.floating, np.integer, np.bool_)):
        raise ValueError(f"{name} are {_type_of(features)}, not real numbers; convert them: {name}.astype(np.float32)")
    if not jnp.issubdtype(features.dtype, np.floating) or _all_finite(features, fetch):
        return
    leading = features.shape[: 1 if labels is None else -1]  # the axes that count rows, also of several problems
    bad = ~np.isfinite(np.asarray(features)).reshape(*leading, -1).all(axis=-1)
    if labels is not None and (numbers := values(labels, fetch)) is not None:
        bad &= numbers >= 0
    elif (numbers := values(valid, fetch)) is not None:
        bad &= numbers != 0
    if bad.any():
        first = ", ".join(map(str, np.argwhere(bad)[0]))
        raise ValueError(
            f"NaN or infinity in {name} at index {first} of ({', '.join(dims.split()[: bad.ndim])}), {bad.sum()} of {bad.size} in all; "
            "leave these out, or find out where they come from"
        )


def check_labels(name: str, labels: Any, features_name: str, features: Any, classes: int, fetch: bool = True) -> None:
    """Check the labels of features' rows: integers from 0 to `classes` - 1, or -1 for padding, and not all padding.

    Features and labels may have an axis of problems in front; labels may also be shared by all problems.

    Raises:
        ValueError: they are anything else.
    """
    check_integers(name, labels)
    rows = features.shape[:-1]
    if labels.shape not in (rows, rows[-1:]):
        raise ValueError(f"{name} has the shape {labels.shape} and {features_name} {features.shape}; give one label for each row")
    if (numbers := values(labels, fetch)) is None:
        return
    if fetch and not (numbers >= 0).any():
        raise ValueError(f"all {name} are {'-1, which is padding' if (numbers == -1).all() else 'negative'}; give rows with a class")
    wrong = (numbers < -1) | (numbers >= classes)
    if wrong.any():
        first = tuple(np.argwhere(wrong)[0].tolist())
        raise ValueError(
            f"{numbers[first]} in {name} at index {', '.join(map(str, first))} is no class: {classes} classes have the labels 0 to "
            f"{classes - 1} (-1 for padding); correct the labels, or the number of classes"
        )


def check_several_classes(name: str, labels: Any) -> None:
    """Check that a read-out has something to tell apart: what knows one class only is right without looking at any feature.

    Raises:
        ValueError: all labels of a problem, besides padding, are one class.
    """
    if (numbers := values(labels)) is None:
        return
    highest = numbers.max(axis=-1)
    lowest = np.where(numbers < 0, highest[..., None], numbers).min(axis=-1)
    if (lowest == highest).any():
        raise ValueError(
            f"all {name} are {lowest.ravel()[np.argmax(lowest == highest)]}; a probe of one class is always right: add rows of others"
        )


def check_classes(classes: int) -> None:
    """Check a number of classes.

    Raises:
        ValueError: it is no integer above 1.
    """
    if not isinstance(classes, int | np.integer) or isinstance(classes, bool) or classes < 2:
        raise ValueError(f"classes is {classes!r}; give the number of classes, at least 2: with one every answer is right")


def check_splits(splits: dict[str, tuple[Any, Any]], classes: int, dims: str = "rows width") -> None:
    """Check the splits of a probe: the first is fitted on.

    Args:
        splits: features and labels by the name of the features; labels have that name with "_labels".

    Raises:
        ValueError: see `check_classes`, `check_features`, `check_labels` and `check_several_classes`; or the splits differ in width.
    """
    check_classes(classes)
    fitted, *_ = splits
    for name, (features, labels) in splits.items():
        check_labelled(name, features, f"{name}_labels", labels, classes, dims)
        check_width(name, features, fitted, splits[fitted][0])
    check_several_classes(f"{fitted}_labels", splits[fitted][1])


def check_labelled(
    name: str,
    features: Any,
    labels_name: str,
    labels: Any,
    classes: int,
    dims: str = "rows width",
    valid: Any = None,
    fetch: bool = True,
) -> None:
    """Check features with labels, whose rows labelled -1, or else not `valid`, are padding.

    Raises:
        ValueError: see `check_features` and `check_labels`.
    """
    check_array(name, features, dims)
    check_labels(labels_name, labels, name, features, classes, fetch)
    check_features(name, features, dims, labels if valid is None else None, valid, fetch=fetch)


def check_width(name: str, features: Any, other_name: str, other: Any) -> None:
    """Check that two arrays of features have the same channels.

    Raises:
        ValueError: they have not.
    """
    if features.shape[-1] != other.shape[-1]:
        raise ValueError(
            f"{name} has {features.shape[-1]} channels and {other_name} {other.shape[-1]}; give features of one model, layer and token"
        )


def check_targets(features: Any, targets: Any, weights: Any) -> None:
    """Check features of rows, their soft or one-hot targets, and weights of the rows.

    Raises:
        ValueError: they do not belong together, hold NaN, or all weights are 0 or one is negative; or there is one class only.
    """
    check_weighted(features, weights)
    check_features("targets", targets, "rows classes", valid=weights, valid_name="weights")
    check_same_rows("targets", targets, "features", features)
    if targets.shape[1] < 2:
        raise ValueError("targets have one class, for which every answer is right; give a column for each of at least 2 classes")


def check_weighted(features: Any, weights: Any) -> None:
    """Check features of rows and weights of the rows, which may be None.

    Raises:
        ValueError: they do not belong together, hold NaN, or all weights are 0 or one is negative.
    """
    check_features("features", features, valid=weights, valid_name="weights")
    if (numbers := values(weights)) is not None and (not np.isfinite(numbers).all() or (numbers < 0).any() or not numbers.any()):
        what = "all 0" if not numbers.any() else f"as low as {numbers.min()}" if (numbers < 0).any() else "not all finite"
        raise ValueError(f"weights are {what}; give 0 for padding and positive numbers for the other rows")


def check_read(mean: Any, features: Any) -> None:
    """Check features that a read-out is applied to; never fetches.

    Args:
        mean: of the features that it was fitted on, [width].

    Raises:
        ValueError: they are of another width, or hold NaN.
    """
    check_features("features", features, fetch=False)
    check_width("features", features, "those of the fit", mean)


def check_same_rows(name: str, array: Any, other_name: str, other: Any) -> None:
    """Check that two arrays have a row for the same things.

    Raises:
        ValueError: they have not.
    """
    if len(array) != len(other):
        raise ValueError(f"{name} has {len(array)} rows and {other_name} {len(other)}; give one for each, in the same order")


def check_mask(name: str, mask: Any, other_name: str, other: Any, fetch: bool = True) -> None:
    """Check flags (or weights) of the rows of an array; None stands for all.

    Raises:
        ValueError: they are no array [rows] of these rows, or all False.
    """
    if mask is None:
        return
    check_array(name, mask, "rows")
    check_same_rows(name, mask, other_name, other)
    if fetch and mask.dtype == bool and (flags := values(mask)) is not None and not flags.any():
        raise ValueError(f"{name} are all False, so that nothing is left of {other_name}; give at least one row that is no padding")


def check_class_map(name: str, labels: Any, dims: str, classes: int, ignore: int | None = None) -> None:
    """Check integers from 0 to `classes` - 1, or `ignore`; never fetches.

    Raises:
        ValueError: they are anything else.
    """
    check_array(name, labels, dims)
    check_integers(name, labels)
    if (numbers := values(labels, fetch=False)) is None:
        return
    if ignore is not None and (numbers.min() < 0 or numbers.max() >= classes):
        numbers = np.where(numbers == ignore, 0, numbers)
    if numbers.min() < 0 or numbers.max() >= classes:
        number = numbers.min() if numbers.min() < 0 else numbers.max()
        ignored = "" if ignore is None else f", or {ignore} where nothing is known"
        raise ValueError(f"{number} in {name} is no class: {classes} classes are 0 to {classes - 1}{ignored}; correct them, or classes")


def check_positive(name: str, numbers: Any) -> None:
    """Check settings: one number or several, each positive and finite.

    Raises:
        ValueError: there is none, or one is anything else.
    """
    if isinstance(numbers, np.ndarray | jax.Array):
        if (fetched := values(numbers)) is None:
            return
        numbers = fetched.tolist()
    several = numbers if isinstance(numbers, Collection) and not isinstance(numbers, str) else (numbers,)
    try:
        possible = len(several) > 0 and all(0 < float(number) < math.inf for number in several)
    except (TypeError, ValueError):
        possible = False
    if not possible:
        verb, remedy = ("is", "give a positive number") if several is not numbers else ("are", "give at least one, all positive")
        raise ValueError(f"{name} {verb} {numbers}; {remedy}")


def check_listed(**settings: Any) -> None:
    """Check settings of which there may be several.

    Raises:
        ValueError: one is a single number.
    """
    for name, setting in settings.items():
        if getattr(setting, "ndim", 1) == 0 or isinstance(setting, float | int | str):
            raise ValueError(f"{name} is {setting!r}; give a tuple, also of one: {name}=({setting!r},)")


def check_counts(**counts: Any) -> None:
    """Check settings that count something.

    Raises:
        ValueError: one is no integer of at least 1.
    """
    for name, count in counts.items():
        if not isinstance(count, int | np.integer) or isinstance(count, bool) or count < 1:
            raise ValueError(f"{name} is {count!r}; give an integer of at least 1")


def values(array: Any, fetch: bool = True) -> np.ndarray | None:
    """The values of an array; None where there are none (inside a transformation of JAX, or on other hosts), or where one would have to
    wait for an accelerator and may not."""
    if array is None or isinstance(array, jax.core.Tracer):
        return None
    if isinstance(array, jax.Array) and (not array.is_fully_addressable or not (fetch or _on_host(array))):
        return None
    return np.asarray(array)


def _on_host(array: jax.Array) -> bool:
    return all(device.platform == "cpu" for device in array.devices())


def _all_finite(array: Any, fetch: bool) -> bool:
    """Whether all values are finite, as far as they can be looked at; computed where the array is."""
    if isinstance(array, jax.Array) and not isinstance(array, jax.core.Tracer) and array.is_fully_addressable and not _on_host(array):
        return not fetch or bool(jnp.isfinite(array).all())
    return (numbers := values(array)) is None or bool(np.isfinite(numbers).all())


def check_array(name: str, array: Any, dims: str) -> None:
    """Check an array with these named axes.

    Raises:
        ValueError: it is no array, has other axes, or one of them is empty.
    """
    if not isinstance(array, np.ndarray | jax.Array):
        torch = type(array).__module__.partition(".")[0] == "torch"
        remedy = f"{name}.detach().cpu().numpy()" if torch else f"np.asarray({name})"
        raise ValueError(f"{name} is a {type(array).__name__}, not an array; give a NumPy or JAX array: {remedy}")
    axes = dims.split()
    if array.ndim != len(axes):
        raise ValueError(f"{name} has the shape {array.shape}, not ({', '.join(axes)}); reshape it to these axes")
    if 0 in array.shape:
        axis = axes[array.shape.index(0)]
        raise ValueError(f"{name} has the shape {array.shape}, no {axis}; give at least one of ({', '.join(axes)})")


def check_integers(name: str, labels: Any) -> None:
    """Check an array of integers.

    Raises:
        ValueError: it is anything else.
    """
    if not isinstance(labels, np.ndarray | jax.Array):
        raise ValueError(f"{name} is a {type(labels).__name__}, not an array; give integers in a NumPy or JAX array: np.asarray({name})")
    if not jnp.issubdtype(labels.dtype, np.integer):
        text = labels.dtype.kind in "USOT"
        remedy = f"number them: np.unique({name}, return_inverse=True)[1]" if text else f"convert them: {name}.astype(int)"
        raise ValueError(f"{name} are {_type_of(labels)}, not integers; {remedy}")


def _type_of(array: Any) -> str:
    kinds: dict[str, Sequence[str]] = {"strings": "UST", "objects": "O"}
    return next((word for word, letters in kinds.items() if array.dtype.kind in letters), str(array.dtype))
