"""`resume`: run a model from some block on."""

from __future__ import annotations

import functools
from typing import Any

import jax
from jaxtyping import Array, Bool, Float, Int

from jaxvit.ablation import Ablation
from jaxvit.calls import check_model, per_image
from jaxvit.capture import CAPTURES, CaptureSpec, resolve
from jaxvit.forward import Captures, Output, through
from jaxvit.given import Given
from jaxvit.ops import Edits
from jaxvit.run import prepare, run_of
from jaxvit.vit import ViT


def resume(
    model: ViT,
    stream: Float[Array, "batch tokens width"],
    image_size: int | tuple[int, int],
    start: int,
    ablation: Ablation | Edits | None = None,
    capture: CaptureSpec = (),
    example_ids: Int[Array, "batch"] | None = None,
    valid: Bool[Array, "batch"] | None = None,
    groups: Int[Array, "batch"] | None = None,
    given: Given | None = None,
) -> Output:
    """Run a model from block `start` on, on a residual stream that enters it, such as `captured["block_output"][start - 1]` of a first run.

    Blocks before `start` are not run, and what an ablation does there is not done. Captures have a leading axis of the blocks that are run.
    Compiles once per `start`.

    Args:
        stream: [B, T, D], before edits at the input of the block.
        image_size: of the images that the stream came from, in pixels: a side, or height and width.
        start: number of the first block, 0 to depth; at depth only the final norm is left.

    Raises:
        ValueError: there is no such block, the stream does not fit the model and size, or as `forward`.
    """
    check_model(model)
    size = (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])
    depth, grid = model.config.depth, model.config.grid(*size)
    if not 0 <= start <= depth:
        raise ValueError(f"start is {start}; this model has blocks 0 to {depth - 1}, and {depth} leaves the final norm alone")
    expected = (1 + model.config.registers + grid[0] * grid[1], model.config.width)
    if stream.ndim != 3 or stream.shape[1:] != expected:
        raise ValueError(
            f"stream must be [batch, {expected[0]} tokens, {expected[1]} channels] for this model at {size[0]}x{size[1]} pixels, "
            f'got {tuple(stream.shape)}; pass captured["block_output"][start - 1] of a run'
        )
    numbers = {"example_ids": example_ids, "valid": valid, "groups": groups}
    ids, valid, groups = (None if array is None else per_image(name, array, len(stream)) for name, array in numbers.items())
    edits, arrays = prepare(model, (len(stream), *size), ablation, ids, valid, groups, given)
    output: Output = _resume(model, stream, edits, ids, valid, groups, arrays, grid, start, resolve(capture, CAPTURES))
    return output


@functools.partial(jax.jit, static_argnames=("grid", "start", "captures"))
def _resume(
    model: ViT,
    stream: Array,
    edits: Edits | None,
    ids: Array | None,
    valid: Array | None,
    groups: Array | None,
    given: dict[str, Any],
    grid: tuple[int, int],
    start: int,
    captures: Captures,
) -> Output:
    run = run_of(model, grid, ids, valid, groups, given)
    return through(model, stream, run, edits, given, captures, start)
