"""The objective of the demo models: self-distillation from an EMA teacher with a contrastive CLS loss.

Two views of each scene. The student's CLS must pick out the teacher's CLS of the other view among those of the other
scenes and of a queue (InfoNCE, as in MoCo), and its masked patches must predict the teacher's assignment of the same
patches to prototypes (as in iBOT, with Sinkhorn-Knopp assignments as in SwAV). It is not DINO proper.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from experiments.pretrain.backbone import Leaves, StudentMasks, ViewTokens

_CLS_TEMPERATURE = 0.15
_PATCH_TEMPERATURE = 0.1
_SINKHORN_TEMPERATURE = 0.05
_SINKHORN_ITERATIONS = 3
_MASKED_VIEWS = 0.4
_MASKED_PATCHES = (0.1, 0.4)
_CLS_WIDTHS = (256, 256, 64)
_PATCH_WIDTHS = (256, 64)
_PROTOTYPES = 256
PROJECTION = _CLS_WIDTHS[-1]


def create_heads(width: int, key: Array) -> Leaves:
    """Random weights of the projection heads, the prototypes and the mask token; none of them is part of the finished model."""
    cls_key, patch_key, prototype_key, token_key = jax.random.split(key, 4)
    prototypes = jax.random.normal(prototype_key, (_PROTOTYPES, _PATCH_WIDTHS[-1]))
    return {
        **_create_mlp("cls", (width, *_CLS_WIDTHS), cls_key),
        **_create_mlp("patch", (width, *_PATCH_WIDTHS), patch_key),
        "prototypes": unit(prototypes),
        "mask_token": 0.1 * jax.random.normal(token_key, (width,)),
    }


def draw_masks(key: Array, views: int, rows: int, columns: int, hidden_share: tuple[float, float]) -> StudentMasks:
    """Random masks of a step's views: blobs of patches in the first 40 % of the views, and in every view a share of hidden keys, uniform
    between the two bounds `hidden_share`. Which views are masked is static, since scenes come in no particular order."""
    blob_key, share_key, pick_key = jax.random.split(key, 3)
    masked = round(_MASKED_VIEWS * views)
    patches = jnp.zeros((views, rows * columns), bool).at[:masked].set(blobs(blob_key, masked, rows, columns))
    share = jax.random.uniform(share_key, (views, 1), minval=hidden_share[0], maxval=hidden_share[1])
    return StudentMasks(patches, jax.random.uniform(pick_key, patches.shape) < share)


def losses(
    student_heads: Leaves,
    teacher_heads: Leaves,
    student: ViewTokens,
    teacher: ViewTokens,
    masked: Bool[Array, "views patches"],
    queue: Array,
) -> tuple[Array, Array, Float[Array, "scenes projection"]]:
    """CLS loss, patch loss, and the teacher's projections to append to the queue. Views 2 i and 2 i + 1 show scene i."""
    teacher = jax.lax.stop_gradient(teacher)
    queries, targets = (unit(_mlp("cls", h, tokens.cls)) for h, tokens in ((student_heads, student), (teacher_heads, teacher)))
    targets = jax.lax.stop_gradient(targets)
    cls_loss = (info_nce(queries[::2], targets[1::2], queue) + info_nce(queries[1::2], targets[::2], queue)) / 2
    count = round(_MASKED_VIEWS * len(masked))
    patch_loss = _patch_loss(student_heads, teacher_heads, student.patches[:count], teacher.patches, masked[:count])
    return cls_loss, patch_loss, targets[::2]


def info_nce(queries: Float[Array, "n width"], targets: Float[Array, "n width"], queue: Float[Array, "m width"]) -> Array:
    """InfoNCE of unit vectors: query i is to pick target i among all targets and the queue."""
    logits = queries @ jnp.concatenate([targets, queue]).T / _CLS_TEMPERATURE
    return (jax.nn.logsumexp(logits, axis=-1) - (queries * targets).sum(axis=-1) / _CLS_TEMPERATURE).mean()


def sinkhorn(scores: Float[Array, "n prototypes"]) -> Float[Array, "n prototypes"]:
    """Assignments with rows that sum to one and columns of about equal mass (Sinkhorn-Knopp)."""
    q = jnp.exp((scores - scores.max()) / _SINKHORN_TEMPERATURE)
    for _ in range(_SINKHORN_ITERATIONS):
        q = q / (q.sum(axis=0) * q.shape[1])
        q = q / (q.sum(axis=1, keepdims=True) * q.shape[0])
    return q * q.shape[0]


def blobs(key: Array, count: int, rows: int, columns: int) -> Bool[Array, "count patches"]:
    """Random masks of 10 to 40 % of the patches each: the patches nearest to a random point, in an ellipse of random direction."""
    centre_key, share_key, angle_key, noise_key = jax.random.split(key, 4)
    grid = jnp.stack(jnp.meshgrid(jnp.arange(rows) + 0.5, jnp.arange(columns) + 0.5, indexing="ij"), axis=-1).reshape(-1, 2)
    offset = grid - jax.random.uniform(centre_key, (count, 1, 2)) * jnp.asarray([rows, columns])
    angle = jax.random.uniform(angle_key, (count, 1), maxval=2 * jnp.pi)
    along = offset[..., 0] * jnp.cos(angle) + offset[..., 1] * jnp.sin(angle)
    # Half the distance along one axis makes the blob longer that way; the noise roughens its edge.
    distance = (offset**2).sum(axis=-1) - 0.75 * along**2 + jax.random.uniform(noise_key, along.shape)
    rank = jnp.argsort(jnp.argsort(distance, axis=-1), axis=-1)
    low, high = _MASKED_PATCHES
    size = jnp.round(jax.random.uniform(share_key, (count, 1), minval=low, maxval=high) * rows * columns)
    return rank < size


def unit(x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
    """Vectors divided by their length."""
    return x * jax.lax.rsqrt((x * x).sum(axis=-1, keepdims=True) + 1e-12)


def _patch_loss(student_heads: Leaves, teacher_heads: Leaves, student: Array, teacher: Array, mask: Array) -> Array:
    """Cross-entropy of the student's masked patches against the teacher's balanced assignments of the same patches."""
    # Without centring, prototypes would encode a patch's position and its view's light and colours, which the student can tell from the
    # position and from any other patch.
    centred = teacher - teacher.mean(axis=0) - teacher.mean(axis=1, keepdims=True) + teacher.mean(axis=(0, 1))
    projected = unit(_mlp("patch", teacher_heads, centred))
    scores = projected @ unit(teacher_heads["prototypes"]).T
    assigned = sinkhorn(scores.reshape(-1, _PROTOTYPES)).reshape(scores.shape)[: len(mask)]
    logits = unit(_mlp("patch", student_heads, student)) @ unit(student_heads["prototypes"]).T / _PATCH_TEMPERATURE
    entropy = -(jax.lax.stop_gradient(assigned) * jax.nn.log_softmax(logits)).sum(axis=-1)
    per_view = (entropy * mask).sum(axis=1) / jnp.maximum(mask.sum(axis=1), 1)
    return per_view.mean()


def _create_mlp(name: str, widths: tuple[int, ...], key: Array) -> Leaves:
    init = jax.nn.initializers.xavier_uniform()
    shapes = list(itertools.pairwise(widths))
    kernels = {f"{name}.{i}.kernel": init(k, s) for i, (s, k) in enumerate(zip(shapes, jax.random.split(key, len(shapes)), strict=True))}
    return {**kernels, **{f"{name}.{i}.bias": jnp.zeros(s[1]) for i, s in enumerate(shapes)}}


def _mlp(name: str, heads: Leaves, x: Array) -> Array:
    depth = sum(key.startswith(f"{name}.") for key in heads) // 2
    for i in range(depth):
        x = (x if i == 0 else jax.nn.gelu(x)) @ heads[f"{name}.{i}.kernel"] + heads[f"{name}.{i}.bias"]
    return x
