"""Pictures of patches: many small ones in one file, photographs that are kept once and shown often, numbers as colours of one ramp.

Every picture that is shown is a drawing whose unit is a patch. A map of numbers has the class "map", and its last part are its numbers, as
`figures.js` reads them.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from experiments.plotting.escape import escaped

_STOPS = ("000004", "1b0c41", "4a0c6b", "781c6d", "a52c60", "cf4446", "ed6925", "fb9b06", "f7d13d", "fcffa4")
"""Inferno of matplotlib at ten even places: its lightness grows evenly, also for those who tell few colours apart."""
_ACROSS = 32  # pictures of a sheet side by side
_LARGEST, _QUALITY = 168, 84  # of photographs: longest side in pixels, and quality of WebP, which takes half the bytes of JPEG or less
_INSIDE = 0.05  # of a patch: how far its frame is from its border, so that it is whole at the border of a photograph
_SMALL = 96  # pixels of a side up to which a photograph is shown as pixels


def _ramp() -> UInt8[np.ndarray, "256 3"]:
    stops = np.array([[int(stop[i : i + 2], 16) for i in (0, 2, 4)] for stop in _STOPS])
    at = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(np.linspace(0, 1, 256), at, channel) for channel in stops.T], axis=1).round().astype(np.uint8)


RAMP = _ramp()
"""The colour of every step from the lowest to the highest number of a picture."""


class Sheet(NamedTuple):
    """Pictures of one size in one file.

    Attributes:
        name: an id, one on the page.
        rows, columns: of a picture.
    """

    name: str
    rows: int
    columns: int

    def show(self, index: int) -> str:
        """A picture, as a part of a drawing."""
        row, column = divmod(index, _ACROSS)
        fields = {"href": f"#{self.name}", "x": -column * self.columns, "y": -row * self.rows}
        written = [f'{name}="{value}"' for name, value in fields.items() if value]
        return f"<use {' '.join(written)}/>"


def steps(values: Float[np.ndarray, "..."], low: np.ndarray | float, high: np.ndarray | float) -> UInt8[np.ndarray, "..."]:
    """Numbers as steps of the ramp, which goes from `low` to `high` (of the same shape, or of one that spreads to it)."""
    span = np.asarray(high) - low
    shares = np.where(span > 0, (values - low) / np.where(span > 0, span, 1), 0)
    return np.round(255 * np.clip(shares, 0, 1)).astype(np.uint8)


def sheet(name: str, pictures: UInt8[np.ndarray, "count rows columns *channels"]) -> tuple[Sheet, str]:
    """A sheet of pictures, and its definition, which stands once on the page: steps of the ramp, or red, green and blue."""
    count, rows, columns = pictures.shape[:3]
    across = min(count, _ACROSS)
    filled = np.zeros((-(-count // across) * across, *pictures.shape[1:]), np.uint8)
    filled[:count] = pictures
    whole = filled.reshape(-1, across, *pictures.shape[1:]).swapaxes(1, 2).reshape(-1, across * columns, *pictures.shape[3:])
    file = Image.fromarray(whole)
    if pictures.ndim == 3:
        file = Image.fromarray(whole, "L")
        file.putpalette(RAMP.tobytes())
    height, width = whole.shape[:2]
    return Sheet(name, rows, columns), _image(name, f'width="{width}" height="{height}" class="pixels"', _encoded(file, "png"))


def ramp() -> str:
    """The definition of the ramp, which stands once on a page that has pictures of numbers."""
    return _image("ramp", 'width="256" height="1" preserveAspectRatio="none"', _encoded(Image.fromarray(RAMP[None]), "png"))


def ramp_bar(low: str, high: str) -> str:
    """The colours with the numbers at their ends."""
    bar = '<svg class="bar" viewBox="0 0 256 1" preserveAspectRatio="none" aria-hidden="true"><use href="#ramp"/></svg>'
    return f'<span class="ramp">{html.escape(low)}{bar}{html.escape(high)}</span>'


def photograph(name: str, pixels: UInt8[np.ndarray, "height width 3"]) -> str:
    """The definition of a photograph in a square of one unit; it is shown by `show_photograph`."""
    file = Image.fromarray(pixels)
    file.thumbnail((_LARGEST, _LARGEST))
    kind = 'class="pixels" ' if max(pixels.shape[:2]) <= _SMALL else ""
    return _image(name, f'{kind}width="1" height="1" preserveAspectRatio="none"', _encoded(file, "webp"))


def show_photograph(name: str, rows: int, columns: int) -> str:
    """A photograph under a grid of patches, as a part of a drawing."""
    scale = f"{columns}" if rows == columns else f"{columns} {rows}"
    return f'<use href="#{name}" transform="scale({scale})"/>'


def thumbnail(name: str) -> str:
    """A photograph, small, beside words that say what it is."""
    return f'<svg class="thumb" viewBox="0 0 1 1" aria-hidden="true"><use href="#{name}"/></svg>'


def definitions(images: Sequence[str]) -> str:
    """Definitions as a part of a page that is not seen."""
    return f'<svg class="definitions" width="0" height="0" aria-hidden="true">{"".join(images)}</svg>'


def outline(row: int, column: int) -> str:
    """A frame around a patch, bright in dark so that it is seen on every photograph, as a part of a drawing."""
    place = f'x="{column + _INSIDE:g}" y="{row + _INSIDE:g}" width="{1 - 2 * _INSIDE:g}" height="{1 - 2 * _INSIDE:g}"'
    return f'<rect class="halo" {place}/><rect class="outline" {place}/>'


def drawn(rows: int, columns: int, body: str, text: str, fields: str = "", kind: str = "", window: Sequence[int] = ()) -> str:
    """A drawing over a grid of patches.

    Args:
        text: what it shows, for those who do not see it.
        fields: further attributes; kind: its classes.
        window: column, row, width and height in patches of what is shown; by default all.
    """
    box = " ".join(map(str, window or (0, 0, columns, rows)))
    classes = f' class="{kind}"' if kind else ""
    return f'<svg{classes} viewBox="{box}" role="img" aria-label="{escaped(text)}"{fields}>{body}</svg>'


def _encoded(file: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    file.save(buffer, kind, **({"quality": _QUALITY, "method": 6} if kind == "webp" else {"optimize": True}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _image(name: str, fields: str, encoded: str) -> str:
    return f'<image id="{name}" {fields} href="{encoded}"/>'
