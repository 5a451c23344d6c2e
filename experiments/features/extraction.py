"""Features of many images under a condition, on a mesh: what a study keeps of each batch of `jaxvit.extract`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

import jaxvit
from experiments.features.conditions import CALIBRATED_SITES
from jaxvit import Ablation, Edits, Moments, Output, ViT, ViTConfig
from jaxvit.batching import GROUP, Images, fetched, gather, group_order, shuffle_seed
from jaxvit.calibration import PartialMoments, merged_moments, partial_moments
from jaxvit.capture import CAPTURES, CaptureSpec, cls, resolve
from jaxvit.sharding import Batch, batches, place, replicate, weight_specs
from jaxvit.tokens import TokenLayout

Norm = Literal["final", "none"]
"""Tokens are read after the final norm, or as the last block leaves them."""
_CORE_CACHE = 2**21  # bytes of the feed-forward layer that stay in the caches of a CPU's core
_DEVICE_ROOM = 2**30  # the same on accelerators
_LARGEST_SHARE = 128
_EVERYWHERE, _BY_IMAGE, _BY_LAYER = PartitionSpec(), PartitionSpec("batch"), PartitionSpec(None, "batch")
_CLS_BLOCKS = 4  # last blocks whose CLS is kept, as DINOv2's grid of heads reads it
CLS = "CLS of every block"
"""A capture beside those that are asked for."""


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


def features_of(norm: Norm, model: ViT, output: Output) -> tuple[dict[str, Array], dict[str, Any]]:
    """What is kept of a batch by its names in `Features`: of images, [batch, ...], and captures, [layers, batch, ...]."""
    tokens, prefix = output.tokens if norm == "final" else output.prenorm, output.layout.prefix
    patches, norms = tokens[:, prefix:], jnp.linalg.norm(output.prenorm[:, prefix:].astype(jnp.float32), axis=-1)
    captured = dict(output.captured)
    kept = {
        "cls": tokens[:, 0],
        "registers": tokens[:, 1:prefix],
        "patch_mean": patches.mean(axis=1),
        "block_cls": model.final_norm(captured.pop(CLS)[-_CLS_BLOCKS:, :, None])[:, :, 0].swapaxes(0, 1),
        "patches": patches,
        "patch_norms": norms,
    }
    return kept, captured


KEEP = {norm: functools.partial(features_of, norm) for norm in get_args(Norm)}
"""`features_of` by the norm; made once, so that a program is compiled only once."""


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
    in_specs = (_EVERYWHERE, weight_specs(model), _BY_IMAGE, _EVERYWHERE, _BY_IMAGE, _BY_IMAGE)
    on_shares = jax.shard_map(program, mesh=mesh, in_specs=in_specs, out_specs=_BY_LAYER, check_vma=False)
    return on_shares(shared, model, images, edits, ids, valid)


@functools.partial(jax.jit, static_argnames=("sites", "mesh"))
def _moments_of_shares(sites: tuple[str, ...], mesh: Mesh, model: ViT, images: Array, valid: Array) -> dict[str, PartialMoments]:
    """Moments of activations of every device's share of a batch, [devices, layers, ...]."""

    def share(model: ViT, images: Array, valid: Array) -> dict[str, PartialMoments]:
        moments = partial_moments(model, jaxvit.normalise(images, model.config), valid, sites)
        with_axis: dict[str, PartialMoments] = jax.tree.map(lambda leaf: leaf[None], moments)
        return with_axis

    in_specs = (weight_specs(model), _BY_IMAGE, _BY_IMAGE)
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
        return cls(place(model, mesh), mesh, at_a_time)

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
        share = self._share(images, ablation)
        patch_images = len(images) if patch_images is None else patch_images
        extracted = jaxvit.extract(
            self.model,
            images,
            ablation,
            share * self.mesh.size,
            {**dict(resolve(capture, CAPTURES)), CLS: cls},
            KEEP[norm],
            leading={"patches": patch_images, "patch_norms": patch_images},
            example_ids=first_id + np.arange(len(images)),
            ahead=self._ahead(share),
        )
        return Features(**extracted.arrays, captured=extracted.captured)

    def map_batches(
        self,
        program: Callable[..., dict[str, Array]],
        shared: Any,
        images: Images,
        ablation: Ablation,
        first_id: int,
        edits: Edits | None = None,
        streams: int = 1,
    ) -> dict[str, np.ndarray]:
        """Outputs of a program for all images.

        Args:
            program: a module-level function of (shared, model, images, edits, ids, valid) of a device's share, to arrays by name, [layers,
                images, ...]. Shuffles are in `shuffle_groups`.
            shared: arrays that are the same for all images.
            first_id: example id of the first image; ids count from here.
            edits: the ablation's, where they have the structure of other ablations too, with which they share the program.
            streams: runs of the model that go on together in the program.
        """
        shared = replicate(shared, self.mesh)
        edits = self._edits(ablation, images) if edits is None else replicate(edits, self.mesh)

        def start(batch: Batch) -> tuple[dict[str, Array], dict[str, Array]]:
            return {}, map_shares(program, self.mesh, shared, self.model, batch.rows, edits, batch.example_ids, batch.valid)

        share = self._share(images, ablation, streams)
        seed = shuffle_seed(ablation)
        order = None if seed is None else group_order(len(images), seed)
        steps = batches(images, share, self.mesh, first_id + np.arange(len(images)), order)
        _, by_layer, _ = gather(start, steps, self._ahead(share), len(images))
        return by_layer

    def calibrate(self, images: Images, sites: Sequence[str] = CALIBRATED_SITES) -> Moments:
        """Moments of activations at some sites, over images: those of the shares, merged in the order of the images."""

        def start(batch: Batch) -> dict[str, PartialMoments]:
            return _moments_of_shares(tuple(sites), self.mesh, self.model, batch.rows, batch.valid)

        share = self._share(images, Ablation())
        steps = fetched(start, batches(images, share, self.mesh), self._ahead(share))
        partials = (
            jax.tree.map(lambda leaf, device=device: leaf[device], moments)
            for source, moments in steps
            for device in range(self.mesh.size)
            if source[device * share] >= 0
        )
        return merged_moments(partials, len(images), images.shape[1:3])

    def _edits(self, ablation: Ablation, images: Images) -> Edits:
        return replicate(jaxvit.lower(ablation, self.model, images.shape[1:3]), self.mesh)

    def _share(self, images: Images, ablation: Ablation, streams: int = 1) -> int:
        share = share_of(self.model.config, images.shape[1:3], self.mesh, streams)
        return share if shuffle_seed(ablation) is None else max(share, GROUP)

    def _ahead(self, share: int) -> int:
        """Batches under way while one is fetched."""
        return max(1, self.at_a_time // (share * self.mesh.size))
