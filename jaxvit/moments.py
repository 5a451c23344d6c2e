"""`Moments`: means and variances of activations, from which `mean` and `noise` ablations take their replacement values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from jaxvit.printing import named_shapes


@dataclass(frozen=True)
class Moments:
    """Mean and variance of activations over a set of images, per site, layer and token slot.

    There is one slot for CLS, one for each register, and ONE for all patches together (`TokenLayout.groups`). "block_input" of
    block 0 holds the embeddings; the input of block l is the output of block l - 1.

    Attributes:
        mean, variance: site -> float32 [layers, slots, width of the site]; population variance (divided by n).
        examples: number of valid images.
        image_size: height and width in pixels.
    """

    mean: dict[str, Float[np.ndarray, "layers slots width"]]
    variance: dict[str, Float[np.ndarray, "layers slots width"]]
    examples: int
    image_size: tuple[int, int]

    def __repr__(self) -> str:
        size = "x".join(map(str, self.image_size))
        return f"Moments({named_shapes(self.mean)}: blocks, slots, width; over {self.examples} images of {size})"
