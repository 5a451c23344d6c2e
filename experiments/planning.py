"""From a `Study` to what is run: models, data, conditions, tasks, analyses, and the jobs of them all."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

import jaxvit
from experiments import demo
from experiments.analyses.base import Analysis
from experiments.analyses.presets import ANALYSES
from experiments.datasets.arrays import array_data
from experiments.datasets.base import DataSize, StudyData
from experiments.datasets.digits import digit_scenes
from experiments.datasets.folders import Folders, prepared_folders
from experiments.datasets.images import PROTOCOLS, TORCHVISION
from experiments.datasets.preprocess import family_protocol
from experiments.definition import FAMILY, PRECISIONS, Study, check_names
from experiments.features.conditions import ALL_CONDITIONS, FULL, ON_REQUEST, Condition, conditions
from experiments.features.sources import ConditionSource, as_condition, refusal
from experiments.numerics import compiler_flags
from experiments.plugins import Plugin, load_plugin, source_hash
from experiments.sinks.constructed import CONSTRUCTED, constructed
from experiments.study.cells import cell_hash
from experiments.study.cost import is_large
from experiments.study.jobs import Job
from experiments.study.target import PIXELS, Settings, Target
from experiments.tasks.base import Readouts, Task
from experiments.tasks.table import TASKS
from jaxvit import ViTConfig
from jaxvit.checkpoint import read_config
from jaxvit.sharding import batch_mesh, shard_weights
from jaxvit.vit import cast, config_of, truncated

BATCH_SIZE = 128
"""Images under way at a time unless another number is given."""


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
        check_names("--conditions", study.conditions, possible)
    return Choices(_analyses(study, plugins), _tasks(study, plugins), plugins)


def make_plan(study: Study, choices: Choices, models: Mapping[str, jaxvit.ViT], data: Mapping[str, StudyData], mesh: Mesh) -> Plan:
    """The plan of a study. No model runs.

    Args:
        data: the images as each model sees them, by the model's name (`study_images`).

    Raises:
        ValueError: a condition that no model can run.
    """
    options = settings(study, choices.tasks)
    skipped: list[str] = []
    tables = {name: _condition_table(study, choices.plugins, name, model.config, data[name], skipped) for name, model in models.items()}
    _check_conditions(study, tables, skipped)
    targets = [Target(name, model, mesh, data[name], options, tables[name]) for name, model in models.items()]
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
    for analysis in analyses.values():
        for first, second in itertools.combinations(targets, 2):
            for job in getattr(analysis, "pair_jobs", lambda first, second: ())(first, second):
                jobs.setdefault(cell_hash(job.key), job)
    return list(jobs.values())


def load_models(study: Study, mesh: Mesh | None = None) -> dict[str, jaxvit.ViT]:
    """The models by their names in the study, cut off after the layer that is read. The weights of large ones are split over the mesh, by
    default one of all devices of this process.

    Raises:
        ValueError: an unknown model, two of one name, none, a layer that one does not have, or weights that the mesh cannot split.
    """
    mesh = batch_mesh() if mesh is None else mesh
    if isinstance(study.models, Mapping):
        models = {name: cast(_split(study, model, mesh), study.dtype) for name, model in study.models.items()}
    else:
        sources = [str(source) for source in study.models or study.chosen_preset.models]
        make = _create if study.random_weights else _load
        models = {Path(source).name: cast(make(study, source, mesh), study.dtype) for source in sources}
        if len(models) < len(sources):
            raise ValueError(f"two models share a name in {', '.join(sources)}; rename one of the folders")
    if not models:
        raise ValueError("no model is named; give --models with bundled models, names in the cache or checkpoint folders")
    layer = study.chosen_readouts.layer
    return models if layer is None else {name: truncated(model, layer + 1) for name, model in models.items()}


def _load(study: Study, source: str, mesh: Mesh) -> jaxvit.ViT:
    """A model by its name or folder; constructed ones by theirs."""
    if source in CONSTRUCTED:
        return _split(study, constructed(source), mesh)
    return jaxvit.load(source, _weights_mesh(study, read_config(source), mesh))


def _create(study: Study, model: str | ViTConfig, mesh: Mesh) -> jaxvit.ViT:
    """A model with random weights."""
    return jaxvit.create(model, study.seed, _weights_mesh(study, config_of(model), mesh))


def _split(study: Study, model: jaxvit.ViT, mesh: Mesh) -> jaxvit.ViT:
    """A model that is in memory, with its weights split where they should be."""
    return model if model.weight_shards or not _weights_mesh(study, model.config, mesh) else shard_weights(model, mesh)


def _weights_mesh(study: Study, config: ViTConfig, mesh: Mesh) -> Mesh | None:
    """The mesh, if the weights of a model are to be split over it."""
    return mesh if study.shard_weights or is_large(config, mesh) else None


def split_weights(models: Mapping[str, jaxvit.ViT]) -> list[str]:
    """A line for each model whose weights are split over devices."""
    shards = {name: model.weight_shards for name, model in models.items() if model.weight_shards is not None}
    return [f"Weights of {name} are split over devices ({split.mesh.size})." for name, split in shards.items()]


def study_images(study: Study, models: Mapping[str, jaxvit.ViT]) -> dict[str, StudyData]:
    """The images of a study as each of its models sees them, by the model's name. They are decoded once for every protocol.

    Raises:
        ValueError: as in `study_data`, or a protocol is asked for where no files are decoded.
    """
    of_model = dict.fromkeys(models, TORCHVISION if study.preprocess == FAMILY else study.preprocess)
    if study.preprocess == FAMILY and not study.random_weights and not isinstance(study.models, Mapping):
        sources = {Path(source).name: str(source) for source in study.models or study.chosen_preset.models}
        of_model = {name: family_protocol(sources[name], model.config) for name, model in models.items()}
    prepared = _data_by_protocol(study, sorted({*of_model.values()}, key=list(PROTOCOLS).index))
    return {name: prepared[protocol] for name, protocol in of_model.items()}


def study_data(study: Study) -> StudyData:
    """The images of a study, under torchvision's protocol where they are decoded from files.

    Raises:
        ValueError: the images that a preset needs are not named or not there, or arrays do not fit.
    """
    return _data_by_protocol(study, [TORCHVISION])[TORCHVISION]


def _data_by_protocol(study: Study, protocols: Sequence[str]) -> dict[str, StudyData]:
    """The images of a study by protocol: one and the same under all of them where no files are decoded."""
    preset, data = study.chosen_preset, study.data
    size = study.image_size or preset.image_size
    folders = Folders() if isinstance(data, Mapping) else Folders(images=Path(data)) if isinstance(data, str | Path) else data or Folders()
    if not isinstance(data, Mapping) and size is not None:
        return prepared_folders(folders, protocols, study.sizes, size, study.seed, preset.size, study.max_pixels, study.keep_blank)
    if folders != Folders():
        raise ValueError(f"the {study.preset} preset reads no folders; choose another --preset, such as custom, or give --image-size")
    if study.preprocess != FAMILY:
        made = "arrays" if isinstance(data, Mapping) else "scenes of the demo"
        raise ValueError(f"--preprocess {study.preprocess} is for files of images, and the {made} are used as they are; leave it out")
    images = array_data(data, study.sizes, study.seed) if isinstance(data, Mapping) else digit_scenes(study.sizes, study.seed, preset.size)
    return dict.fromkeys(protocols, images)


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
        sink_scope=preset.sink_scope,
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
    check_names("--tasks", names, known)
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
    check_names("--only", names, known)
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
    chosen = names or [name for name in table if name not in ON_REQUEST]
    return {name: condition for name, condition in table.items() if name in chosen or name == FULL}


def _check_conditions(study: Study, tables: Mapping[str, Mapping[str, Condition]], skipped: Sequence[str]) -> None:
    """Check that some model can run every chosen condition."""
    runnable = dict.fromkeys(name for table in tables.values() for name in table)
    for name in [*study.conditions, *study.added_conditions]:
        if name not in runnable:
            why = [line for line in skipped if f"cannot run {name}:" in line]
            raise ValueError("; ".join(why) or f"no model of the study has the condition {name}")


def _baselines(
    study: Study, models: Mapping[str, jaxvit.ViT], data: Mapping[str, StudyData], mesh: Mesh, options: Settings
) -> list[Target]:
    """Each architecture once at random initialisation (unless the models are that), and raw pixels. They see what the first model of the
    architecture sees; raw pixels are of torchvision's protocol where a model has it."""
    targets = []
    first: dict[ViTConfig, str] = {}
    for name, model in ({} if study.random_weights else models).items():
        first.setdefault(model.config, name)
    for config, name in first.items():
        untrained = cast(_create(study, config, mesh), study.dtype)
        targets.append(Target(f"{demo.twin_of(config) or name}_random", untrained, mesh, data[name], options, baseline=True))
    pixels = min(data.values(), key=lambda entry: list(PROTOCOLS).index(entry.protocol))
    return [*targets, Target(PIXELS, None, mesh, pixels, options, baseline=True)]


def _check_new(kind: str, names: Collection[str], known: Collection[str], source: str) -> None:
    taken = [name for name in names if name in known]
    if taken:
        raise ValueError(f"{source} names a {kind} {taken[0]}, and there is one of that name already; choose another name")


def whole_plan(study: Study, mesh: Mesh) -> Plan:
    """The plan of a study from its options alone, as a process makes it that computes part of it.

    Raises:
        ValueError: as in `load_models`, `chosen`, `study_images` and `make_plan`.
    """
    models = load_models(study, mesh)
    return make_plan(study, chosen(study, models), models, study_images(study, models), mesh)
