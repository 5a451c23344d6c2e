"""The statistics that normalise pixels: those of the files beside the weights, of a released model, or the caller's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from convert.sources import read_json
from jaxvit import MODELS
from jaxvit.config import IMAGENET_MEAN, IMAGENET_STD

DEFAULT = "default (ImageNet)"
_PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
_OVERRIDE = "pass them: mean= and std=, or --mean R G B --std R G B"
_RESCALE = 1 / 255
_TOLERANCE = 1e-5


class Statistics(NamedTuple):
    """Mean and standard deviation of pixels scaled to [0, 1], per RGB channel.

    Attributes:
        origin: where they come from, for the manifest.
        file: the file that they were read from.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    origin: str
    file: Path | None = None


def pixel_statistics(
    folder: Path | None, timm_config: Path | None, name: str | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Statistics:
    """Return the caller's statistics, else those of the released model, else those of the files beside the weights, else ImageNet's.

    Args:
        folder: whose files belong to the weights; None where there is no such folder.
        timm_config: the `config.json` of timm that belongs to the weights.
        name: the caller's name for the model.

    Raises:
        ValueError: numbers are no statistics, or a file contradicts the released model or another file.
    """
    if (mean is None) != (std is None):
        raise ValueError(f"{'std' if std is None else 'mean'} is missing: pass mean and std together, or --mean R G B --std R G B")
    if mean is not None and std is not None:
        return _checked(mean, std, "option")
    stated = [statistics for statistics in (_of_timm(timm_config), _of_hugging_face(folder)) if statistics is not None]
    if name in MODELS:
        stated.insert(0, Statistics(MODELS[name].pixel_mean, MODELS[name].pixel_std, "released name"))
    for other in stated[1:]:
        if not _are_close(stated[0], other):
            first = name if stated[0].file is None else stated[0].origin
            raise ValueError(
                f"{other.origin} says mean {list(other.mean)} and std {list(other.std)}, but {first} has {list(stated[0].mean)} and "
                f"{list(stated[0].std)}; {_OVERRIDE}{', or drop the name' if name in MODELS else ''}"
            )
    return stated[0] if stated else Statistics(IMAGENET_MEAN, IMAGENET_STD, DEFAULT)


def _of_timm(config: Path | None) -> Statistics | None:
    """The statistics in timm's `config.json`."""
    if config is None:
        return None
    content = read_json(config)
    nested = content.get("pretrained_cfg")
    settings: Mapping[str, Any] = nested if isinstance(nested, dict) and ("mean" in nested or "std" in nested) else content
    if "mean" not in settings and "std" not in settings:
        return None
    return _checked(settings.get("mean"), settings.get("std"), config.name, config)


def _of_hugging_face(folder: Path | None) -> Statistics | None:
    """The statistics in the settings of Hugging Face's image processor."""
    file = next((folder / name for name in _PREPROCESSORS if folder is not None and (folder / name).is_file()), None)
    if file is None:
        return None
    content = read_json(file)
    nested = content.get("image_processor")
    settings: Mapping[str, Any] = nested if isinstance(nested, dict) else content
    scale = settings.get("rescale_factor", _RESCALE)
    if settings.get("do_rescale", True) is not True or not _is_number(scale) or abs(scale - _RESCALE) > _TOLERANCE * _RESCALE:
        raise ValueError(f"{file.name} scales pixels to other values than 0 to 1, which is not supported; {_OVERRIDE}")
    if settings.get("do_normalize") is False:
        return Statistics((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), file.name, file)
    if "image_mean" not in settings and "image_std" not in settings:
        return None
    return _checked(settings.get("image_mean"), settings.get("image_std"), file.name, file)


def _checked(mean: Any, std: Any, origin: str, file: Path | None = None) -> Statistics:
    """The statistics as tuples of floats.

    Raises:
        ValueError: they are not three numbers each, or in no range that they can have.
    """
    for word, numbers in (("mean", mean), ("std", std)):
        if not isinstance(numbers, list | tuple) or len(numbers) != 3 or not all(_is_number(number) for number in numbers):
            fault = f"three numbers are needed, for red, green and blue, got {numbers!r}"
        elif max(numbers) > 1:
            fault = f"{list(numbers)} is of pixels from 0 to 255; divide by 255"
        elif min(numbers) < 0 or (word == "std" and min(numbers) == 0):
            fault = f"{list(numbers)} cannot be: it must be {'positive' if word == 'std' else '0 or more'}"
        else:
            continue
        where, advice = ("", "") if file is None else (f"{file.name}: ", f", or {_OVERRIDE}")
        raise ValueError(f"{where}{word} of the pixels: {fault}{advice}")
    (red, green, blue), (red_std, green_std, blue_std) = map(float, mean), map(float, std)
    return Statistics((red, green, blue), (red_std, green_std, blue_std), origin, file)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _are_close(one: Statistics, other: Statistics) -> bool:
    pairs = zip((*one.mean, *one.std), (*other.mean, *other.std), strict=True)
    return all(math.isclose(a, b, abs_tol=_TOLERANCE) for a, b in pairs)
