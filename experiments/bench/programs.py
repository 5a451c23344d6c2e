"""The programs of a study with shapes in place of arrays, for a compiler without a device."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

import jaxvit
from experiments.bench.rows import Size
from experiments.datasets.folders import IMAGENET_SIZE
from experiments.features import extraction
from experiments.features.conditions import CALIBRATED_SITES, conditions
from experiments.tasks import keypoints, off_manifold
from experiments.tasks.segmentation import L2, NEIGHBOURS, TEMPERATURE
from jaxvit import ViTConfig, calibration, geometry, metrics
from jaxvit.capture import cls, group_columns
from jaxvit.extract import run_batch
from jaxvit.forward import sweep_layers
from jaxvit.neighbours import nearest
from jaxvit.probes import few_shot, knn, logistic, ridge, segmentation, sgd
from jaxvit.sharding import weight_shardings, with_weight_shards
from jaxvit.vit import abstract, cast

NAMES = ("dinov2_vits14_reg", "dinov2_vitb14_reg")
SIDE = 224
CLASSES, SEGMENTS, CANVAS = 1_000, 21, 500
"""ImageNet's classes; classes of Pascal VOC and the longest side of its images."""

Call = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function and the shapes of its arguments."""


@dataclass(frozen=True)
class Program:
    """A function of a study, to be compiled for the shapes of its arguments.

    Attributes:
        name: what it computes.
        model: the model that its images or features are for.
        dtype: of the model's weights, or of features.
        call: the function and its arguments.
        images: number that goes through the model on each chip; 0 for a read-out.
        ends: the parts of it outside the loop over blocks.
        blocks: number of iterations of the loop over blocks, whose body is compiled once.
        block_of: the program whose block is the body of the loop, where this program has more loops than that.
    """

    name: str
    model: str
    dtype: str
    call: Call
    images: int = 0
    ends: tuple[Call, ...] = ()
    blocks: int = 1
    block_of: str = ""


class Shapes(NamedTuple):
    """Shapes of arrays with their placement: split over a mesh, on all of its chips, on one, or left to the program."""

    mesh: Mesh

    def everywhere(self, tree: Any, dtype: Any = None) -> Any:
        """Shapes of a tree of arrays, replicated; `dtype` replaces their own."""
        sharding = NamedSharding(self.mesh, PartitionSpec())
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype, sharding=sharding), tree)

    def split_weights(self, config: ViTConfig, dtype: Any) -> jaxvit.ViT:
        """Shapes of a model whose weights are split over the mesh."""
        model = with_weight_shards(jax.eval_shape(lambda model: cast(model, dtype), abstract(config)), self.mesh)
        placed: jaxvit.ViT = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            model,
            weight_shardings(model, self.mesh),
        )
        return placed

    def split(self, *shape: int, dtype: Any = jnp.float32, axis: int = 0) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(self.mesh, PartitionSpec(*[None] * axis, "batch"))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def one(self, *shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(self.mesh.devices.flat[0]))

    def free(self, *shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)


def model_programs(name: str, dtype: Any, shapes: Shapes, size: Size) -> Iterator[Program]:
    """The programs of a study that run a model: every condition, calibration, captures, contrasts, the sweep over layers."""
    config = replace(jaxvit.MODELS[name], depth=size.pick(jaxvit.MODELS[name].depth, 2))
    depth, per_chip = config.depth, size.pick(64, 2)
    count = per_chip * shapes.mesh.size
    model, zeroed = shapes.everywhere(abstract(config), dtype), shapes.everywhere(jaxvit.lower(jaxvit.zero("registers"), config, SIDE))
    pixels, images = (shapes.split(count, SIDE, SIDE, 3, dtype=kind) for kind in (jnp.uint8, dtype))
    ids, valid = shapes.split(count, dtype=jnp.int32), shapes.split(count, dtype=bool)
    moment = shapes.everywhere(np.zeros((depth, config.width), np.float32))
    patches = shapes.split(depth, count, *_patches(config), dtype=dtype, axis=1)
    stream = shapes.split(count, jaxvit.TokenLayout.of(config, SIDE).tokens, config.width, dtype=dtype)
    outer, norm, feature_ends = (_ends, (model, images)), (_norm, (model, stream)), (_feature_ends, (model, pixels))
    distance = (_distance, (patches, moment, moment))

    def extract(model: jaxvit.ViT, pixels: jax.Array, edits: Any, ids: jax.Array, valid: jax.Array) -> Any:
        return run_batch(model, pixels, edits, ids, valid, extraction.KEEP["final"], ((extraction.CLS, cls),), shapes.mesh)

    def program(title: str, ends: tuple[Call, ...], function: Callable[..., Any], *arguments: Any, **more: Any) -> Program:
        return Program(title, name, jnp.dtype(dtype).name, (function, arguments), per_chip, ends, **({"blocks": depth} | more))

    yield program("forward", (outer,), _capture(()), model, images)
    for title, edits in _condition_edits(config).items():
        yield program(title, (feature_ends,), extract, model, pixels, shapes.everywhere(edits), ids, valid)
    yield program("calibration", (outer,), _calibrate, model, images, valid)
    yield program("attention flow", (outer,), _capture("attention_flow"), model, images)
    yield program("attention flow by maps", (outer,), _capture({"flow": _flow_by_maps}), model, images)
    yield program("attention divergence", (outer, norm), _diverge, model, images, zeroed)
    meter = functools.partial(extraction.map_shares, off_manifold.measure_share, shapes.mesh)
    yield program("off-manifold meter", (outer, norm, distance), meter, (moment, moment), model, pixels, zeroed, ids, valid)
    blocks = depth * (depth + 1) // 2
    yield program("sweep over layers", (outer,), _sweep, model, images, zeroed, blocks=blocks, block_of="forward")


def large_programs(name: str, dtype: Any, shapes: Shapes, size: Size) -> Iterator[Program]:
    """What a study runs of a model whose weights are split, with as many images on a chip at a time as a study takes: forward, attention
    flow and a cut, and features under that cut, where each chip runs its share alone."""
    config = replace(jaxvit.MODELS[name], depth=size.pick(jaxvit.MODELS[name].depth, 2))
    model = shapes.split_weights(config, dtype)
    per_chip = size.pick(extraction.share_of(config, (SIDE, SIDE), shapes.mesh), 2)
    count = per_chip * shapes.mesh.size
    pixels, images = (shapes.split(count, SIDE, SIDE, 3, dtype=kind) for kind in (jnp.uint8, dtype))
    ids, valid = shapes.split(count, dtype=jnp.int32), shapes.split(count, dtype=bool)
    cut = shapes.everywhere(jaxvit.lower(jaxvit.cut("cls", "registers"), config, SIDE))

    def extract(model: jaxvit.ViT, pixels: jax.Array, edits: Any, ids: jax.Array, valid: jax.Array) -> Any:
        return run_batch(model, pixels, edits, ids, valid, extraction.KEEP["final"], ((extraction.CLS, cls),), shapes.mesh)

    for title, function, arguments in (
        ("forward", _capture(()), (model, images)),
        ("attention flow", _capture("attention_flow"), (model, images)),
        ("cut of registers from CLS", _edited, (model, images, cut)),
        ("features under the cut", extract, (model, pixels, cut, ids, valid)),
    ):
        yield Program(title, name, jnp.dtype(dtype).name, (function, arguments), per_chip)


def readout_programs(shapes: Shapes, size: Size) -> Iterator[Program]:
    """The programs of a study that run read-outs, on features of an S, at the sizes of the preset `parodi2026`.

    Those that take a mesh are split over its chips; the others run on one, as in a study.
    """
    counts = {part: size.pick(count, 16) for part, count in vars(IMAGENET_SIZE).items() if count is not None}
    calls = [*_classification(shapes, size, counts), *_dense(shapes, size, counts), *_geometry(shapes, counts)]
    return (Program(name, NAMES[0], "float32", call) for name, call in calls)


def _classification(shapes: Shapes, size: Size, counts: dict[str, int]) -> Iterator[tuple[str, Call]]:
    """Linear probes, few-shot probes and k-NN."""
    config, mesh, one, free = jaxvit.MODELS[NAMES[0]], shapes.mesh, shapes.one, shapes.free
    width, classes, train, test = config.width, size.pick(CLASSES, 4), counts["train"], counts["test"]
    tokens = config.registers + 3  # CLS, registers, their mean, the mean patch
    parts = [(tokens, counts[part]) for part in ("train", "val", "test")]
    problems = tuple(array for part in parts for array in (free(*part, width), free(part[1], dtype=jnp.int32)))
    for name, probes in (("logistic", logistic.probe_many), ("ridge", ridge.probe_many)):
        yield f"{tokens} {name} probes, {train:,} rows", (functools.partial(probes, classes=classes, mesh=mesh), problems)
    shots = size.pick(25, 2)
    penalties = few_shot.BIG_VISION_PENALTY / (shots * classes)
    drawn = one(train, width), one(train, dtype=jnp.int32), one(3, shots * classes, dtype=jnp.int32)
    few = functools.partial(few_shot.probe_draws, classes=classes, lambdas=(penalties,))
    yield f"3 few-shot probes, {shots * classes:,} rows", (few, (*drawn, None, None, one(test, width), one(test, dtype=jnp.int32)))
    for name, settings, widths in (("plain SGD", sgd.PARODI, (1,)), ("DINOv2's grid of heads", sgd.DINOV2_GRID, (1, 2, 4, 5))):
        rates = len(settings.learning_rates)
        rows, starts = (tuple(one(*shape, n * width) for n in widths) for shape in ((train,), (rates, classes)))
        order = one(settings.iterations, settings.batch, dtype=jnp.int32)
        train_heads = functools.partial(_train_heads, settings)
        yield f"{name}, {train:,} rows, {settings.iterations:,} steps", (train_heads, (rows, one(train, dtype=jnp.int32), order, starts))
    bank, ks = train + counts["val"], size.pick((10, 20, 100, 200), (1,))
    classify = functools.partial(knn.classify, classes=classes, ks=ks, mesh=mesh)
    yield f"k-NN, {test:,} x {bank:,}", (classify, (free(bank, width), free(bank, dtype=jnp.int32), free(test, width)))
    queries, searched = size.pick((5_000, 50_000), (16, 64))
    search = functools.partial(nearest, k=size.pick(20, 2), mesh=mesh)
    yield f"20 nearest, {queries:,} x {searched:,}", (search, (free(queries, width), free(searched, width)))


def _dense(shapes: Shapes, size: Size, counts: dict[str, int]) -> Iterator[tuple[str, Call]]:
    """Segmentation, correspondence, keypoints."""
    config, one, free = jaxvit.MODELS[NAMES[0]], shapes.one, shapes.free
    (patches, width), grid, side = _patches(config), config.grid(SIDE, SIDE), config.patch_size
    images, tested, pairs = counts["segmentation"], counts["segmentation_test"], counts["pairs"]
    fitted, queries, memory = images * patches, tested * patches, size.pick(100_000, 64)
    shares = functools.partial(segmentation.class_shares, classes=SEGMENTS, patch_size=side)
    yield f"class shares of patches, {images:,} masks", (shares, (one(images, SIDE, SIDE, dtype=jnp.uint8),))
    head = functools.partial(logistic.fit, penalty=L2)
    yield f"segmentation head, {fitted:,} patches", (_fit_head(head), (one(fitted, width), one(fitted, SEGMENTS), one(fitted)))
    retrieve = functools.partial(knn.retrieve, k=size.pick(NEIGHBOURS, 2), temperature=TEMPERATURE, mesh=shapes.mesh)
    yield f"retrieval, {queries:,} patches x {memory:,}", (retrieve, (free(memory, width), free(memory, SEGMENTS), free(queries, width)))
    canvas = (size.pick(CANVAS, 20),) * 2
    pixels = functools.partial(segmentation.predict_padded, canvas=canvas)
    yield f"pixels from patch scores, {tested:,} images", (pixels, (one(tested, *grid, SEGMENTS), one(tested, 2, dtype=jnp.int32)))
    confusion = functools.partial(metrics.confusion, classes=SEGMENTS)
    predicted, masks = (one(tested, *canvas, dtype=dtype) for dtype in (jnp.int32, jnp.uint8))
    yield f"confusion, {tested:,} images", (confusion, (predicted, masks))
    match = functools.partial(metrics.correspondence, grid=grid, patch_size=side)
    yield f"correspondence, {pairs:,} pairs", (match, (one(pairs, patches, width), one(pairs, patches, width), one(pairs, 2, 3)))
    match_keypoints = functools.partial(metrics.match_keypoints, grid=grid, patch_size=side)
    together = size.pick(keypoints.PAIRS_AT_ONCE, 4)
    features = one(together, patches, width)
    yield f"keypoints, {together:,} pairs at a time", (match_keypoints, (features, features, one(together, 30, 2)))
    yield f"instance recall, {pairs:,} pairs", (metrics.recall_at_1, (one(pairs, width), one(pairs, width)))


def _geometry(shapes: Shapes, counts: dict[str, int]) -> Iterator[tuple[str, Call]]:
    """Geometry of patches and registers."""
    config, images = jaxvit.MODELS[NAMES[0]], counts["analysis_images"]
    patches, width = _patches(config)
    for name, rank in (
        ("effective rank", geometry.effective_rank),
        ("effective rank by singular values", geometry.effective_rank_roy_vetterli),
        ("participation ratio", geometry.participation_ratio),
    ):
        yield f"{name}, {images:,} images", (rank, (shapes.one(images, patches, width),))
    yield f"cosines of registers, {images:,} images", (geometry.pairwise_cosine, (shapes.one(images, config.registers, width),))
    yield "components as colours, 16 feature maps", (geometry.pca_rgb, (shapes.one(16 * patches, width),))


def _condition_edits(config: ViTConfig) -> dict[str, Any]:
    """Edits of the study's conditions, one of each structure that needs a program of its own, by a title that names its conditions."""
    moments = {site: np.ones((config.depth, config.registers + 2, config.width), np.float32) for site in CALIBRATED_SITES}
    statistics = jaxvit.Moments(moments, moments, 1, (SIDE, SIDE))
    kinds: dict[Any, tuple[list[str], Any]] = {}
    for name, condition in conditions(config).items():
        ablation = condition(config, statistics, 0)
        edits = jaxvit.lower(ablation, config, SIDE) if ablation.replacements else None
        leaves, structure = jax.tree.flatten(edits)
        kinds.setdefault((structure, *(leaf.shape for leaf in leaves)), ([], edits))[0].append(name)
    return {f"{names[0]} and {len(names) - 1} more conditions" if names[1:] else f"condition {names[0]}": e for names, e in kinds.values()}


def _patches(config: ViTConfig) -> tuple[int, int]:
    rows, columns = config.grid(SIDE, SIDE)
    return rows * columns, config.width


def _flow_by_maps(state: Any) -> jax.Array:
    """Attention flow from full maps of attention, as a model that returns them allows."""
    columns = group_columns(state.layout)
    return jnp.einsum("bhtu,us,tr->bhrs", state.attention, columns, columns / columns.sum(axis=0))


def _capture(capture: Any) -> Callable[..., Any]:
    """A forward pass that returns only a capture, or its tokens where there is none."""

    def run(model: jaxvit.ViT, images: jax.Array) -> Any:
        out = jaxvit.forward(model, images, capture=capture)
        return out.captured or out.tokens

    return run


def _edited(model: jaxvit.ViT, images: jax.Array, edits: Any) -> jax.Array:
    return jaxvit.forward(model, images, edits).tokens


def _calibrate(model: jaxvit.ViT, images: jax.Array, valid: jax.Array) -> Any:
    """The forward pass that `jaxvit.calibrate` runs for each batch."""
    captures = {site: calibration.SITE_MOMENTS[site] for site in CALIBRATED_SITES}
    return jaxvit.forward(model, images, capture=captures, valid=valid).captured


def _diverge(model: jaxvit.ViT, images: jax.Array, edits: Any) -> Any:
    return jaxvit.contrast(model, images, edits, "attention_divergence").captured


def _sweep(model: jaxvit.ViT, images: jax.Array, edits: Any) -> jax.Array:
    return sweep_layers(model, images, edits).cls


def _ends(model: jaxvit.ViT, images: jax.Array) -> jax.Array:
    """The parts of a forward pass before and after the blocks."""
    return model.final_norm(_embedded(model, images))


def _norm(model: jaxvit.ViT, stream: jax.Array) -> jax.Array:
    return model.final_norm(stream)


def _feature_ends(model: jaxvit.ViT, pixels: jax.Array) -> Any:
    """The parts of a batch before and after the blocks: from bytes, to features."""
    x, prefix = _embedded(model, jaxvit.normalise(pixels, model.config)), 1 + model.config.registers
    tokens, norms = model.final_norm(x), jnp.linalg.norm(x[:, prefix:].astype(jnp.float32), axis=-1)
    patches = tokens[:, prefix:]
    return tokens[:, 0], tokens[:, 1:prefix], patches.mean(axis=1), patches, norms


def _embedded(model: jaxvit.ViT, images: jax.Array) -> jax.Array:
    return model.add_prefix(model.embed_patches(images), model.config.grid(images.shape[1], images.shape[2]))


def _distance(patches: jax.Array, mean: jax.Array, variance: jax.Array) -> jax.Array:
    """The part of the off-manifold meter that takes the patches of all blocks together."""
    return geometry.mahalanobis(patches, mean[:, None, None], variance[:, None, None]).mean(axis=-1)


def _fit_head(fit: Callable[..., Any]) -> Callable[..., Any]:
    return lambda patches, targets, weights: fit(patches, targets, weights=weights)


def _train_heads(settings: sgd.SGD, rows: Any, labels: jax.Array, order: jax.Array, starts: Any) -> Any:
    """Training of heads that start as [rates, classes, width], the layout within a step."""
    return sgd.train(rows, labels, order, tuple(start.swapaxes(1, 2) for start in starts), settings)
