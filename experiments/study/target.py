"""What a study measures: a model with its data and settings (`Target`), and its features under every condition."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from jax.sharding import Mesh

from experiments.datasets.base import StudyData, first_id
from experiments.features.conditions import Condition, conditions
from experiments.features.extraction import Features, Runner
from experiments.features.raw_pixels import raw_pixels
from experiments.tasks.base import Context, Readouts
from experiments.tasks.table import CONSTANTS
from jaxvit import Ablation, Moments, ViT
from jaxvit.capture import CaptureSpec
from jaxvit.checkpoint import weights_hash

PIXELS = "raw_pixels"
"""The name of the baseline without a model."""


@dataclass(frozen=True)
class Settings:
    """The options of a study as its jobs read them; `key` is the part that numbers depend on.

    Attributes:
        seed: the first one; seeds: with how many of them everything random is drawn.
        batch_size: images per step, over all devices.
        resamples: of bootstrap and permutation tests.
        precision: of models and of everything after them, in words.
        readouts: how features are read.
        conditions: names of those that are run; empty for all that a model can run.
        tasks: names of those that are run; empty for all that the data allow.
    """

    seed: int
    seeds: int
    batch_size: int
    resamples: int
    precision: str
    readouts: Readouts
    conditions: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()

    @property
    def all_seeds(self) -> tuple[int, ...]:
        return tuple(range(self.seed, self.seed + self.seeds))

    @property
    def key(self) -> dict[str, Any]:
        """What features and scores depend on: everything but resampling and the choice of conditions and tasks."""
        entries = {name: item for name, item in asdict(self).items() if name not in ("resamples", "conditions", "tasks")}
        entries["constants"] = CONSTANTS
        entries["readouts"] = {name: list(item) if isinstance(item, tuple) else item for name, item in entries["readouts"].items()}
        return entries


@dataclass
class Target:
    """A model of the study under its name there, with data and settings; `model` None stands for raw pixels.

    Attributes:
        baseline: a random initialisation or raw pixels, which are measured without any ablation.
    """

    name: str
    model: ViT | None
    mesh: Mesh
    data: StudyData
    settings: Settings
    baseline: bool = False
    _features: dict[str, Features] = field(default_factory=dict)
    _in_memory: tuple[str, int] = ("", 0)

    @cached_property
    def conditions(self) -> dict[str, Condition]:
        """The conditions that are run, "full" first."""
        if self.baseline or self.model is None:
            return {"full": Condition(lambda statistics, seed: Ablation(), "")}
        chosen = self.settings.conditions
        return {name: c for name, c in conditions(self.model.config).items() if name == "full" or not chosen or name in chosen}

    @cached_property
    def key(self) -> dict[str, Any]:
        """What determines the model: its weights and config, under its name in the study."""
        if self.model is None:
            return {"name": self.name}
        return {"name": self.name, "weights": weights_hash(self.model), "config": asdict(self.model.config)}

    @property
    def context(self) -> Context:
        """What tasks work with besides features."""
        return Context(self.data, self.settings.readouts, self.settings.all_seeds, self.mesh, self.settings.seed)

    def image_count(self, part: str) -> int:
        """Number of images of a part of the data; "analysis" are the test images for measures without labels."""
        return len(self.data.analysis_images) if part == "analysis" else len(self.data.parts[part].images)

    def release(self) -> None:
        """Give back features and the copies of the weights on devices."""
        self._features.clear()
        self._in_memory = ("", 0)
        self.__dict__.pop("runner", None)

    @cached_property
    def runner(self) -> Runner:
        """The model on all devices."""
        assert self.model is not None
        return Runner.on(self.mesh, self.model, self.settings.batch_size)

    @cached_property
    def statistics(self) -> Moments:
        """Moments of activations over images that read-outs are fitted on, never over test images."""
        return self.runner.calibrate(self.data.parts["train"].images[: self.data.size["calibration"]])

    def seeds_of(self, condition: str) -> tuple[int, ...]:
        """Seeds that a condition is run with: all of the study where it is random, else the first."""
        return self.settings.all_seeds if self.conditions[condition].random else (self.settings.seed,)

    def ablation(self, condition: str, seed: int) -> Ablation:
        """The ablation of a condition; calibrates where it needs moments."""
        return Ablation() if condition == "full" else self.conditions[condition].build(self.statistics, seed)

    def features(self, condition: str, seed: int) -> ConditionFeatures:
        """Features under a condition; only those of the last condition asked for stay in memory."""
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
    """Features of the parts of the data under one condition, extracted when they are asked for (a `tasks.base.FeatureSource`)."""

    target: Target
    condition: str
    seed: int
    extracted: dict[str, Features]

    def first_test(self, count: int) -> Features:
        """Features of the first test images: cut from those of the whole part where they are there, else extracted alone."""
        if "test" not in self.extracted:
            return self._extract("test", f"first {count} of test", count)
        arrays = {name: array[:count] for name, array in self.extracted["test"]._asdict().items() if name != "captured"}
        return Features(**arrays, captured={})

    def __getitem__(self, part: str) -> Features:
        return self._extract(part, part, None)

    def _extract(self, part: str, name: str, count: int | None) -> Features:
        if name not in self.extracted:
            images, patch_images = self.target.data.parts[part]
            images, patch_images = images[:count], patch_images if count is None else count
            if self.target.model is None:
                self.extracted[name] = raw_pixels(images)
            else:
                ablation = self.target.ablation(self.condition, self.seed)
                norm = self.target.settings.readouts.norm
                self.extracted[name] = self.target.runner.extract(images, ablation, first_id(part), norm=norm, patch_images=patch_images)
        return self.extracted[name]
