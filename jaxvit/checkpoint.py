"""Checkpoints: a folder with an Orbax tree and a manifest, written all at once; the demos and the cache are read by name."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvit.config import MODELS, ViTConfig
from jaxvit.vit import ViT, abstract

FORMAT = "jaxvit"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
WEIGHTS = "weights"
DEMO_FOLDER = Path(__file__).parent / "demo"
_PACKAGES = ("jax", "flax", "orbax-checkpoint", "numpy")
_NAMES_SHOWN = 5


def save(model: ViT, path: str | os.PathLike[str], manifest: Mapping[str, Any] | None = None) -> Path:
    """Write a model to a checkpoint folder: all of it or, where the process dies on the way, nothing under that name.

    Args:
        model: weights of any float dtype.
        path: the folder; an existing checkpoint (or empty folder) there is replaced.
        manifest: JSON entries to keep beside the weights, for example where they come from.

    Returns:
        The folder.

    Raises:
        ValueError: something that is no jaxvit checkpoint stands at `path`, or `manifest` redefines an entry of ours.
    """
    # imported where it is used: it costs as much as the rest of the library, and most runs only load a demo
    import orbax.checkpoint as ocp

    folder = Path(path).expanduser().resolve()
    refuse_foreign(folder)
    leaves = named_leaves(model)
    own = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "config": dataclasses.asdict(model.config),
        "dtype": str(leaves["patch_embed.kernel"].dtype),
        "weights_sha256": weights_hash(model),
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in _PACKAGES}},
    }
    if clash := sorted({*own, "files"} & (manifest or {}).keys()):
        raise ValueError(f"manifest entries {', '.join(clash)} are written by save itself; rename yours")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = _sibling(folder)
    try:
        temporary.mkdir()
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(temporary / WEIGHTS, leaves)
            checkpointer.wait_until_finished()
        sizes = {f.relative_to(temporary).as_posix(): f.stat().st_size for f in sorted((temporary / WEIGHTS).rglob("*")) if f.is_file()}
        (temporary / MANIFEST).write_text(json.dumps(own | {"files": sizes} | dict(manifest or {}), indent=2) + "\n")
        _put(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def load(path_or_name: str | os.PathLike[str]) -> ViT:
    """A model from a checkpoint folder, a bundled demo ("demo_reg"), or the local cache, by name. Never downloads.

    The cache is the folder in the environment variable JAXVIT_CACHE, by default `~/.cache/jaxvit`.

    Raises:
        ValueError: there is no such checkpoint, or it is damaged or does not hold what its manifest says.
    """
    folder = Path(path_or_name).expanduser()
    if (folder / MANIFEST).is_file():
        return _load_folder(folder)
    if folder.name == os.fspath(path_or_name):
        demo, cached = DEMO_FOLDER / f"{folder}.safetensors", cache_folder() / folder
        if demo.is_file():
            return _load_demo(demo)
        if (cached / MANIFEST).is_file():
            return _load_folder(cached)
    raise ValueError(_not_found(path_or_name, folder))


def read_manifest(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of a checkpoint folder.

    Raises:
        ValueError: there is none, or it is not one that this version reads.
    """
    file = Path(path).expanduser() / MANIFEST
    try:
        manifest = json.loads(file.read_text())
    except OSError as error:
        raise ValueError(f'"{path}" is no jaxvit checkpoint: {MANIFEST} cannot be read ({error.strerror})') from error
    except ValueError as error:
        raise ValueError(f"{file} is damaged: no JSON ({error}); convert the weights again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f'"{path}" is no jaxvit checkpoint: its {MANIFEST} has no "format": "{FORMAT}"')
    if manifest.get("format_version") != FORMAT_VERSION:
        given = manifest.get("format_version")
        raise ValueError(f'"{path}" has checkpoint format {given}, this version reads {FORMAT_VERSION}; convert the weights again')
    return manifest


def weights_hash(model: ViT) -> str:
    """SHA-256 over name, dtype, shape and bytes of every leaf: the same for the same weights, whatever way they came."""
    return _hash(named_leaves(model))


def named_leaves(model: ViT) -> dict[str, Any]:
    """Every leaf under its path in the tree, for example "blocks.attention.qkv.kernel"."""
    paths = jax.tree_util.tree_flatten_with_path(model)[0]
    return {jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value"): leaf for path, leaf in paths}


def assemble(config: ViTConfig, leaves: Mapping[str, Any]) -> ViT:
    """A model from all of its leaves by name; they are taken as they are, numpy arrays too.

    Raises:
        ValueError: a leaf is missing, unknown, of another shape or not of a float dtype.
    """
    tree = abstract(config)
    names = named_leaves(tree)
    _check(names, leaves)
    return jax.tree.unflatten(jax.tree.structure(tree), [leaves[name] for name in names])


def refuse_foreign(path: Path) -> None:
    """Make sure that a checkpoint may be written to `path`.

    Raises:
        ValueError: a file, or a folder that is neither empty nor a checkpoint, stands there.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not path.is_dir():
        raise ValueError(f'"{path}" is a file; name a new folder for the checkpoint')
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        ours = isinstance(manifest, dict) and manifest.get("format") == FORMAT
    except (OSError, ValueError):
        ours = False
    if not ours:
        raise ValueError(f'"{path}" is a folder of something else and is left alone; name a new folder or an existing jaxvit checkpoint')


def cache_folder() -> Path:
    """Where checkpoints are looked up by name."""
    return Path(os.environ.get("JAXVIT_CACHE") or "~/.cache/jaxvit").expanduser()


def _sibling(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}.tmp")


def _put(temporary: Path, folder: Path) -> None:
    """Give the finished folder its name; a checkpoint that has it now makes room and comes back if that fails."""
    if not folder.exists():
        temporary.rename(folder)
        return
    old = _sibling(folder)
    folder.rename(old)
    try:
        temporary.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _hash(leaves: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name, leaf in sorted(leaves.items()):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _load_folder(folder: Path) -> ViT:
    import orbax.checkpoint as ocp

    manifest = read_manifest(folder)
    config = _config(manifest.get("config"), folder)
    # sizes first: Orbax reads in parallel, and where several of its reads fail it says so in many places
    for name, size in (manifest.get("files") or {}).items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != size:
            state = f"has {file.stat().st_size} bytes" if file.is_file() else "is missing"
            raise ValueError(f'checkpoint "{folder}" is damaged: {name} {state}, it had {size} when written; convert the weights again')
    wanted = named_leaves(abstract(config))
    weights = (folder / WEIGHTS).resolve()
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            description = checkpointer.metadata(weights).item_metadata
            if description is None:
                raise ValueError("the description of its tree is damaged")
            stored = dict(description.tree)
            _check(wanted, stored)
            leaves = checkpointer.restore(weights, {n: jax.ShapeDtypeStruct(s.shape, s.dtype) for n, s in stored.items()})
    except Exception as error:  # Orbax and its storage raise many kinds, with messages of many lines
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ValueError(f'checkpoint "{folder}" cannot be read, convert the weights again: {reason[:300]}') from error
    if _hash(leaves) != manifest.get("weights_sha256"):
        raise ValueError(f'checkpoint "{folder}" is damaged: its weights are not those of its manifest; convert the weights again')
    return assemble(config, {name: jnp.asarray(leaf) for name, leaf in leaves.items()})


def _load_demo(file: Path) -> ViT:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as tensors:
            config = _config(json.loads((tensors.metadata() or {}).get("config", "null")), file)
            leaves = {name: jnp.asarray(tensors.get_tensor(name), jnp.float32) for name in tensors.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged: {error}; install the package again") from error
    return assemble(config, leaves)


def _config(entries: Any, where: Path) -> ViTConfig:
    try:
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entries.items()}
        return ViTConfig(**fields)
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{where} names no config that this version knows: {error}; convert the weights again") from error


def _check(wanted: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    faults = []
    for what, names in (("missing", wanted.keys() - given.keys()), ("unknown", given.keys() - wanted.keys())):
        if names:
            shown = ", ".join(sorted(names)[:_NAMES_SHOWN])
            faults.append(f"{len(names)} {what} ({shown}{', ...' if len(names) > _NAMES_SHOWN else ''})")
    if faults:
        raise ValueError(f"weights do not fit the config: {'; '.join(faults)}")
    for name, spec in wanted.items():
        shape, dtype = tuple(given[name].shape), given[name].dtype
        if shape != tuple(spec.shape):
            raise ValueError(f"weights do not fit the config: {name} has shape {shape} instead of {tuple(spec.shape)}")
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"weights do not fit the config: {name} has dtype {dtype} instead of a float")


def _not_found(given: str | os.PathLike[str], folder: Path) -> str:
    if folder.is_file() or folder.is_dir():
        return f'"{given}" is no jaxvit checkpoint (it has no {MANIFEST}); convert it: python -m convert {given} --out DIR'
    demos = sorted(f.stem for f in DEMO_FOLDER.glob("*.safetensors"))
    cached = sorted(f.parent.name for f in cache_folder().glob(f"*/{MANIFEST}"))
    released = " is a released model whose weights are not here" if str(given) in MODELS else " is not here"
    return (
        f'"{given}"{released}: possible are a checkpoint folder, a demo ({", ".join(demos) or "none"}) or a name in the cache '
        f"{cache_folder()} ({', '.join(cached) or 'empty'}); make one with: python -m convert SOURCE --out DIR"
    )
