"""Features of many images under a condition: batched over the mesh, fetched while the next batch runs."""

from __future__ import annotations

import functools
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

import jaxvit
from jaxvit import Ablation, Statistics, ViT
from jaxvit.capture import CaptureSpec
from jaxvit.edits import Edits
from jaxvit.sharding import batches, replicate

_IN_FLIGHT = 2


class Features(NamedTuple):
    """Tokens after the final norm, and captures with the layer axis first."""

    cls: Float[np.ndarray, "images width"]
    registers: Float[np.ndarray, "images registers width"]
    patches: Float[np.ndarray, "images patches width"]
    captured: dict[str, np.ndarray]


@functools.partial(jax.jit, static_argnames="capture")
def _forward(
    model: ViT, images: Array, edits: Edits | None, capture: CaptureSpec, ids: Array, valid: Array
) -> tuple[Array, Array, Array, dict[str, Array]]:
    """Pixels to features in one program: whatever is done outside of it waits for the batch before."""
    out = jaxvit.forward(model, jaxvit.normalise(images, model.config), edits, capture, ids, valid)
    return out.cls, out.registers, out.patches, out.captured


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
        self, images: UInt8[np.ndarray, "images height width 3"], ablation: Ablation, first_id: int, capture: CaptureSpec = ()
    ) -> Features:
        """Features of every image; example ids count from `first_id`."""
        edits = jaxvit.lower(ablation, self.model, images.shape[1:3]) if ablation.replacements else None
        edits = replicate(edits, self.mesh)
        running: deque[tuple] = deque()
        done = []
        for batch in batches(images, self.batch_size, self.mesh, first_id):
            running.append(_forward(self.model, batch.rows, edits, capture, batch.example_ids, batch.valid))
            if len(running) > _IN_FLIGHT:
                done.append(jax.device_get(running.popleft()))
        done += jax.device_get(list(running))
        cls, registers, patches, captured = zip(*done, strict=True)
        count = len(images)
        layered = {name: np.concatenate([c[name] for c in captured], axis=1)[:, :count] for name in captured[0]}
        tokens = [np.concatenate(part)[:count] for part in (cls, registers, patches)]
        return Features(tokens[0], tokens[1], tokens[2], layered)

    def calibrate(self, images: UInt8[np.ndarray, "images height width 3"]) -> Statistics:
        """Statistics of the block outputs over images."""
        prepared = ((jaxvit.normalise(batch.rows, self.model.config), batch.valid) for batch in batches(images, self.batch_size, self.mesh))
        return jaxvit.calibrate(self.model, prepared)
