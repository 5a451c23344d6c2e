"""`extract`: what a model makes of many images, from stored pixels to arrays on the host, batch by batch."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, UInt8

from jaxvit.ablation import Ablation
from jaxvit.batching import GROUP, Images, Progress, batches_of, chunks_of, gather, group_order, shuffle_groups, shuffle_seed
from jaxvit.calls import check_ablation, check_model, per_image
from jaxvit.capture import CAPTURES, CaptureSpec, resolve
from jaxvit.checks import check_counts
from jaxvit.forward import Captures, Output, forward
from jaxvit.given import Given, PerLayer, checked
from jaxvit.lowering import lower
from jaxvit.ops import Edits
from jaxvit.printing import captured_in_words, layout_in_words, named_shapes
from jaxvit.sharding import Batch, mesh_of, place, replicate, weight_specs
from jaxvit.tokens import TokenLayout
from jaxvit.vit import ViT, normalise

Keep = Callable[[ViT, Output], tuple[dict[str, Array], dict[str, Any]]]
"""From a model and its output for a batch to what is kept of it, by name: arrays [batch, ...], and arrays [layers, batch, ...]."""

_EVERYWHERE, _BY_IMAGE, _BY_LAYER = PartitionSpec(), PartitionSpec("batch"), PartitionSpec(None, "batch")
_KEPT: dict[str, Callable[[Output], Array]] = {
    **{name: operator.attrgetter(name) for name in ("tokens", "prenorm", "cls", "registers", "patches")},
    "patch_mean": lambda output: output.patches.mean(axis=1),
}


@dataclass(frozen=True)
class Extracted:
    """What `extract` kept of every image, as NumPy arrays: float32, also where the model runs in bfloat16.

    `cls`, `registers`, `patches`, `patch_mean`, `tokens` and `prenorm` are those of `jaxvit.Output`, with an axis of all images; they raise
    a ValueError where they were not kept.

    Attributes:
        arrays: what was kept, by name, [images, ...].
        captured: results of captures by name, the layer axis first as in `forward`, [layers, images, ...].
        layout: which of the tokens are CLS, registers and patches.
        example_ids: the number of each image, from which its random draws were made.
    """

    arrays: dict[str, np.ndarray]
    captured: dict[str, Any]
    layout: TokenLayout
    example_ids: Int[np.ndarray, "images"]

    def __repr__(self) -> str:
        kept = f"{named_shapes(self.arrays) or 'nothing'}: {layout_in_words(self.layout)}{captured_in_words(self.captured)}"
        return f"Extracted({len(self.example_ids)} images, {kept})"

    @property
    def tokens(self) -> Float[np.ndarray, "images tokens width"]:
        return self._kept("tokens")

    @property
    def prenorm(self) -> Float[np.ndarray, "images tokens width"]:
        return self._kept("prenorm")

    @property
    def cls(self) -> Float[np.ndarray, "images width"]:
        return self._kept("cls", 0)

    @property
    def registers(self) -> Float[np.ndarray, "images registers width"]:
        return self._kept("registers", slice(1, self.layout.prefix))

    @property
    def patches(self) -> Float[np.ndarray, "images patches width"]:
        return self._kept("patches", slice(self.layout.prefix, None))

    @property
    def patch_mean(self) -> Float[np.ndarray, "images width"]:
        return self.arrays["patch_mean"] if "patch_mean" in self.arrays else self.patches.mean(axis=1)

    def _kept(self, name: str, part: slice | int | None = None) -> np.ndarray:
        if name in self.arrays:
            return self.arrays[name]
        if part is not None and "tokens" in self.arrays:
            return self.arrays["tokens"][:, part]
        raise ValueError(f'"{name}" was not kept, only {", ".join(self.arrays) or "captures"}; extract with keep=("{name}",)')


def extract(
    model: ViT,
    images: Images | Iterable[Images],
    ablation: Ablation | Edits | None = None,
    batch_size: int = 64,
    capture: CaptureSpec = (),
    keep: str | Sequence[str] | Keep = "tokens",
    *,
    leading: Mapping[str, int] | None = None,
    example_ids: Int[np.ndarray, "images"] | None = None,
    given: Given | None = None,
    ahead: int = 2,
    progress: Progress | None = None,
) -> Extracted:
    """Run a model on many images, batch by batch, and keep what is asked for on the host.

    Pixels are normalised on the device, in one program with the run. The last batch is padded, so that one program serves all batches;
    a batch is prepared while earlier ones run. Memory: on the devices `ahead + 1` batches, on the host what is kept.

    A model that is on a mesh (`jaxvit.sharding.replicate`, or `shard_weights` for large ones) runs on all its devices, each on its share
    of the batch. With shares of one size no number depends on how many devices there are.

    A shuffle exchanges tokens in random groups of `GROUP` images, drawn over all images from the seed of the first shuffle: no number
    depends on the batch size. What is iterated over is read as a whole first then.

    Args:
        images: uint8 pixels, as an array or whatever yields batches of any lengths (or single images), read once.
        ablation: an ablation, or its edits for this model and image size.
        batch_size: images at a time over all devices, rounded up to equal shares (where an ablation shuffles, of whole groups).
        capture: what is read out of every block, as for `forward`; [layers, batch, ...].
        keep: names among "tokens", "prenorm", "cls", "registers", "patches", "patch_mean" (`()` keeps captures alone), or a module-level
            function of (model, `Output`) that returns arrays [batch, ...] by name, and arrays [layers, batch, ...] by name, which come
            in the place of the captures. What it does not return is never stored or fetched.
        leading: of what is kept under a name, only that many leading images stay.
        example_ids: one number per image, from which its random draws are made; by default 0, 1, 2, ...
        given: the arrays that the ablation names, as for `forward`, each with all images on its axis of the batch.
        ahead: batches under way while one is fetched.
        progress: called after every batch with the number of images done and of all (None where it is not known).

    Raises:
        ValueError: no images, other images than described, of several sizes, or what `forward` refuses; a shuffle of one image, or one
            that is given as edits, which do not say how groups are drawn; captures or kept arrays without an axis of images.
    """
    check_model(model)
    if ablation is not None:
        check_ablation(ablation, stacked=False)
    check_counts(batch_size=batch_size, ahead=ahead)
    if min((leading or {}).values(), default=0) < 0:
        raise ValueError(f"leading is {dict(leading or {})}; give numbers of images, at least 0")
    kept, captures, seed = _keep(keep), resolve(capture, CAPTURES), shuffle_seed(ablation)
    mesh = mesh_of(model)
    model, share = place(model, mesh), -(-batch_size // mesh.size)
    share = share if seed is None else GROUP * -(-share // GROUP)
    chunks, total = chunks_of(images, share * mesh.size, whole=seed is not None)
    first = next(chunks, None)
    if first is None or not len(first):
        raise ValueError("there are no images; extract takes uint8 [images, height, width, 3], or batches of them")
    size = (first.shape[1], first.shape[2])
    edits = _edits(ablation, model, size, mesh)
    ids = None if example_ids is None else np.asarray(per_image("example_ids", example_ids, np.size(example_ids)))
    order = None if seed is None else group_order(len(first), seed)
    steps = batches_of(itertools.chain([first], chunks), share, mesh, ids, order, total)

    of_all = checked(given, edits, model.config, _count(given) if total is None else total)

    def start(batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        results: tuple[dict[str, Any], dict[str, Any]]
        arrays = {name: _rows(array, batch.source, mesh) for name, array in of_all.items()}
        results = run_batch(model, batch.rows, edits, batch.example_ids, batch.valid, kept, captures, mesh, arrays or None)
        return results

    arrays, captured, count = gather(start, steps, ahead, total, leading, progress)
    if of_all and count != (known := _count(given)):
        raise ValueError(f"given has arrays of {known} images, and there were {count}; give one entry for each")
    if unknown := set(leading or ()) - {*arrays, *captured}:
        raise ValueError(f'leading names "{unknown.pop()}", which is not kept; kept are {", ".join({**arrays, **captured})}')
    return Extracted(arrays, captured, TokenLayout.of(model.config, size), np.arange(count) if ids is None else ids)


@functools.partial(jax.jit, static_argnames=("keep", "captures", "mesh"))
def run_batch(
    model: ViT,
    images: UInt8[Array, "batch height width 3"],
    edits: Edits | None,
    ids: Int[Array, "batch"],
    valid: Bool[Array, "batch"],
    keep: Keep,
    captures: Captures,
    mesh: Mesh,
    given: dict[str, Any] | None = None,
) -> tuple[dict[str, Array], dict[str, Any]]:
    """What is kept of one batch, from pixels on in one program: work outside of it would wait for the batch before. Each device works on
    its share of the batch alone."""

    def on_share(
        model: ViT, images: Array, edits: Edits | None, ids: Array, valid: Array, given: dict[str, Any] | None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        pixels = normalise(images, model.config)
        output = forward(model, pixels, edits, dict(captures), ids, valid, groups=shuffle_groups(len(images)), given=given)
        results = keep(model, output)
        for axis, by_name in enumerate(results):
            for name, leaf in ((name, leaf) for name, tree in by_name.items() for leaf in jax.tree.leaves(tree)):
                if leaf.ndim <= axis or leaf.shape[axis] != len(images):
                    axes = ("batch", "layers, batch")[axis]
                    raise ValueError(f'"{name}" is {leaf.shape} for a batch of {len(images)}, not [{axes}, ...]; keep an axis of images')
        return results

    of_given = {name: PerLayer(_BY_LAYER) if isinstance(array, PerLayer) else _BY_IMAGE for name, array in (given or {}).items()}
    in_specs = (weight_specs(model), _BY_IMAGE, _EVERYWHERE, _BY_IMAGE, _BY_IMAGE, None if given is None else of_given)
    on_shares = jax.shard_map(on_share, mesh=mesh, in_specs=in_specs, out_specs=(_BY_IMAGE, _BY_LAYER), check_vma=False)
    results: tuple[dict[str, Array], dict[str, Any]] = on_shares(model, images, edits, ids, valid, given)
    return results


@dataclass(frozen=True)
class _Named:
    """Keeps what has these names, and the captures; equal where the names are, so that programs are shared."""

    names: tuple[str, ...]

    def __call__(self, model: ViT, output: Output) -> tuple[dict[str, Array], dict[str, Any]]:
        del model
        return {name: _KEPT[name](output) for name in self.names}, output.captured


def _keep(keep: str | Sequence[str] | Keep) -> Keep:
    """What keeps the parts of an output that have these names, or the function itself."""
    if callable(keep):
        return keep
    names = (keep,) if isinstance(keep, str) else tuple(keep)
    for name in names:
        if name not in _KEPT:
            raise ValueError(f'"{name}" is nothing to keep; choose among {", ".join(_KEPT)}, or pass a function of (model, output)')
    return _Named(names)


def _count(given: Given | None) -> int:
    """The number of images that given arrays are for."""
    for value in (given or {}).values():
        array, axis = (value.array, 1) if isinstance(value, PerLayer) else (value, 0)
        if np.ndim(array) > axis:
            return int(np.shape(array)[axis])
    return 0


def _rows(value: Any, source: Int[np.ndarray, "places"], mesh: Mesh) -> Any:
    """The entries of a given array for the images of a batch, each on its device; any entry for padding."""
    places = np.maximum(source, 0)
    if isinstance(value, PerLayer):
        return PerLayer(jax.device_put(np.asarray(value.array)[:, places], NamedSharding(mesh, _BY_LAYER)))
    return jax.device_put(np.asarray(value)[places], NamedSharding(mesh, _BY_IMAGE))


def _edits(ablation: Ablation | Edits | None, model: ViT, size: tuple[int, int], mesh: Mesh) -> Edits | None:
    """The edits on all devices; None where there is nothing to edit."""
    if ablation is None or (isinstance(ablation, Ablation) and not ablation.replacements):
        return None
    edits: Edits = replicate(lower(ablation, model, size) if isinstance(ablation, Ablation) else ablation, mesh)
    return edits
