"""Checkpoints: folders with an Orbax tree and a manifest, written atomically; demo models and cached checkpoints open by name."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxvit.calls import check_model, check_path
from jaxvit.config import MODELS, ViTConfig
from jaxvit.files import cache_folder, file_hash, refuse_remote, require_space, sibling, sweep
from jaxvit.sharding import shard_weights, weight_shardings, whole, with_weight_shards
from jaxvit.stored import add_to_hash, first_line, stored_leaves, write_leaves
from jaxvit.vit import ViT, abstract

FORMAT = "jaxvit"
FORMAT_VERSION = 2
MANIFEST = "manifest.json"
WEIGHTS = "weights"
_COMMIT_NOTE = "commit_success.txt"
DEMO_FOLDER = Path(__file__).parent / "demo"
_PACKAGES = ("jax", "flax", "orbax-checkpoint", "numpy")
_SEAL = "manifest_sha256"  # the manifest's entry for the hash of all others
_NAMES_SHOWN = 5  # of missing or unknown leaves, in an error
_TRIES = 20  # to give a folder its name while other processes do the same
_RENAMED = {"hidden": "mlp_dim"}  # config fields: name in older checkpoints -> name today


def save(model: ViT, path: str | os.PathLike[str], manifest: Mapping[str, Any] | None = None) -> Path:
    """Write a model to a checkpoint folder, atomically: if the process dies, there is no incomplete checkpoint.

    Args:
        model: weights of any float dtype.
        path: the folder; an existing checkpoint (or empty folder) there is replaced.
        manifest: JSON entries to store beside the weights, for example their source.

    Returns:
        The folder.

    Raises:
        ValueError: `path` is remote or something other than a jaxvit checkpoint, there is no space for it, writing fails, or `manifest`
            redefines an entry that `save` writes.
    """
    check_path(path, "jaxvit.save(model, path)")
    check_model(model)
    refuse_remote(path)
    folder = Path(path).expanduser().resolve()
    refuse_foreign(folder)
    leaves = named_leaves(model)
    own_entries = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "config": dataclasses.asdict(model.config),
        "dtype": str(leaves["patch_embed.kernel"].dtype),
        "weights_sha256": weights_hash(model),
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in _PACKAGES}},
    }
    if clash := sorted({*own_entries, "files", _SEAL} & (manifest or {}).keys()):
        raise ValueError(f"manifest entries {', '.join(clash)} are written by save itself; rename yours")
    require_space(folder, sum(leaf.nbytes for leaf in leaves.values()))
    new_parents = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    temporary = sibling(folder, "tmp")
    try:
        temporary.mkdir()
        try:
            write_leaves(temporary / WEIGHTS, leaves)
            _erase_path(temporary)
        except Exception as error:  # Orbax and its storage raise errors of many types, with messages of many lines
            raise ValueError(f'writing "{folder}" failed, nothing is left of it: {first_line(error)}') from error
        entries = json.loads(json.dumps(own_entries | {"files": _listing(temporary)} | dict(manifest or {})))
        (temporary / MANIFEST).write_text(json.dumps(entries | {_SEAL: _seal(entries)}, indent=2) + "\n")
        _put(temporary, folder)
    except BaseException:
        for pause in (0.0, 0.1, 0.3):  # after a failed write of Orbax its other writes go on and create their folders again
            time.sleep(pause)
            shutil.rmtree(temporary, ignore_errors=True)
        with contextlib.suppress(OSError):  # another process has put something there
            for parent in new_parents:
                parent.rmdir()
        raise
    return folder


def load(path_or_name: str | os.PathLike[str], mesh: Mesh | None = None) -> ViT:
    """The model of a checkpoint folder, or by name a bundled demo ("demo_reg") or a cached checkpoint. Never downloads.

    The cache is the folder in the environment variable JAXVIT_CACHE, by default `~/.cache/jaxvit`.

    Args:
        mesh: split the weights over its devices (`jaxvit.sharding.shard_weights`), for a model that is larger than one. They are read
            leaf by leaf straight into the shares, so that the host never holds more than one leaf of all blocks besides.

    Raises:
        ValueError: there is no such checkpoint, it is damaged or does not hold what its manifest says, or the mesh cannot split it.
    """
    found = _find(path_or_name)
    if found.is_dir():
        return _load_folder(found, mesh)
    model = _load_demo(found)
    return model if mesh is None else shard_weights(model, mesh)


def read_config(path_or_name: str | os.PathLike[str]) -> ViTConfig:
    """The config of what `load` opens, without its weights. Errors as for `load`."""
    found = _find(path_or_name)
    return _config(read_manifest(found).get("config"), found) if found.is_dir() else _open_demo(found)[0]


def _find(path_or_name: str | os.PathLike[str]) -> Path:
    """The checkpoint folder or the demo's file that a path or name stands for.

    Raises:
        ValueError: there is none.
    """
    check_path(path_or_name, "jaxvit.load(path_or_name)")
    refuse_remote(path_or_name)
    folder = Path(path_or_name).expanduser()
    if (folder / MANIFEST).is_file():
        return folder
    if folder.name == os.fspath(path_or_name):
        demo, cached = DEMO_FOLDER / f"{folder}.safetensors", cache_folder() / folder
        if demo.is_file():
            return demo
        if (cached / MANIFEST).is_file():
            return cached
    raise ValueError(_not_found(path_or_name, folder))


def read_manifest(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of a checkpoint folder.

    Raises:
        ValueError: there is none, or this version cannot read it.
    """
    refuse_remote(path)
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
        version = manifest.get("format_version")
        raise ValueError(f'"{path}" has checkpoint format {version}, this version reads {FORMAT_VERSION}; convert the weights again')
    return manifest


def verify(path: str | os.PathLike[str]) -> str:
    """Check every byte of a checkpoint folder against its manifest, and the manifest against its own seal.

    Returns:
        The hash of the weights.

    Raises:
        ValueError: it is no checkpoint, or something in it has changed since it was written; the message names the file.
    """
    folder, manifest = Path(path).expanduser(), read_manifest(path)
    if manifest.pop(_SEAL, None) != _seal(manifest):
        raise ValueError(f'checkpoint "{folder}" is damaged: its {MANIFEST} was changed; convert the weights again')
    for name, entry in manifest["files"].items():
        if not (folder / name).is_file() or file_hash(folder / name) != entry["sha256"]:
            raise ValueError(f'checkpoint "{folder}" is damaged: {name} is not what was written; convert the weights again')
    _load_folder(folder)
    weights_sha256: str = manifest["weights_sha256"]
    return weights_sha256


def weights_hash(model: ViT) -> str:
    """SHA-256 over name, dtype, shape and bytes of every leaf: equal weights have equal hashes, whatever file they come from."""
    return _hash(named_leaves(model))


def named_leaves(model: ViT) -> dict[str, Any]:
    """Every leaf under its path in the tree, for example "blocks.attention.qkv.kernel"."""
    paths = jax.tree_util.tree_flatten_with_path(model)[0]
    return {jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value"): leaf for path, leaf in paths}


def assemble(config: ViTConfig, leaves: Mapping[str, Any]) -> ViT:
    """The model with these leaves, by name; they may be NumPy arrays and are not copied.

    Raises:
        ValueError: a leaf is missing, unknown, of another shape or not of a float dtype.
    """
    return _assembled(abstract(config), leaves)


def _assembled(tree: ViT, leaves: Mapping[str, Any]) -> ViT:
    """The leaves in place of those of a tree of shapes. Errors as for `assemble`."""
    expected = named_leaves(tree)
    _check(expected, leaves)
    model: ViT = jax.tree.unflatten(jax.tree.structure(tree), [leaves[name] for name in expected])
    return model


def refuse_foreign(path: Path) -> None:
    """Check that a checkpoint may be written to `path`.

    Other processes may give the name to their checkpoint at the same time: a refusal counts only if the same thing lay there before and
    after the look.

    Raises:
        ValueError: `path` is a file, or a folder that is neither empty nor a checkpoint.
    """
    for _ in range(_TRIES):
        before = _inode(path)
        if before is None:
            return
        try:
            with os.scandir(path) as entries:  # held open, so that no other folder gets its inode during the look
                refusal = None if _is_ours(path, entries) else "is a folder of something else and is left alone"
                after = _inode(path)
        except NotADirectoryError:
            refusal, after = "is a file", _inode(path)
        except FileNotFoundError:
            continue
        if refusal is None:
            return
        if before == after:
            raise ValueError(f'"{path}" {refusal}; name a new folder or an existing jaxvit checkpoint')
    raise ValueError(f'"{path}" is written by others all the time; try again')


def _is_ours(path: Path, entries: Iterator[os.DirEntry[str]]) -> bool:
    """Whether a folder is empty or a checkpoint."""
    if next(entries, None) is None:
        return True
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == FORMAT


def _inode(path: Path) -> int | None:
    """The number of what lies there in its file system; None where there is nothing."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def _put(temporary: Path, folder: Path) -> None:
    """Give the finished folder its name. Of several processes that do so at the same time, the last one wins.

    A checkpoint of that name is moved away first, and moved back if that fails.
    """
    moved: list[Path] = []
    try:
        for _ in range(_TRIES):
            try:
                temporary.rename(folder)
                break
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            with contextlib.suppress(FileNotFoundError):  # another process has moved it away
                refuse_foreign(folder)
                moved.append(folder.rename(sibling(folder, "old")))
        else:
            raise ValueError(f'"{folder}" is written by others all the time; try again')
    except BaseException:
        if moved and not folder.exists():
            moved.pop().rename(folder)
        raise
    finally:
        for old in moved:
            shutil.rmtree(old, ignore_errors=True)


def _erase_path(temporary: Path) -> None:
    """Take the path of this machine out of the one file in which Orbax notes it, and of which it only looks whether it is there."""
    note = temporary / WEIGHTS / _COMMIT_NOTE
    if note.is_file():
        note.write_text("Checkpoint commit was successful\n")


def _listing(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every weights file, by its path."""
    files = sorted(f for f in (folder / WEIGHTS).rglob("*") if f.is_file())
    return {f.relative_to(folder).as_posix(): {"bytes": f.stat().st_size, "sha256": file_hash(f)} for f in files}


def _seal(entries: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest's entries, without the seal itself."""
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def _hash(leaves: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name, leaf in sorted(leaves.items()):
        add_to_hash(digest, name, whole(leaf))
    return digest.hexdigest()


def _load_folder(folder: Path, mesh: Mesh | None = None) -> ViT:
    """The model of a checkpoint folder, after all checks of its files."""
    manifest = read_manifest(folder)
    config = _config(manifest.get("config"), folder)
    # sizes first: Orbax reads in parallel, and its messages about several failed reads are not readable
    for name, entry in (manifest.get("files") or {}).items():
        file, size = folder / name, entry["bytes"]
        if not file.is_file() or file.stat().st_size != size:
            state = f"has {file.stat().st_size} bytes" if file.is_file() else "is missing"
            raise ValueError(f'checkpoint "{folder}" is damaged: {name} {state}, it had {size} when written; convert the weights again')
    tree = abstract(config) if mesh is None else with_weight_shards(abstract(config), mesh)
    shardings = {} if mesh is None else named_leaves(weight_shardings(tree, mesh))
    digest, leaves = hashlib.sha256(), {}
    try:
        with stored_leaves((folder / WEIGHTS).resolve()) as (stored, read):
            _check(named_leaves(tree), stored)
            for name in sorted(stored):  # one after another: the host holds one leaf, a device its share of all
                leaf = read(name)
                add_to_hash(digest, name, leaf)
                leaves[name] = jax.block_until_ready(jax.device_put(leaf, shardings[name]) if mesh else jnp.asarray(leaf))
    except Exception as error:  # Orbax and its storage raise errors of many types, with messages of many lines
        fits = "RESOURCE_EXHAUSTED" not in str(error)
        remedy = "" if fits else "; split it over several devices: jaxvit.load(path, jaxvit.sharding.batch_mesh())"
        raise ValueError(f'checkpoint "{folder}" cannot be read: {first_line(error).rstrip(".")}{remedy}') from error
    if digest.hexdigest() != manifest.get("weights_sha256"):
        raise ValueError(f'checkpoint "{folder}" is damaged: its weights are not those of its manifest; convert the weights again')
    return _assembled(tree, leaves)


def _load_demo(file: Path) -> ViT:
    """A demo model, in float32: its file holds float16 leaves and, in the header, the config."""
    config, leaves = _open_demo(file)
    return assemble(config, {name: jnp.asarray(leaf, jnp.float32) for name, leaf in leaves.items()})


def _open_demo(file: Path) -> tuple[ViTConfig, dict[str, np.ndarray]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as tensors:
            config = _config(json.loads((tensors.metadata() or {}).get("config", "null")), file)
            return config, {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged: {error}; install the package again") from error


def _config(entries: Any, source: Path) -> ViTConfig:
    """The config of a manifest or of a demo's header; older ones have other names for some fields."""
    try:
        fields: dict[str, Any] = {_RENAMED.get(k, k): tuple(v) if isinstance(v, list) else v for k, v in entries.items()}
        return ViTConfig(**fields)
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{source} names no config that this version knows: {error}; convert the weights again") from error


def _check(expected: Mapping[str, Any], leaves: Mapping[str, Any]) -> None:
    """Refuse leaves whose names, shapes or dtypes are not those of the model."""
    faults = []
    for fault, names in (("missing", expected.keys() - leaves.keys()), ("unknown", leaves.keys() - expected.keys())):
        if names:
            listed = ", ".join(sorted(names)[:_NAMES_SHOWN])
            faults.append(f"{len(names)} {fault} ({listed}{', ...' if len(names) > _NAMES_SHOWN else ''})")
    if faults:
        raise ValueError(f"weights do not fit the config: {'; '.join(faults)}")
    for name, spec in expected.items():
        shape, dtype = tuple(leaves[name].shape), leaves[name].dtype
        if shape != tuple(spec.shape):
            raise ValueError(f"weights do not fit the config: {name} has shape {shape} instead of {tuple(spec.shape)}")
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"weights do not fit the config: {name} has dtype {dtype} instead of a float")


def _not_found(path_or_name: str | os.PathLike[str], folder: Path) -> str:
    """The error message for a path or name that cannot be loaded, with what could be."""
    if folder.is_file() or folder.is_dir():
        return f'"{path_or_name}" is no jaxvit checkpoint (it has no {MANIFEST}); convert it: python -m convert {path_or_name} --out DIR'
    demos = sorted(f.stem for f in DEMO_FOLDER.glob("*.safetensors"))
    cached = sorted(f.parent.name for f in cache_folder().glob(f"*/{MANIFEST}"))
    if str(path_or_name) in MODELS:
        return f'the weights of "{path_or_name}" are not in the cache {cache_folder()}; get them: python -m convert {path_or_name}'
    return (
        f'"{path_or_name}" is not here: possible are a checkpoint folder, a demo ({", ".join(demos) or "none"}) or a name in the cache '
        f"{cache_folder()} ({', '.join(cached) or 'empty'}); make one with: python -m convert SOURCE --out DIR"
    )
