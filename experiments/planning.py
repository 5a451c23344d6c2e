"""From a `Study` to what is run: models, data, conditions, tasks, analyses, and the jobs of them all."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

import jaxvit
from experiments import demo
from experiments.analyses.base import Analysis
from experiments.analyses.presets import ANALYSES, PRESETS, QUICK, Preset
from experiments.datasets.arrays import array_data
from experiments.datasets.base import DataSize, StudyData
from experiments.datasets.digits import digit_scenes
from experiments.datasets.folders import Folders, folder_data
from experiments.datasets.reading import MAX_PIXELS
from experiments.features.conditions import ALL_CONDITIONS, FULL, Condition, conditions
from experiments.features.sources import ConditionSource, as_condition, refusal
from experiments.numerics import compiler_flags
from experiments.plugins import Plugin, load_plugin, source_hash
from experiments.study.cells import cell_hash
from experiments.study.jobs import Job
from experiments.study.target import PIXELS, Settings, Target
from experiments.tasks.base import Readouts, Task
from experiments.tasks.table import TASKS
from jaxvit import ViTConfig
from jaxvit.files import refuse_remote
from jaxvit.vit import cast, truncated

BATCH_SIZE = 128
"""Images under way at a time unless another number is given."""
PRECISIONS = {
    "float32": "float32, matmul precision highest",
    "bfloat16": "bfloat16 models with float32 norms, softmax and RoPE; all else float32, matmul precision highest",
}
Arrays = Mapping[str, tuple[np.ndarray, np.ndarray | None] | np.ndarray]
"""uint8 images [n, height, width, 3] of the parts train, val and test, each with labels [n] or without."""


@dataclass(frozen=True)
class Study:
    """A study, or some of its analyses. What is not given is the preset's.

    Attributes:
        preset: which study: a name in `PRESETS`.
        quick: the demo study on few images and two models.
        models: bundled demo models, names in the local cache, checkpoint folders; or models by name.
        data: a folder of images, `Folders`, or arrays by part; by default what the preset reads.
        sizes: numbers of images.
        conditions: names of those that are run besides full; or those themselves by name, and then no others.
        added_conditions: further conditions by name, beside those of the study.
        tasks: names of those that are run; or the tasks themselves by name, and then no others.
        analyses: names of those that are run, or analyses.
        plugins: modules or files with more conditions, tasks and analyses (`experiments.plugins`).
        out: folder of the study.
        dry_run: say what the study costs on this device, and run nothing.
        quiet: print nothing.
        seed, seeds: the first seed, and how many.
        image_size: pixels of a side, for folders of images.
        batch_size: images under way at a time, over all devices; no number depends on it.
        dtype: of the models.
        random_weights: models of these names with random weights.
        resamples: of bootstrap and permutation tests.
        readouts: how features are read.
        max_pixels: of the largest image file that is read.
        keep_blank: accept images of one colour and masks without a label, which are refused otherwise.
    """

    preset: str = "demo"
    quick: bool = False
    models: Sequence[str | Path] | Mapping[str, jaxvit.ViT] = ()
    data: Folders | Arrays | Path | str | None = None
    sizes: DataSize = field(default_factory=DataSize)
    conditions: Sequence[str] | Mapping[str, ConditionSource] = ()
    added_conditions: Mapping[str, ConditionSource] = field(default_factory=dict)
    tasks: Sequence[str] | Mapping[str, Task] = ()
    analyses: Sequence[str | Analysis | ModuleType] = ()
    plugins: Sequence[str] = ()
    out: Path | str | None = None
    dry_run: bool = False
    quiet: bool = False
    seed: int = 0
    seeds: int | None = None
    image_size: int | None = None
    batch_size: int | None = None
    dtype: str = "float32"
    random_weights: bool = False
    resamples: int | None = None
    readouts: Readouts | None = None
    max_pixels: int = MAX_PIXELS
    keep_blank: bool = False

    def __post_init__(self) -> None:
        _check_names("--preset", [self.preset], PRESETS)
        _check_names("--dtype", [self.dtype], PRECISIONS)
        if self.quick and self.preset != "demo":
            raise ValueError(
                f"--quick is a look at the demo study; leave out --preset {self.preset}, or add small numbers to it: --data.test 20"
            )
        for name in ("seeds", "resamples", "batch_size", "image_size", "max_pixels"):
            if (number := getattr(self, name)) is not None and number < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {number}; give at least 1")
        if self.seed < 0:
            raise ValueError(f"--seed is {self.seed}; give 0 or more")
        self._refuse_remote()

    def _refuse_remote(self) -> None:
        """Check that all that is read and written is on this machine."""
        models = () if isinstance(self.models, Mapping) else self.models
        folders = vars(self.data).values() if isinstance(self.data, Folders) else (self.data,)
        for path in (self.out, *models, *folders, *self.plugins):
            if isinstance(path, str | Path):
                refuse_remote(path)

    @property
    def chosen_preset(self) -> Preset:
        return QUICK if self.quick else PRESETS[self.preset]

    @property
    def folder(self) -> Path:
        return Path(self.out or Path("runs") / ("demo-quick" if self.quick else self.preset))

    @property
    def chosen_readouts(self) -> Readouts:
        return self.readouts or self.chosen_preset.readouts

    def identity(self, data: StudyData) -> dict[str, Any]:
        """What makes two runs the same study: its data and settings. What is run may differ from run to run."""
        names = ("preset", "quick", "seed", "seeds", "image_size", "dtype", "random_weights", "resamples")
        settings = {name: getattr(self, name) for name in names}
        entries = {**settings, "sizes": asdict(self.sizes), "readouts": asdict(self.chosen_readouts), "data": cell_hash(data.key)}
        return json.loads(json.dumps(entries, default=str))


class Choices(NamedTuple):
    """What a study asks, known before its images are read.

    Attributes:
        analyses: by name, in the order of the page.
        tasks: by name.
        plugins: that were loaded.
    """

    analyses: dict[str, Analysis]
    tasks: dict[str, Task]
    plugins: list[Plugin]


class Plan(NamedTuple):
    """What a study runs.

    Attributes:
        targets: models and baselines.
        jobs: in order, each cell once.
        skipped: lines that say which model cannot run which condition, and why.
    """

    targets: list[Target]
    jobs: list[Job]
    skipped: list[str]


def chosen(study: Study, models: Mapping[str, jaxvit.ViT]) -> Choices:
    """The analyses and tasks of a study.

    Raises:
        ValueError: an unknown name of an analysis, task or condition, or a plug-in that cannot be loaded.
    """
    plugins = [load_plugin(source) for source in study.plugins]
    known = {name for model in models.values() for name in conditions(model.config)} | {*ALL_CONDITIONS, *study.added_conditions}
    known |= {name for plugin in plugins for name in plugin.conditions}
    if not isinstance(study.conditions, Mapping):
        possible = [*dict.fromkeys((*ALL_CONDITIONS, *sorted(known - set(ALL_CONDITIONS))))]
        _check_names("--conditions", study.conditions, possible)
    return Choices(_analyses(study, plugins), _tasks(study, plugins), plugins)


def make_plan(study: Study, choices: Choices, models: Mapping[str, jaxvit.ViT], data: StudyData, mesh: Mesh) -> Plan:
    """The plan of a study. No model runs.

    Raises:
        ValueError: a condition that no model can run.
    """
    options = settings(study, choices.tasks)
    skipped: list[str] = []
    tables = {name: _condition_table(study, choices.plugins, name, model.config, data, skipped) for name, model in models.items()}
    _check_conditions(study, tables, skipped)
    targets = [Target(name, model, mesh, data, options, tables[name]) for name, model in models.items()]
    if study.chosen_preset.baselines:
        targets += _baselines(study, models, data, mesh, options)
    hashes = {name: plugin.sha256 for plugin in choices.plugins for name in plugin.analyses}
    return Plan(targets, plan_jobs(targets, choices.analyses, hashes), skipped)


def plan_jobs(targets: Sequence[Target], analyses: Mapping[str, Analysis], plugin_hashes: Mapping[str, str] | None = None) -> list[Job]:
    """The jobs of all targets and analyses in order, each cell once.

    Args:
        plugin_hashes: hash of the plug-in's file of every analysis that comes from one; in the key of what only it computes.
    """
    jobs: dict[str, Job] = {}
    for target in targets:
        for name, analysis in analyses.items():
            for job in analysis.jobs(target):
                if name in (plugin_hashes or {}) and job.key["kind"] not in ("scores", "rows"):
                    job = dataclasses.replace(job, key={**job.key, "plugin": (plugin_hashes or {})[name]})
                jobs.setdefault(cell_hash(job.key), job)
    return list(jobs.values())


def load_models(study: Study) -> dict[str, jaxvit.ViT]:
    """The models by their names in the study, cut off after the layer that is read.

    Raises:
        ValueError: an unknown model, two of one name, none, or a layer that one does not have.
    """
    if isinstance(study.models, Mapping):
        models = {name: cast(model, study.dtype) for name, model in study.models.items()}
    else:
        sources = [str(source) for source in study.models or study.chosen_preset.models]
        make = (lambda name: jaxvit.create(name, study.seed)) if study.random_weights else jaxvit.load
        models = {Path(source).name: cast(make(source), study.dtype) for source in sources}
        if len(models) < len(sources):
            raise ValueError(f"two models share a name in {', '.join(sources)}; rename one of the folders")
    if not models:
        raise ValueError("no model is named; give --models with bundled models, names in the cache or checkpoint folders")
    layer = study.chosen_readouts.layer
    return models if layer is None else {name: truncated(model, layer + 1) for name, model in models.items()}


def study_data(study: Study) -> StudyData:
    """The images of a study.

    Raises:
        ValueError: the images that a preset needs are not named or not there, or arrays do not fit.
    """
    preset, data = study.chosen_preset, study.data
    if isinstance(data, Mapping):
        return array_data(data, study.sizes, study.seed)
    folders = Folders(images=Path(data)) if isinstance(data, str | Path) else data or Folders()
    size = study.image_size or preset.image_size
    if size is None:
        if any(vars(folders).values()):
            raise ValueError(f"the {study.preset} preset reads no folders; choose another --preset, such as custom, or give --image-size")
        return digit_scenes(study.sizes, study.seed, preset.size)
    return folder_data(folders, study.sizes, size, study.seed, preset.size, study.max_pixels, study.keep_blank)


def study_of(manifest: Mapping[str, Any]) -> Study:
    """The study of made data that a run.json records, with the preset's choices of models, analyses, tasks and conditions."""
    entries = {name: value for name, value in manifest["study"].items() if name != "data"}
    readouts: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in entries["readouts"].items()}
    return Study(**{**entries, "sizes": DataSize(**entries["sizes"]), "readouts": Readouts(**readouts)})


def settings(study: Study, tasks: Mapping[str, Task] = TASKS) -> Settings:
    """The options of a study as its jobs read them."""
    preset = study.chosen_preset
    return Settings(
        seed=study.seed,
        seeds=study.seeds or preset.seeds,
        batch_size=study.batch_size or BATCH_SIZE,
        resamples=study.resamples or preset.resamples,
        precision="; ".join(filter(None, (PRECISIONS[study.dtype], compiler_flags()))),
        readouts=study.chosen_readouts,
        tasks=tasks,
    )


def _tasks(study: Study, plugins: Sequence[Plugin]) -> dict[str, Task]:
    """The tasks that are run, by name."""
    if isinstance(study.tasks, Mapping):
        return {name: task if TASKS.get(name) is task else _marked(task, source_hash(task.run)) for name, task in study.tasks.items()}
    known = dict(TASKS)
    for plugin in plugins:
        _check_new("task", plugin.tasks, known, plugin.source)
        known |= {name: _marked(task, plugin.sha256) for name, task in plugin.tasks.items()}
    names = study.tasks or study.chosen_preset.tasks
    _check_names("--tasks", names, known)
    own = [name for plugin in plugins for name in plugin.tasks]
    return {name: task for name, task in known.items() if not names or name in names or (not study.tasks and name in own)}


def _marked(task: Task, mark: str) -> Task:
    """A task whose settings, and with them the keys of its cells, say which source it came from.

    Raises:
        ValueError: it is no task.
    """
    if not isinstance(task, Task):
        raise ValueError(f"tasks are experiments.tasks.base.Task, not {type(task).__name__}: Task(run, parts=..., possible=...)")
    return dataclasses.replace(task, settings=lambda readouts: {**task.settings(readouts), "source": mark})


def _analyses(study: Study, plugins: Sequence[Plugin]) -> dict[str, Analysis]:
    """The analyses that are run, by name, in the order of the page."""
    known: dict[str, Any] = dict(ANALYSES)
    for plugin in plugins:
        _check_new("analysis", plugin.analyses, known, plugin.source)
        known |= plugin.analyses
    objects = {_name_of(analysis): analysis for analysis in study.analyses if not isinstance(analysis, str)}
    names = [*(name for name in study.analyses if isinstance(name, str)), *objects]
    own = [name for plugin in plugins for name in plugin.analyses]
    known |= objects
    names = names or [*study.chosen_preset.analyses, *own]
    _check_names("--only", names, known)
    return {name: analysis for name, analysis in known.items() if name in names}


def _name_of(analysis: Any) -> str:
    """The name of an analysis that is a module or an object."""
    return str(getattr(analysis, "__name__", type(analysis).__name__)).rpartition(".")[2]


def _condition_table(
    study: Study, plugins: Sequence[Plugin], model: str, config: ViTConfig, data: StudyData, skipped: list[str]
) -> dict[str, Condition]:
    """The conditions of one model by name; a line in `skipped` for each that it cannot run."""
    own = conditions(config)
    added: dict[str, tuple[ConditionSource, str]] = {}
    for plugin in plugins:
        _check_new("condition", plugin.conditions, {**own, **added}, plugin.source)
        added |= {name: (source, plugin.sha256) for name, source in plugin.conditions.items()}
    _check_new("condition", study.added_conditions, {**own, **added}, "--condition")
    added |= {name: (source, "") for name, source in study.added_conditions.items()}
    names: Collection[str] = study.conditions or study.chosen_preset.conditions
    if isinstance(study.conditions, Mapping):
        _check_new("condition", study.conditions, {FULL: None}, "conditions")
        added |= {name: (source, "") for name, source in study.conditions.items()}
    elif not study.conditions and names:
        names = [*names, *added]
    table = dict(own)
    height, width = data.analysis_images.shape[1:3]
    size = (height, width)
    for name, (source, mark) in added.items():
        table.pop(name, None)  # a condition of the study that is defined anew is never run in its old sense
        condition = as_condition(name, source, own, mark)
        if condition is None:
            skipped.append(f"{model} cannot run {name}: it has no condition of that name")
        elif reason := refusal(condition, config, size):
            skipped.append(f"{model} cannot run {name}: {reason}")
        else:
            table[name] = condition
    return {name: condition for name, condition in table.items() if not names or name in names or name == FULL}


def _check_conditions(study: Study, tables: Mapping[str, Mapping[str, Condition]], skipped: Sequence[str]) -> None:
    """Check that some model can run every chosen condition."""
    runnable = dict.fromkeys(name for table in tables.values() for name in table)
    for name in [*study.conditions, *study.added_conditions]:
        if name not in runnable:
            why = [line for line in skipped if f"cannot run {name}:" in line]
            raise ValueError("; ".join(why) or f"no model of the study has the condition {name}")


def _baselines(study: Study, models: Mapping[str, jaxvit.ViT], data: StudyData, mesh: Mesh, options: Settings) -> list[Target]:
    """Each architecture once at random initialisation (unless the models are that), and raw pixels."""
    targets = []
    shapes: dict[ViTConfig, str] = {}
    for name, model in ({} if study.random_weights else models).items():
        shapes.setdefault(model.config, demo.twin_of(model.config) or name)
    for config, name in shapes.items():
        untrained = cast(jaxvit.create(config, study.seed), study.dtype)
        targets.append(Target(f"{name}_random", untrained, mesh, data, options, baseline=True))
    return [*targets, Target(PIXELS, None, mesh, data, options, baseline=True)]


def _check_names(option: str, names: Collection[str], known: Collection[str]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"{option} {unknown[0]} is unknown; possible are {', '.join(known)}")


def _check_new(kind: str, names: Collection[str], known: Collection[str], source: str) -> None:
    taken = [name for name in names if name in known]
    if taken:
        raise ValueError(f"{source} names a {kind} {taken[0]}, and there is one of that name already; choose another name")
