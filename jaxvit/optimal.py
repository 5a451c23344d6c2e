"""`optimal`: the constant that costs least in the place of tokens (optimal ablation, Li & Janson 2024, arXiv 2409.09951)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxvit.ablation import Ablation, constant, mean
from jaxvit.calibration import calibrate
from jaxvit.calls import as_batches, as_pair, check_images, check_model, described, per_image
from jaxvit.checks import check_counts, check_positive
from jaxvit.forward import Output, forward
from jaxvit.lowering import lower
from jaxvit.moments import Moments
from jaxvit.ops import Edits
from jaxvit.printing import shape_in_words
from jaxvit.specs import Layers, RandomPatches
from jaxvit.tokens import Selector, TokenLayout
from jaxvit.vit import ViT

Loss = Callable[[Output, Any], Float[Array, "batch"]]
"""From the output of the ablated run and the target of a batch to the loss of every example; pure and at module level."""

_ADAM = optax.scale_by_adam()
_LEAST_SCALE = 1e-3
"""Of the root mean square over a slot's channels: channels that never vary can move too."""


class Optimal(NamedTuple):
    """What `optimal` returns; losses are means over the valid examples of all batches.

    Attributes:
        vectors: a vector per block and token, as `jaxvit.constant(tokens, vectors, ...)` takes them; where all tokens share a slot of
            `TokenLayout.groups` (all patches do) one for these. Zeros in blocks that are not replaced.
        ablation: the constant ablation itself.
        loss: under this ablation: the least of those at the end, at the start, and of zeros.
        start_loss: at the start, which is the mean where statistics are given and zero otherwise.
        zero_loss: of zeros.
        losses: of each batch before its step.
    """

    vectors: Float[np.ndarray, "layers tokens width"]
    ablation: Ablation
    loss: float
    start_loss: float
    zero_loss: float
    losses: Float[np.ndarray, "passes batches"]

    def __repr__(self) -> str:
        costs = f"loss {self.loss:.4g}, at the start {self.start_loss:.4g}, of zeros {self.zero_loss:.4g}"
        return f"Optimal({self.ablation}; {costs}; vectors {shape_in_words(self.vectors)})"


class _Batch(NamedTuple):
    """Images with what the loss of each is computed from; `target` None stands for the clean run."""

    images: Array
    ids: Int[Array, "batch"]
    valid: Bool[Array, "batch"]
    target: Any


def optimal(
    model: ViT,
    batches: Iterable[Sequence[Any]],
    tokens: Selector | RandomPatches,
    loss: Loss,
    layers: Layers = "all",
    at: str = "block_output",
    *,
    statistics: Moments | None = None,
    passes: int = 20,
    learning_rate: float = 0.1,
    heads: Sequence[int] | None = None,
    channels: Sequence[int] | None = None,
) -> Optimal:
    """Find the constant in the place of tokens, one per block and slot, under which the mean loss is least.

    Adam follows the gradient through the ablated run, batch by batch in the order given, at a rate that falls to 0 along half a cosine.
    Each channel moves in units of its own deviation. Deterministic; never worse on these batches than the start or zero. It is fitted to
    the batches: report its cost on others. Gradients keep the activations of all blocks of one batch in memory.

    Args:
        batches: (normalised images, valid), or (normalised images, valid, target); `valid` may be None where nothing is padding. They are
            kept in memory.
        tokens, layers, at, heads, channels: as for `jaxvit.constant`.
        loss: a function of (output, target) that gives a loss for each example [batch]. Without targets of the batches' own the target is
            the `Output` of the clean run: `lambda output, clean: ((output.cls - clean.cls) ** 2).sum(axis=-1)`.
        statistics: moments to start at the mean of; without them it starts at zero, which
            is no good place for tokens that a LayerNorm reads: the smallest vector there is normalised to full size.
        passes: how often all batches are gone through.
        learning_rate: of Adam at the start, in deviations of a channel.

    Raises:
        ValueError: no valid image, a loss that is not one finite number per example, or what `constant`, `mean` and `forward` refuse.
    """
    check_model(model)
    if not callable(loss):
        raise ValueError(f"loss is {described(loss)}; pass a function of (output, target) that gives a loss for each image")
    check_counts(passes=passes)
    check_positive("learning_rate", learning_rate)
    read = _read(batches)
    size = (read[0].images.shape[1], read[0].images.shape[2])
    layout = TokenLayout.of(model.config, size)

    def lowered(by_slot: Float[np.ndarray, "layers slots width"]) -> Edits:
        return lower(_by_slot(tokens, by_slot, layout, layers, at, heads, channels), model, size)

    if statistics is not None:
        lower(mean(tokens, statistics, layers, at, heads=heads, channels=channels), model, size)  # whether they fit
    moments = statistics or calibrate(model, [(batch.images, batch.valid) for batch in read], (at,))
    center, variance = moments.mean[at], moments.variance[at]
    begin = center if statistics is not None else np.zeros_like(center)
    scale = np.sqrt(variance + (center - begin) ** 2)
    scale = np.maximum(scale, _LEAST_SCALE * np.sqrt((scale**2).mean(axis=-1, keepdims=True)) + np.finfo(np.float32).tiny)

    edits = lowered(begin)
    start, scales = (lowered(by_slot).ops[at][0].values for by_slot in (begin, scale))
    values, losses = _descend(model, edits, at, start, scales, read, loss, passes, learning_rate)
    candidates = [values, start, jnp.zeros_like(start)]
    costs = [_mean_loss(model, edits, at, candidate, read, loss) for candidate in candidates]
    best = int(np.argmin([cost if np.isfinite(cost) else np.inf for cost in costs]))
    vectors = _vectors(np.asarray(candidates[best]), edits, at, tokens, layout)
    ablation = constant(tokens, vectors, layers, at, heads=heads, channels=channels)
    return Optimal(vectors, ablation, costs[best], costs[1], costs[2], losses)


def _descend(
    model: ViT, edits: Edits, at: str, start: Array, scales: Array, batches: list[_Batch], loss: Loss, passes: int, learning_rate: float
) -> tuple[Array, Float[np.ndarray, "passes batches"]]:
    """The table of values after all steps, and the loss of each batch before its step."""
    moved = jnp.zeros_like(start)
    state, losses = _ADAM.init(moved), []
    rate = optax.cosine_decay_schedule(learning_rate, passes * len(batches))
    for number in range(passes * len(batches)):
        batch = batches[number % len(batches)]
        moved, state, cost = _step(model, edits, at, start, scales, moved, state, rate(number), batch, loss)
        losses.append(cost)
    return start + scales * moved, np.asarray(jax.device_get(losses), np.float32).reshape(passes, len(batches))


@functools.partial(jax.jit, static_argnames=("at", "loss"))
def _step(
    model: ViT, edits: Edits, at: str, start: Array, scales: Array, moved: Array, state: Any, rate: Array, batch: _Batch, loss: Loss
) -> tuple[Array, Any, Array]:
    """One step of Adam; `moved` counts in `scales` from `start`. Every example weighs the same, whatever its batch."""

    def cost_of(moved: Array) -> Array:
        cost: Array = _cost(model, edits, at, start + scales * moved, batch, loss)
        return cost

    cost, gradient = jax.value_and_grad(cost_of)(moved)
    update, state = _ADAM.update(gradient * batch.valid.sum(), state)
    return moved - rate * update, state, cost


@functools.partial(jax.jit, static_argnames=("at", "loss"))
def _cost(model: ViT, edits: Edits, at: str, values: Array, batch: _Batch, loss: Loss) -> Array:
    """The mean loss of the valid examples of a batch, with these values in the table of the edits' one op."""
    op = dataclasses.replace(edits.ops[at][0], values=values)
    edits = dataclasses.replace(edits, ops={at: (op,)})
    output = forward(model, batch.images, edits, example_ids=batch.ids, valid=batch.valid)
    target = jax.lax.stop_gradient(forward(model, batch.images)) if batch.target is None else batch.target
    losses = loss(output, target)
    if getattr(losses, "shape", None) != batch.valid.shape:
        raise ValueError(f"loss gives {getattr(losses, 'shape', losses)} for {len(batch.valid)} images; give one number for each, [batch]")
    mean: Array = jnp.where(batch.valid, losses, 0).sum() / batch.valid.sum()
    return mean


def _mean_loss(model: ViT, edits: Edits, at: str, values: Array, batches: list[_Batch], loss: Loss) -> float:
    """The mean loss of the valid examples of all batches.

    Raises:
        ValueError: it is not finite.
    """
    costs = jax.device_get([_cost(model, edits, at, values, batch, loss) for batch in batches])
    cost = float(np.average(np.asarray(costs, np.float64), weights=[int(np.asarray(batch.valid).sum()) for batch in batches]))
    if not np.isfinite(cost):
        raise ValueError(f"the loss is {cost}; look at what it does with these batches, or lower learning_rate")
    return cost


def _read(batches: Iterable[Sequence[Any]]) -> list[_Batch]:
    """The batches with a valid image; example ids count through all of them."""
    read, seen = [], 0
    for batch in as_batches(batches):
        images, valid = as_pair(batch[:2] if isinstance(batch, tuple | list) else batch)
        target = batch[2] if len(batch) > 2 else None
        check_images(images, valid)
        valid = jnp.ones(len(images), bool) if valid is None else jnp.asarray(per_image("valid", valid, len(images)))
        if valid.any():
            read.append(_Batch(jnp.asarray(images), jnp.arange(seen, seen + len(images)), valid, target))
        seen += len(images)
    if not read:
        raise ValueError("optimal saw no valid image; pass batches of (images, valid)")
    return read


def _by_slot(
    tokens: Selector | RandomPatches,
    by_slot: Float[np.ndarray, "layers slots width"],
    layout: TokenLayout,
    layers: Layers,
    at: str,
    heads: Sequence[int] | None,
    channels: Sequence[int] | None,
) -> Ablation:
    """The constant ablation that gives all tokens of a slot one vector: its op has one row of values for each slot."""
    parts: list[tuple[Selector | RandomPatches, int]]
    if isinstance(tokens, RandomPatches):
        parts = [(tokens, layout.prefix)]
    else:
        positions = np.asarray(layout.positions(tokens), int)
        slots = layout.group_of()[positions]
        parts = [(positions[slots == slot].tolist(), int(slot)) for slot in np.unique(slots)]
    ablations = [constant(part, by_slot[:, [slot]], layers, at, heads=heads, channels=channels) for part, slot in parts]
    return functools.reduce(Ablation.__and__, ablations, Ablation())


def _vectors(
    values: Float[np.ndarray, "layers rows width"], edits: Edits, at: str, tokens: Selector | RandomPatches, layout: TokenLayout
) -> Float[np.ndarray, "layers tokens width"]:
    """The vectors of the chosen tokens in a table of values, by block; one for all where they share a slot."""
    op = edits.ops[at][0]
    positions = list(layout.positions("patches" if isinstance(tokens, RandomPatches) else tokens))
    if len(set(layout.group_of()[positions])) == 1:
        positions = positions[:1]
    rows, replaced = (np.asarray(array)[:, positions] for array in (op.index, op.mask))
    return np.where(replaced[:, :, None] > 0, np.take_along_axis(values, rows[:, :, None], axis=1), 0)
