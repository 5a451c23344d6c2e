"""From a source to a checkpoint: open, name, plan, read tensor by tensor, save."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from convert import hub
from convert.layouts import LAYOUTS, Layout, Oracle, Rule
from convert.naming import check_complete, plain_names, recognise
from convert.readers import Source, open_source, read_json
from convert.sizes import Plan, has_packed_feed_forward, plan
from jaxvit import ViT
from jaxvit.checkpoint import MANIFEST, assemble, file_hash, named_leaves, read_manifest, refuse_foreign, require_space, save
from jaxvit.vit import abstract

ORACLES = tuple(sorted({layout.oracle for layout in LAYOUTS}))
Dtype = Literal["float32", "bfloat16", "float16"]
_ALWAYS_FLOAT32 = ("rope_periods",)


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    heads: int | None = None,
    name: str | None = None,
    oracle: Oracle | None = None,
    dtype: Dtype = "float32",
) -> Path:
    """Convert someone else's weights to a jaxvit checkpoint.

    Args:
        source: a `.pth` file (needs torch), a `.safetensors` file, or a Hugging Face or timm folder.
        out: the checkpoint folder; an existing checkpoint is replaced.
        heads: number of attention heads, where neither the source nor a released model of the same sizes tells it.
        name: a released model (its sizes are checked, and its pixel statistics kept), or any label for the manifest.
        oracle: whose implementation to agree with where they differ: "meta", "hf" or "timm". By default that of the source's
            layout; where timm's files have Meta's keys, timm's only if the `config.json` beside them is timm's.
        dtype: of the stored weights. The source's (float16, bfloat16, float32 or float64) is read as float32 and then
            rounded; RoPE periods stay float32.

    Returns:
        The checkpoint folder.

    Raises:
        ValueError: the source cannot be read, is not exactly one of the known layouts, or contradicts the arguments, or there
            is no space for the checkpoint; one line that says what and what to do. Nothing is written then.
    """
    return _in_one_line(source, lambda: _convert(os.fspath(source), Path(out).expanduser(), heads, name, oracle, dtype, {}))


def fetch(
    name: str, out: str | os.PathLike[str] | None = None, oracle: Oracle | None = None, dtype: Dtype = "float32", heads: int | None = None
) -> Path:
    """Download a released model from the Hugging Face hub and convert it into the cache, where `jaxvit.load(name)` finds it.

    A checkpoint that is there already, of the same commit, oracle and dtype, is left as it is. Repositories, commits and oracles
    are in `convert.hub.RELEASES`; downloading is `convert.hub.download`.

    Args:
        name: a name in `jaxvit.MODELS`.
        out: another checkpoint folder than that of the cache.
        oracle, dtype, heads: as for `convert`; the oracle by default as in `RELEASES`.

    Returns:
        The checkpoint folder.

    Raises:
        ValueError: the name is unknown, the weights cannot be had (gated, offline, no connection) or converted.
    """
    target = hub.cached(name) if out is None else Path(out).expanduser()

    def run() -> Path:
        release = hub.release(name)
        chosen = oracle or release.oracle
        refuse_foreign(target.resolve())  # before hours of downloading
        if _holds(target, release, chosen, dtype):
            return target
        folder, where = hub.download(release, name)
        return _convert(os.fspath(folder), target, heads, name, chosen, dtype, {"hub": where})

    return _in_one_line(name, run)


def _holds(folder: Path, release: hub.Release, oracle: Oracle, dtype: Dtype) -> bool:
    """Whether the checkpoint is there already."""
    if not (folder / MANIFEST).is_file():
        return False
    manifest = read_manifest(folder)
    pinned = {"repository": release.repository, "revision": release.revision}
    return (manifest.get("source", {}).get("hub"), manifest.get("oracle"), manifest["dtype"]) == (pinned, oracle, dtype)


def _in_one_line(source: str | os.PathLike[str], run: Any) -> Path:
    """Errors of `run` as one line that names the source."""
    try:
        return run()
    except ValueError as error:
        message = " ".join(str(error).split())
        raise ValueError(message if str(source) in message else f'"{source}": {message}') from error


def _convert(
    source: str, out: Path, heads: int | None, name: str | None, oracle: Oracle | None, dtype: Dtype, where: Mapping[str, Any]
) -> Path:
    for what, given, possible in (("oracle", oracle or ORACLES[0], ORACLES), ("dtype", dtype, get_args(Dtype))):
        if given not in possible:
            raise ValueError(f'unknown {what} "{given}"; possible are {", ".join(possible)}')
    refuse_foreign(out.resolve())
    opened = open_source(source)
    if not opened.shapes:
        raise ValueError("the file holds no tensors; pass a file with weights")
    names = plain_names(opened.shapes)
    shapes = {plain: opened.shapes[key] for plain, key in names.items()}
    timms = _is_timm_config(opened.settings)
    layout = recognise(names, timms or has_packed_feed_forward(shapes))
    settings = opened.settings if timms or layout.oracle == "hf" else None
    chosen = plan(layout, shapes, heads, name, oracle, read_json(settings) if settings and layout.oracle == "hf" else None)
    stored = np.dtype(getattr(jnp, dtype))
    require_space(out, sum(leaf.size * stored.itemsize for leaf in jax.tree.leaves(abstract(chosen.config))))
    model = read_model(chosen, layout, names, opened, stored)
    files = [*opened.files, *([settings] if settings else [])]
    provenance = {
        "source": {"path": source, **where, "wrapper": opened.wrapper, "sha256": {file.name: file_hash(file) for file in files}},
        "layout": layout.name,
        "oracle": chosen.oracle,
        "name": name,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    return save(model, out, provenance)


def read_model(chosen: Plan, layout: Layout, names: Mapping[str, str], source: Source, dtype: np.dtype) -> ViT:
    """Fill every leaf, reading one tensor at a time into the stacked arrays.

    Raises:
        ValueError: keys are missing or unknown, a shape is wrong, or a tensor is not finite or too large for `dtype`.
    """
    tree = named_leaves(abstract(chosen.config))
    rules = {leaf: rule for leaf, rule in chosen.rules.items() if leaf in tree}
    check_complete(layout, rules, chosen.config.depth, {plain: source.shapes[key] for plain, key in names.items()})
    leaves: dict[str, np.ndarray] = {}
    for leaf, spec in tree.items():
        stored = np.dtype(np.float32) if leaf in _ALWAYS_FLOAT32 else dtype
        if leaf in chosen.computed:
            leaves[leaf] = chosen.computed[leaf].astype(stored)
        elif leaf.startswith("blocks."):
            leaves[leaf] = np.empty(spec.shape, stored)
            for i in range(chosen.config.depth):
                leaves[leaf][i] = _make(rules[leaf], leaf, spec.shape[1:], names, source, stored, i)
        else:
            leaves[leaf] = _make(rules[leaf], leaf, spec.shape, names, source, stored)
    return assemble(chosen.config, leaves)


def _make(
    rule: Rule, leaf: str, shape: tuple[int, ...], names: Mapping[str, str], source: Source, dtype: np.dtype, block: int | None = None
) -> np.ndarray:
    """One leaf, or one block's part of it."""
    keys = [s.removesuffix("?").format(block) for s in rule.sources]
    tensors = [source.read(names[key]) if key in names else None for key in keys]
    given = ", ".join(f"{names[key]} {source.shapes[names[key]]}" for key in keys if key in names)
    try:
        made = rule.make(*tensors)
    except (ValueError, IndexError) as error:
        raise ValueError(f"{given} does not make {leaf} of shape {shape}: {error}") from error
    if made.shape != shape:
        raise ValueError(f"{given} makes {leaf} of shape {made.shape} instead of {shape}; pass the original file, and heads that fit")
    if not np.isfinite(made).all():
        raise ValueError(f"{given} holds NaN or infinity; get the file again")
    with np.errstate(over="ignore"):
        rounded = np.ascontiguousarray(made, dtype)
    if not np.isfinite(rounded).all():
        raise ValueError(f"{given} holds numbers too large for {dtype}; choose bfloat16 or float32")
    return rounded


def _is_timm_config(settings: Path | None) -> bool:
    """Whether this `config.json` is one that timm writes."""
    try:
        return settings is not None and "architecture" in read_json(settings)
    except ValueError:
        return False
