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
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, UInt8

import jaxvit
from experiments.features.conditions import CALIBRATED_SITES
from jaxvit import Ablation, Edits, Moments, ViT, ViTConfig
from jaxvit.calibration import PartialMoments, merged_moments, partial_moments
from jaxvit.capture import CAPTURES, Capture, CaptureSpec, cls, resolve
from jaxvit.sharding import Batch, batches, replicate
from jaxvit.specs import Replacement
from jaxvit.tokens import TokenLayout

Norm = Literal["final", "none"]
"""Tokens are read after the final norm, or as the last block leaves them."""
Captures = tuple[tuple[str, Capture], ...]
Images = UInt8[np.ndarray, "images height width 3"]
GROUP = 8
"""Images of a group in which a shuffle exchanges tokens. Groups are drawn over all images of a part, so that a donor is any other."""
_CORE_CACHE = 2**21  # bytes of the feed-forward layer that stay in the caches of a CPU's core
_DEVICE_ROOM = 2**30  # the same on accelerators
_LARGEST_SHARE = 128
_EVERYWHERE, _BY_IMAGE, _BY_LAYER = PartitionSpec(), PartitionSpec("batch"), PartitionSpec(None, "batch")
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


@functools.partial(jax.jit, static_argnames=("capture", "norm", "mesh"))
def forward_batch(
    model: ViT,
    images: UInt8[Array, "batch height width 3"],
    edits: Edits | None,
    capture: Captures,
    ids: Int[Array, "batch"],
    valid: Bool[Array, "batch"],
    norm: Norm,
    mesh: Mesh,
) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array]]:
    """Features of one batch, from pixels on in one program: work outside of it would wait for the batch before. Each device works on its
    share of the batch alone.

    Returns:
        By their names in `Features`: what is small, [batch, ...]; patches and their norms, [batch, patches, ...]; captures,
        [layers, batch, ...].
    """

    def share(
        model: ViT, images: Array, edits: Edits | None, ids: Array, valid: Array
    ) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array]]:
        out = jaxvit.forward(
            model,
            jaxvit.normalise(images, model.config),
            edits,
            {**dict(capture), _CLS: cls},
            ids,
            valid,
            groups=shuffle_groups(len(images)),
        )
        tokens, prefix = out.tokens if norm == "final" else out.prenorm, out.layout.prefix
        patches, norms = tokens[:, prefix:], jnp.linalg.norm(out.prenorm[:, prefix:].astype(jnp.float32), axis=-1)
        captured = dict(out.captured)
        block_cls = model.final_norm(captured.pop(_CLS)[-_CLS_BLOCKS:, :, None])[:, :, 0].swapaxes(0, 1)
        small = {"cls": tokens[:, 0], "registers": tokens[:, 1:prefix], "patch_mean": patches.mean(axis=1), "block_cls": block_cls}
        return small, {"patches": patches, "patch_norms": norms}, captured

    in_specs = (_EVERYWHERE, _BY_IMAGE, _EVERYWHERE, _BY_IMAGE, _BY_IMAGE)
    on_shares = jax.shard_map(share, mesh=mesh, in_specs=in_specs, out_specs=(_BY_IMAGE, _BY_IMAGE, _BY_LAYER), check_vma=False)
    return on_shares(model, images, edits, ids, valid)


@functools.partial(jax.jit, static_argnames=("program", "mesh"))
def map_shares(
    program: Callable[..., dict[str, Array]],
    mesh: Mesh,
    shared: Any,
    model: ViT,
    images: Array,
    edits: Edits,
    ids: Array,
    valid: Array,
) -> dict[str, Array]:
    """A program of `Runner.map_batches` on every device's share of a batch."""
    in_specs = (_EVERYWHERE, _EVERYWHERE, _BY_IMAGE, _EVERYWHERE, _BY_IMAGE, _BY_IMAGE)
    on_shares = jax.shard_map(program, mesh=mesh, in_specs=in_specs, out_specs=_BY_LAYER, check_vma=False)
    return on_shares(shared, model, images, edits, ids, valid)


@functools.partial(jax.jit, static_argnames=("sites", "mesh"))
def _moments_of_shares(sites: tuple[str, ...], mesh: Mesh, model: ViT, images: Array, valid: Array) -> dict[str, PartialMoments]:
    """Moments of activations of every device's share of a batch, [devices, layers, ...]."""

    def share(model: ViT, images: Array, valid: Array) -> dict[str, PartialMoments]:
        moments = partial_moments(model, jaxvit.normalise(images, model.config), valid, sites)
        with_axis: dict[str, PartialMoments] = jax.tree.map(lambda leaf: leaf[None], moments)
        return with_axis

    in_specs = (_EVERYWHERE, _BY_IMAGE, _BY_IMAGE)
    return jax.shard_map(share, mesh=mesh, in_specs=in_specs, out_specs=_BY_IMAGE, check_vma=False)(model, images, valid)


def share_of(config: ViTConfig, image_size: Sequence[int], mesh: Mesh, streams: int = 1) -> int:
    """Images that a device takes at a time, a power of two: as many as keep the activations of a feed-forward layer in the caches of a
    CPU's core (which takes a quarter less time), or in a small part of an accelerator's memory. A shuffle needs at least a group.

    Args:
        image_size: height and width in pixels.
        streams: runs of a model that go on together.
    """
    tokens = TokenLayout.of(config, (image_size[0], image_size[1])).tokens
    room = _CORE_CACHE if mesh.devices.flat[0].platform == "cpu" else _DEVICE_ROOM
    fitting = max(2, room // (4 * streams * tokens * config.mlp_dim))
    return min(_LARGEST_SHARE, 1 << (fitting.bit_length() - 1))


def shuffle_groups(images: int) -> Int[Array, "images"]:
    """The group of each image of a device's share, in which a shuffle exchanges tokens: `GROUP` neighbours."""
    return jnp.arange(images) // GROUP


def group_order(count: int, seed: int) -> Int[np.ndarray, "places"]:
    """Positions of all of `count` images in random groups of at most `GROUP`, each padded with -1 to that number; at least two together.

    Raises:
        ValueError: there is one image alone.
    """
    if count < 2:
        raise ValueError(f"a shuffle needs at least 2 images, there are {count}; give more")
    groups = np.array_split(np.random.default_rng((seed, count)).permutation(count), -(-count // GROUP))
    return np.concatenate([np.pad(group, (0, GROUP - len(group)), constant_values=-1) for group in groups])


def patch_grid(patches: Float[np.ndarray, "images patches width"], images: Images) -> tuple[int, int, int]:
    """Rows, columns and side in pixels of the patches of images."""
    height, width = images.shape[1:3]
    side = round((height * width / patches.shape[1]) ** 0.5)
    return height // side, width // side, side


@dataclass(frozen=True)
class Runner:
    """A model on a mesh.

    Numbers depend neither on the number of devices nor on how many images are under way: every device works on shares of one shape,
    which model, size of images and kind of device determine (`share_of`), and an image has the same neighbours in it.

    Attributes:
        at_a_time: images under way, over all devices; at least one share each.
    """

    model: ViT
    mesh: Mesh
    at_a_time: int

    @classmethod
    def on(cls, mesh: Mesh, model: ViT, at_a_time: int) -> Runner:
        return cls(replicate(model, mesh), mesh, at_a_time)

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
            small, patches, captured = forward_batch(
                self.model, batch.rows, edits, captures, batch.example_ids, batch.valid, norm, self.mesh
            )
            has_patches = ((batch.source >= 0) & (batch.source < patch_count)).any()
            return small, patches if has_patches else {}, captured

        small, patches, captured = _Gathered(count), _Gathered(patch_count), _Gathered(count, axis=1)
        for source, results in self._run(start, images, first_id, self._share(images, edits), _order(ablation, count)):
            for gathered, result in zip((small, patches, captured), results, strict=True):
                gathered.put(source, result)
        no_patches = {"patches": np.zeros((0, 0, small.arrays["cls"].shape[-1]), np.float32), "patch_norms": np.zeros((0, 0), np.float32)}
        return Features(**small.arrays, **(patches.arrays or no_patches), captured=captured.arrays)

    def map_batches(
        self, program: Callable[..., dict[str, Array]], shared: Any, images: Images, ablation: Ablation, first_id: int
    ) -> dict[str, np.ndarray]:
        """Outputs of a program for all images.

        Args:
            program: a module-level function of (shared, model, images, edits, ids, valid) of a device's share, to arrays by name, [layers,
                images, ...]. Shuffles are in `shuffle_groups`.
            shared: arrays that are the same for all images.
            first_id: example id of the first image; ids count from here.
        """
        edits, shared = self._edits(ablation, images), replicate(shared, self.mesh)

        def start(batch: Batch) -> dict[str, Array]:
            return map_shares(program, self.mesh, shared, self.model, batch.rows, edits, batch.example_ids, batch.valid)

        gathered = _Gathered(len(images), axis=1)
        for source, results in self._run(start, images, first_id, self._share(images, edits, streams=2), _order(ablation, len(images))):
            gathered.put(source, results)
        return gathered.arrays

    def calibrate(self, images: Images, sites: Sequence[str] = CALIBRATED_SITES) -> Moments:
        """Moments of activations at some sites, over images: those of the shares, merged in the order of the images."""

        def start(batch: Batch) -> dict[str, PartialMoments]:
            return _moments_of_shares(tuple(sites), self.mesh, self.model, batch.rows, batch.valid)

        share = self._share(images, None)
        partials = (
            jax.tree.map(lambda leaf, device=device: leaf[device], moments)
            for source, moments in self._run(start, images, 0, share)
            for device in range(self.mesh.size)
            if source[device * share] >= 0
        )
        return merged_moments(partials, len(images), images.shape[1:3])

    def _edits(self, ablation: Ablation, images: Images) -> Edits:
        return replicate(jaxvit.lower(ablation, self.model, images.shape[1:3]), self.mesh)

    def _share(self, images: Images, edits: Edits | None, streams: int = 1) -> int:
        share = share_of(self.model.config, images.shape[1:3], self.mesh, streams)
        return max(share, GROUP) if edits is not None and edits.shuffles else share

    def _run(
        self, start: Callable[[Batch], Any], images: Images, first_id: int, share: int, order: np.ndarray | None = None
    ) -> Iterator[tuple[np.ndarray, Any]]:
        """Positions of the images and results of every step; a few steps are under way while one is fetched."""
        under_way = max(1, self.at_a_time // (share * self.mesh.size))
        running: deque[tuple[np.ndarray, Any]] = deque()
        for batch in batches(images, share, self.mesh, first_id, order):
            running.append((batch.source, start(batch)))
            if len(running) > under_way:
                source, results = running.popleft()
                yield source, _fetch(results)
        for source, results in running:
            yield source, _fetch(results)


class _Gathered:
    """Results of steps, each put where its images stand among the leading `count`."""

    def __init__(self, count: int, axis: Literal[0, 1] = 0) -> None:
        self.count, self.axis = count, axis
        self.arrays: dict[str, np.ndarray] = {}

    def put(self, source: Int[np.ndarray, "places"], results: dict[str, np.ndarray]) -> None:
        places = np.flatnonzero((source >= 0) & (source < self.count))
        for name, array in results.items():
            if name not in self.arrays:
                shape = (*array.shape[: self.axis], self.count, *array.shape[self.axis + 1 :])
                self.arrays[name] = np.empty(shape, array.dtype)
            if self.axis:
                self.arrays[name][:, source[places]] = array[:, places]
            else:
                self.arrays[name][source[places]] = array[places]


def _order(ablation: Ablation, count: int) -> Int[np.ndarray, "places"] | None:
    """The order in which images run: in random groups where an ablation shuffles, drawn with the seed of its first shuffle."""
    seeds = [r.seed for r in ablation.replacements if isinstance(r, Replacement) and r.kind == "shuffle"]
    return group_order(count, seeds[0]) if seeds else None


def _fetch(tree: Any) -> Any:
    """Arrays on the host; those in half precision travel in it and are float32 from there on."""
    return jax.tree.map(lambda leaf: leaf.astype(np.float32) if leaf.dtype == jnp.bfloat16 else leaf, jax.device_get(tree))
