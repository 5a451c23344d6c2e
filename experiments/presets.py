"""Studies by name: which models, data, read-outs and experiments make each of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import ModuleType

from experiments import (
    ablation_table,
    attention_divergence,
    attention_flow,
    feature_maps,
    instrument_check,
    layer_sweep,
    nearest_patches,
    patch_geometry,
    random_patch_control,
    register_lesions,
    register_probes,
    replacement_controls,
    scale_comparison,
)
from experiments.data import DEMO_SIZE, DataSize
from experiments.folders import IMAGENET_SIZE
from experiments.measures import Readouts
from jaxvit.probes.logistic import DINOV2_CS

EXPERIMENTS: tuple[ModuleType, ...] = (
    ablation_table,
    replacement_controls,
    register_lesions,
    random_patch_control,
    scale_comparison,
    attention_divergence,
    attention_flow,
    register_probes,
    layer_sweep,
    patch_geometry,
    feature_maps,
    nearest_patches,
    instrument_check,
)
"""All experiments in the order of the page. Each has TITLE and NOTE, `jobs(subject)`, its cells, and `section(study)`, its part of the
page ("" where a study has nothing for it); cells that two of them need are run once."""


_DEMO_READOUTS = Readouts()
_READOUTS = Readouts(cs=DINOV2_CS, memory=100_000, grid_iterations=12_500)
"""The grids of the original evaluations; the others are what a laptop does in minutes."""
_NO_PAIRS = replace(IMAGENET_SIZE, pairs=None)


@dataclass(frozen=True)
class Preset:
    """What a study is unless the command line says otherwise.

    Attributes:
        protocol: what it follows, for the page.
        models: bundled models, or names in `jaxvit.MODELS` that have been converted into the cache.
        size: numbers of images.
        image_size: pixels of a side; None where the images are made at the size of the bundled models.
        readouts: how features are read.
        experiments: what is run.
        conditions, tasks: those that are run; empty for all.
        seeds: for everything random.
        baselines: also random initialisations and raw pixels.
        batch_size: images per step.
    """

    protocol: str
    models: tuple[str, ...]
    size: DataSize
    image_size: int | None = None
    readouts: Readouts = _DEMO_READOUTS
    experiments: tuple[ModuleType, ...] = EXPERIMENTS
    conditions: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    seeds: int = 3
    baselines: bool = False
    batch_size: int = 128


PRESETS = {
    "demo": Preset(
        "The whole study on the bundled demo models and digit scenes.",
        ("demo_reg", "demo", "demo_reg_read"),
        DEMO_SIZE,
        seeds=2,
        baselines=True,
    ),
    "parodi2026": Preset(
        "Parodi & Segado, post (2026), and Parodi, Matelsky & Segado, arXiv 2604.14433: tokens are overwritten at the output of every "
        "block, 224 px, weights as converted (the Hugging Face oracle is the most likely one). Solver, correspondence pairs and "
        "segmentation data of the publication are unknown; the protocol ids say what stands here in their place.",
        ("dinov2_vits14", "dinov2_vits14_reg", "dinov3_vits16", "dinov2_vitb14", "dinov2_vitb14_reg", "dinov3_vitb16"),
        IMAGENET_SIZE,
        image_size=224,
        readouts=_READOUTS,
    ),
    "fix-reg-mean": Preset(
        "Sun et al. 2024 (Massive Activations): registers are their mean at the input of every block, heads are frozen, 518 px. Heads here "
        "are fitted on the bank; the publication uses Meta's linear heads.",
        ("dinov2_vits14_reg", "dinov2_vitb14_reg", "dinov2_vitl14_reg", "dinov2_vitg14_reg"),
        _NO_PAIRS,
        image_size=518,
        readouts=_READOUTS,
        experiments=(ablation_table, attention_divergence),
        conditions=("fix_reg_mean",),
        tasks=("linear_probe",),
        batch_size=32,
    ),
    "darcet-norms": Preset(
        "Darcet et al. 2024 (registers), section 2: norms of patches before the final norm, outliers above 150; they are expected in the "
        "large models without registers only.",
        ("dinov2_vitl14", "dinov2_vitl14_reg", "dinov2_vitg14", "dinov2_vitg14_reg"),
        _NO_PAIRS,
        image_size=518,
        readouts=_READOUTS,
        experiments=(patch_geometry, feature_maps),
        conditions=("full",),
        tasks=("patch_norms", "effective_rank", "register_cosine"),
        batch_size=32,
    ),
}
