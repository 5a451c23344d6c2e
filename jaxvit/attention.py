"""Attention: a plain reference with float32 softmax, what is read off its probabilities, and how a CPU and a GPU go through images."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

PerHead = Float[Array, "*batch tokens heads head_width"]


def probabilities(
    q: PerHead, k: PerHead, hidden: Bool[Array, "*batch tokens tokens"] | None = None
) -> Float[Array, "*batch heads tokens tokens"]:
    """Softmax attention of every query over all keys, float32 whatever the input's dtype.

    Where `hidden` is true, a query (second last axis) does not see a key (last axis); every query must see one.
    """
    weights_HTS, sums_HT1 = _exponentials(_heads_first(q), _heads_first(k), hidden)
    return weights_HTS / sums_HT1


def attend(q: PerHead, k: PerHead, v: PerHead, hidden: Bool[Array, "*batch tokens tokens"] | None = None) -> PerHead:
    """Values averaged under `probabilities`, in the values' dtype.

    What is divided by the sum of a query's weights is what they sum up to: head_width divisions, where the weights themselves
    would take one for every key. In bfloat16 on NVIDIA's GPUs cuDNN's kernel does the same without any logits in memory.
    """

    def plain(q: PerHead, k: PerHead, v: PerHead) -> PerHead:
        return _heads_first(image_by_image(_by_queries(_mixed), *map(_heads_first, (q, k, v)), hidden))

    if hidden is not None or not _fits_kernel(q, q.shape[-1]):
        return plain(q, k, v)
    return jax.lax.platform_dependent(q, k, v, cuda=_fused, default=plain)


def attend_and_share(
    q: PerHead,
    k: PerHead,
    v: PerHead,
    groups: Float[Array, "tokens groups"],
    hidden: Bool[Array, "*batch tokens tokens"] | None = None,
) -> tuple[PerHead, Float[Array, "*batch tokens heads groups"]]:
    """`attend`, and how much of every query's attention the keys of each group get.

    `groups` is 1 where a token belongs to a group: columns beside those of the values, so that one product gives both and no map
    of attention is kept. Sums are float32; in bfloat16 the weights that are summed are rounded, a share to 2^-8 of itself.
    """

    def plain(q: PerHead, k: PerHead, v: PerHead) -> tuple[PerHead, Array]:
        function = _by_queries(functools.partial(_mixed_and_shared, groups))
        mixed, shares = image_by_image(function, *map(_heads_first, (q, k, v)), hidden)
        return _heads_first(mixed), _heads_first(shares)

    if hidden is not None or not _fits_kernel(q, q.shape[-1] + groups.shape[-1]):
        return plain(q, k, v)
    return jax.lax.platform_dependent(q, k, v, cuda=functools.partial(_fused_and_shared, groups), default=plain)


def attend_and_diverge(
    q: PerHead, k: PerHead, v: PerHead, hidden: Bool[Array, "*batch tokens tokens"] | None = None
) -> tuple[PerHead, Float[Array, "*batch heads"]]:
    """`attend` of two streams on the first axis, and how far the attention of each is from that of the other: `jensen_shannon` of a
    query's two distributions over keys, mean over queries; the same number for both.

    Maps of attention are never there for more than some queries, on a CPU of one image per device.
    """
    mixed, divergence = image_by_image(_by_queries(_mixed_and_diverged), *map(_heads_first, (q, k, v)), hidden)
    return _heads_first(mixed), divergence.mean(axis=-1)


def jensen_shannon(p: Float[Array, "*batch outcomes"], q: Float[Array, "*batch outcomes"]) -> Float[Array, "*batch"]:
    """Jensen-Shannon divergence of two distributions in bits (Lin 1991): 0 where they are equal, 1 where they are disjoint."""
    return _jensen_shannon(p, q, *(jnp.log(jnp.where(x > 0, x, 1)) for x in (p, q)))


def _fused(q: PerHead, k: PerHead, v: PerHead, scale: float | None = None) -> PerHead:
    """`attend` by cuDNN, of at least one batch axis. Images come first, so that a batch that is split over devices stays split."""
    axis = q.ndim - 4

    def images_first(x: PerHead) -> Float[Array, "runs tokens heads head_width"]:
        return jnp.moveaxis(x, axis, 0).reshape(-1, *x.shape[-3:])

    mixed = jax.nn.dot_product_attention(*map(images_first, (q, k, v)), scale=scale, implementation="cudnn")
    return jnp.moveaxis(mixed.reshape(q.shape[axis], *q.shape[:axis], *q.shape[-3:]), 0, axis)


def _fused_and_shared(
    groups: Float[Array, "tokens groups"], q: PerHead, k: PerHead, v: PerHead
) -> tuple[PerHead, Float[Array, "*batch tokens heads groups"]]:
    """`attend_and_share` by cuDNN: the columns are channels of the values, and queries and keys get as many zeros. The kernel's
    results are rounded to its dtype, a share to 2^-9 of itself."""
    width, used = q.shape[-1], q.shape[-1] + groups.shape[-1]

    def widened(x: PerHead) -> PerHead:
        return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, used + -used % _KERNEL_STEP - x.shape[-1])])

    columns = jnp.broadcast_to(groups[:, None].astype(v.dtype), (*v.shape[:-1], groups.shape[-1]))
    both = _fused(widened(q), widened(k), widened(jnp.concatenate([v, columns], axis=-1)), width**-0.5)
    return both[..., :width], both[..., width:used].astype(jnp.float32)


_KERNEL_STEP, _KERNEL_WIDTH = 8, 128
"""Widths of a head that cuDNN's kernel takes: multiples of the first up to the second, on every GPU that has it."""


def _fits_kernel(q: PerHead, width: int) -> bool:
    return q.ndim >= 4 and q.dtype == jnp.bfloat16 and q.shape[-1] % _KERNEL_STEP == 0 and width <= _KERNEL_WIDTH and _has_kernel()


@functools.cache
def _has_kernel() -> bool:
    """Whether there is a GPU with cuDNN's attention: JAX says so where it is asked to trace the smallest."""
    if jax.default_backend() != "gpu":
        return False
    smallest = jax.ShapeDtypeStruct((1, 8, 1, _KERNEL_STEP), jnp.bfloat16)
    try:
        jax.eval_shape(functools.partial(jax.nn.dot_product_attention, implementation="cudnn"), smallest, smallest, smallest)
    except (RuntimeError, NotImplementedError):
        return False
    return True


def image_by_image(function: Callable[..., Any], *arrays: Any) -> Any:
    """`function` of arrays [*batch, heads, tokens, ...]: of all images at once, but on a CPU of one image per device at a time.

    What attention makes of one image stays in a core's cache; that of a batch would go to memory and come back at every step of
    a softmax. As many images are taken together as there are devices, so that a batch that is split over them stays split. The
    last batch axis counts images; what `function` returns leads with the batch axes.
    """
    axis = arrays[0].ndim - 4
    if axis < 0:
        return function(*arrays)
    return jax.lax.platform_dependent(*arrays, cpu=functools.partial(_in_steps, function, axis), default=function)


def _in_steps(function: Callable[..., Any], axis: int, *arrays: Any) -> Any:
    """`function` by `jax.lax.map` along an axis, as many entries at a time as there are devices (or a divisor of that)."""
    together = math.gcd(arrays[0].shape[axis], jax.device_count())

    def apart(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(*x.shape[:axis], together, -1, *x.shape[axis + 1 :]), axis + 1, 0)

    def joined(x: Array) -> Array:
        x = jnp.moveaxis(x, 0, axis + 1)
        return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

    return jax.tree.map(joined, jax.lax.map(lambda step: function(*step), jax.tree.map(apart, arrays)))


_QUERIES = 320
"""Queries at a time, where an image has more tokens: memory then grows with tokens, not with their square."""


def _by_queries(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of queries, keys, values (heads first) and what is hidden, whose results have the queries' axis where queries have
    it, for at most `_QUERIES` of them at a time: each is on its own."""

    def by_parts(q_HTK: Array, k_HSK: Array, v_HSK: Array, hidden_TS: Array | None) -> Any:
        axis, count = q_HTK.ndim - 2, q_HTK.shape[-2]
        parts = -(-count // _QUERIES)
        if parts == 1:
            return function(q_HTK, k_HSK, v_HSK, hidden_TS)

        def apart(x: Array) -> Array:
            x = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, -count % parts), (0, 0)])
            return jnp.moveaxis(x.reshape(*x.shape[:-2], parts, -1, x.shape[-1]), -3, 0)

        def joined(x: Array) -> Array:
            x = jnp.moveaxis(x, 0, axis)
            return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])[(slice(None),) * axis + (slice(count),)]

        steps = apart(q_HTK), None if hidden_TS is None else apart(hidden_TS)
        return jax.tree.map(joined, jax.lax.map(lambda step: function(step[0], k_HSK, v_HSK, step[1]), steps))

    return by_parts


def _mixed(q_HTK: Array, k_HSK: Array, v_HSK: Array, hidden_TS: Array | None) -> Array:
    weights_HTS, sums_HT1 = _exponentials(q_HTK, k_HSK, hidden_TS)
    return (weights_HTS.astype(v_HSK.dtype) @ v_HSK / sums_HT1).astype(v_HSK.dtype)


def _mixed_and_shared(groups_SG: Array, q_HTK: Array, k_HSK: Array, v_HSK: Array, hidden_TS: Array | None) -> tuple[Array, Array]:
    weights_HTS, sums_HT1 = _exponentials(q_HTK, k_HSK, hidden_TS)
    columns_HSG = jnp.broadcast_to(groups_SG.astype(v_HSK.dtype), (*v_HSK.shape[:-1], groups_SG.shape[-1]))
    both_HTKG = jnp.matmul(
        weights_HTS.astype(v_HSK.dtype), jnp.concatenate([v_HSK, columns_HSG], axis=-1), preferred_element_type=jnp.float32
    )
    mixed_HTK, shares_HTG = jnp.split(both_HTKG, [v_HSK.shape[-1]], axis=-1)
    return (mixed_HTK / sums_HT1).astype(v_HSK.dtype), shares_HTG / sums_HT1


def _mixed_and_diverged(q_HTK: Array, k_HSK: Array, v_HSK: Array, hidden_TS: Array | None) -> tuple[Array, Array]:
    logits_HTS = _logits(q_HTK, k_HSK, hidden_TS)
    weights_HTS = jnp.exp(logits_HTS)
    sums_HT1 = weights_HTS.sum(axis=-1, keepdims=True)
    mixed_HTK = (weights_HTS.astype(v_HSK.dtype) @ v_HSK / sums_HT1).astype(v_HSK.dtype)
    logs_HTS = logits_HTS - jnp.log(sums_HT1)
    if hidden_TS is not None:
        logs_HTS = jnp.where(hidden_TS[..., None, :, :], 0, logs_HTS)
    divergence_HT = _jensen_shannon(*(weights_HTS * (1 / sums_HT1)), *logs_HTS)
    return mixed_HTK, jnp.stack([divergence_HT, divergence_HT])


_SERIES, _CLOSE = 6, 0.09


def _jensen_shannon(p: Array, q: Array, log_p: Array, log_q: Array) -> Array:
    """`jensen_shannon`, where the logarithms are known; that of 0 may be anything finite.

    With the mean m = (p + q) / 2 and r = (p - q) / (p + q) an outcome adds m ((1 + r) log(1 + r) + (1 - r) log(1 - r)) / 2. Where r
    is small that is a series in r^2: exactly 0 for equal distributions, and no difference of logarithms that are close.
    """
    smallest = 4 * jnp.finfo(jnp.float32).tiny  # below it a device may take half of it for 0, whose logarithm is infinite
    total = jnp.where(p + q > smallest, p + q, 1)
    square = ((p - q) / total) ** 2
    series = jnp.full_like(square, 1 / (_SERIES * (2 * _SERIES - 1)))
    for power in range(_SERIES - 1, 0, -1):
        series = series * square + 1 / (power * (2 * power - 1))
    close = total / 2 * square * series
    apart = p * log_p + q * log_q - (p + q) * jnp.log(total / 2)
    return jnp.where(square < _CLOSE, close, apart).sum(axis=-1) / (2 * jnp.log(2.0))


def _exponentials(q_HTK: Array, k_HSK: Array, hidden_TS: Array | None) -> tuple[Array, Array]:
    """exp(logit - the query's largest), and its sum over keys: float32 [*batch, heads, tokens, tokens] and [..., 1]."""
    weights_HTS = jnp.exp(_logits(q_HTK, k_HSK, hidden_TS))
    return weights_HTS, weights_HTS.sum(axis=-1, keepdims=True)


def _logits(q_HTK: Array, k_HSK: Array, hidden_TS: Array | None) -> Array:
    """Logits less the query's largest, float32; -inf where hidden."""
    q_HTK = q_HTK * q_HTK.shape[-1] ** -0.5
    logits_HTS = jnp.matmul(q_HTK, jnp.swapaxes(k_HSK, -1, -2), preferred_element_type=jnp.float32)
    if hidden_TS is not None:
        logits_HTS = jnp.where(hidden_TS[..., None, :, :], -jnp.inf, logits_HTS)
    return logits_HTS - jax.lax.stop_gradient(logits_HTS.max(axis=-1, keepdims=True))


def _heads_first(x: Array) -> Array:
    """[*batch, tokens, heads, n] to [*batch, heads, tokens, n], and back."""
    return jnp.swapaxes(x, -2, -3)
