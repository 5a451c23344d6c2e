"""Which protocol prepares the images of a model: that of the implementation that its weights agree with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments import demo
from experiments.datasets.images import TORCHVISION
from jaxvit import ViTConfig
from jaxvit.checkpoint import MANIFEST, read_manifest
from jaxvit.files import cache_folder


def family_protocol(source: str, config: ViTConfig) -> str:
    """The name in `images.PROTOCOLS` for a model: Hugging Face's for its family if the manifest of its checkpoint names Hugging Face as the
    oracle, else torchvision's.

    Args:
        source: a bundled demo model, a name in the cache or a checkpoint folder, as `jaxvit.load` opens it.
        config: of the model, which tells the family.
    """
    if _manifest(source).get("oracle") != "hf":
        return TORCHVISION
    if config.position == "rope":
        return "hf_dinov3"
    return "hf_dinov2" if config.layer_scale else "hf_dino"


def different_protocols(of_models: Mapping[str, str]) -> list[str]:
    """A line about how images are prepared for which model, where that is not the same for all.

    Args:
        of_models: protocol of every model, as protocol ids name it.
    """
    models: dict[str, list[str]] = {}
    for model, protocol in of_models.items():
        models.setdefault(protocol, []).append(model)
    listed = "; ".join(f"{protocol} for {', '.join(names)}" for protocol, names in models.items())
    return [f"Images are prepared as each model's implementation does: {listed}."] if len(models) > 1 else []


def _manifest(source: str) -> dict[str, Any]:
    """The manifest of a checkpoint; empty for the bundled demo models."""
    folders = [Path(source).expanduser()] + ([] if source in demo.CONFIGS else [cache_folder() / source])
    return next((read_manifest(folder) for folder in folders if (folder / MANIFEST).is_file()), {})
