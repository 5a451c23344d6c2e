"""Softmax attention with float32 logits, alone or together with sums over token groups or the divergence between two streams.

Memory stays small without a kernel: a CPU computes few images per device at a time, and long sequences go in chunks of queries. In
bfloat16 on NVIDIA GPUs cuDNN's fused kernel is used. In the names of arrays H is heads, T query tokens, S key tokens, K head width,
G token groups. Every function takes attention cuts (`jaxvit.cuts`), and reports attention as they leave it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxvit.cuts import Cuts, cut_weights

PerHead = Float[Array, "*batch tokens heads head_width"]

QUERY_CHUNK = 320
"""Queries computed at a time where an image has more tokens: memory grows with the number of tokens, not with its square."""

_KERNEL_STEP, _KERNEL_WIDTH = 8, 128
"""Head widths that cuDNN's kernel takes: multiples of the first up to the second, on every GPU that has it."""

_SERIES_TERMS, _SERIES_LIMIT = 6, 0.09
"""Terms of the power series of the Jensen-Shannon divergence, and the largest squared relative difference it is used for."""


def probabilities(
    q: PerHead, k: PerHead, attention_mask: Bool[Array, "*batch tokens tokens"] | None = None, cuts: Cuts = ()
) -> Float[Array, "*batch heads tokens tokens"]:
    """Softmax attention of every query over all keys, float32 whatever the input's dtype.

    `attention_mask` is True where a query (second last axis) may attend to a key (last axis); every query must have one.
    After cuts rows may sum to less than 1.
    """
    weights_HTS, sums_HT1 = _unnormalised_weights(_heads_first(q), _heads_first(k), attention_mask, cuts)
    return weights_HTS / sums_HT1


def attend(
    q: PerHead, k: PerHead, v: PerHead, attention_mask: Bool[Array, "*batch tokens tokens"] | None = None, cuts: Cuts = ()
) -> PerHead:
    """Values averaged under `probabilities`, in the values' dtype.

    Normalises after the value product: head_width divisions a query, not one a key. In bfloat16 on NVIDIA GPUs cuDNN's kernel
    computes the same without logits in memory; not where attention is cut.
    """

    def unfused(q: PerHead, k: PerHead, v: PerHead) -> PerHead:
        return _heads_first(few_images_at_a_time(_by_query_chunks(_weighted_values), *map(_heads_first, (q, k, v)), attention_mask, cuts))

    if attention_mask is not None or cuts or not _fits_kernel(q, q.shape[-1]):
        return unfused(q, k, v)
    output: Array = jax.lax.platform_dependent(q, k, v, cuda=_cudnn_attention, default=unfused)
    return output


def attention_with_groups(
    q: PerHead,
    k: PerHead,
    v: PerHead,
    groups: Float[Array, "tokens groups"],
    attention_mask: Bool[Array, "*batch tokens tokens"] | None = None,
    cuts: Cuts = (),
) -> tuple[PerHead, Float[Array, "*batch tokens heads groups"]]:
    """`attend`, and for every query the attention summed over the keys of each token group.

    `groups` is 1 where a token belongs to a group. Its columns are appended to the values, so that one matrix product gives both
    results and no attention map is kept. Sums are float32; in bfloat16 the summed weights are rounded, a relative error of 2^-8.
    """

    def unfused(q: PerHead, k: PerHead, v: PerHead) -> tuple[PerHead, Array]:
        function = _by_query_chunks(functools.partial(_values_and_groups, groups))
        values, sums = few_images_at_a_time(function, *map(_heads_first, (q, k, v)), attention_mask, cuts)
        return _heads_first(values), _heads_first(sums)

    if attention_mask is not None or cuts or not _fits_kernel(q, q.shape[-1] + groups.shape[-1]):
        return unfused(q, k, v)
    fused = functools.partial(_cudnn_attention_with_groups, groups)
    output: tuple[Array, Array] = jax.lax.platform_dependent(q, k, v, cuda=fused, default=unfused)
    return output


def attention_with_divergence(
    q: PerHead, k: PerHead, v: PerHead, attention_mask: Bool[Array, "*batch tokens tokens"] | None = None, cuts: Cuts = ()
) -> tuple[PerHead, Float[Array, "*batch heads"]]:
    """`attend` of two streams on the first axis, and the Jensen-Shannon divergence between their attention.

    The divergence is that of a query's two distributions over keys, averaged over queries; it is returned for both streams, equal.
    Attention maps exist only for one chunk of queries at a time, on a CPU of few images per device. Where cuts lose weight the rows that
    are compared sum to less than 1: a row of zeros is half a bit from any distribution.
    """
    function = _by_query_chunks(_values_and_divergence)
    values, divergence = few_images_at_a_time(function, *map(_heads_first, (q, k, v)), attention_mask, cuts)
    return _heads_first(values), divergence.mean(axis=-1)


def jensen_shannon(p: Float[Array, "*batch outcomes"], q: Float[Array, "*batch outcomes"]) -> Float[Array, "*batch"]:
    """Jensen-Shannon divergence of two distributions in bits (Lin 1991): 0 where they are equal, 1 where they are disjoint."""
    return _jensen_shannon(p, q, *(jnp.log(jnp.where(x > 0, x, 1)) for x in (p, q)))


_CACHE_BYTES = 2**19
"""Attention logits of one device that stay in its cache: with more of them, a softmax of small images took up to twice as long."""


def few_images_at_a_time(function: Callable[..., Any], *arrays: Any) -> Any:
    """`function` of arrays [*batch, heads, tokens, ...]: of the whole batch at once, but on a CPU of few images per device at a time.

    The attention logits of few images stay in a core's cache; those of a batch would be written to memory and read again at every
    step of the softmax. The last batch axis counts images, and the images of a device stay on it, so that a batch that is sharded
    stays sharded. Devices are those of the mesh that is set (`jax.set_mesh`), else of this process. What `function` returns leads with
    the batch axes.
    """
    axis = arrays[0].ndim - 4
    if axis < 0:
        return function(*arrays)
    return jax.lax.platform_dependent(*arrays, cpu=functools.partial(_map_images, function, axis), default=function)


def _map_images(function: Callable[..., Any], axis: int, *arrays: Any) -> Any:
    """`function` by `jax.lax.map` along an axis, a few entries of each device at a time: it gets arrays with one more axis,
    of devices, in front of that one."""
    count, (heads, tokens) = arrays[0].shape[axis], arrays[0].shape[axis + 1 : axis + 3]
    mesh = jax.sharding.get_abstract_mesh()
    # inside `jax.shard_map` the batch is one device's share already
    devices = 1 if mesh.manual_axes else math.gcd(count, jax.local_device_count() if mesh.empty else mesh.size)
    per_device = count // devices
    fitting = max(1, _CACHE_BYTES // (4 * heads * tokens**2))
    at_a_time = max(n for n in range(1, min(fitting, per_device) + 1) if per_device % n == 0)

    def split(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(*x.shape[:axis], devices, -1, at_a_time, *x.shape[axis + 1 :]), axis + 1, 0)

    def join(x: Array) -> Array:
        x = jnp.moveaxis(x, 0, axis + 1)
        return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 3 :])

    return jax.tree.map(join, jax.lax.map(lambda step: function(*step), jax.tree.map(split, arrays)))


def _by_query_chunks(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` (q, k, v, mask, cuts; heads first), computed for at most `QUERY_CHUNK` queries at a time.

    Its results must have their query axis where `q` has it, and depend on each query alone.
    """

    def by_chunks(q_HTK: Array, k_HSK: Array, v_HSK: Array, mask_TS: Array | None, cuts: Cuts) -> Any:
        axis, count = q_HTK.ndim - 2, q_HTK.shape[-2]
        chunks = -(-count // QUERY_CHUNK)
        if chunks == 1:
            return function(q_HTK, k_HSK, v_HSK, mask_TS, cuts)

        def split(x: Array, padding: bool | float = 0) -> Array:
            x = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, -count % chunks), (0, 0)], constant_values=padding)
            return jnp.moveaxis(x.reshape(*x.shape[:-2], chunks, -1, x.shape[-1]), -3, 0)

        def join(x: Array) -> Array:
            x = jnp.moveaxis(x, 0, axis)
            return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])[(slice(None),) * axis + (slice(count),)]

        def chunk(step: tuple[Array, Array | None, list[dict[str, Array]]]) -> Any:
            q_HTK, mask_TS, by_query = step
            chunk_cuts = tuple(stage._replace(**own) for stage, own in zip(cuts, by_query, strict=True))
            return function(q_HTK, k_HSK, v_HSK, mask_TS, chunk_cuts)

        by_query = [{name: split(x) for name in ("queries", "numbers") if (x := getattr(stage, name)) is not None} for stage in cuts]
        steps = split(q_HTK), None if mask_TS is None else split(mask_TS, True), by_query
        return jax.tree.map(join, jax.lax.map(chunk, steps))

    return by_chunks


def _weighted_values(q_HTK: Array, k_HSK: Array, v_HSK: Array, mask_TS: Array | None, cuts: Cuts) -> Array:
    """Values averaged under each query's attention."""
    weights_HTS, sums_HT1 = _unnormalised_weights(q_HTK, k_HSK, mask_TS, cuts)
    return (weights_HTS.astype(v_HSK.dtype) @ v_HSK / sums_HT1).astype(v_HSK.dtype)


def _values_and_groups(
    groups_SG: Array, q_HTK: Array, k_HSK: Array, v_HSK: Array, mask_TS: Array | None, cuts: Cuts
) -> tuple[Array, Array]:
    """`_weighted_values`, and each query's attention summed over token groups."""
    weights_HTS, sums_HT1 = _unnormalised_weights(q_HTK, k_HSK, mask_TS, cuts)
    columns_HSG = jnp.broadcast_to(groups_SG.astype(v_HSK.dtype), (*v_HSK.shape[:-1], groups_SG.shape[-1]))
    widened_HSX = jnp.concatenate([v_HSK, columns_HSG], axis=-1)  # X is K values and G groups
    products_HTX = jnp.matmul(weights_HTS.astype(v_HSK.dtype), widened_HSX, preferred_element_type=jnp.float32)
    values_HTK, groups_HTG = jnp.split(products_HTX, [v_HSK.shape[-1]], axis=-1)
    return (values_HTK / sums_HT1).astype(v_HSK.dtype), groups_HTG / sums_HT1


def _values_and_divergence(q_HTK: Array, k_HSK: Array, v_HSK: Array, mask_TS: Array | None, cuts: Cuts) -> tuple[Array, Array]:
    """`_weighted_values` of two streams (first axis), and each query's divergence between them, once for either stream."""
    if cuts:
        weights_HTS, sums_HT1 = _unnormalised_weights(q_HTK, k_HSK, mask_TS, cuts)
        values_HTK = (weights_HTS.astype(v_HSK.dtype) @ v_HSK / sums_HT1).astype(v_HSK.dtype)
        divergence_HT = jensen_shannon(*(weights_HTS / sums_HT1))
        return values_HTK, jnp.stack([divergence_HT, divergence_HT])
    logits_HTS = _logits(q_HTK, k_HSK, mask_TS)
    weights_HTS = jnp.exp(logits_HTS)
    sums_HT1 = weights_HTS.sum(axis=-1, keepdims=True)
    values_HTK = (weights_HTS.astype(v_HSK.dtype) @ v_HSK / sums_HT1).astype(v_HSK.dtype)
    logs_HTS = logits_HTS - jnp.log(sums_HT1)
    if mask_TS is not None:
        logs_HTS = jnp.where(mask_TS[..., None, :, :], logs_HTS, 0)
    divergence_HT = _jensen_shannon(*(weights_HTS * (1 / sums_HT1)), *logs_HTS)
    return values_HTK, jnp.stack([divergence_HT, divergence_HT])


def _unnormalised_weights(q_HTK: Array, k_HSK: Array, mask_TS: Array | None, cuts: Cuts = ()) -> tuple[Array, Array]:
    """exp of `_logits`, float32 [*batch, heads, tokens, tokens], and its sum over keys [..., 1]; or `cut_weights`."""
    if cuts:
        return cut_weights(_scaled_logits(q_HTK, k_HSK, mask_TS), cuts)
    weights_HTS = jnp.exp(_logits(q_HTK, k_HSK, mask_TS))
    return weights_HTS, weights_HTS.sum(axis=-1, keepdims=True)


def _logits(q_HTK: Array, k_HSK: Array, mask_TS: Array | None) -> Array:
    """Scaled logits minus the largest of each query, float32; -inf where the mask is False."""
    logits_HTS = _scaled_logits(q_HTK, k_HSK, mask_TS)
    return logits_HTS - jax.lax.stop_gradient(logits_HTS.max(axis=-1, keepdims=True))


def _scaled_logits(q_HTK: Array, k_HSK: Array, mask_TS: Array | None) -> Array:
    """Products of queries and keys over the root of the head width, float32; -inf where the mask is False."""
    q_HTK = q_HTK * q_HTK.shape[-1] ** -0.5
    logits_HTS = jnp.matmul(q_HTK, jnp.swapaxes(k_HSK, -1, -2), preferred_element_type=jnp.float32)
    if mask_TS is not None:
        logits_HTS = jnp.where(mask_TS[..., None, :, :], logits_HTS, -jnp.inf)
    return logits_HTS


def _jensen_shannon(p: Array, q: Array, log_p: Array, log_q: Array) -> Array:
    """`jensen_shannon` with known logarithms; the logarithm of a probability of 0 may be any finite number.

    With the mean m = (p + q) / 2 and r = (p - q) / (p + q) an outcome adds m ((1 + r) log(1 + r) + (1 - r) log(1 - r)) / 2. Where r
    is small, a power series in r^2 gives exactly 0 for equal distributions and avoids the difference of nearly equal logarithms.
    """
    smallest = 4 * np.finfo(np.float32).tiny  # below it a device may flush half of it to 0, whose logarithm is infinite
    total = jnp.where(p + q > smallest, p + q, 1)
    square = ((p - q) / total) ** 2
    series = jnp.full_like(square, 1 / (_SERIES_TERMS * (2 * _SERIES_TERMS - 1)))
    for power in range(_SERIES_TERMS - 1, 0, -1):
        series = series * square + 1 / (power * (2 * power - 1))
    by_series = total / 2 * square * series
    by_logarithms = p * log_p + q * log_q - (p + q) * jnp.log(total / 2)
    return jnp.where(square < _SERIES_LIMIT, by_series, by_logarithms).sum(axis=-1) / (2 * jnp.log(2.0))


def _cudnn_attention(q: PerHead, k: PerHead, v: PerHead, scale: float | None = None) -> PerHead:
    """`attend` by cuDNN, for arrays with at least one batch axis.

    The axis of images is moved to the front before all batch axes are merged: a batch that is sharded over devices stays sharded.
    """
    axis = q.ndim - 4

    def images_first(x: PerHead) -> Float[Array, "runs tokens heads head_width"]:
        return jnp.moveaxis(x, axis, 0).reshape(-1, *x.shape[-3:])

    output = jax.nn.dot_product_attention(*map(images_first, (q, k, v)), scale=scale, implementation="cudnn")
    return jnp.moveaxis(output.reshape(q.shape[axis], *q.shape[:axis], *q.shape[-3:]), 0, axis)


def _cudnn_attention_with_groups(
    groups: Float[Array, "tokens groups"], q: PerHead, k: PerHead, v: PerHead
) -> tuple[PerHead, Float[Array, "*batch tokens heads groups"]]:
    """`attention_with_groups` by cuDNN: the group columns are channels of the values; queries and keys get zeros in their place.

    The kernel rounds its results to its dtype, a relative error of 2^-9.
    """
    width, used = q.shape[-1], q.shape[-1] + groups.shape[-1]

    def widened(x: PerHead) -> PerHead:
        return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, used + -used % _KERNEL_STEP - x.shape[-1])])

    columns = jnp.broadcast_to(groups[:, None].astype(v.dtype), (*v.shape[:-1], groups.shape[-1]))
    output = _cudnn_attention(widened(q), widened(k), widened(jnp.concatenate([v, columns], axis=-1)), width**-0.5)
    return output[..., :width], output[..., width:used].astype(jnp.float32)


def _fits_kernel(q: PerHead, width: int) -> bool:
    """Whether cuDNN's kernel can take these queries, with values of `width` channels."""
    return q.ndim >= 4 and q.dtype == jnp.bfloat16 and q.shape[-1] % _KERNEL_STEP == 0 and width <= _KERNEL_WIDTH and _has_kernel()


@functools.cache
def _has_kernel() -> bool:
    """Whether there is a GPU with cuDNN's attention kernel, found by tracing the smallest example: JAX raises where there is none."""
    if jax.default_backend() != "gpu":
        return False
    smallest = jax.ShapeDtypeStruct((1, 8, 1, _KERNEL_STEP), jnp.bfloat16)
    try:
        jax.eval_shape(functools.partial(jax.nn.dot_product_attention, implementation="cudnn"), smallest, smallest, smallest)
    except (RuntimeError, NotImplementedError):
        return False
    return True


def _heads_first(x: Array) -> Array:
    """[*batch, tokens, heads, n] to [*batch, heads, tokens, n], and back."""
    return jnp.swapaxes(x, -2, -3)
