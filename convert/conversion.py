"""Conversion of a source to a checkpoint: open it, name its tensors, plan the model, read tensor by tensor, save."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from convert import hub
from convert.copies import Model, Use, choose, find_models, groups
from convert.foreign import explain
from convert.layouts import LAYOUTS, Layout, Oracle, Rule
from convert.naming import check_complete, recognise
from convert.pixels import pixel_statistics
from convert.sizes import Plan, Resize, has_packed_feed_forward, plan_model
from convert.sources import Source, open_source, read_json
from jaxvit import ViT
from jaxvit.checkpoint import MANIFEST, assemble, named_leaves, read_manifest, refuse_foreign, save
from jaxvit.files import file_hash, refuse_remote, require_space
from jaxvit.vit import abstract

ORACLES = tuple(sorted({layout.oracle for layout in LAYOUTS}))
Dtype = Literal["float32", "bfloat16", "float16"]
_ALWAYS_FLOAT32 = ("rope_periods",)


@dataclass(frozen=True)
class Options:
    """The arguments of `convert`."""

    heads: int | None = None
    name: str | None = None
    oracle: Oracle | None = None
    dtype: Dtype = "float32"
    use: Use | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    position: Resize | None = None

    def check(self) -> None:
        """Refuse a word that is none of its option's.

        Raises:
            ValueError: there is one.
        """
        for option, value, choices in (
            ("oracle", self.oracle, ORACLES),
            ("dtype", self.dtype, get_args(Dtype)),
            ("use", self.use, get_args(Use)),
            ("position", self.position, get_args(Resize)),
        ):
            if value is not None and value not in choices:
                raise ValueError(f'unknown {option} "{value}"; possible are {", ".join(choices)}')


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    heads: int | None = None,
    name: str | None = None,
    oracle: Oracle | None = None,
    dtype: Dtype = "float32",
    *,
    use: Use | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    position: Resize | None = None,
) -> Path:
    """Convert someone else's weights to a jaxvit checkpoint.

    Whatever stands before the keys of the model, and modules beside it (heads, a decoder), is left out; the manifest lists it.

    Args:
        source: a `.pth` file (needs torch), a `.safetensors` file, or a Hugging Face or timm folder.
        out: the checkpoint folder; an existing checkpoint is replaced.
        heads: number of attention heads, where neither the source nor a released model of the same sizes tells it.
        name: a released model (its sizes are checked, and its pixel statistics kept), or any label for the manifest.
        oracle: whose implementation to agree with where they differ: "meta", "hf" or "timm". By default that of the source's
            layout; where timm's files have Meta's keys, timm's only if the `config.json` beside them is timm's.
        dtype: of the stored weights. The source's (float16, bfloat16, float32 or float64) is read as float32 and then
            rounded; RoPE periods stay float32.
        use: which of two copies of the model in one file: "ema" (averaged over training, the teacher) or "raw". By default the
            teacher of a teacher and a student; other copies that differ are refused.
        mean, std: of pixels scaled to [0, 1], per RGB channel. By default those of the released model that `name` names, of
            `preprocessor_config.json` or timm's `config.json` beside the weights, or ImageNet's.
        position: how a learned position table is resized: "offset", "antialias" or "plain" (see `jaxvit.ViTConfig`). By default
            the oracle's rule.

    Returns:
        The checkpoint folder.

    Raises:
        ValueError: the source cannot be read, is not exactly one of the known layouts, or contradicts the arguments, or there
            is no space for the checkpoint. The message is one line that says what is wrong and what to do; nothing is written.
    """
    refuse_remote(out)
    target = Path(out).expanduser()
    options = Options(heads, name, oracle, dtype, use, mean, std, position)
    return _with_errors_in_one_line(source, lambda: _convert(os.fspath(source), target, options, {}))


def fetch(
    name: str, out: str | os.PathLike[str] | None = None, oracle: Oracle | None = None, dtype: Dtype = "float32", heads: int | None = None
) -> Path:
    """Download a released model from the Hugging Face hub and convert it into the cache, where `jaxvit.load(name)` finds it.

    A checkpoint that is there already, of the same commit, oracle and dtype, is left as it is. Repositories, commits and oracles
    are in `convert.hub.RELEASES`; downloading is `convert.hub.download`.

    Args:
        name: a name in `jaxvit.MODELS`.
        out: the checkpoint folder; by default that of the cache.
        oracle, dtype, heads: as for `convert`; the oracle by default as in `RELEASES`.

    Returns:
        The checkpoint folder.

    Raises:
        ValueError: the name is unknown, the weights cannot be downloaded (gated, offline, no connection) or converted.
    """
    if out is not None:
        refuse_remote(out)
    target = hub.cached_checkpoint(name) if out is None else Path(out).expanduser()

    def download_and_convert() -> Path:
        release = hub.release(name)
        release_oracle = oracle or release.oracle
        refuse_foreign(target.resolve())  # before hours of downloading
        if _is_up_to_date(target, release, release_oracle, dtype):
            return target
        folder, provenance = hub.download(release, name)
        return _convert(os.fspath(folder), target, Options(heads, name, release_oracle, dtype), {"hub": provenance})

    return _with_errors_in_one_line(name, download_and_convert)


def _is_up_to_date(folder: Path, release: hub.Release, oracle: Oracle, dtype: Dtype) -> bool:
    """Whether the folder holds a checkpoint of this release, oracle and dtype already."""
    if not (folder / MANIFEST).is_file():
        return False
    manifest = read_manifest(folder)
    pinned = {"repository": release.repository, "revision": release.revision}
    return (manifest.get("source", {}).get("hub"), manifest.get("oracle"), manifest["dtype"]) == (pinned, oracle, dtype)


def _with_errors_in_one_line(source: str | os.PathLike[str], operation: Callable[[], Path]) -> Path:
    """Result of the operation; its errors become one line that names the source."""
    try:
        return operation()
    except ValueError as error:
        message = " ".join(str(error).split())
        raise ValueError(message if str(source) in message else f'"{source}": {message}') from error


def _convert(path: str, out: Path, options: Options, provenance: Mapping[str, Any]) -> Path:
    """`convert`, with more provenance for the manifest and errors as they come."""
    options.check()
    refuse_foreign(out.resolve())
    source = open_source(path)
    if not source.shapes:
        raise ValueError("the file holds no tensors; pass a file with weights")
    try:
        model, layout, plan, settings = _plan(source, options)
        shapes = {name: source.shapes[key] for name, key in model.keys.items()}
        used = {model.keys[name] for name in check_complete(layout, _rules(plan), plan.config.depth, shapes)}
    except ValueError as error:
        raise ValueError(explain(str(error), source.shapes, _entry(source.settings, "model_type"))) from error
    timm_config = settings if settings and _is_timm_config(settings) else None
    pixels = pixel_statistics(source.folder, timm_config, options.name, options.mean, options.std)
    plan = replace(plan, config=replace(plan.config, pixel_mean=pixels.mean, pixel_std=pixels.std))
    stored_dtype = np.dtype(getattr(jnp, options.dtype))
    require_space(out, sum(leaf.size * stored_dtype.itemsize for leaf in jax.tree.leaves(abstract(plan.config))))
    weights = read_model(plan, model.keys, source, stored_dtype)
    files = dict.fromkeys([*source.files, *([settings] if settings else []), *([pixels.file] if pixels.file else [])])
    manifest = {
        "source": {
            "path": Path(path).expanduser().resolve().name,
            **provenance,
            "wrapper": model.prefix,
            "use": _copy_name(model, source),
            "left_out": groups({key for key, shape in source.shapes.items() if key not in used and 0 not in shape}, used),
            "sha256": {file.name: file_hash(file) for file in files},
        },
        "layout": layout.name,
        "oracle": plan.oracle,
        "pixel_statistics": pixels.origin,
        "name": options.name,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    return save(weights, out, manifest)


def _plan(source: Source, options: Options) -> tuple[Model, Layout, Plan, Path | None]:
    """The keys to read, their layout, the model to make of them, and the `config.json` that belongs to them.

    Raises:
        ValueError: no such model is in the source, or several are, or it contradicts the options.
    """
    model = choose(find_models(source.shapes), options.use, lambda one, other: _are_equal(one, other, source))
    shapes = {name: source.shapes[key] for name, key in model.keys.items()}
    is_timm = _is_timm_config(source.settings)
    if is_timm and source.folder is None:  # the `config.json` beside a lone file may be of other weights; timm writes no mask token
        stated = _entry(source.settings, "num_features") is not None
        is_timm = stated and _has_width(source.settings, shapes) and "mask_token" not in shapes
    layout = recognise(shapes, is_timm or has_packed_feed_forward(shapes))
    settings = source.settings if is_timm or layout.oracle == "hf" else None
    hf_settings = read_json(settings) if settings and layout.oracle == "hf" else None
    plan = plan_model(layout, shapes, options.heads, options.name, options.oracle, hf_settings, options.position)
    if is_timm and not _has_width(settings, shapes):
        raise ValueError(f"config.json says num_features {_entry(settings, 'num_features')}, but the tensors have {plan.config.width}")
    return model, layout, plan, settings


def _rules(plan: Plan) -> dict[str, Rule]:
    """The rules of the leaves that the planned model has."""
    tree = named_leaves(abstract(plan.config))
    return {leaf: rule for leaf, rule in plan.rules.items() if leaf in tree}


def _are_equal(one: Model, other: Model, source: Source) -> bool:
    """Whether two copies in a source have the same names and the same numbers."""
    return one.keys.keys() == other.keys.keys() and all(
        np.array_equal(source.read(key), source.read(other.keys[name]), equal_nan=True) for name, key in one.keys.items()
    )


def _copy_name(model: Model, source: Source) -> Use | None:
    """Which of several copies was taken; None where there is one."""
    return None if len(find_models(source.shapes)) == 1 else "ema" if model.averaged else "raw"


def read_model(plan: Plan, keys: Mapping[str, str], source: Source, dtype: np.dtype) -> ViT:
    """Return the planned model with every leaf filled, reading one tensor at a time into the stacked arrays.

    Args:
        keys: source keys by plain name.
        dtype: of the stored weights.

    Raises:
        ValueError: a shape is wrong, or a tensor is not finite or too large for `dtype`.
    """
    tree = named_leaves(abstract(plan.config))
    rules = _rules(plan)
    leaves: dict[str, np.ndarray] = {}
    for leaf, spec in tree.items():
        leaf_dtype = np.dtype(np.float32) if leaf in _ALWAYS_FLOAT32 else dtype
        if leaf in plan.computed:
            leaves[leaf] = plan.computed[leaf].astype(leaf_dtype)
        elif leaf.startswith("blocks."):
            leaves[leaf] = np.empty(spec.shape, leaf_dtype)
            for i in range(plan.config.depth):
                leaves[leaf][i] = _read_leaf(rules[leaf], leaf, spec.shape[1:], keys, source, leaf_dtype, i)
        else:
            leaves[leaf] = _read_leaf(rules[leaf], leaf, spec.shape, keys, source, leaf_dtype)
    return assemble(plan.config, leaves)


def _read_leaf(
    rule: Rule, leaf: str, shape: tuple[int, ...], keys: Mapping[str, str], source: Source, dtype: np.dtype, block: int | None = None
) -> np.ndarray:
    """One leaf, or one block's part of it, made by its rule from the source's tensors."""
    names = [name.removesuffix("?").format(block) for name in rule.sources]
    tensors = [source.read(keys[name]) if name in keys else None for name in names]
    tensors_and_shapes = ", ".join(f"{keys[name]} {source.shapes[keys[name]]}" for name in names if name in keys)
    try:
        array = rule.make(*tensors)
    except (ValueError, IndexError) as error:
        raise ValueError(f"{tensors_and_shapes} does not make {leaf} of shape {shape}: {error}") from error
    if array.shape != shape:
        raise ValueError(
            f"{tensors_and_shapes} makes {leaf} of shape {array.shape} instead of {shape}; pass the original file, and heads that fit"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"{tensors_and_shapes} holds NaN or infinity; get the file again")
    with np.errstate(over="ignore"):
        rounded = np.ascontiguousarray(array, dtype)
    if not np.isfinite(rounded).all():
        raise ValueError(f"{tensors_and_shapes} holds numbers too large for {dtype}; choose bfloat16 or float32")
    return rounded


def _is_timm_config(settings: Path | None) -> bool:
    """Whether this `config.json` is one that timm writes."""
    return _entry(settings, "architecture") is not None


def _has_width(settings: Path | None, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether timm's `config.json` states the width of these tensors, or none."""
    width = _entry(settings, "num_features")
    return width is None or width == shapes.get("norm.weight", (width,))[0]


def _entry(settings: Path | None, name: str) -> Any:
    """An entry of a `config.json`; None where there is no such file or entry."""
    try:
        return None if settings is None else read_json(settings).get(name)
    except ValueError:
        return None
