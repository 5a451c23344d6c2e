"""Released weights by name, from the Hugging Face hub. The only place that imports `huggingface_hub`, and only when it is used."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from convert.layouts import Oracle
from jaxvit import MODELS
from jaxvit.checkpoint import cache_folder


class Release(NamedTuple):
    """Where the weights of a released model come from.

    Attributes:
        repository: on the hub.
        revision: the commit that this version of jaxvit was written for; None where none is known: the newest then.
        oracle: whose implementation to agree with where they differ.
    """

    repository: str
    revision: str | None
    oracle: Oracle


RELEASES: dict[str, Release] = {
    # Meta's own tensors under Meta's own keys; Hugging Face's copies of the S/16 and B/16 are not safetensors.
    "dino_vits16": Release("timm/vit_small_patch16_224.dino", "10e440b8a34dfd657a90f2fcaa988c6b6a2f0da4", "meta"),
    "dino_vits8": Release("timm/vit_small_patch8_224.dino", "ed0d13cf0292a2609bb091f4809dd540e47ff1c5", "meta"),
    "dino_vitb16": Release("timm/vit_base_patch16_224.dino", "3517eab8163b9009b2b7585de5308a49bc38afbf", "meta"),
    "dino_vitb8": Release("timm/vit_base_patch8_224.dino", "381ea38fc8af183c2e52a1661329ce9c16d7f97e", "meta"),
    "dinov2_vits14": Release("facebook/dinov2-small", "ed25f3a31f01632728cabb09d1542f84ab7b0056", "hf"),
    "dinov2_vitb14": Release("facebook/dinov2-base", "f9e44c814b77203eaa57a6bdbbd535f21ede1415", "hf"),
    "dinov2_vitl14": Release("facebook/dinov2-large", "47b73eefe95e8d44ec3623f8890bd894b6ea2d6c", "hf"),
    "dinov2_vitg14": Release("facebook/dinov2-giant", "611a9d42f2335e0f921f1e313ad3c1b7178d206d", "hf"),
    "dinov2_vits14_reg": Release("facebook/dinov2-with-registers-small", "0d9846e56b43a21fa46d7f3f5070f0506a5795a9", "hf"),
    "dinov2_vitb14_reg": Release("facebook/dinov2-with-registers-base", "a1d738ccfa7ae170945f210395d99dde8adb1805", "hf"),
    "dinov2_vitl14_reg": Release("facebook/dinov2-with-registers-large", "e4c89a4e05589de9b3e188688a303d0f3c04d0f3", "hf"),
    "dinov2_vitg14_reg": Release("facebook/dinov2-with-registers-giant", "8d0d49f77fb8b5dd78842496ff14afe7dd4d85cb", "hf"),
    "dinov3_vits16": Release("facebook/dinov3-vits16-pretrain-lvd1689m", "114c1379950215c8b35dfcd4e90a5c251dde0d32", "hf"),
    "dinov3_vits16plus": Release("facebook/dinov3-vits16plus-pretrain-lvd1689m", "c93d816fc9e567563bc068f01475bec89cc634a6", "hf"),
    "dinov3_vitb16": Release("facebook/dinov3-vitb16-pretrain-lvd1689m", "5931719e67bbdb9737e363e781fb0c67687896bc", "hf"),
    "dinov3_vitl16": Release("facebook/dinov3-vitl16-pretrain-lvd1689m", "ea8dc2863c51be0a264bab82070e3e8836b02d51", "hf"),
    "dinov3_vith16plus": Release("facebook/dinov3-vith16plus-pretrain-lvd1689m", "c807c9eeea853df70aec4069e6f56b28ddc82acc", "hf"),
    "dinov3_vit7b16": Release("facebook/dinov3-vit7b16-pretrain-lvd1689m", "b80367753773648a6793235ab9c65cdbb029506f", "hf"),
    "dinov3_vitl16_sat493m": Release("facebook/dinov3-vitl16-pretrain-sat493m", "f692fa42da72c6797b67cd73494a168d1120d3ee", "hf"),
    "dinov3_vit7b16_sat493m": Release("facebook/dinov3-vit7b16-pretrain-sat493m", None, "hf"),
}
_FILES = ["config.json", "model.safetensors", "model-*.safetensors", "model.safetensors.index.json"]


def cached(name: str) -> Path:
    """The folder where `fetch` puts a released model and `jaxvit.load` looks for it."""
    return cache_folder() / name


def download(name: str) -> tuple[Path, dict[str, Any]]:
    """Download the weights of a released model, or find them where an earlier download left them.

    An interrupted download goes on where it stopped. `HF_TOKEN`, `HF_HOME`, `HF_ENDPOINT` and `HF_HUB_OFFLINE` are respected.

    Returns:
        A folder in the hub's own cache, and what the manifest says of its source: repository and commit.

    Raises:
        ValueError: the name is unknown, or the weights cannot be had; the message says what to do.
    """
    if name not in RELEASES:
        raise ValueError(f'"{name}" is no released model; known are {", ".join(RELEASES)}')
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise ValueError("downloading needs huggingface_hub: pip install huggingface_hub, or convert a local file") from error
    release = RELEASES[name]
    try:
        folder = huggingface_hub.snapshot_download(release.repository, revision=release.revision, allow_patterns=_FILES)
    except errors.GatedRepoError as error:
        raise ValueError(
            f"{release.repository} is gated: accept its licence on its page on the hub, then set HF_TOKEN to a token of yours (or run "
            f"hf auth login), or convert a file that you have: {_by_file(name)}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{release.repository} has no revision {release.revision} (any more); {_instead(name)}") from error
    except errors.RepositoryNotFoundError as error:
        raise ValueError(
            f"{release.repository} is not on the hub, or not visible without a token (HF_TOKEN, or hf auth login); {_instead(name)}"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        why = "HF_HUB_OFFLINE forbids to look further" if _offline() else "the hub cannot be reached or does not answer"
        raise ValueError(f"{release.repository} is not in the hub's local cache, and {why}; {_instead(name)}") from error
    except Exception as error:  # the many ways in which a connection ends
        reason = next((line for line in str(error).splitlines() if line.strip()), "") or type(error).__name__
        raise ValueError(
            f"downloading {release.repository} failed: {reason[:200]}; run the same command again, it goes on where it stopped"
        ) from error
    path = Path(folder)
    return path, {"repository": release.repository, "revision": path.name}


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _by_file(name: str) -> str:
    return f"python -m convert FILE --name {name} --out {cached(name)}"


def _instead(name: str) -> str:
    return f"convert a file that you have: {_by_file(name)}"


assert RELEASES.keys() == MODELS.keys()
