"""Sources of weights: a file or folder of any kind, opened as shapes by key and a function that reads one tensor."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from convert.formats import folder_refusal, refuse_format, unknown_source
from convert.pickles import ZIP, read_pickle
from jaxvit import MODELS
from jaxvit.files import refuse_remote

_WHOLE = ("model.safetensors", "pytorch_model.bin")  # with ".index.json" the names of indices of parts
_CONFIG = "config.json"
_PICKLE = b"\x80"
_REOPEN_AFTER = 2**29  # bytes read
_SAFETENSORS_DTYPES = ("F16", "BF16", "F32", "F64", "BOOL")
_TORCH_DTYPES = ("float16", "bfloat16", "float32", "float64", "bool")


@dataclass(frozen=True)
class Source:
    """An opened checkpoint of someone else.

    Attributes:
        files: all files that are read, for the manifest.
        shapes: shape of every tensor, by key.
        read: returns one tensor by key, in float32.
        settings: path of the `config.json` beside the weights, which may belong to something else.
        folder: folder of which all files belong to these weights; None for a lone file, whose neighbours may be anybody's.
    """

    files: tuple[Path, ...]
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]
    settings: Path | None = None
    folder: Path | None = None


def open_source(source: str | Path) -> Source:
    """Open a `.pth` file, a `.safetensors` file or a Hugging Face folder, recognised by its content.

    Raises:
        ValueError: it does not exist or cannot be read.
    """
    refuse_remote(source)
    path = Path(source).expanduser()
    if path.is_dir():
        opened, folder = _open_folder(path), path
    elif path.is_file():
        opened, folder = _open_file(path), path.parent
    elif str(source) in MODELS:
        raise ValueError(f'"{source}" is a released model, no file: convert.fetch("{source}") or python -m convert {source} downloads it')
    else:
        raise ValueError(unknown_source(str(source)))
    settings = folder / _CONFIG
    belongs = path.is_dir() or path.name in _WHOLE
    return replace(opened, settings=settings if settings.is_file() else None, folder=folder if belongs else None)


def _open_file(path: Path) -> Source:
    with path.open("rb") as file:
        beginning = file.read(32)
    if not beginning:
        raise ValueError(f'"{path}" is neither a PyTorch nor a safetensors file: it is empty; get the file again')
    refuse_format(path, beginning)
    if beginning[8:9] == b"{":
        return _open_safetensors((path,))
    if beginning.startswith((ZIP, _PICKLE)):
        return _open_pickles((path,))
    raise ValueError(f'"{path}" is neither a PyTorch nor a safetensors file: it starts with {beginning!r}; get the file again')


def _open_folder(folder: Path) -> Source:
    """The first of the files, or indices of parts, that Hugging Face and timm write."""
    for name in _WHOLE:
        if (folder / name).is_file():
            return _open_file(folder / name)
        if (folder / f"{name}.index.json").is_file():
            return _open_parts(folder, folder / f"{name}.index.json")
    raise ValueError(folder_refusal(folder))


def _open_parts(folder: Path, index_file: Path) -> Source:
    index = read_json(index_file).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise ValueError(f"{index_file} has no weight_map; get the folder again")
    names = sorted(set(map(str, index.values())))
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise ValueError(f'{index_file} names the file "{name}", which is not in the folder; get the folder again')
    files = tuple(folder / name for name in names)
    source = _open_safetensors(files) if index_file.name.startswith(_WHOLE[0]) else _open_pickles(files)
    if differing := sorted(source.shapes.keys() ^ index.keys()):
        raise ValueError(f"{index_file} and its files disagree about {', '.join(differing[:5])}; get the folder again")
    return replace(source, files=(*source.files, index_file))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: the file holds anything else.
    """
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}; get the file again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__} instead of an object; get the file again")
    return content


def _open_safetensors(files: tuple[Path, ...]) -> Source:
    from safetensors import SafetensorError, safe_open

    file_of: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        try:
            with safe_open(path, framework="numpy") as file:
                for key in file.keys():  # noqa: SIM118  # not a mapping
                    if key in file_of:
                        raise ValueError(f'tensor "{key}" is in two files, {path.name} is the second; get the folder again')
                    tensor = file.get_slice(key)
                    _check_dtype(key, tensor.get_dtype(), _SAFETENSORS_DTYPES)
                    file_of[key] = path
                    shapes[key] = tuple(tensor.get_shape())
        except SafetensorError as error:
            raise ValueError(f'"{path}" is no readable safetensors file, maybe cut off: {error}; get the file again') from error

    def read(key: str) -> np.ndarray:
        # opened for each tensor: the pages read from a mapped file count as used memory until the file is closed
        with safe_open(file_of[key], framework="numpy") as file:
            return _float32(file.get_tensor(key))

    return Source(files, shapes, read)


def _open_pickles(files: tuple[Path, ...]) -> Source:
    tensors = _read_pickles(files)
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    return Source(files, shapes, _PickleReader(files, tensors))


def _read_pickles(files: tuple[Path, ...]) -> dict[str, Any]:
    """All tensors of these files.

    Raises:
        ValueError: a file cannot be read, or two have the same tensor.
    """
    tensors: dict[str, Any] = {}
    for path in files:
        part = read_pickle(path)
        if twice := sorted(tensors.keys() & part.keys()):
            raise ValueError(f'tensor "{twice[0]}" is in two files, {path.name} is the second; get the folder again')
        tensors |= part
    return tensors


class _PickleReader:
    """Reads tensors of memory-mapped `.pth` files, which it opens again after every half gigabyte: the pages read from a mapped
    file count as used memory until the file is closed. Files that cannot be mapped stay open."""

    def __init__(self, files: tuple[Path, ...], tensors: dict[str, Any]):
        self._files, self._tensors, self._bytes_read = files, tensors, 0
        self._reopens = all(zipfile.is_zipfile(path) for path in files)

    def __call__(self, key: str) -> np.ndarray:
        if self._reopens and self._bytes_read > _REOPEN_AFTER:
            self._tensors, self._bytes_read = {}, 0
            self._tensors = _read_pickles(self._files)
        tensor = self._tensors[key]
        self._bytes_read += tensor.numel() * tensor.element_size()
        return _from_torch(tensor, key)


def _check_dtype(key: str, dtype: str, readable: tuple[str, ...]) -> None:
    """Raise a `ValueError` where a tensor's dtype is not among the readable ones."""
    if dtype not in readable:
        raise ValueError(f'tensor "{key}" holds {dtype}; {", ".join(readable)} are read: pass unquantised weights')


def _from_torch(tensor: Any, key: str) -> np.ndarray:
    """A torch tensor in float32."""
    _check_dtype(key, str(tensor.dtype).removeprefix("torch."), _TORCH_DTYPES)
    return np.asarray(tensor.detach().float().contiguous().numpy())


def _float32(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # `read_model` refuses every infinity, also one of overflow
        return array.astype(np.float32)
