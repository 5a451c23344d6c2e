"""The data of the token microscope as scripts of the page: as much of the cells as the page may weigh.

A chunk is base64 of zlib of arrays one after the other, in C order and little-endian. That of an image, `d.MODEL.IMAGE`, has
  u16 [conditions, layers, tokens] norms
  u16 [attention conditions, layers, queries] sums of rows of attention
  u8 [attention conditions, layers, queries, keys] attention, mean over heads
  i8 [conditions, layers, dims, tokens] features
  u8 [conditions, layers, 3, tokens] colours
and that of its heads, `d.MODEL.IMAGE.h`, u16 [head conditions, layers, heads, queries] sums and u8 [..., keys] attention. Conditions after
the first are stored minus the first, modulo 256 or 65536. `experiments.features.token_codes` says what a code stands for.
"""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from PIL import Image

from experiments.analyses.token_microscope import DIMS, KIND
from experiments.demo import NOTES, label
from experiments.features.token_codes import ATTENTION_LEVELS, FEATURE_STEP, NORM_LEVELS, SUM_LEVELS
from experiments.plotting.escape import isolated
from experiments.study.jobs import Arrays
from experiments.study.results import StudyResults

_BASE64 = 4 / 3
_LEVEL = 7  # of zlib: higher ones take two to six times as long for 2 %
_LESS = 0.8  # bytes at this level, as a share of those at level 1: at least


class Choice(NamedTuple):
    """How much of the cells a page has.

    Attributes:
        heads: conditions that have attention of single heads, at most.
        attention: conditions that have attention, at most; None for all.
        dims: coordinates of features.
        images: at most; None for all.
    """

    heads: int
    attention: int | None
    dims: int
    images: int | None


CHOICES = (
    Choice(4, None, DIMS[0], None),
    Choice(4, None, DIMS[1], None),
    Choice(2, None, DIMS[1], None),
    Choice(0, None, DIMS[1], None),
    Choice(0, 4, DIMS[1], None),
    Choice(0, 4, DIMS[1], 2),
    Choice(0, 4, DIMS[1], 1),
    Choice(0, 2, DIMS[1], 1),
    Choice(0, 1, DIMS[2], 1),
    Choice(0, 0, DIMS[2], 1),
)
"""From the richest to the poorest; a page has the first that fits."""


def token_scripts(results: StudyResults, room: int) -> Markup:
    """The data as script elements, at most `room` bytes of them (or none): `microscope-models` is JSON that says what there is and what was
    left out, the others are chunks. Empty where the study has no token data."""
    cells = {cell.key["name"]: cell.arrays for cell in sorted(results.cells(KIND), key=lambda cell: len(cell.key["conditions"]))}
    models = {model: cells[model] for model in results.models if model in cells}
    if not models:
        return Markup()
    missing = [isolated(label(model)) for model in results.models if model not in models]
    for choice in CHOICES:
        if _estimate(models, choice) <= room and len(scripts := _scripts(models, choice, missing)) <= room:
            return scripts
    return _models_script(
        [], "The data of the microscope do not fit into a page of this size. Write the page again with a larger --page-budget."
    )


def _scripts(models: dict[str, Arrays], choice: Choice, missing: Sequence[str]) -> Markup:
    described = [_description(model, arrays, choice) for model, arrays in models.items()]
    pictures = list(dict.fromkeys(picture for model in described for picture in model["images"]))  # most models see the same
    described = [{**model, "images": [pictures.index(picture) for picture in model["images"]]} for model in described]
    chunks = [chunk for model, arrays in models.items() for chunk in _chunks(model, arrays, choice)]
    return _models_script(described, "", missing, pictures) + Markup("\n").join(chunks)


def _models_script(models: Sequence[dict[str, Any]], problem: str, missing: Sequence[str] = (), pictures: Sequence[str] = ()) -> Markup:
    text = json.dumps(
        {"models": models, "problem": problem, "missing": missing, "pictures": pictures}, separators=(",", ":"), allow_nan=False
    )
    return Markup('<script type="application/json" id="microscope-models">{}</script>\n').format(Markup(text.replace("<", "\\u003c")))


def _estimate(models: dict[str, Arrays], choice: Choice) -> float:
    """The least that the chunks weigh, in bytes, from the first image of every model."""
    return sum(
        _BASE64 * _LESS * len(zlib.compress(data, 1)) * _images(arrays, choice)
        for arrays in models.values()
        for data in (_image_bytes(arrays, choice, 0), *_head_bytes(arrays, choice, 0))
    )


def _chunks(model: str, arrays: Arrays, choice: Choice) -> Iterator[Markup]:
    for image in range(_images(arrays, choice)):
        yield _chunk(f"d.{model}.{image}", _image_bytes(arrays, choice, image))
        for data in _head_bytes(arrays, choice, image):
            yield _chunk(f"d.{model}.{image}.h", data)


def _chunk(name: str, data: bytes) -> Markup:
    text = base64.b64encode(zlib.compress(data, _LEVEL)).decode()
    return Markup('<script type="text/plain" id="{}">{}</script>').format(name, Markup(text))


def _image_bytes(arrays: Arrays, choice: Choice, image: int) -> bytes:
    parts = [arrays["norms"][:, :, image]]
    kept = _attention_indices(arrays, choice)
    if kept:
        parts += [arrays["attention_sums"][kept, :, image], arrays["attention"][kept, :, image]]
    parts.append(arrays["features"][:, :, image, :, : choice.dims].swapaxes(-1, -2))
    parts.append(arrays["colours"][:, :, image].swapaxes(-1, -2))
    return b"".join(map(_bytes, parts))


def _head_bytes(arrays: Arrays, choice: Choice, image: int) -> list[bytes]:
    """The bytes of the chunk of heads, where there is one."""
    if not (choice.heads and "heads" in arrays):
        return []
    return [b"".join(_bytes(arrays[name][: choice.heads, :, image]) for name in ("heads_sums", "heads"))]


def _bytes(codes: np.ndarray) -> bytes:
    """Codes of several conditions, those after the first minus the first."""
    differences = np.concatenate([codes[:1], codes[1:] - codes[:1]])
    return differences.astype(differences.dtype.newbyteorder("<")).tobytes()


def _images(arrays: Arrays, choice: Choice) -> int:
    count = len(arrays["images"])
    return count if choice.images is None else min(count, choice.images)


def _attention_indices(arrays: Arrays, choice: Choice) -> list[int]:
    """Which conditions with attention in the cell have it on the page: they are in the order in which they are worth keeping."""
    return list(range(len(arrays["attention_conditions"])))[: choice.attention]


def _description(model: str, arrays: Arrays, choice: Choice) -> dict[str, Any]:
    """What the script must know of a model to decode and to show its chunks."""
    prefix, rows, columns, heads = map(int, arrays["grid"])
    names = [str(name) for name in arrays["conditions"]]
    attention = [str(arrays["attention_conditions"][index]) for index in _attention_indices(arrays, choice)]
    by_head = [str(name) for name in arrays["head_conditions"][: choice.heads]]
    dims = min(choice.dims, arrays["features"].shape[-1])
    return {
        "id": model,
        "label": isolated(label(model)),
        "note": NOTES.get(model, ""),
        "layers": arrays["norms"].shape[1],
        "heads": heads,
        "tokens": arrays["norms"].shape[-1],
        "prefix": prefix,
        "grid": [rows, columns],
        "conditions": names,
        "ablated": [str(text) for text in arrays["ablated"]],
        "attention": [names.index(name) for name in attention],
        "headAttention": [names.index(name) for name in by_head],
        "dims": dims,
        "step": FEATURE_STEP,
        "levels": {"attention": ATTENTION_LEVELS, "sum": SUM_LEVELS, "norm": NORM_LEVELS},
        "normRange": [float(end) for end in arrays["norm_range"]],
        "cosineError": float(arrays["cosine_errors"][DIMS.index(choice.dims)]),
        "images": [_picture(pixels) for pixels in arrays["images"][: _images(arrays, choice)]],
        "kept": _kept(arrays, choice, attention, by_head),
    }


def _kept(arrays: Arrays, choice: Choice, attention: Sequence[str], by_head: Sequence[str]) -> str:
    """What is there and what is not, by name."""
    names = [str(name) for name in arrays["conditions"]]
    images, of_all = _images(arrays, choice), len(arrays["images"])
    dims, error = min(choice.dims, arrays["features"].shape[-1]), arrays["cosine_errors"][DIMS.index(choice.dims)]
    parts = [
        f"{images} of {of_all} images" if images < of_all else f"{images} image{'' if images == 1 else 's'}",
        f"mean attention of {_all_but(names, attention)}",
        f"attention of single heads of {_all_but(names, by_head)}",
        f"features of all conditions in {dims} dimensions (99 % of cosines are off by less than {error:.2g})",
    ]
    return "; ".join(parts) + ("." if choice == CHOICES[0] else ". More is kept where the page is written with a larger --page-budget.")


def _all_but(names: Sequence[str], kept: Sequence[str]) -> str:
    """All conditions, or those that are kept and those that are left out."""
    left_out = [isolated(name) for name in names if name not in kept]
    if not left_out:
        return f"all {len(names)} conditions" if len(names) > 1 else names[0]
    return f"{', '.join(map(isolated, kept))} (left out: {', '.join(left_out)})" if kept else "no condition"


def _picture(pixels: np.ndarray) -> str:
    """An image as a data URI: small ones as PNG, photographs as JPEG."""
    kind, options = ("PNG", {"optimize": True}) if max(pixels.shape[:2]) <= 96 else ("JPEG", {"quality": 85})
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
