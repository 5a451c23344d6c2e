"""`.pth` files, the one place that needs torch. Nothing in a pickle is executed: only tensors, plain containers, NumPy's numbers and
`argparse.Namespace` (which full DINO checkpoints hold) are read."""

from __future__ import annotations

import argparse
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from convert.copies import find_models, teacher_of
from convert.formats import refuse_format
from convert.naming import is_training_state
from jaxvit.files import refuse_remote, replacing, require_space

ZIP = b"PK\x03\x04"
_MAX_DEPTH = 7  # of dicts in one another


def read_pickle(path: Path) -> dict[str, Any]:
    """Every tensor of a `.pth` file, as a torch tensor: its key is joined from those of the dicts and lists around it, with dots.

    Raises:
        ValueError: torch is missing, or the file is damaged, holds other objects, or no tensors.
    """
    return _tensors(_content(path), path)


def to_safetensors(source: str | os.PathLike[str], out: str | os.PathLike[str]) -> Path:
    """Write the weights of a `.pth` file, dtypes and keys as they are, to a safetensors file; returns its path.

    Of a teacher and a student only the teacher is written, of other copies all; dicts without any weights of a model (those of an
    optimizer) are not. Keys get the names of the dicts around them where the weights stand in several dicts.

    Raises:
        ValueError: `source` is no readable `.pth` file, `out` is a folder, or there is no space for it.
    """
    refuse_remote(source)
    refuse_remote(out)
    path, target = Path(source).expanduser(), Path(out).expanduser()
    if not path.is_file():
        raise ValueError(f'"{source}" is no file; pass a .pth file, or the pytorch_model.bin of a Hugging Face folder')
    if target.is_dir():
        raise ValueError(f'"{out}" is a folder; name a file that ends in .safetensors')
    with path.open("rb") as file:
        beginning = file.read(32)
    refuse_format(path, beginning)
    if beginning[8:9] == b"{":
        raise ValueError(f'"{source}" is a safetensors file already; convert it as it is')
    content = _content(path)
    weights = _of_models(_tensors(content, path), content)
    require_space(target, sum(tensor.numel() * tensor.element_size() for tensor in weights.values()))
    from safetensors.torch import save_file

    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        save_file(_unshared(weights), temporary, metadata={"format": "pt"})
    return target


def _unshared(weights: dict[str, Any]) -> dict[str, Any]:
    """The tensors, each contiguous in memory of its own as safetensors requires: copied where they share memory or are views."""
    unshared: dict[str, Any] = {}
    addresses = set()
    for key, tensor in weights.items():
        storage = tensor.untyped_storage()
        fills_storage = storage.nbytes() == tensor.numel() * tensor.element_size() and tensor.is_contiguous()
        is_first = storage.data_ptr() not in addresses
        unshared[key] = tensor.detach() if fills_storage and is_first else tensor.detach().clone().contiguous()
        addresses.add(storage.data_ptr())
    return unshared


def _torch(path: Path) -> Any:
    """The torch module.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"reading a {path.suffix or '.pth'} file needs torch: pip install -e '.[torch]', or run `python -m convert {path.name} "
            f"--to-safetensors {path.stem}.safetensors` on another machine that has it and convert the result here"
        ) from error
    return torch


def _content(path: Path) -> dict[Any, Any]:
    """What a `.pth` file holds.

    Raises:
        ValueError: torch is missing, or the file is damaged, or holds other objects.
    """
    torch = _torch(path)
    with path.open("rb") as file:
        is_zip = file.read(4) == ZIP
    try:
        with torch.serialization.safe_globals(_safe_classes()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols and old storages: errors say enough
            # only zip archives can be memory-mapped
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True if is_zip else None)
    except Exception as error:  # torch passes on all kinds of errors of its unpickler
        raise ValueError(_reason(path, error)) from error
    if not isinstance(content, dict):
        raise ValueError(f'"{path}" holds a {type(content).__name__}, not a dict of tensors; pass a state dict')
    return content


def _safe_classes() -> list[Any]:
    """Classes beside torch's own that may be unpickled: they hold plain values (NumPy's: a best score, a loss) and run nothing."""
    dtypes = [getattr(np.dtypes, name) for name in np.dtypes.__all__]
    scalar, array = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]  # their names differ among versions of NumPy
    modules = ("numpy._core.multiarray", "numpy.core.multiarray")
    named = [(made, f"{module}.{name}") for module in modules for made, name in ((scalar, "scalar"), (array, "_reconstruct"))]
    return [argparse.Namespace, np.dtype, np.ndarray, *dtypes, *named]


def _tensors(content: dict[Any, Any], path: Path) -> dict[str, Any]:
    """All tensors in nested dicts and lists, by joined key.

    Raises:
        ValueError: there are none, or two have the same key.
    """
    tensors: dict[str, Any] = {}
    for key, value in _flat(content, ""):
        if key in tensors:
            raise ValueError(f'"{path}" holds two tensors under "{key}"; pass a state dict')
        tensors[key] = value
    if not tensors:
        entries = ", ".join(f"{key} ({type(value).__name__})" for key, value in list(content.items())[:5])
        raise ValueError(f'"{path}" holds no weights: its entries are {entries or "none"}; pass a file with a state dict')
    return tensors


def _flat(tree: Any, prefix: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    for name, value in items if depth < _MAX_DEPTH else ():
        if hasattr(value, "is_floating_point"):
            yield f"{prefix}{name}", value
        else:
            yield from _flat(value, f"{prefix}{name}.", depth + 1)


def _of_models(tensors: dict[str, Any], content: dict[Any, Any]) -> dict[str, Any]:
    """The tensors in the dicts that hold a vision transformer, and those outside all dicts; all where there is no such model."""
    models = find_models({key: tuple(tensor.shape) for key, tensor in tensors.items()})
    chosen = teacher_of(models)
    model_boxes = {key.partition(".")[0] for model in ([chosen] if chosen else models) for key in model.keys.values()}
    boxes = {str(key) for key, value in content.items() if isinstance(value, dict | list | tuple)}
    tensors = {
        key: value
        for key, value in tensors.items()
        if (box := key.partition(".")[0]) in model_boxes or not (box in boxes or is_training_state(box))
    }
    if len(model_boxes) == 1 and model_boxes <= boxes and all(key.partition(".")[0] in model_boxes for key in tensors):
        (box,) = model_boxes
        inner = next(value for key, value in content.items() if str(key) == box)
        return _of_models({key.removeprefix(f"{box}."): value for key, value in tensors.items()}, inner if isinstance(inner, dict) else {})
    return tensors


def _reason(path: Path, error: Exception) -> str:
    """Why torch could not read the file, and what to do."""
    message = str(error)
    forbidden = re.search(r"GLOBAL ([\w.]+)", message) or re.search(r"[Uu]nsupported (?:class|global):? ([\w.]+)", message)
    if forbidden:
        return (
            f'"{path}" is refused: it holds a pickled {forbidden[1].rstrip(".")}, and only tensors, plain containers, numbers and '
            "argparse.Namespace are read; export its state dict: torch.save(model.state_dict(), FILE)"
        )
    if "weights_only" in message:  # torch's advice on how to execute it after all
        return f'"{path}" is refused: it is damaged, or its pickle holds more than tensors and plain containers; get the file again'
    line = next((line for line in message.splitlines() if line.strip()), type(error).__name__)
    return f'"{path}" is no readable PyTorch checkpoint, maybe cut off: {line[:200]}; get the file again'
