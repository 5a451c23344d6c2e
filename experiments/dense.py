"""Tasks that ask what every patch knows: which patch of another view or image it belongs to, and what its pixels show."""

from __future__ import annotations

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from experiments.data import Masks
from experiments.measures import Context, Kept, Measure, Reader, pack_readout, protocol_id, unpack_readout
from jaxvit import metrics
from jaxvit.probes import knn, logistic, segmentation
from jaxvit.statistics import Scores, mean_ratio, ratio_scores

L2 = 1e-4
NEIGHBOURS, TEMPERATURE = 30, 0.02
_PAIRS = 256  # of images whose patches are gathered at a time
FOREGROUND = 0.25
"""A patch belongs to a set of pixels where more than this share of its pixels does."""


def grid_of(patches: np.ndarray, images: np.ndarray) -> tuple[int, int, int]:
    """Rows, columns and patch side in pixels, from features [n, patches, width] and images [n, height, width, 3]."""
    height, width = images.shape[1:3]
    side = round((height * width / patches.shape[1]) ** 0.5)
    return height // side, width // side, side


def correspondence(f: Reader, context: Context, kept: Kept) -> list[Measure]:
    """Share of patches whose nearest patch in the other view is the true one within the tolerance, and closed cycles."""
    data, views = context.data, context.data.views
    assert views is not None
    first, second = f["first"].patches, f["second"].patches
    rows, columns, side = grid_of(first, data.parts["first"].images)
    sets = {"patches": None} | {name: _shares(pixels, side) > FOREGROUND for name, pixels in views.pixels.items()}
    protocol = protocol_id(
        "views", views=data.protocols["views"], match="cosine", tolerance=f"{context.readouts.tolerance:g} patch", **context.readouts.where
    )
    measures = []
    for name, mask in sets.items():
        found = metrics.correspondence(first, second, views.warp, (rows, columns), side, context.readouts.tolerance, mask)
        measures.append(Measure("accuracy", name, protocol, [ratio_scores(found.hits, found.points)]))
        measures.append(Measure("cycle_consistency", name, protocol, [ratio_scores(found.cycles, found.points)]))
    return measures


def _shares(pixels: np.ndarray, side: int) -> np.ndarray:
    """Share of each patch's pixels that belong, [images, patches]."""
    n, height, width = pixels.shape
    return pixels.reshape(n, height // side, side, width // side, side).mean(axis=(2, 4)).reshape(n, -1)


def segment(f: Reader, context: Context, kept: Kept) -> list[Measure]:
    """mIoU of softmax regression on patches, logits upsampled to pixels before the argmax: refitted for the condition and, beside
    it, the read-out of the full condition as it is; and, without training, of soft labels retrieved from a memory of patches."""
    masks = context.data.masks
    assert masks is not None
    bank = f[masks.bank_part].patches[: len(masks.bank)]
    test = f[masks.test_part].patches[: len(masks.test)]
    rows, columns, side = grid_of(bank, context.data.parts[masks.bank_part].images)
    targets, counted = (np.asarray(a).reshape(bank.shape[0] * bank.shape[1], -1) for a in _targets(masks, side))
    patches, queries = bank.reshape(len(targets), -1), test.reshape(-1, test.shape[-1])

    def score(scores: np.ndarray) -> np.ndarray:
        grid = jnp.asarray(scores).reshape(len(test), rows, columns, -1)
        predicted = segmentation.predict_padded(grid, masks.sizes, masks.test.shape[1:3])
        return np.asarray(metrics.confusion(predicted, masks.test, len(masks.classes)))

    def protocol(name: str, **settings: object) -> str:
        return protocol_id(name, **settings, masks=context.data.protocols["masks"], upsample="bilinear logits", **context.readouts.where)

    standardised = context.readouts.standardised
    readout = logistic.fit(patches, targets, L2, counted[:, 0], standardised=standardised)
    confusion = score(logistic.predict(readout, queries))
    linear = protocol("linear_head", L2=L2, standardised=standardised, fit="condition")
    measures = [Measure("miou", "patches", linear, [Scores(confusion, metrics.mean_iou)], kept=pack_readout("segment", readout))]
    measures += _per_class(confusion, masks, linear)
    if kept:
        frozen = score(logistic.predict(unpack_readout("segment", kept, logistic.Logistic), queries))
        told = protocol("linear_head", L2=L2, standardised=standardised, fit="full")
        measures.append(Measure("miou_frozen", "patches", told, [Scores(frozen, metrics.mean_iou)], full="miou"))
    retrieved = []
    for seed in context.seeds:
        chosen = _memory(counted[:, 0] > 0, context.readouts.memory, seed)
        labels = knn.retrieve(patches[chosen], targets[chosen], queries, min(NEIGHBOURS, len(chosen)), TEMPERATURE, mesh=context.mesh)
        retrieved.append(Scores(score(np.asarray(labels)), metrics.mean_iou))
    told = protocol("hummingbird", k=min(NEIGHBOURS, len(chosen)), temperature=TEMPERATURE, memory=context.readouts.memory)
    return [*measures, Measure("miou_retrieval", "patches", told, retrieved)]


def _targets(masks: Masks, side: int) -> tuple[np.ndarray, np.ndarray]:
    return segmentation.class_shares(masks.bank, len(masks.classes), side)


def _memory(usable: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Rows of the memory: so many of the usable ones, drawn without replacement."""
    rows = np.flatnonzero(usable)
    return np.sort(np.random.default_rng((seed, len(rows))).choice(rows, min(size, len(rows)), replace=False))


def _per_class(confusion: np.ndarray, masks: Masks, protocol: str) -> Iterator[Measure]:
    """Intersection over union of every class that the test masks show."""
    for c, name in enumerate(masks.classes):
        hits, shown, said = confusion[:, c, c], confusion[:, c].sum(axis=1), confusion[:, :, c].sum(axis=1)
        if shown.sum():
            yield Measure("iou", f"patches: {name}", protocol, [ratio_scores(hits, shown + said - hits)])


def keypoints(f: Reader, context: Context, kept: Kept) -> list[Measure]:
    """PCK of keypoints carried from image to image by the nearest patch (SPair-71k, Min et al. 2019): per point, per image (pair)
    and per category, normalised by the longer side of the target's bounding box or of the target."""
    data, points = context.data, context.data.keypoints
    assert points is not None
    patches = f["keypoints"].patches
    rows, columns, side = grid_of(patches, data.parts["keypoints"].images)
    pieces = [slice(start, start + _PAIRS) for start in range(0, len(points.source), _PAIRS)]
    found = np.concatenate(
        [
            metrics.match_keypoints(patches[points.source[p]], patches[points.target[p]], points.source_points[p], (rows, columns), side)
            for p in pieces
        ]
    )
    measures = []
    for by, length in (("box", points.box), ("image", points.size)):
        hits, counts = metrics.pck(found, points.target_points, points.valid, length, context.readouts.alphas, points.scale)
        for alpha, column in zip(context.readouts.alphas, hits.T, strict=True):
            protocol = protocol_id("pck", alpha=alpha, by=by, images=data.protocols["keypoints"], match="cosine", **context.readouts.where)
            name = f"pck_{alpha:g}" + ("" if by == "box" else "_image_size")
            for suffix, feature, scores in _averages(column, counts, points.source, points.category, points.categories):
                measures.append(Measure(name + suffix, feature, protocol, [scores]))
    return measures


def _averages(
    hits: np.ndarray, counts: np.ndarray, source: np.ndarray, category: np.ndarray, names: tuple[str, ...]
) -> Iterator[tuple[str, str, Scores]]:
    """The averages of PCK as scores whose units are source images: (suffix of the metric, feature, scores)."""

    unit = np.unique(source, return_inverse=True)[1]

    def ratios(numbers: np.ndarray, of: np.ndarray) -> Scores:
        """Sums over the pairs of each source image that has any."""
        sums = [np.bincount(unit, values) for values in (numbers, of)]
        return ratio_scores(sums[0], sums[1], sums[1] > 0)

    share = hits / np.maximum(counts, 1)
    yield "", "patches", ratios(hits, counts)
    yield "_per_image", "patches", ratios(share, (counts > 0).astype(float))
    for c, name in enumerate(names):
        of = category == c
        yield "", f"patches: {name}", ratios(hits * of, counts * of)
        yield "_per_image", f"patches: {name}", ratios(share * of, ((counts > 0) & of).astype(float))
    by_category = [np.stack([np.bincount(unit, values * (category == c)) for c in range(len(names))], axis=1) for values in (hits, counts)]
    yield "_mean_of_categories", "patches", Scores(np.stack(by_category, axis=2), mean_ratio)
