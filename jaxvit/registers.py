"""Test-time registers (Jiang, Dravid, Efros & Gandelsman 2025, arXiv 2506.08010): registers for a model that was trained without.

`with_registers` appends tokens of zeros. What a few neurons of the feed-forward layers write into outlier patches is then moved there, at
"mlp_hidden", by one of two rules: `shift_neuron_maxima`, as the paper describes it, or `shift_layer_maximum`, as the released code does
it. Both are functions (x, context, arrays) -> x of one block, pure and at module level; `arrays["neurons"]` says which neurons are moved.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxvit.calls import as_config, check_model
from jaxvit.checks import check_counts
from jaxvit.config import ViTConfig
from jaxvit.ops import BlockContext
from jaxvit.vit import ViT


def with_registers(model: ViT, count: int) -> ViT:
    """The model with registers of zeros between CLS and the patches; they have no position, and take part in attention.

    All other weights are shared with `model`, patches keep their positions, and where CLS has a final norm of its own, registers have
    that of CLS.

    Raises:
        ValueError: count is not positive, or the model has registers.
    """
    check_model(model)
    check_counts(count=count)
    if model.config.registers:
        raise ValueError(
            f"this model was trained with {model.config.registers} registers; test-time registers are for models without, and "
            'jaxvit.zero("registers") empties those of this one'
        )
    graph, state = nnx.split(model)
    extended: ViT = nnx.merge(graph, state)
    extended.config = dataclasses.replace(model.config, registers=count)
    cls = model.cls_token[...]
    extended.register_tokens = nnx.data(nnx.Param(jnp.zeros((count, 1), cls.dtype) * cls))
    return extended


def neuron_mask(model: ViT | ViTConfig | str, neurons: Mapping[int, Sequence[int]]) -> Bool[np.ndarray, "layers mlp_dim"]:
    """True at chosen neurons of the feed-forward layers: `arrays["neurons"]` of the shifts.

    Args:
        neurons: numbers of neurons by block, both from 0.

    Raises:
        ValueError: there is no such block or neuron.
    """
    config = as_config(model)
    mask = np.zeros((config.depth, config.mlp_dim), bool)
    for block, numbers in neurons.items():
        for number, name, limit in ((block, "block", config.depth), *((n, "neuron", config.mlp_dim) for n in numbers)):
            if not 0 <= number < limit:
                raise ValueError(f"{name} {number} does not exist; this model has {name}s 0 to {limit - 1}")
        mask[block, list(numbers)] = True
    return mask


def shift_neuron_maxima(
    x: Float[Array, "batch tokens mlp_dim"], context: BlockContext, arrays: Mapping[str, Any]
) -> Float[Array, "batch tokens mlp_dim"]:
    """Move the highest activation of EACH chosen neuron over all tokens of the image into all registers; elsewhere, CLS included, the
    neuron becomes zero. This is the rule of the paper's text (section 3).

    Args:
        x: neurons after the non-linearity, the site "mlp_hidden".
        arrays: "neurons" [mlp_dim], True where a neuron is moved (`neuron_mask`, of one layer).

    Raises:
        ValueError: the model has no registers, or the mask is of another width.
    """
    neurons, registers = _chosen(x, context, arrays)
    return jnp.where(neurons, jnp.where(registers, x.max(axis=1, keepdims=True), 0), x)


def shift_layer_maximum(
    x: Float[Array, "batch tokens mlp_dim"], context: BlockContext, arrays: Mapping[str, Any]
) -> Float[Array, "batch tokens mlp_dim"]:
    """Move ONE activation into all chosen neurons of all registers: of all tokens and chosen neurons of the image the one that is
    farthest from zero, with its sign. In patches the neurons become zero, in CLS they stay. This is the rule of the released code.

    Arguments and errors as for `shift_neuron_maxima`.
    """
    neurons, registers = _chosen(x, context, arrays)
    of_chosen = jnp.where(neurons, x, 0)  # a zero is never farthest
    highest, lowest = (extreme(of_chosen, axis=(1, 2), keepdims=True) for extreme in (jnp.max, jnp.min))
    farthest = jnp.where(jnp.abs(highest) > jnp.abs(lowest), highest, lowest)
    is_cls = jnp.arange(x.shape[1])[:, None] == 0
    return jnp.where(neurons & ~is_cls, jnp.where(registers, farthest, 0), x)


def _chosen(x: Array, context: BlockContext, arrays: Mapping[str, Any]) -> tuple[Bool[Array, "mlp_dim"], Bool[Array, "tokens 1"]]:
    """Which neurons are moved, and which tokens are registers."""
    layout, neurons = context.layout, jnp.asarray(arrays["neurons"]).astype(bool)
    if not layout.registers:
        raise ValueError("there is no register to move activations to; give the model one: jaxvit.with_registers(model, 1)")
    if neurons.shape != x.shape[-1:]:
        raise ValueError(
            f'arrays["neurons"] of a block has the shape {neurons.shape}, x {x.shape}; use it at "mlp_hidden", with neuron_mask'
        )
    position = jnp.arange(x.shape[1])[:, None]
    return neurons, (position > 0) & (position < layout.prefix)
