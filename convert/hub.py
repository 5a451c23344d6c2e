"""Released weights by name, from the Hugging Face hub. The only place that imports `huggingface_hub`, and only when it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from convert.layouts import Oracle
from jaxvit.files import cache_folder


class Release(NamedTuple):
    """Where the weights of a released model come from.

    Attributes:
        repository: owner and name on the hub.
        revision: the commit that this version of jaxvit was written for; None stands for the newest.
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
_TOKEN_HINT = "HF_TOKEN, or hf auth login"
_DOWNLOADED = ["config.json", "model.safetensors", "model-*.safetensors", "model.safetensors.index.json"]


def cached_checkpoint(name: str) -> Path:
    """The folder in the cache where `fetch` puts a released model and `jaxvit.load` looks for it."""
    return cache_folder() / name


def release(name: str) -> Release:
    """The repository, commit and oracle of a released model.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in RELEASES:
        raise ValueError(f'"{name}" is no released model; known are {", ".join(RELEASES)}')
    return RELEASES[name]


def download(source: Release, name: str) -> tuple[Path, dict[str, Any]]:
    """Download the weights of a released model, or find them in the hub's local cache.

    A broken download continues where it broke; a command that was stopped keeps the files that were complete. `HF_TOKEN`,
    `HF_HOME`, `HF_ENDPOINT` and `HF_HUB_OFFLINE` are respected.

    Returns:
        A folder in the hub's local cache, and the provenance for the manifest: repository and commit.

    Raises:
        ValueError: the weights cannot be downloaded; the message says what to do.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise ValueError("downloading needs huggingface_hub: pip install huggingface_hub, or convert a local file") from error
    try:
        folder = Path(huggingface_hub.snapshot_download(source.repository, revision=source.revision, allow_patterns=_DOWNLOADED))
    except Exception as error:  # connections fail in many ways
        raise ValueError(f"{source.repository} {_reason(error, source, name)}") from error
    return folder, {"repository": source.repository, "revision": folder.name}


def _reason(error: Exception, source: Release, name: str) -> str:
    """Why a download failed, and what to do."""
    from huggingface_hub import constants, errors

    alternative = f"convert a file that you have: python -m convert FILE --name {name} --out {cached_checkpoint(name)}"
    if isinstance(error, errors.GatedRepoError):
        return f"is gated: accept its licence on its page on the hub, then set a token ({_TOKEN_HINT}), or {alternative}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"has no revision {source.revision} (any more); {alternative}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"is not on the hub, or not visible without a token ({_TOKEN_HINT}); {alternative}"
    if _http_status(error) in (401, 403):
        return f"is refused: the token ({_TOKEN_HINT}) is wrong or may not read it, or its licence is not accepted; {alternative}"
    if constants.HF_HUB_OFFLINE:
        return f"is not (whole) in the hub's local cache, and HF_HUB_OFFLINE forbids to look further; {alternative}"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return f"is not in the hub's local cache, and the hub cannot be reached or does not answer; {alternative}"
    line = next((line for line in str(error).splitlines() if line.strip()), "") or type(error).__name__
    return f"could not be downloaded: {line[:200]}; run the same command again"


def _http_status(error: BaseException | None) -> int | None:
    """HTTP status of an error or of its causes; None where there is none."""
    while error is not None:
        if (response := getattr(error, "response", None)) is not None:
            return int(response.status_code)
        error = error.__cause__
    return None
