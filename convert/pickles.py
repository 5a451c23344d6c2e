"""`.pth` files, the one place that needs torch. Nothing in a pickle is executed: only tensors, plain containers and
`argparse.Namespace` (which full DINO checkpoints hold) are read."""

from __future__ import annotations

import argparse
import os
import re
import warnings
from pathlib import Path
from typing import Any

from jaxvit.files import refuse_remote, replacing, require_space

ZIP = b"PK\x03\x04"
# of several wrappers the first is read
WRAPPERS = ("teacher", "student", "model", "state_dict", "module", "backbone")
_MAX_DEPTH = 5


def read_pickle(path: Path) -> tuple[dict[str, Any], str]:
    """The weights of a `.pth` file as torch tensors by key, and the path of wrapper dicts around them ("model.teacher", or "").

    Raises:
        ValueError: torch is missing, or the file is damaged, holds other objects, or no weights.
    """
    torch = _torch()
    with path.open("rb") as file:
        is_zip = file.read(4) == ZIP
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols and old storages: errors say enough
            # only zip archives can be memory-mapped
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True if is_zip else None)
    except Exception as error:  # torch passes on all kinds of errors of its unpickler
        raise ValueError(_reason(path, error)) from error
    if not isinstance(content, dict):
        raise ValueError(f'"{path}" holds a {type(content).__name__}, not a dict of tensors; pass a state dict')
    weights, wrapper = _unwrap(content)
    if not weights:
        entries = ", ".join(f"{key} ({type(value).__name__})" for key, value in list(content.items())[:5])
        raise ValueError(f'"{path}" holds no weights: its entries are {entries or "none"}; possible wrappers are {", ".join(WRAPPERS)}')
    return weights, wrapper


def to_safetensors(source: str | os.PathLike[str], out: str | os.PathLike[str]) -> Path:
    """Write the weights of a `.pth` file, keys and dtypes as they are, to a safetensors file; returns its path.

    Raises:
        ValueError: `source` is no readable `.pth` file, `out` is a folder, or there is no space for it.
    """
    refuse_remote(source)
    refuse_remote(out)
    path, target = Path(source).expanduser(), Path(out).expanduser()
    if not path.is_file():
        raise ValueError(f'"{source}" is no file; pass a .pth file')
    if target.is_dir():
        raise ValueError(f'"{out}" is a folder; name a file that ends in .safetensors')
    weights, _ = read_pickle(path)
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


def _torch() -> Any:
    """The torch module.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            "reading a .pth file needs torch: pip install -e '.[torch]', or run `python -m convert FILE.pth --to-safetensors "
            "FILE.safetensors` on another machine that has it and convert the result here"
        ) from error
    return torch


def _unwrap(tree: dict[Any, Any], depth: int = 0) -> tuple[dict[str, Any], str]:
    """The weights in the first wrapper that holds any, else the tensors of this dict; and the path of wrappers.

    Everything else (optimizer, epoch, arguments, scalars) is dropped. A tensor next to a wrapper is included, so that it is
    reported as unknown.
    """
    tensors = {str(key): value for key, value in tree.items() if hasattr(value, "is_floating_point")}
    for name in WRAPPERS if depth < _MAX_DEPTH else ():
        if isinstance(tree.get(name), dict):
            inner, path = _unwrap(tree[name], depth + 1)
            if inner:
                return {**{key: tensor for key, tensor in tensors.items() if tensor.ndim}, **inner}, f"{name}.{path}".rstrip(".")
    return tensors, ""


def _reason(path: Path, error: Exception) -> str:
    """Why torch could not read the file, and what to do."""
    message = str(error)
    forbidden = re.search(r"GLOBAL ([\w.]+)", message) or re.search(r"[Uu]nsupported (?:class|global):? ([\w.]+)", message)
    if forbidden:
        return (
            f'"{path}" is refused: it holds a pickled {forbidden[1].rstrip(".")}, and only tensors, plain containers and '
            "argparse.Namespace are read; export its state dict"
        )
    if "weights_only" in message:  # torch's advice on how to execute it after all
        return f'"{path}" is refused: it is damaged, or its pickle holds more than tensors and plain containers; get the file again'
    line = next((line for line in message.splitlines() if line.strip()), type(error).__name__)
    return f'"{path}" is no readable PyTorch checkpoint, maybe cut off: {line[:200]}; get the file again'
