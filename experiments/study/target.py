"""What a study measures: a model with its data and settings (`Target`), and its features under every condition."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

import jaxvit
from experiments.datasets.base import StudyData, first_id
from experiments.features.conditions import CALIBRATED_SITES, FULL, OPTIMAL_IMAGES, OPTIMAL_PASSES, Condition, Optimal, no_ablation
from experiments.features.extraction import Features, Runner
from experiments.features.overwritten import overwritten_patches
from experiments.features.raw_pixels import raw_pixels
from experiments.features.recipes import Recipe, is_random, made_up_moments, recipe_of
from experiments.study.compare import Inference
from experiments.tasks.base import Context, Readouts, Task
from experiments.tasks.table import TASKS
from jaxvit import Ablation, Moments, Output, ViT
from jaxvit.batching import GROUP, Images
from jaxvit.capture import CaptureSpec
from jaxvit.checkpoint import weights_hash
from jaxvit.sharding import batch_mesh

PIXELS = "raw_pixels"
"""The name of the baseline without a model."""

SinkScope = Literal["registers", "groups", "whole"]
_OPTIMAL_STEP = 8
"""Images of a step of the fit of an optimal constant."""


def tokens_moved(output: Output, clean: Output) -> Float[Array, "batch"]:
    """Mean squared change of CLS and patches after the final norm: what an optimal constant makes least."""
    changes = [
        ((ours - theirs) ** 2).mean(axis=tuple(range(1, ours.ndim)))
        for ours, theirs in ((output.cls, clean.cls), (output.patches, clean.patches))
    ]
    return changes[0] + changes[1]


@dataclass(frozen=True)
class Settings:
    """The options of a study as its jobs read them.

    Attributes:
        seed: the first one; seeds: with how many of them everything random is drawn.
        batch_size: images under way at a time, over all devices; no number depends on it.
        resamples: of bootstrap and permutation tests.
        precision: of models and of everything after them, in words.
        readouts: how features are read.
        tasks: those that are run where the data allow, by name.
        sink_scope: what content_or_sink asks about: all registers; registers, CLS and random patches, besides single registers and
            windows in part; or all of these whole.
    """

    seed: int
    seeds: int
    batch_size: int
    resamples: int
    precision: str
    readouts: Readouts
    tasks: Mapping[str, Task] = field(default_factory=lambda: TASKS)
    sink_scope: SinkScope = "whole"

    @property
    def all_seeds(self) -> tuple[int, ...]:
        return tuple(range(self.seed, self.seed + self.seeds))

    @property
    def all_draws(self) -> tuple[int, ...]:
        """Seeds of read-outs that are drawn."""
        return tuple(range(self.seed, self.seed + max(self.readouts.draws, self.seeds)))

    @property
    def extraction(self) -> dict[str, Any]:
        """What features depend on besides model, images and ablation."""
        return {"precision": self.precision, "shuffle_group": GROUP, "norm": self.readouts.norm, "layer": self.readouts.layer}


@dataclass
class Target:
    """A model of the study under its name there, with data and settings; `model` None stands for raw pixels.

    Attributes:
        ablations: the conditions that are run besides "full", by name; none for a baseline.
        baseline: a random initialisation or raw pixels, which are measured without any ablation.
    """

    name: str
    model: ViT | None
    mesh: Mesh
    data: StudyData
    settings: Settings
    ablations: Mapping[str, Condition] = field(default_factory=dict)
    baseline: bool = False
    _features: dict[str, Features] = field(default_factory=dict)
    _full_features: dict[str, Features] = field(default_factory=dict)
    _in_memory: tuple[str, int] = ("", 0)
    _recipes: dict[tuple[str, int], Recipe] = field(default_factory=dict)
    _random: dict[str, bool] = field(default_factory=dict)
    _optima: dict[str, Ablation] = field(default_factory=dict)
    _moments: dict[tuple[str, ...], Moments] = field(default_factory=dict)

    @cached_property
    def conditions(self) -> dict[str, Condition]:
        """The conditions that are run, "full" first."""
        return {FULL: no_ablation} | {name: condition for name, condition in self.ablations.items() if name != FULL}

    @cached_property
    def key(self) -> dict[str, Any]:
        """What determines the model: its weights and config."""
        return {} if self.model is None else {"weights": weights_hash(self.model), "config": asdict(self.model.config)}

    @cached_property
    def layer(self) -> int | None:
        """The block that is read; None for raw pixels."""
        return None if self.model is None else self.model.config.depth - 1

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of images."""
        height, width = self.data.analysis_images.shape[1:3]
        return height, width

    def recipe(self, condition: str, seed: int) -> Recipe:
        """The definition of a condition under a seed; runs nothing.

        Raises:
            ValueError: raw pixels have none, or the condition refuses the model.
        """
        if (condition, seed) not in self._recipes:
            if self.model is None:
                raise ValueError("raw pixels are not ablated")
            build = self.conditions[condition]
            self._recipes[condition, seed] = recipe_of(build, self.model.config, self.image_size, seed, self.calibration_key)
        return self._recipes[condition, seed]

    @cached_property
    def calibration_key(self) -> str:
        """Names how moments are measured; model, data and precision stand beside it in every key."""
        return f"{self.data.size['calibration']} leading images of train"

    def run_fields(self, condition: str, seeds: Sequence[int] = ()) -> dict[str, Any]:
        """The fields of rows that a condition determines: model, condition, tokens, ablation, window."""
        fields: dict[str, Any] = {"model": self.name, "condition": condition, "tokens": "", "ablation": None, "window": None}
        if self.model is not None:
            recipes = [self.recipe(condition, seed) for seed in seeds or self.seeds_of(condition)]
            fields |= {"tokens": recipes[0].tokens, "window": recipes[0].window, "ablation": [recipe.hash for recipe in recipes]}
        return fields

    def ablation_key(self, condition: str, seed: int) -> Any:
        """The definition of a condition's ablation, for keys; None for raw pixels."""
        return None if self.model is None else json.loads(self.recipe(condition, seed).text)

    @property
    def context(self) -> Context:
        """What tasks work with besides features."""
        config = None if self.model is None else self.model.config
        settings = self.settings
        return Context(self.data, settings.readouts, settings.all_seeds, self.mesh, settings.all_draws, settings.seed, config=config)

    @property
    def inference(self) -> Inference:
        """How its intervals and tests are made."""
        return Inference(self.settings.resamples, self.settings.seed, self.data.shown)

    def image_count(self, part: str) -> int:
        """Number of images of a part of the data; "analysis" are the test images for measures without labels."""
        return len(self.data.analysis_images) if part == "analysis" else len(self.data.parts[part].images)

    def release(self) -> None:
        """Give back features and the copies of the weights on devices."""
        self._features.clear()
        self._full_features.clear()
        self._in_memory = ("", 0)
        self.__dict__.pop("runner", None)

    @cached_property
    def runner(self) -> Runner:
        """The model on all devices."""
        assert self.model is not None
        return Runner.on(self.mesh, self.model, self.settings.batch_size)

    @cached_property
    def statistics(self) -> Moments:
        """Moments of activations over images that read-outs are fitted on, never over test images; at all sites that conditions need."""
        needed = {site for name in self.conditions for site in self.recipe(name, self.settings.seed).sites}
        return self.moments_at((*CALIBRATED_SITES, *sorted(needed - set(CALIBRATED_SITES))))

    def moments_at(self, sites: tuple[str, ...]) -> Moments:
        """The same at some sites, whether conditions need them or not."""
        if sites not in self._moments:
            self._moments[sites] = self.runner.calibrate(self.data.parts["train"].images[: self.data.size["calibration"]], sites)
        return self._moments[sites]

    def is_random(self, condition: str) -> bool:
        """Whether a condition depends on the seed."""
        if condition not in self._random:
            build = self.conditions[condition]
            self._random[condition] = self.model is not None and is_random(build, self.model.config, self.image_size)
        return self._random[condition]

    def seeds_of(self, condition: str) -> tuple[int, ...]:
        """Seeds that a condition is run with: all of the study where it is random, else the first."""
        return self.settings.all_seeds if self.is_random(condition) else (self.settings.seed,)

    def ablation(self, condition: str, seed: int) -> Ablation:
        """The ablation of a condition; calibrates where a condition needs moments."""
        assert self.model is not None
        build = self.conditions[condition]
        if isinstance(build, Optimal):
            return self.optimal_constant(build.tokens)
        return Ablation() if condition == FULL else build(self.model.config, self.statistics, seed)

    def optimal_constant(self, tokens: str) -> Ablation:
        """The constant that costs least in the place of tokens, fitted to train images (`features.conditions.Optimal`)."""
        if tokens not in self._optima:
            assert self.model is not None
            images = jaxvit.normalise(self.data.parts["train"].images[:OPTIMAL_IMAGES], self.model.config)
            starts = (self.moments_at(CALIBRATED_SITES), None)  # the mean, and zero: which one leads to the better differs between models
            # by one device, so that no number depends on how many there are; weights that are split need them all
            alone = jax.set_mesh(batch_mesh(jax.local_devices()[:1])) if self.model.weight_shards is None else contextlib.nullcontext()
            with alone:
                steps = [images[i : i + _OPTIMAL_STEP] for i in range(0, len(images), _OPTIMAL_STEP)]
                batches = [(step, None, jaxvit.forward(self.model, step)) for step in steps]  # the clean run once, not in every step
                fits = [jaxvit.optimal(self.model, batches, tokens, tokens_moved, statistics=s, passes=OPTIMAL_PASSES) for s in starts]
            self._optima[tokens] = min(fits, key=lambda fit: fit.loss).ablation
        return self._optima[tokens]

    def shuffle_protocol(self, condition: str, seed: int) -> dict[str, Any]:
        """What protocol ids of a condition that shuffles say of it; nothing where it does not shuffle, and runs nothing."""
        replacements = self.ablation_key(condition, seed)["replacements"] if self.model is not None else []
        shuffles = any(replacement["kind"] == "shuffle" for replacement in replacements)
        return {"shuffle": f"groups of {GROUP} over the part"} if shuffles else {}

    def overwrites_patches(self, condition: str) -> bool:
        """Whether a condition overwrites patches where they are read; runs nothing."""
        if self.model is None:
            return False
        config, size = self.model.config, self.image_size
        ablation = self.conditions[condition](config, made_up_moments(config, size), self.settings.seed)
        return overwritten_patches(ablation, config, size, np.zeros(1, np.int32)) is not None

    def features(self, condition: str, seed: int) -> ConditionFeatures:
        """Features under a condition; only those of the last condition asked for stay in memory, and those without ablation that it is
        compared with, which all its seeds share."""
        if self._in_memory[0] != condition:
            self._full_features.clear()
        if self._in_memory != (condition, seed):
            self._features.clear()
            self._in_memory = (condition, seed)
        return ConditionFeatures(self, condition, seed, self._features)

    def extract_analysis(self, condition: str, seed: int, capture: CaptureSpec = (), count: int | None = None) -> Features:
        """Features and captures of the test images for measures without labels, or of the first `count` of them."""
        images = self.data.analysis_images[:count]
        return self.runner.extract(images, self.ablation(condition, seed), first_id("test"), capture, self.settings.readouts.norm)


@dataclass(frozen=True)
class ConditionFeatures:
    """Features of the parts of the data under one condition, extracted when they are asked for (a `tasks.base.FeatureSource`).

    Attributes:
        extracted: those that are in memory.
        only_patch_images: of every part only the leading images are run, whose patches are kept.
    """

    target: Target
    condition: str
    seed: int
    extracted: dict[str, Features]
    only_patch_images: bool = False

    def first_test(self, count: int) -> Features:
        """Features of the first test images: cut from those of the whole part where they are there and no shuffle makes them depend on one
        another, else extracted alone."""
        if "test" not in self.extracted or self._shuffles:  # groups of a shuffle are drawn over the images that run together
            return self._extract("test", f"first {count} of test", count)
        arrays = {name: array[:count] for name, array in self.extracted["test"]._asdict().items() if name != "captured"}
        return Features(**arrays, captured={})

    @property
    def _shuffles(self) -> bool:
        """Whether the condition exchanges tokens among images."""
        return bool(self.target.shuffle_protocol(self.condition, self.seed))

    def __getitem__(self, part: str) -> Features:
        return self._extract(part, part, self.target.data.parts[part].patch_images if self.only_patch_images else None)

    def overwritten(self, part: str) -> Bool[np.ndarray, "images patches"] | None:
        """Which patches of the part's leading images the condition overwrites where they are read; None where it overwrites none."""
        if self.target.model is None or self.condition == FULL:
            return None
        images, patch_images = self.target.data.parts[part]
        ids, (height, width) = first_id(part) + np.arange(patch_images), images.shape[1:3]
        return overwritten_patches(self.target.ablation(self.condition, self.seed), self.target.model.config, (height, width), ids)

    @property
    def full(self) -> ConditionFeatures:
        """Features of the same parts without ablation, of the leading images whose patches are kept."""
        return ConditionFeatures(self.target, FULL, self.target.settings.seed, self.target._full_features, only_patch_images=True)

    def of_images(self, images: Images, part: str) -> Features:
        """Features of images that a task makes from the leading ones of a part."""
        return self._run(images, part, patch_images=0)

    def _extract(self, part: str, name: str, count: int | None) -> Features:
        if name not in self.extracted:
            images, patch_images = self.target.data.parts[part]
            images, patch_images = images[:count], patch_images if count is None else count
            self.extracted[name] = self._run(images, part, patch_images)
        return self.extracted[name]

    def _run(self, images: Images, part: str, patch_images: int) -> Features:
        if self.target.model is None:
            return raw_pixels(images)
        ablation, norm = self.target.ablation(self.condition, self.seed), self.target.settings.readouts.norm
        return self.target.runner.extract(images, ablation, first_id(part), norm=norm, patch_images=patch_images)
