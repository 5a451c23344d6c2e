"""Features of many images under a condition: batched over the mesh, fetched while the next batch runs."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

import jaxvit
from experiments.conditions import SITES
from jaxvit import Ablation, Statistics, ViT
from jaxvit.capture import CAPTURES, Capture, CaptureSpec, cls, resolve
from jaxvit.edits import Edits
from jaxvit.sharding import Batch, batches, replicate

Norm = Literal["final", "none"]
"""Tokens are read after the final norm, or as the last block leaves them."""
Captures = tuple[tuple[str, Capture], ...]
_IN_FLIGHT = 2
_BLOCKS = 4
_CLS = "CLS of every block"


class Features(NamedTuple):
    """Tokens of the last block, and captures with the layer axis first.

    Patches are kept of the leading `dense` images only, their mean of all. `patch_norms` are their lengths before the final norm.
    `block_cls` is CLS of the last four blocks (all, where there are fewer), after the final norm.
    """

    cls: Float[np.ndarray, "images width"]
    registers: Float[np.ndarray, "images registers width"]
    patch_mean: Float[np.ndarray, "images width"]
    patches: Float[np.ndarray, "dense patches width"]
    patch_norms: Float[np.ndarray, "dense patches"]
    block_cls: Float[np.ndarray, "images blocks width"]
    captured: dict[str, np.ndarray]


@functools.partial(jax.jit, static_argnames=("capture", "norm"))
def _forward(
    model: ViT,
    images: Array,
    edits: Edits | None,
    capture: tuple[tuple[str, Capture], ...],
    ids: Array,
    valid: Array,
    norm: Norm,
) -> tuple[tuple[Array, Array, Array, Array], tuple[Array, Array], dict[str, Array]]:
    """Pixels to features in one program: whatever is done outside of it waits for the batch before."""
    out = jaxvit.forward(model, jaxvit.normalise(images, model.config), edits, {**dict(capture), _CLS: cls}, ids, valid)
    tokens, prefix = out.tokens if norm == "final" else out.prenorm, out.layout.prefix
    patches, norms = tokens[:, prefix:], jnp.linalg.norm(out.prenorm[:, prefix:].astype(jnp.float32), axis=-1)
    captured = dict(out.captured)
    block_cls = model.final_norm(captured.pop(_CLS)[-_BLOCKS:, :, None])[:, :, 0].swapaxes(0, 1)
    return (tokens[:, 0], tokens[:, 1:prefix], patches.mean(axis=1), block_cls), (patches, norms), captured


@dataclass(frozen=True)
class Runner:
    """A model on a mesh, and the batch size that all its runs use."""

    model: ViT
    mesh: Mesh
    batch_size: int

    @classmethod
    def on(cls, mesh: Mesh, model: ViT, batch_size: int) -> Runner:
        return cls(replicate(model, mesh), mesh, batch_size)

    def extract(
        self,
        images: UInt8[np.ndarray, "images height width 3"],
        ablation: Ablation,
        first_id: int,
        capture: CaptureSpec = (),
        norm: Norm = "final",
        dense: int | None = None,
    ) -> Features:
        """Features of every image; example ids count from `first_id`. Patches are kept of the first `dense` images, by default of all."""
        count = len(images)
        kept = count if dense is None else min(dense, count)
        edits, captures = self._edits(ablation, images), resolve(capture, CAPTURES)

        def start(number: int, batch: Batch) -> tuple:
            pooled, patches, captured = _forward(self.model, batch.rows, edits, captures, batch.example_ids, batch.valid, norm)
            return pooled, patches if number * self.batch_size < kept else None, captured

        done = list(self._in_flight(start, images, first_id))
        pooled, patches, captured = zip(*done, strict=True)
        layered = {name: np.concatenate([c[name] for c in captured], axis=1)[:, :count] for name in captured[0]}
        whole = [np.concatenate(part)[:count] for part in zip(*pooled, strict=True)]
        some = [p for p in patches if p is not None] or [(np.zeros((0, 0, whole[0].shape[-1]), np.float32), np.zeros((0, 0), np.float32))]
        tokens, norms = (np.concatenate(part)[:kept] for part in zip(*some, strict=True))
        return Features(whole[0], whole[1], whole[2], tokens, norms, whole[3], layered)

    def each(self, program: Any, images: UInt8[np.ndarray, "images height width 3"], ablation: Ablation, first_id: int) -> dict[str, Any]:
        """What `program(model, images, edits, ids, valid)` returns, a dictionary of arrays with the images on their second axis
        (after layers), for all images."""
        edits = replicate(jaxvit.lower(ablation, self.model, images.shape[1:3]), self.mesh)

        def start(number: int, batch: Batch) -> dict[str, Array]:
            return program(self.model, batch.rows, edits, batch.example_ids, batch.valid)

        done = list(self._in_flight(start, images, first_id))
        return {name: np.concatenate([part[name] for part in done], axis=1)[:, : len(images)] for name in done[0]}

    def calibrate(self, images: UInt8[np.ndarray, "images height width 3"]) -> Statistics:
        """Statistics of what enters and leaves blocks, over images."""
        prepared = ((jaxvit.normalise(batch.rows, self.model.config), batch.valid) for batch in batches(images, self.batch_size, self.mesh))
        return jaxvit.calibrate(self.model, prepared, SITES)

    def _edits(self, ablation: Ablation, images: np.ndarray) -> Edits | None:
        return replicate(jaxvit.lower(ablation, self.model, images.shape[1:3]), self.mesh) if ablation.replacements else None

    def _in_flight(self, start: Any, images: np.ndarray, first_id: int) -> Iterator[Any]:
        """Results of every batch, in order; a few batches are under way while one is fetched."""
        running: deque[Any] = deque()
        for number, batch in enumerate(batches(images, self.batch_size, self.mesh, first_id)):
            running.append(start(number, batch))
            if len(running) > _IN_FLIGHT:
                yield _fetched(running.popleft())
        while running:
            yield _fetched(running.popleft())


def _fetched(tree: Any) -> Any:
    """Arrays on the host; those in half precision travel in it and are float32 from there on."""
    return jax.tree.map(lambda leaf: leaf.astype(np.float32) if leaf.dtype == jnp.bfloat16 else leaf, jax.device_get(tree))
