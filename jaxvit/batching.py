"""Many images on their way through the devices: in batches of one shape, in groups where they are shuffled; results on the host."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, UInt8

from jaxvit.ablation import Ablation
from jaxvit.calls import check_pixels
from jaxvit.ops import Edits
from jaxvit.sharding import Batch, batches
from jaxvit.specs import Replacement

Images = UInt8[np.ndarray, "images height width 3"]
GROUP = 8
"""Images of a group in which a shuffle exchanges tokens. Groups are drawn over all images, so that a donor is any other."""
Progress = Callable[[int, int | None], None]
"""Called with the number of images done, and of all where that is known."""


def gather(
    start: Callable[[Batch], tuple[dict[str, Any], dict[str, Any]]],
    batches: Iterable[Batch],
    ahead: int,
    total: int | None = None,
    leading: Mapping[str, int] | None = None,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], dict[str, Any], int]:
    """The results of all batches on the host, each where its images stand among all, and the number of images.

    Args:
        start: begins the step of a batch; returns arrays [batch, ...] by name, and arrays [layers, batch, ...] by name.
        ahead: steps under way while the results of one are fetched.
        total: the number of images, if known: room is then made once.
        leading: of what has a name, only that many leading images stay. Batches that have none of these do not fetch it.
        progress: called after every batch.
    """
    gathered: dict[tuple[int, str], _Gathered] = {}

    def begin(batch: Batch) -> list[dict[str, Any]]:
        results = start(batch)
        for axis, by_name in enumerate(results):
            for name, result in by_name.items():
                if (axis, name) not in gathered:
                    gathered[axis, name] = _Gathered(result, axis, total, (leading or {}).get(name))
        return [{n: r for n, r in by_name.items() if gathered[axis, n].keeps(batch.source)} for axis, by_name in enumerate(results)]

    done = 0
    for source, results in fetched(begin, batches, ahead):
        for axis, by_name in enumerate(results):
            for name, result in by_name.items():
                gathered[axis, name].put(source, result)
        done += int((source >= 0).sum())
        if progress is not None:
            progress(done, total)
    by_image, by_layer = ({name: g.result(done) for (kind, name), g in gathered.items() if kind == axis} for axis in (0, 1))
    return by_image, by_layer, done


def fetched(start: Callable[[Batch], Any], batches: Iterable[Batch], ahead: int) -> Iterator[tuple[Int[np.ndarray, "rows"], Any]]:
    """Positions of the rows of every batch (`Batch.source`) and the results of its step on the host, while `ahead` later steps are under
    way. What is in half precision travels in it and is float32 from there on."""
    running: deque[tuple[np.ndarray, Any]] = deque()
    for batch in batches:
        running.append((batch.source, start(batch)))
        if len(running) > ahead:
            source, results = running.popleft()
            yield source, _fetch(results)
    for source, results in running:
        yield source, _fetch(results)


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


def shuffle_seed(ablation: Ablation | Edits | None) -> int | None:
    """The seed of the first shuffle of an ablation, with which groups are drawn; None where it has none."""
    if isinstance(ablation, Edits) and ablation.shuffles:
        raise ValueError("extract draws the groups of a shuffle from its seed: pass the ablation, not its edits")
    replacements = ablation.replacements if isinstance(ablation, Ablation) else ()
    return next((r.seed for r in replacements if isinstance(r, Replacement) and r.kind == "shuffle"), None)


def chunks_of(images: Images | Iterable[Images], step: int, whole: bool) -> tuple[Iterator[Images], int | None]:
    """All images as one array, or in arrays of `step` as they come; and their number, where it is known."""
    if hasattr(images, "shape"):
        check_pixels("images", images)
        array = np.asarray(images)
        return iter([array]), len(array)
    if isinstance(images, str | bytes) or not isinstance(images, Iterable):
        raise ValueError(f"images is a {type(images).__name__}; extract takes uint8 [images, height, width, 3], or batches of them")
    if not whole:
        return _regrouped(images, step), None
    read = list(_regrouped(images, step))
    return iter([np.concatenate(read)] if read else []), sum(map(len, read))


def batches_of(
    chunks: Iterable[Images], share: int, mesh: Mesh, ids: np.ndarray | None, order: np.ndarray | None, total: int | None
) -> Iterator[Batch]:
    """The batches of all chunks; their `source` counts through all images.

    Raises:
        ValueError: there is not one id for each image.
    """
    start = 0
    for chunk in chunks:
        end = start + len(chunk)
        if ids is not None and (ids.ndim != 1 or len(ids) < end or len(ids) > (total or len(ids))):
            count = total or f"at least {end}"
            raise ValueError(f"example_ids has the shape {ids.shape}, and there are {count} images; give one number for each")
        for batch in batches(chunk, share, mesh, np.arange(start, end) if ids is None else ids[start:end], order):
            yield batch._replace(source=np.where(batch.source < 0, -1, batch.source + start))
        start = end
    if ids is not None and len(ids) > start:
        raise ValueError(f"example_ids has {len(ids)} numbers, and there were {start} images; give one number for each")


class _Gathered:
    """Results of batches, put where their images stand among all; of these only the leading `limit`, by default all."""

    def __init__(self, results: Any, axis: int, total: int | None, limit: int | None) -> None:
        self.axis, self.grows = axis, total is None
        self.limit = sys.maxsize if limit is None else limit

        def room(leaf: Array) -> np.ndarray:
            count = min(self.limit, leaf.shape[axis] if total is None else total)
            dtype = np.float32 if leaf.dtype == jnp.bfloat16 else leaf.dtype
            return np.empty((*leaf.shape[:axis], count, *leaf.shape[axis + 1 :]), dtype)

        self.arrays = jax.tree.map(room, results)

    def keeps(self, source: Int[np.ndarray, "places"]) -> bool:
        return bool(((source >= 0) & (source < self.limit)).any())

    def put(self, source: Int[np.ndarray, "places"], results: Any) -> None:
        places = np.flatnonzero((source >= 0) & (source < self.limit))
        if self.grows:
            self.arrays = jax.tree.map(lambda array: self._grown(array, source.max() + 1), self.arrays)

        def store(array: np.ndarray, result: np.ndarray) -> None:
            if self.axis:
                array[:, source[places]] = result[:, places]
            else:
                array[source[places]] = result[places]

        jax.tree.map(store, self.arrays, results)

    def result(self, count: int) -> Any:
        """The arrays of `count` images."""
        kept = min(count, self.limit)
        return jax.tree.map(lambda array: array if array.shape[self.axis] == kept else np.take(array, range(kept), self.axis), self.arrays)

    def _grown(self, array: np.ndarray, count: int) -> np.ndarray:
        """The array with room for so many images, at least twice as much as before where it is full."""
        if array.shape[self.axis] >= min(count, self.limit):
            return array
        more = min(self.limit, max(count, 2 * array.shape[self.axis])) - array.shape[self.axis]
        shape = (*array.shape[: self.axis], more, *array.shape[self.axis + 1 :])
        return np.concatenate([array, np.empty(shape, array.dtype)], axis=self.axis)


def _fetch(tree: Any) -> Any:
    """Arrays on the host; those in half precision travel in it and are float32 from there on."""
    return jax.tree.map(lambda leaf: leaf.astype(np.float32) if leaf.dtype == jnp.bfloat16 else leaf, jax.device_get(tree))


def _regrouped(images: Iterable[Any], step: int) -> Iterator[Images]:
    """Images that come in batches of any lengths, or one by one, in arrays of `step`; the last one may be shorter."""
    waiting: list[np.ndarray] = []
    size: tuple[int, int] | None = None
    for batch in images:
        if isinstance(batch, tuple | list | dict):
            kind = type(batch).__name__
            raise ValueError(f"a batch is a {kind} and not an array; extract takes images alone: (images for images, labels in batches)")
        batch = batch[None] if getattr(batch, "ndim", 0) == 3 else batch
        check_pixels("batch", batch)
        if size is not None and tuple(batch.shape[1:3]) != size:
            raise ValueError(f"images changed from {size[0]}x{size[1]} to {batch.shape[1]}x{batch.shape[2]}; extract each size by itself")
        size = (batch.shape[1], batch.shape[2])
        waiting.append(np.asarray(batch))
        if (count := sum(map(len, waiting))) >= step:
            rows = np.concatenate(waiting)
            yield from (rows[start : start + step] for start in range(0, count - count % step, step))
            waiting = [rows[count - count % step :]]
    if sum(map(len, waiting)):
        yield np.concatenate(waiting)
