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

from experiments.backbone import Features, Hiding, Leaves

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
    """Weights of the projections, the prototypes and the mask token; none of it belongs to the trained model."""
    cls_key, patch_key, prototype_key, token_key = jax.random.split(key, 4)
    prototypes = jax.random.normal(prototype_key, (_PROTOTYPES, _PATCH_WIDTHS[-1]))
    return {
        **_create_mlp("cls", (width, *_CLS_WIDTHS), cls_key),
        **_create_mlp("patch", (width, *_PATCH_WIDTHS), patch_key),
        "prototypes": unit(prototypes),
        "mask_token": 0.1 * jax.random.normal(token_key, (width,)),
    }


def hide(key: Array, views: int, rows: int, columns: int, keys: tuple[float, float]) -> Hiding:
    """Draw what the student does not see: blobs of patches in the first 40 % of the views (a static share: scenes come in no
    order), and in every view a share U(`keys`) of the keys."""
    blob_key, share_key, pick_key = jax.random.split(key, 3)
    masked = round(_MASKED_VIEWS * views)
    patches = jnp.zeros((views, rows * columns), bool).at[:masked].set(blobs(blob_key, masked, rows, columns))
    share = jax.random.uniform(share_key, (views, 1), minval=keys[0], maxval=keys[1])
    return Hiding(patches, jax.random.uniform(pick_key, patches.shape) < share)


def losses(
    student_heads: Leaves, teacher_heads: Leaves, seen: Features, targets: Features, masked: Bool[Array, "views patches"], queue: Array
) -> tuple[Array, Array, Float[Array, "scenes projection"]]:
    """CLS loss, patch loss and what to append to the queue. Views 2 i and 2 i + 1 show scene i."""
    targets = jax.lax.stop_gradient(targets)
    ours, theirs = (unit(_mlp("cls", h, f.cls)) for h, f in ((student_heads, seen), (teacher_heads, targets)))
    theirs = jax.lax.stop_gradient(theirs)
    cls_loss = (contrast(ours[::2], theirs[1::2], queue) + contrast(ours[1::2], theirs[::2], queue)) / 2
    count = round(_MASKED_VIEWS * len(masked))
    patch_loss = _patch_loss(student_heads, teacher_heads, seen.patches[:count], targets.patches, masked[:count])
    return cls_loss, patch_loss, theirs[::2]


def contrast(ours: Float[Array, "n width"], theirs: Float[Array, "n width"], queue: Float[Array, "m width"]) -> Array:
    """InfoNCE: each of our unit vectors against its partner, the partners of the others and the queue."""
    logits = ours @ jnp.concatenate([theirs, queue]).T / _CLS_TEMPERATURE
    return (jax.nn.logsumexp(logits, axis=-1) - (ours * theirs).sum(axis=-1) / _CLS_TEMPERATURE).mean()


def sinkhorn(scores: Float[Array, "n prototypes"]) -> Float[Array, "n prototypes"]:
    """Assignments with rows that sum to one and columns of about equal mass (Sinkhorn-Knopp)."""
    q = jnp.exp((scores - scores.max()) / _SINKHORN_TEMPERATURE)
    for _ in range(_SINKHORN_ITERATIONS):
        q = q / (q.sum(axis=0) * q.shape[1])
        q = q / (q.sum(axis=1, keepdims=True) * q.shape[0])
    return q * q.shape[0]


def blobs(key: Array, count: int, rows: int, columns: int) -> Bool[Array, "count patches"]:
    """Masks of 10 to 40 % of the patches each: those nearest to a random point, in a random direction's metric."""
    place, share, tilt, rough = jax.random.split(key, 4)
    grid = jnp.stack(jnp.meshgrid(jnp.arange(rows) + 0.5, jnp.arange(columns) + 0.5, indexing="ij"), axis=-1).reshape(-1, 2)
    offset = grid - jax.random.uniform(place, (count, 1, 2)) * jnp.asarray([rows, columns])
    angle = jax.random.uniform(tilt, (count, 1), maxval=2 * jnp.pi)
    along = offset[..., 0] * jnp.cos(angle) + offset[..., 1] * jnp.sin(angle)
    # Half the distance along one axis makes the blob longer that way; the noise roughens its edge.
    distance = (offset**2).sum(axis=-1) - 0.75 * along**2 + jax.random.uniform(rough, along.shape)
    rank = jnp.argsort(jnp.argsort(distance, axis=-1), axis=-1)
    low, high = _MASKED_PATCHES
    size = jnp.round(jax.random.uniform(share, (count, 1), minval=low, maxval=high) * rows * columns)
    return rank < size


def unit(x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
    """Vectors divided by their length."""
    return x * jax.lax.rsqrt((x * x).sum(axis=-1, keepdims=True) + 1e-12)


def _patch_loss(student_heads: Leaves, teacher_heads: Leaves, seen: Array, targets: Array, mask: Array) -> Array:
    """Cross-entropy of the student's masked patches against the teacher's balanced assignments of the same patches."""
    # Without the centring, prototypes encode where a patch is and which view it comes from (its light, its colours), which
    # the student can tell from the position and from any other patch.
    centred = targets - targets.mean(axis=0) - targets.mean(axis=1, keepdims=True) + targets.mean(axis=(0, 1))
    projected = unit(_mlp("patch", teacher_heads, centred))
    scores = projected @ unit(teacher_heads["prototypes"]).T
    assigned = sinkhorn(scores.reshape(-1, _PROTOTYPES)).reshape(scores.shape)[: len(mask)]
    logits = unit(_mlp("patch", student_heads, seen)) @ unit(student_heads["prototypes"]).T / _PATCH_TEMPERATURE
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
