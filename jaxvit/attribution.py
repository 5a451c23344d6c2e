"""`attribution`: what every single edit does to a metric, to first order, from one backward pass."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxvit.ablation import Ablation
from jaxvit.calls import checked_run
from jaxvit.forward import Output, through
from jaxvit.given import Given
from jaxvit.ops import Edits
from jaxvit.run import begin, prepare
from jaxvit.sites import HEAD_SITES
from jaxvit.vit import ViT

Over = Literal["tokens", "heads"]


@checked_run
def attribution(
    model: ViT,
    images: Float[Array, "batch height width 3"],
    metric: Callable[[Output], Float[Array, "batch"]],
    ablation: Ablation | Edits,
    over: Over = "tokens",
    steps: int = 1,
    example_ids: Int[Array, "batch"] | None = None,
    valid: Bool[Array, "batch"] | None = None,
    given: Given | None = None,
) -> Float[Array, "layers batch tokens *heads"]:
    """The effect of editing each token in each block alone, to first order: the derivative of a metric with respect to the strength of each
    edit, at strength 0 (attribution patching: Nanda 2023; Syed, Rager & Conmy 2023).

    Entry [l, b, t] estimates metric(edited) - metric(clean) for image b where only token t is edited, only in block l; 0 where the
    ablation does not edit it. Of a `jaxvit.cut`, t is the query. Parts of an ablation that edit the same token of a block count together.

    One backward pass gives all of them, in the memory of one block's activations and every block's input. The estimate is linear in the
    edit: of far ones (a token's mean, or zero) it may have the wrong size and even the wrong sign. Check by `steps`, or by a run.

    Args:
        metric: function of a module, from the `Output` of the whole batch to one number for each image. Compiles once per function: what it
            reads from elsewhere is read then.
        over: "heads" gives [layers, batch, tokens, heads], for edits where heads are apart and for cuts.
        steps: with more than one, gradients are averaged over that many strengths of ALL edits together (the path integral of integrated
            gradients, midpoint rule: Sundararajan, Taly & Yan 2017). The entries of an image then sum to the effect of the whole
            ablation, and are no longer estimates of single effects. Zeroed tokens of the stream need very many steps: a LayerNorm that
            reads them changes at the very end of the path, where they vanish.
        example_ids, valid, given: as for `forward`; padding has effect 0.

    Raises:
        ValueError: the ablation shuffles (an image's effect would be another one's), the model is not float32, heads are not apart at a
            site that is edited, the metric does not give one number for each image, or as `forward`.
    """
    edits, arrays = prepare(model, images.shape, ablation, example_ids, valid, None, given)
    assert edits is not None
    if edits.shuffles:
        raise ValueError("attribution of a shuffle is not possible: what changes in one image changes others; use patch, mean or zero")
    if over not in ("tokens", "heads"):
        raise ValueError(f'over is "tokens" or "heads", got {over!r}')
    together = [site for site in edits.ops if site not in HEAD_SITES]
    if over == "heads" and together:
        raise ValueError(f'over="heads" is not possible at "{together[0]}"; heads are apart at {", ".join(HEAD_SITES)}, and in a cut')
    if steps < 1:
        raise ValueError(f"steps is {steps}; use 1 for first-order effects, 16 or more for an integral")
    if model.cls_token.dtype != jnp.float32:
        raise ValueError(f"attribution needs a float32 model, got {model.cls_token.dtype}; use jaxvit.vit.cast(model, jax.numpy.float32)")
    effects: Array = _attribution(model, images, edits, example_ids, valid, arrays, metric, over, steps)
    return effects


@functools.partial(jax.jit, static_argnames=("metric", "over", "steps"))
def _attribution(
    model: ViT,
    images: Array,
    edits: Edits,
    ids: Array | None,
    valid: Array | None,
    given: dict[str, Any],
    metric: Callable[[Output], Array],
    over: Over,
    steps: int,
) -> Array:
    config, count = model.config, len(images)
    x, run = begin(model, images, ids, valid, None, given)
    shape = (config.depth, count, run.layout.tokens, *([config.heads] if over == "heads" else []))

    def total(strengths: Array) -> Array:
        """The metric of all images together: each depends on its own strengths alone."""
        output = through(model, x, run, edits.with_strengths(strengths), given, (), keep_inputs_only=True)
        values = metric(output)
        if values.shape != (count,):
            raise ValueError(f"the metric gives shape {list(values.shape)}; give one number for each of {count} images")
        return jnp.where(True if valid is None else valid, values, 0).sum()

    strengths = (jnp.arange(steps) + 0.5) / steps if steps > 1 else jnp.zeros(1)
    effects: Array = jax.lax.map(lambda strength: jax.grad(total)(jnp.full(shape, strength)), strengths).mean(axis=0)
    return effects
