"""Features of many images under a condition: batched over the mesh, fetched while the next batch runs."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, UInt8

import jaxvit
from experiments.features.conditions import CALIBRATED_SITES
from jaxvit import Ablation, Edits, Moments, ViT
from jaxvit.capture import CAPTURES, Capture, CaptureSpec, cls, resolve
from jaxvit.sharding import Batch, batches, halved, replicate
from jaxvit.tokens import TokenLayout

Norm = Literal["final", "none"]
"""Tokens are read after the final norm, or as the last block leaves them."""
Captures = tuple[tuple[str, Capture], ...]
Images = UInt8[np.ndarray, "images height width 3"]
_IN_FLIGHT = 2  # batches that are under way while one is fetched
_CORE_CACHE = 2**21  # bytes of the feed-forward layer that stay in the caches of a CPU's core
_CLS_BLOCKS = 4  # last blocks whose CLS is kept, as DINOv2's grid of heads reads it
_CLS = "CLS of every block"


class Features(NamedTuple):
    """Tokens of the last block, and captures with the layer axis first.

    Attributes:
        patch_mean: mean over the patches, of every image.
        patches: of the leading images only, as many as were asked for.
        patch_norms: lengths of these patches before the final norm.
        block_cls: CLS of the last four blocks (all, where there are fewer), after the final norm.
        captured: by name, [layers, images, ...].
    """

    cls: Float[np.ndarray, "images width"]
    registers: Float[np.ndarray, "images registers width"]
    patch_mean: Float[np.ndarray, "images width"]
    patches: Float[np.ndarray, "patch_images patches width"]
    patch_norms: Float[np.ndarray, "patch_images patches"]
    block_cls: Float[np.ndarray, "images blocks width"]
    captured: dict[str, np.ndarray]


@functools.partial(jax.jit, static_argnames=("capture", "norm"))
def forward_batch(
    model: ViT,
    images: UInt8[Array, "batch height width 3"],
    edits: Edits | None,
    capture: Captures,
    ids: Int[Array, "batch"],
    valid: Bool[Array, "batch"],
    norm: Norm,
) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array]]:
    """Features of one batch, from pixels on in one program: work outside of it would wait for the batch before.

    Returns:
        By their names in `Features`: what is small, [batch, ...]; patches and their norms, [batch, patches, ...]; captures,
        [layers, batch, ...].
    """
    out = jaxvit.forward(model, jaxvit.normalise(images, model.config), edits, {**dict(capture), _CLS: cls}, ids, valid)
    tokens, prefix = out.tokens if norm == "final" else out.prenorm, out.layout.prefix
    patches, norms = tokens[:, prefix:], jnp.linalg.norm(out.prenorm[:, prefix:].astype(jnp.float32), axis=-1)
    captured = dict(out.captured)
    block_cls = model.final_norm(captured.pop(_CLS)[-_CLS_BLOCKS:, :, None])[:, :, 0].swapaxes(0, 1)
    small = {"cls": tokens[:, 0], "registers": tokens[:, 1:prefix], "patch_mean": patches.mean(axis=1), "block_cls": block_cls}
    return small, {"patches": patches, "patch_norms": norms}, captured


def patch_grid(patches: Float[np.ndarray, "images patches width"], images: Images) -> tuple[int, int, int]:
    """Rows, columns and side in pixels of the patches of images."""
    height, width = images.shape[1:3]
    side = round((height * width / patches.shape[1]) ** 0.5)
    return height // side, width // side, side


@dataclass(frozen=True)
class Runner:
    """A model on a mesh, and the batch size of its runs: the images that shuffle among one another, and the largest step.

    On a CPU runs without shuffling take smaller steps (`_step`).
    """

    model: ViT
    mesh: Mesh
    batch_size: int

    @classmethod
    def on(cls, mesh: Mesh, model: ViT, batch_size: int) -> Runner:
        return cls(replicate(model, mesh), mesh, batch_size)

    def extract(
        self,
        images: Images,
        ablation: Ablation,
        first_id: int,
        capture: CaptureSpec = (),
        norm: Norm = "final",
        patch_images: int | None = None,
    ) -> Features:
        """Features of every image under an ablation.

        Args:
            first_id: example id of the first image; ids count from here.
            capture: what is read out of every block besides the tokens of the last.
            norm: whether tokens are read after the final norm.
            patch_images: leading images whose patches are kept; by default all. Of the others only the mean patch stays.
        """
        count = len(images)
        patch_count = count if patch_images is None else min(patch_images, count)
        edits, captures = self._edits(ablation, images) if ablation.replacements else None, resolve(capture, CAPTURES)

        def start(batch: Batch) -> tuple:
            small, patches, captured = forward_batch(self.model, batch.rows, edits, captures, batch.example_ids, batch.valid, norm)
            return small, patches if batch.start < patch_count else None, captured

        counts, results = zip(*self._run(start, images, first_id, self._step(images, edits)), strict=True)
        small, patches, captured = zip(*results, strict=True)
        patch_batches = [p for p in patches if p is not None]
        no_patches = {"patches": np.zeros((0, 0, small[0]["cls"].shape[-1]), np.float32), "patch_norms": np.zeros((0, 0), np.float32)}
        patch_arrays = _concatenate(patch_batches, counts[: len(patch_batches)]) if patch_batches else no_patches
        return Features(
            **_concatenate(small, counts),
            **{name: array[:patch_count] for name, array in patch_arrays.items()},
            captured=_concatenate(captured, counts, axis=1),
        )

    def map_batches(self, program: Callable[..., Any], images: Images, ablation: Ablation, first_id: int) -> dict[str, np.ndarray]:
        """Outputs of a program for all images.

        Args:
            program: (model, images, edits, ids, valid) of a batch -> arrays by name, [layers, batch, ...].
            first_id: example id of the first image; ids count from here.
        """
        edits = self._edits(ablation, images)

        def start(batch: Batch) -> dict[str, Array]:
            return program(self.model, batch.rows, edits, batch.example_ids, batch.valid)

        counts, results = zip(*self._run(start, images, first_id, self._step(images, edits, streams=2)), strict=True)
        return _concatenate(results, counts, axis=1)

    def calibrate(self, images: Images, sites: Sequence[str] = CALIBRATED_SITES) -> Moments:
        """Moments of activations at some sites, over images."""
        prepared = ((jaxvit.normalise(batch.rows, self.model.config), batch.valid) for batch in batches(images, self.batch_size, self.mesh))
        return jaxvit.calibrate(self.model, prepared, tuple(sites))

    def _edits(self, ablation: Ablation, images: Images) -> Edits:
        return replicate(jaxvit.lower(ablation, self.model, images.shape[1:3]), self.mesh)

    def _step(self, images: Images, edits: Edits | None, streams: int = 1) -> int:
        """Images per step: the whole batch on accelerators and where images shuffle among one another. On a CPU it is halved until the
        feed-forward layer's activations of a core stay in its caches, which takes a quarter less time."""
        if self.mesh.devices.flat[0].platform != "cpu" or (edits is not None and edits.shuffles):
            return self.batch_size
        tokens = TokenLayout.of(self.model.config, images.shape[1:3]).tokens
        fitting = max(2, _CORE_CACHE // (4 * streams * tokens * self.model.config.mlp_dim)) * self.mesh.size
        return halved(self.batch_size, fitting, self.mesh.size)

    def _run(self, start: Callable[[Batch], Any], images: Images, first_id: int, step: int) -> Iterator[tuple[int, Any]]:
        """Number of images and results of every step, in order; a few steps are under way while one is fetched."""
        running: deque[tuple[int, Any]] = deque()
        for batch in batches(images, step, self.mesh, first_id):
            running.append((batch.length, start(batch)))
            if len(running) > _IN_FLIGHT:
                count, results = running.popleft()
                yield count, _fetch(results)
        for count, results in running:
            yield count, _fetch(results)


def _fetch(tree: Any) -> Any:
    """Arrays on the host; those in half precision travel in it and are float32 from there on."""
    return jax.tree.map(lambda leaf: leaf.astype(np.float32) if leaf.dtype == jnp.bfloat16 else leaf, jax.device_get(tree))


def _concatenate(parts: Sequence[dict[str, np.ndarray]], counts: Sequence[int], axis: Literal[0, 1] = 0) -> dict[str, np.ndarray]:
    """Arrays of all batches along the axis of images, each without the padding behind its `count` images."""
    cuts = [(slice(None),) * axis + (slice(count),) for count in counts]
    return {name: np.concatenate([part[name][cut] for part, cut in zip(parts, cuts, strict=True)], axis=axis) for name in parts[0]}
