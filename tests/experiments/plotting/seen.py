"""What pictures of a page show, as a browser would draw them: the shown piece of the file that a drawing uses."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
from PIL import Image


def files(page: str) -> dict[str, np.ndarray]:
    """The pixels of every picture that a page defines, by its id."""
    found = re.findall(r'<image id="([^"]+)"[^>]*href="data:image/\w+;base64,([^"]+)"', page)
    return {name: np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")) for name, data in found}


def uses(drawing: str) -> list[dict[str, str]]:
    """The fields of the parts of a drawing that use pictures."""
    return [dict(re.findall(r'(\w+)="([^"]*)"', fields)) for fields in re.findall(r"<use ([^>]*)/>", drawing)]


def piece(drawing: str, page: str) -> np.ndarray:
    """The pixels of the last picture that a drawing uses, cut to what the drawing shows."""
    (box,) = re.findall(r'viewBox="0 0 (\d+) (\d+)"', drawing)
    columns, rows = map(int, box)
    use = uses(drawing)[-1]
    x, y = -int(use.get("x", 0)), -int(use.get("y", 0))
    return files(page)[use["href"].removeprefix("#")][y : y + rows, x : x + columns]
