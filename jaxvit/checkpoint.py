"""Checkpoints: a folder with an Orbax tree and a manifest, written all at once; the demos and the cache are read by name."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import glob
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvit.config import MODELS, ViTConfig
from jaxvit.vit import ViT, abstract

FORMAT = "jaxvit"
FORMAT_VERSION = 2
MANIFEST = "manifest.json"
WEIGHTS = "weights"
DEMO_FOLDER = Path(__file__).parent / "demo"
_PACKAGES = ("jax", "flax", "orbax-checkpoint", "numpy")
_SEAL = "manifest_sha256"
_NAMES_SHOWN = 5
_TRIES = 20
_STALE = 24 * 3600  # seconds
_OVERHEAD = 2**20  # bytes beside the weights: the description of the tree, the manifest


def save(model: ViT, path: str | os.PathLike[str], manifest: Mapping[str, Any] | None = None) -> Path:
    """Write a model to a checkpoint folder: all of it or, where the process dies on the way, nothing under that name.

    Args:
        model: weights of any float dtype.
        path: the folder; an existing checkpoint (or empty folder) there is replaced.
        manifest: JSON entries to keep beside the weights, for example where they come from.

    Returns:
        The folder.

    Raises:
        ValueError: something that is no jaxvit checkpoint stands at `path`, there is no space for it, writing fails, or `manifest`
            redefines an entry of ours.
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
    if clash := sorted({*own, "files", _SEAL} & (manifest or {}).keys()):
        raise ValueError(f"manifest entries {', '.join(clash)} are written by save itself; rename yours")
    require_space(folder, sum(leaf.nbytes for leaf in leaves.values()))
    made = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    temporary = _sibling(folder, "tmp")
    try:
        temporary.mkdir()
        # Orbax's defaults copy every array before it is compressed and written: twice the weights in memory, to save a tenth on disk
        registry = ocp.type_handlers.create_type_handler_registry(
            (np.ndarray, ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)), (jax.Array, ocp.type_handlers.ArrayHandler())
        )
        handler = ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=registry)
        try:
            with _silent_absl(), ocp.Checkpointer(handler) as checkpointer:
                checkpointer.save(temporary / WEIGHTS, leaves)
        except Exception as error:  # Orbax and its storage raise many kinds, with messages of many lines
            raise ValueError(f'writing "{folder}" failed, nothing is left of it: {_first_line(error)}') from error
        entries = json.loads(json.dumps(own | {"files": _listing(temporary)} | dict(manifest or {})))
        (temporary / MANIFEST).write_text(json.dumps(entries | {_SEAL: _seal(entries)}, indent=2) + "\n")
        _put(temporary, folder)
    except BaseException:
        for pause in (0.0, 0.1, 0.3):  # Orbax gives up at the first write that fails; the others go on, and make their folders anew
            time.sleep(pause)
            shutil.rmtree(temporary, ignore_errors=True)
        with contextlib.suppress(OSError):  # somebody else put something there
            for parent in made:
                parent.rmdir()
        raise
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


def verify(path: str | os.PathLike[str]) -> str:
    """Check every byte of a checkpoint folder against its manifest, and the manifest against its own seal.

    Returns:
        The hash of the weights.

    Raises:
        ValueError: it is no checkpoint, or anything in it has changed since it was written; the message names the file.
    """
    folder, manifest = Path(path).expanduser(), read_manifest(path)
    if manifest.pop(_SEAL, None) != _seal(manifest):
        raise ValueError(f'checkpoint "{folder}" is damaged: its {MANIFEST} was changed; convert the weights again')
    for name, entry in manifest["files"].items():
        if not (folder / name).is_file() or file_hash(folder / name) != entry["sha256"]:
            raise ValueError(f'checkpoint "{folder}" is damaged: {name} is not what was written; convert the weights again')
    _load_folder(folder)
    return manifest["weights_sha256"]


def weights_hash(model: ViT) -> str:
    """SHA-256 over name, dtype, shape and bytes of every leaf: the same for the same weights, whatever way they came."""
    return _hash(named_leaves(model))


def file_hash(file: Path) -> str:
    """SHA-256 of a file's bytes."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


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


def require_space(path: Path, size: int) -> None:
    """Make sure that `size` bytes fit where `path` is to be written.

    Raises:
        ValueError: they do not.
    """
    there = next(folder for folder in path.absolute().parents if folder.exists())
    free = shutil.disk_usage(there).free
    if free < size + _OVERHEAD:
        raise ValueError(f'no space left for "{path}": it takes {size / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free in {there}')


def cache_folder() -> Path:
    """Where checkpoints are looked up by name."""
    return Path(os.environ.get("JAXVIT_CACHE") or "~/.cache/jaxvit").expanduser()


def _sibling(folder: Path, kind: str) -> Path:
    """A hidden neighbour: "tmp" while it is written, "old" while it makes room."""
    return folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}.{kind}")


def _sweep(folder: Path) -> None:
    """Put right what a killed process left: a checkpoint that was making room comes back if nothing took its place, and what
    nobody has touched for a day is removed."""
    neighbours = {kind: list(folder.parent.glob(f".{glob.escape(folder.name)}.*.{kind}")) for kind in ("old", "tmp")}
    for old in neighbours["old"]:
        if not folder.exists():
            with contextlib.suppress(OSError):  # its owner was faster
                old.rename(folder)
    for left in (*neighbours["old"], *neighbours["tmp"]):
        with contextlib.suppress(FileNotFoundError):  # its owner removes it while we look
            if time.time() - _touched(left) > _STALE:
                shutil.rmtree(left, ignore_errors=True)


def _touched(folder: Path) -> float:
    """When a folder or anything in it was last written, in seconds since the epoch."""
    entries = [os.path.join(at, name) for at, folders, files in os.walk(folder) for name in (*folders, *files)]
    return max(os.path.getmtime(entry) for entry in (str(folder), *entries))


def _put(temporary: Path, folder: Path) -> None:
    """Give the finished folder its name, also while other processes do the same: the last one stays. A checkpoint that has the
    name makes room, and comes back if that fails."""
    moved: list[Path] = []
    try:
        for _ in range(_TRIES):
            try:
                temporary.rename(folder)
                break
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            with contextlib.suppress(FileNotFoundError):  # somebody else made room
                refuse_foreign(folder)
                moved.append(folder.rename(_sibling(folder, "old")))
        else:
            raise ValueError(f'"{folder}" is written by others all the time; try again')
    except BaseException:
        if moved and not folder.exists():
            moved.pop().rename(folder)
        raise
    finally:
        for old in moved:
            shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _silent_absl() -> Iterator[None]:
    """Orbax logs tracebacks of what it also raises."""
    logger = logging.getLogger("absl")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _first_line(error: Exception) -> str:
    return (next(iter(str(error).splitlines()), "") or type(error).__name__)[:300]


def _listing(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file of the weights."""
    files = sorted(f for f in (folder / WEIGHTS).rglob("*") if f.is_file())
    return {f.relative_to(folder).as_posix(): {"bytes": f.stat().st_size, "sha256": file_hash(f)} for f in files}


def _seal(entries: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest's other entries."""
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


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
    for name, entry in (manifest.get("files") or {}).items():
        file, size = folder / name, entry["bytes"]
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
        raise ValueError(f'checkpoint "{folder}" cannot be read: {_first_line(error)}') from error
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
    if str(given) in MODELS:
        return f'the weights of "{given}" are not in the cache {cache_folder()}; get them: python -m convert {given}'
    return (
        f'"{given}" is not here: possible are a checkpoint folder, a demo ({", ".join(demos) or "none"}) or a name in the cache '
        f"{cache_folder()} ({', '.join(cached) or 'empty'}); make one with: python -m convert SOURCE --out DIR"
    )
