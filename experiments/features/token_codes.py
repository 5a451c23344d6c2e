"""Norms, attention and features of tokens as small integers, as the token microscope of the page stores and decodes them.

Every code says here what it stands for; `experiments/report/microscope_data.js` decodes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int8, UInt8, UInt16

ATTENTION_LEVELS = 63
"""Of the root of attention, as a share of that of the largest of its row."""
SUM_LEVELS = 65535
"""Of the sum of a row of attention."""
NORM_LEVELS = 4094
"""Steps of the logarithm of norms, from the smallest to the largest of a model; code 0 is a token of zeros."""
FEATURE_STEP = 1 / 64
"""Of the coordinates of unit vectors."""
MOST_DIMS = 64
"""Coordinates that are kept of a token at most."""
_NORM_RANGE = 1e4  # of the largest norm to the smallest that is told apart
_COLOUR_CLIP = 2.0  # per cent of the patches at either end of the scale of a colour


class NormCodes(NamedTuple):
    """A norm is low * (high / low) ** ((code - 1) / NORM_LEVELS), and 0 where the code is 0."""

    codes: UInt16[np.ndarray, "*tokens"]
    low: float
    high: float


class AttentionCodes(NamedTuple):
    """Attention is sums / SUM_LEVELS * codes² / (sum of codes² over the row). A row sums to 1, to less where cuts lose weight."""

    codes: UInt8[np.ndarray, "*rows keys"]
    sums: UInt16[np.ndarray, "*rows"]


def norm_codes(norms: Float[np.ndarray, "*tokens"]) -> NormCodes:
    """Norms by their logarithm, off by at most half a step: 0.02 % where the largest is 5 times the smallest."""
    norms = np.nan_to_num(norms.astype(np.float32))
    positive = norms[norms > 0]
    high = float(positive.max()) if positive.size else 1.0
    low = max(float(positive.min()), high / _NORM_RANGE) if positive.size else 1.0
    steps = np.log(np.maximum(norms, low) / low) / max(np.log(high / low), 1e-9)
    return NormCodes(np.where(norms > 0, 1 + np.rint(NORM_LEVELS * steps), 0).astype(np.uint16), low, high)


def attention_codes(attention: Float[np.ndarray, "*rows keys"]) -> AttentionCodes:
    """Attention by its root, which tells small weights apart; what is cut is exactly 0."""
    attention = np.nan_to_num(attention.astype(np.float32))
    largest = np.maximum(attention.max(axis=-1, keepdims=True), 1e-30)
    codes = np.rint(ATTENTION_LEVELS * np.sqrt(np.clip(attention / largest, 0, 1))).astype(np.uint8)
    return AttentionCodes(codes, np.rint(SUM_LEVELS * np.clip(attention.sum(axis=-1), 0, 1)).astype(np.uint16))


def unit_vectors(tokens: Float[np.ndarray, "*tokens width"]) -> Float[np.ndarray, "*tokens width"]:
    """Tokens scaled to length 1; zeros stay zero."""
    tokens = np.nan_to_num(tokens.astype(np.float32))
    return tokens / np.maximum(np.linalg.norm(tokens, axis=-1, keepdims=True), 1e-30)


def leading_directions(units: Sequence[Float[np.ndarray, "tokens width"]]) -> Float[np.ndarray, "width dims"]:
    """The directions that hold most of all these unit vectors, most first: eigenvectors of their Gram matrix, not centred, so that
    products of coordinates are cosines."""
    gram = sum(part.astype(np.float32).T @ part.astype(np.float32) for part in units)
    return _signed(np.linalg.eigh(gram)[1][:, : -MOST_DIMS - 1 : -1])


def feature_codes(
    units: Float[np.ndarray, "*tokens width"], directions: Float[np.ndarray, "width dims"]
) -> Int8[np.ndarray, "*tokens dims"]:
    """Coordinates of unit vectors; the product of two tokens' codes, times FEATURE_STEP², is about their cosine."""
    return np.rint(units.astype(np.float32) @ directions / FEATURE_STEP).astype(np.int8)


def cosine_errors(
    units: Float[np.ndarray, "tokens width"], codes: Int8[np.ndarray, "tokens dims"], dims: Sequence[int]
) -> Float[np.ndarray, "sizes pairs"]:
    """How far cosines from the leading coordinates are from exact ones, for some numbers of coordinates, over all pairs of tokens."""
    units = units.astype(np.float32)
    exact = units @ units.T
    coordinates = codes.astype(np.float32) * FEATURE_STEP
    return np.stack([np.abs(coordinates[:, :size] @ coordinates[:, :size].T - exact).ravel() for size in dims])


def colours(units: Float[np.ndarray, "conditions tokens width"], prefix: int) -> UInt8[np.ndarray, "conditions tokens 3"]:
    """Tokens of an image as red, green and blue: three principal components of its patches under the first condition, from the 2nd to
    the 98th percentile of these patches. Tokens of zeros are black.

    Args:
        prefix: number of tokens before the patches.
    """
    units = units.astype(np.float32)
    patches = units[0, prefix:]
    mean = patches.mean(axis=0)
    axes = _signed(np.linalg.svd(patches - mean, full_matrices=False)[2][:3].T)
    low, high = np.percentile((patches - mean) @ axes, (_COLOUR_CLIP, 100 - _COLOUR_CLIP), axis=0)
    shares = np.clip(((units - mean) @ axes - low) / np.where(high - low > 1e-6, high - low, 1), 0, 1)
    rgb = np.zeros((*units.shape[:-1], 3), np.uint8)  # a model may be narrower than three components
    rgb[..., : axes.shape[1]] = np.rint(255 * shares)
    return np.where(units.any(axis=-1, keepdims=True), rgb, 0).astype(np.uint8)


def _signed(axes: Float[np.ndarray, "width dims"]) -> Float[np.ndarray, "width dims"]:
    """Axes whose largest loading is positive: the same features give the same codes."""
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0)
    return axes * np.where(largest < 0, -1, 1)
