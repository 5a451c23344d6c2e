"""Studies by name: the models, data, read-outs and analyses of each."""

from __future__ import annotations

from dataclasses import dataclass, replace

from experiments.analyses import (
    ablation_table,
    attention_flow,
    content_or_sink,
    feature_maps,
    instrument_check,
    layerwise_probes,
    model_differences,
    nearest_patches,
    off_manifold,
    patch_geometry,
    random_patch_control,
    register_lesions,
    register_probes,
    replacement_controls,
    scale_comparison,
    token_microscope,
)
from experiments.analyses.base import Analysis
from experiments.datasets.base import DataSize
from experiments.datasets.digits import DEMO_SIZE, QUICK_SIZE
from experiments.datasets.folders import IMAGENET_SIZE
from experiments.study.target import SinkScope
from experiments.tasks.base import Readouts
from jaxvit.probes.logistic import DINOV2_CS

ANALYSES: dict[str, Analysis] = {
    "token_microscope": token_microscope,
    "ablation_table": ablation_table,
    "replacement_controls": replacement_controls,
    "content_or_sink": content_or_sink,
    "register_lesions": register_lesions,
    "random_patch_control": random_patch_control,
    "scale_comparison": scale_comparison,
    "model_differences": model_differences,
    "off_manifold": off_manifold,
    "attention_flow": attention_flow,
    "register_probes": register_probes,
    "layerwise_probes": layerwise_probes,
    "patch_geometry": patch_geometry,
    "feature_maps": feature_maps,
    "nearest_patches": nearest_patches,
    "instrument_check": instrument_check,
}
"""All analyses in the order of the page."""

_DEMO_READOUTS = Readouts(memory=500)
_READOUTS = Readouts(cs=DINOV2_CS, memory=100_000, grid_iterations=12_500)
"""The grids of the original evaluations; those of the demo are what a laptop does in minutes."""
_NO_PAIRS = replace(IMAGENET_SIZE, pairs=None)


@dataclass(frozen=True)
class Preset:
    """What a study is unless the command line says otherwise.

    Attributes:
        protocol: the publication that it follows and how, for the page.
        models: bundled models, or names in `jaxvit.MODELS` that have been converted into the cache; empty where the user names them.
        size: numbers of images.
        image_size: pixels of a side; None where the images are made at the size of the bundled models.
        readouts: how features are read.
        analyses: names in `ANALYSES` of those that are run.
        conditions, tasks: those that are run; empty for all.
        seeds: number of seeds of everything random.
        baselines: whether random initialisations and raw pixels are measured as well.
        resamples: of bootstrap and permutation tests.
        sink_scope: what content_or_sink asks about (`study.target.Settings`).
    """

    protocol: str
    models: tuple[str, ...]
    size: DataSize
    image_size: int | None = None
    readouts: Readouts = _DEMO_READOUTS
    analyses: tuple[str, ...] = tuple(ANALYSES)
    conditions: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    seeds: int = 3
    baselines: bool = False
    resamples: int = 10_000
    sink_scope: SinkScope = "whole"


PRESETS = {
    "demo": Preset(
        "The whole study on the bundled demo models and digit scenes.",
        ("demo_reg", "demo", "demo_reg_read"),
        DEMO_SIZE,
        seeds=1,
        baselines=True,
        sink_scope="groups",
    ),
    "custom": Preset(
        "A study of one's own: the framework's read-outs and conditions, on the models and images that were named. It follows the "
        "protocol of no publication.",
        (),
        IMAGENET_SIZE,
        image_size=224,
        readouts=replace(_DEMO_READOUTS, memory=20_000, grid_iterations=0),
        baselines=True,
    ),
    "parodi2026": Preset(
        "Parodi & Segado, post (2026), and Parodi, Matelsky & Segado, arXiv 2604.14433: tokens are overwritten at the output of every "
        "block, weights as converted (the publication most likely ran Hugging Face's implementation: oracle hf). Solver, "
        "correspondence pairs and segmentation data of the publication are unknown; the protocol ids say what stands here in their place.",
        ("dinov2_vits14", "dinov2_vits14_reg", "dinov3_vits16", "dinov2_vitb14", "dinov2_vitb14_reg", "dinov3_vitb16"),
        IMAGENET_SIZE,
        image_size=224,
        readouts=_READOUTS,
    ),
    "fix-reg-mean": Preset(
        "Sun et al. 2024 (Massive Activations): registers are replaced by their mean at the input of every block, read-outs are "
        "frozen. Heads here are fitted on the train part; the publication uses Meta's linear heads.",
        ("dinov2_vits14_reg", "dinov2_vitb14_reg", "dinov2_vitl14_reg", "dinov2_vitg14_reg"),
        _NO_PAIRS,
        image_size=518,
        readouts=_READOUTS,
        analyses=("token_microscope", "ablation_table", "off_manifold"),
        conditions=("fix_reg_mean",),
        tasks=("linear_probe",),
    ),
    "darcet-norms": Preset(
        "Darcet et al. 2024 (registers), section 2: norms of patches before the final norm, outliers above 150 and, for "
        "any model, by median absolute deviations; they are expected only in the large models without registers.",
        ("dinov2_vitl14", "dinov2_vitl14_reg", "dinov2_vitg14", "dinov2_vitg14_reg"),
        _NO_PAIRS,
        image_size=518,
        readouts=_READOUTS,
        analyses=("token_microscope", "patch_geometry", "feature_maps"),
        conditions=("full",),
        tasks=("patch_norms", "effective_rank", "register_cosine"),
    ),
}

QUICK = replace(
    PRESETS["demo"],
    protocol="A quick look: the demo study on few images, with one seed, few resamples and short paths of penalties, and without "
    "conditions that reach for single registers.",
    models=("demo_reg", "demo_reg_read"),
    analyses=tuple(name for name in ANALYSES if name != "register_lesions"),
    conditions=(
        "full",
        "zero_cls",
        "random_patches",
        "zero_registers",
        "mean_registers",
        "noise_registers",
        "shuffle_registers",
        "optimal_registers",
    ),
    size=QUICK_SIZE,
    readouts=Readouts(
        solvers=("logistic",), cs=(1e-3, 1e-1, 10.0), neighbours=(10, 20), shots=(1, 5), grid_iterations=0, memory=500, draws=5
    ),
    seeds=1,
    resamples=1_000,
    sink_scope="registers",
)
"""What `--quick` runs: two models of one shape, of which one has registers that are read."""
