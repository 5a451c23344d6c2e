"""What a file or folder is that holds no weights which are read here, and what to do: in one line."""

from __future__ import annotations

import difflib
import json
import re
import zipfile
from pathlib import Path

from convert.hub import RELEASES
from jaxvit import MODELS
from jaxvit.checkpoint import DEMO_FOLDER

_EXPORTED = "get the weights that it was made from, a .safetensors or .pth file"
_UNPACK = "unpack it and pass the weights file or folder in it"
_DISTRIBUTED = (
    "a checkpoint of torch.distributed: `python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER w.pth` writes a file "
    "that can be passed"
)
_TENSORFLOW = "TensorFlow weights (HDF5)"
_FLAX = "Flax weights"
_SCRIPT = (
    "a TorchScript archive: `python -c \"import torch; torch.save(torch.jit.load('FILE').state_dict(), 'w.pth')\"` writes a file that can "
    "be passed, where you trust this one"
)
_MAGIC = (
    (b"\x93NUMPY", f"a NumPy array (.npy); {_EXPORTED}"),
    (b"\x89HDF", _TENSORFLOW),
    (b"GGUF", f"a GGUF file of llama.cpp; {_EXPORTED}"),
    (b"version https://git-lfs", "a pointer of Git LFS; `git lfs pull` gets the file"),
    (b"\x1f\x8b", f"a gzip archive; {_UNPACK}"),
    (b"BZh", f"a bzip2 archive; {_UNPACK}"),
    (b"\xfd7zXZ", f"an xz archive; {_UNPACK}"),
    (b"7z\xbc\xaf", f"a 7z archive; {_UNPACK}"),
    (b"Rar!", f"a RAR archive; {_UNPACK}"),
    (b"<", "a web page; download the file itself"),
    (b"{", "JSON; pass the folder that holds it, or the weights file"),
)
_SUFFIXES = {
    ".distcp": _DISTRIBUTED,
    ".metadata": _DISTRIBUTED,
    ".msgpack": _FLAX,
    ".onnx": f"an ONNX graph; {_EXPORTED}",
    ".pb": f"a TensorFlow graph; {_EXPORTED}",
    ".index": f"a part of a TensorFlow checkpoint; {_EXPORTED}",
    ".tflite": f"a TensorFlow Lite graph; {_EXPORTED}",
    ".tar": f"a tar archive; {_UNPACK}",
}
_WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".npy", ".npz", ".h5", ".msgpack", ".onnx", ".gguf", ".pb", ".index")
_PART = re.compile(r"-\d{5}-of-\d{5}\.(safetensors|bin)$")
_REPOSITORY = re.compile(r"(?:hf-hub:)?([\w.-]+/[\w.-]+)")
_NAMES_SHOWN = 5


def refuse_format(path: Path, beginning: bytes) -> None:
    """Check that a file is not of a format that is known and not read.

    Args:
        beginning: its first bytes.

    Raises:
        ValueError: it is; the message says which, and what to do.
    """
    if _PART.search(path.name):
        raise ValueError(f'"{path}" is one part of several; pass its folder, "{path.parent}"')
    kind = _kind_of_file(path, beginning)
    if kind is not None:
        raise ValueError(f'"{path}" is neither a PyTorch nor a safetensors file: it is {_with_advice(kind, path.name, path.parent)}')


def folder_refusal(folder: Path) -> str:
    """Why a folder without weights under the names of Hugging Face or timm cannot be read: what it holds, and what to do."""
    names = sorted(entry.name for entry in folder.iterdir())
    parts = [f"{name}/model.safetensors" for name in names if (folder / name / "model.safetensors").is_file()]
    weights = [name for name in names if name.endswith(_WEIGHTS) and (folder / name).is_file()]
    if ".metadata" in names or any(name.endswith(".distcp") for name in names):
        return f'"{folder}" is {_with_advice(_DISTRIBUTED, folder.name, folder)}'
    for checkpoint in (folder, folder.parent):
        if _is_jaxvit(checkpoint):
            return f'"{checkpoint}" is a jaxvit checkpoint already: jaxvit.load("{checkpoint}") opens it'
    if {"_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt"} & set(names):
        return f'"{folder}" is an Orbax checkpoint of another program; write its weights to a .safetensors file under published keys'
    if "adapter_model.safetensors" in names or "adapter_model.bin" in names:
        return f'"{folder}" holds an adapter (LoRA), not a model; merge it with its base (peft: merge_and_unload()) and save that'
    if "snapshots" in names:
        return f'"{folder}" is a folder of the hub\'s cache; pass the folder of a revision in "{folder / "snapshots"}"'
    missing = f'"{folder}" has neither model.safetensors nor pytorch_model.bin nor an index of parts'
    if any(_PART.search(name) for name in names):
        return f"{missing}, but parts; get the index too, the file that ends in .index.json"
    kinds = {name: _kind_of_file(folder / name, _beginning(folder / name)) for name in weights}
    if readable := [name for name in weights if kinds[name] is None]:
        return f"{missing}, but {_listed(readable)}; pass the file itself: {folder / readable[0]}"
    if weights:
        return f"{missing}; its {weights[0]} is {_with_advice(kinds[weights[0]] or '', weights[0], folder)}"
    if parts:
        return f"{missing}, but {_listed(parts)}; pass that folder: {(folder / parts[0]).parent}"
    return f"{missing}; pass a Hugging Face or timm folder that has, or a weights file"


def unknown_source(source: str) -> str:
    """Why something that is no file, no folder and no released name cannot be read, and how to get it from the hub."""
    repository = _REPOSITORY.fullmatch(source)
    if repository and not source.endswith(_WEIGHTS):
        name = next((name for name, release in RELEASES.items() if release.repository == repository[1]), None)
        by_name = repository[1].partition("/")[2].replace("-", "_")
        if name is None and by_name in MODELS:
            name = by_name
        if name is not None:
            return f'"{source}" is no file or folder; on the hub it is the released model {name}: python -m convert {name}'
        return (
            f'"{source}" is no file, no folder and no released model; if a repository of the Hugging Face hub is meant: hf download '
            f"{repository[1]} --local-dir DIR, then convert DIR; released are {', '.join(MODELS)}"
        )
    if (DEMO_FOLDER / f"{source}.safetensors").is_file():
        return f'"{source}" is a bundled demo model, with nothing to convert: jaxvit.load("{source}") opens it'
    close = difflib.get_close_matches(source, MODELS, n=1, cutoff=0.8)
    meant = f" (is {close[0]} meant?)" if close else ""
    return f'"{source}" is no file, no folder and no released model{meant}; released are {", ".join(MODELS)}'


def _kind_of_file(path: Path, beginning: bytes) -> str | None:
    """What a file is, with what to do after ";" or ":" where the format tells; None where it may be one that is read."""
    suffix = path.suffix or path.name  # ".metadata" has no suffix
    if suffix in (".distcp", ".metadata"):  # whose content begins like a file of torch
        return _SUFFIXES[suffix]
    if zipfile.is_zipfile(path):
        return _kind_of_archive(path)
    if beginning[8:9] == b"{" or beginning.startswith((b"\x80", b"PK")):
        return None
    by_content = next((kind for magic, kind in _MAGIC if beginning.startswith(magic)), None)
    return by_content or _SUFFIXES.get(suffix)


def _kind_of_archive(path: Path) -> str | None:
    """What a zip archive is; None where it is one of torch's."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith(".npy") for name in names):
        return f"a NumPy archive (.npz) of {_listed(names)}; {_EXPORTED}"
    if any(name.endswith("constants.pkl") or "/code/" in name for name in names):
        return _SCRIPT.replace("FILE", str(path))
    if any(name.endswith(("archive_format", "models/model.json", "serialized_exported_program.json")) for name in names):
        return f"a program of torch.export (.pt2); {_EXPORTED}"
    if any(name.endswith("data.pkl") for name in names):
        return None
    return f"a zip archive of {_listed(names) or 'nothing'}; {_UNPACK}"


def _with_advice(kind: str, name: str, folder: Path) -> str:
    """The kind of a file with what to do: for Hugging Face's TensorFlow and Flax weights the way over transformers."""
    if kind not in (_TENSORFLOW, _FLAX):
        return kind.replace("FOLDER", str(folder))
    option = "from_tf" if kind == _TENSORFLOW else "from_flax"
    return (
        f"{kind}; get model.safetensors from where {name} comes from, or with transformers 4: "
        f"AutoModel.from_pretrained('{folder}', {option}=True).save_pretrained('NEW'), and convert NEW"
    )


def _beginning(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(32)


def _is_jaxvit(folder: Path) -> bool:
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == "jaxvit"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")
