"""From a source to a checkpoint: open, name, plan, read tensor by tensor, save."""

from __future__ import annotations

import datetime
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from convert.layouts import LAYOUTS, Layout, Oracle, Rule
from convert.naming import check_complete, plain_names, recognise
from convert.readers import Source, open_source, read_json
from convert.sizes import Plan, plan
from jaxvit import ViT
from jaxvit.checkpoint import assemble, named_leaves, refuse_foreign, save
from jaxvit.vit import abstract

ORACLES = tuple(sorted({layout.oracle for layout in LAYOUTS}))


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    heads: int | None = None,
    name: str | None = None,
    oracle: Oracle | None = None,
) -> Path:
    """Convert someone else's weights to a jaxvit checkpoint in float32.

    Args:
        source: a `.pth` file (needs torch), a `.safetensors` file, or a Hugging Face folder.
        out: the checkpoint folder; an existing checkpoint is replaced.
        heads: number of attention heads, where neither the source nor a released model of the same sizes tells it.
        name: a released model (its sizes are checked, and its pixel statistics kept), or any label for the manifest.
        oracle: whose implementation to agree with where they differ: "meta" or "hf". By default that of the source's layout.

    Returns:
        The checkpoint folder.

    Raises:
        ValueError: the source cannot be read, is not exactly one of the known layouts, or contradicts the arguments;
            one line that says what and what to do. Nothing is written then.
    """
    try:
        return _convert(os.fspath(source), Path(out).expanduser(), heads, name, oracle)
    except ValueError as error:
        message = " ".join(str(error).split())
        raise ValueError(message if str(source) in message else f'"{source}": {message}') from error


def _convert(source: str, out: Path, heads: int | None, name: str | None, oracle: Oracle | None) -> Path:
    if oracle not in (None, *ORACLES):
        raise ValueError(f'unknown oracle "{oracle}"; possible are {", ".join(ORACLES)}')
    refuse_foreign(out.resolve())
    opened = open_source(source)
    if not opened.shapes:
        raise ValueError("the file holds no tensors; pass a file with weights")
    names = plain_names(opened.shapes)
    shapes = {plain: opened.shapes[key] for plain, key in names.items()}
    layout = recognise(names)
    settings = opened.settings if layout.oracle == "hf" else None
    chosen = plan(layout, shapes, heads, name, oracle, read_json(settings) if settings else None)
    model = read_model(chosen, layout, names, opened)
    files = [*opened.files, *([settings] if settings else [])]
    provenance = {
        "source": {"path": source, "wrapper": opened.wrapper, "sha256": {file.name: _sha256(file) for file in files}},
        "layout": layout.name,
        "oracle": chosen.oracle,
        "name": name,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    return save(model, out, provenance)


def read_model(chosen: Plan, layout: Layout, names: Mapping[str, str], source: Source) -> ViT:
    """Fill every leaf, reading one tensor at a time into the stacked float32 arrays.

    Raises:
        ValueError: keys are missing or unknown, a shape is wrong, or a tensor is not finite.
    """
    tree = named_leaves(abstract(chosen.config))
    rules = {leaf: rule for leaf, rule in chosen.rules.items() if leaf in tree}
    check_complete(layout, rules, chosen.config.depth, {plain: source.shapes[key] for plain, key in names.items()})
    leaves: dict[str, np.ndarray] = {}
    for leaf, spec in tree.items():
        if leaf in chosen.computed:
            leaves[leaf] = chosen.computed[leaf]
        elif leaf.startswith("blocks."):
            leaves[leaf] = np.empty(spec.shape, np.float32)
            for i in range(chosen.config.depth):
                leaves[leaf][i] = _make(rules[leaf], leaf, spec.shape[1:], names, source, i)
        else:
            leaves[leaf] = _make(rules[leaf], leaf, spec.shape, names, source)
    return assemble(chosen.config, leaves)


def _make(rule: Rule, leaf: str, shape: tuple[int, ...], names: Mapping[str, str], source: Source, block: int | None = None) -> np.ndarray:
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
    return np.ascontiguousarray(made, np.float32)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
