"""Run a study, or some analyses of it, and write its page: `python -m experiments.reproduce`."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro
from jax.sharding import Mesh
from rich.console import Console

import jaxvit
from experiments import demo
from experiments.analyses.base import Analysis
from experiments.analyses.presets import ANALYSES, PRESETS, QUICK, Preset
from experiments.datasets.base import DataSize, StudyData
from experiments.datasets.digits import digit_scenes
from experiments.datasets.folders import Folders, folder_data
from experiments.features.conditions import conditions
from experiments.program import prepare_devices, run
from experiments.report import page
from experiments.study import folder
from experiments.study.cells import Store, cell_hash
from experiments.study.compare import add_holm
from experiments.study.cost import estimate
from experiments.study.jobs import Job, machine
from experiments.study.published import attach_published
from experiments.study.run import run_jobs
from experiments.study.target import PIXELS, Settings, Target
from experiments.tasks.base import Readouts
from experiments.tasks.table import TASKS
from jaxvit.checkpoint import weights_hash
from jaxvit.files import write_text
from jaxvit.sharding import batch_mesh, bounds
from jaxvit.vit import cast, truncated

PRECISIONS = {
    "float32": "float32, matmul precision highest",
    "bfloat16": "bfloat16 models with float32 norms, softmax and RoPE; all else float32, matmul precision highest",
}
_CHOICES = ("only", "models", "tasks", "conditions", "out", "dry_run", "quiet")
"""Fields of a study that may differ between runs in one folder: what is run, and where it is written."""


def _shown(metavar: str, default: str) -> Any:
    """How the help shows an option, and what stands there where it is not given."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


@dataclass(frozen=True)
class Study:
    """A study, or some of its analyses. What is not given is the preset's.

    Attributes:
        preset: which study; "demo" runs the bundled models on digit scenes, offline. The others read folders of images.
        quick: the demo study on few images and two models, in one to two minutes; its page and rows say that it is a quick look.
        only: names of analyses, such as register_lesions attention_flow.
        models: bundled demo models, names in the local cache or checkpoint folders.
        tasks: names of tasks, such as linear_probe knn.
        conditions: names of conditions besides full, such as zero_registers.
        out: folder of the study. The same command continues there; other choices of models, analyses, tasks and conditions share its
            cells, and the page shows all that has been run.
        dry_run: say what the study costs on this device, and run nothing.
        quiet: print nothing but the path of the page.
        seed: the first seed.
        seeds: number of seeds. They vary what is random in a condition (noise, shuffle, random patches) and in a read-out (memory of
            the retrieval segmentation, few-shot samples, SGD), never the model, the images or the resampling.
        image_size: pixels of a side, for folders of images.
        batch_size: images per step, over all devices; which images shuffle among one another depends on it.
        dtype: of the models' weights and streams; norms, softmax, RoPE and everything after the models stay float32.
        random_weights: models of these names with random weights, for trying a study without any.
        resamples: of bootstrap and permutation tests.
        folders: where images are.
        data: numbers of images.
        readouts: how features are read.
    """

    preset: Literal["demo", "parodi2026", "fix-reg-mean", "darcet-norms"] = "demo"
    quick: bool = False
    only: Annotated[tuple[str, ...], _shown("NAME ...", "all of the preset")] = ()
    models: Annotated[tuple[str, ...], _shown("NAME ...", "the preset's")] = ()
    tasks: Annotated[tuple[str, ...], _shown("NAME ...", "all that the data allow")] = ()
    conditions: Annotated[tuple[str, ...], _shown("NAME ...", "all that a model can run")] = ()
    out: Annotated[Path | None, _shown("PATH", "runs/PRESET, runs/demo-quick")] = None
    dry_run: bool = False
    quiet: bool = False
    seed: int = 0
    seeds: Annotated[int | None, _shown("INT", "the preset's")] = None
    image_size: Annotated[int | None, _shown("INT", "the preset's")] = None
    batch_size: Annotated[int | None, _shown("INT", "the preset's")] = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    random_weights: bool = False
    resamples: Annotated[int | None, _shown("INT", "the preset's")] = None
    folders: Folders = field(default_factory=Folders)
    data: DataSize = field(default_factory=DataSize)
    readouts: Readouts = field(default_factory=Readouts)

    def __post_init__(self) -> None:
        if self.quick and self.preset != "demo":
            raise ValueError(
                f"--quick is a look at the demo study; leave out --preset {self.preset}, or add small numbers to it: --data.test 20"
            )

    @property
    def chosen_preset(self) -> Preset:
        return QUICK if self.quick else PRESETS[self.preset]

    @property
    def folder(self) -> Path:
        return self.out or Path("runs") / ("demo-quick" if self.quick else self.preset)

    @property
    def model_names(self) -> tuple[str, ...]:
        return self.models or self.chosen_preset.models

    @property
    def identity(self) -> dict[str, Any]:
        """What makes two runs the same study: its data and settings."""
        entries = {name: value for name, value in asdict(self).items() if name not in _CHOICES}
        return json.loads(json.dumps(entries, default=str))


def reproduce(study: Study) -> Path:
    """Run every cell that is not there yet, then write results.jsonl, run.json and report.html; returns the page's path (of a
    dry run the folder's).

    Raises:
        ValueError: an unknown name, a folder that holds something else or another study, or a study that does not fit here.
    """
    console, mesh = Console(quiet=study.quiet), batch_mesh()
    analyses = chosen_analyses(study)
    out = study.folder
    models = load_models(study)
    check_choices(study, models)
    weights = {name: weights_hash(model) for name, model in models.items()}
    folder.check_run_folder(out, study.identity, weights)
    console.print(f"study [bold]{study.preset}[/] on {jax.device_count()} x {jax.devices()[0].device_kind} -> {out}")
    started = time.monotonic()
    with console.status("reading images"):
        data = study_data(study)
    targets = targets_of(study, models, data, mesh)
    jobs = plan(targets, analyses)
    store = Store(out / "cells")
    missing = [job for job in jobs if job.key not in store]
    cost = estimate(targets, missing, out, timed=study.dry_run)
    console.print(f"{len(jobs)} cells, {len(jobs) - len(missing)} already there; {cost}")
    cost.check()
    if study.dry_run:
        return out
    folder.init_run_folder(out, _manifest(study, data.title))
    run_jobs(missing, targets, store, console)
    seconds = round(time.monotonic() - started, 1)
    _write_results(out, study, weights, data.title, [(cell_hash(job.key), job.key["kind"]) for job in jobs], seconds)
    written = page.write(out)
    console.print(f"{len(missing)} cells in {seconds:.0f} s; the page is [bold]{written}[/]", soft_wrap=True)
    return written


def chosen_analyses(study: Study) -> list[Analysis]:
    """The analyses that are run, in the order of the page.

    Raises:
        ValueError: an unknown name.
    """
    names = study.only or study.chosen_preset.analyses
    _check_names("--only", names, ANALYSES)
    return [analysis for name, analysis in ANALYSES.items() if name in names]


def check_choices(study: Study, models: Mapping[str, jaxvit.ViT]) -> None:
    """Check that every chosen task and condition exists.

    Raises:
        ValueError: an unknown name, or a condition that none of the models can run.
    """
    _check_names("--tasks", study.tasks, TASKS)
    _check_names("--conditions", study.conditions, dict.fromkeys(name for model in models.values() for name in conditions(model.config)))


def _check_names(option: str, names: Collection[str], known: Collection[str]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"{option} {unknown[0]} is unknown; possible are {', '.join(known)}")


def plan(targets: Sequence[Target], analyses: Sequence[Analysis]) -> list[Job]:
    """The jobs of all targets and analyses in order, each cell once."""
    jobs: dict[str, Job] = {}
    for target in targets:
        for analysis in analyses:
            for job in analysis.jobs(target):
                jobs.setdefault(cell_hash(job.key), job)
    return list(jobs.values())


def load_models(study: Study) -> dict[str, jaxvit.ViT]:
    """The models by their names in the study, cut off after the layer that is read.

    Raises:
        ValueError: an unknown model, two of one name, or a layer that one does not have.
    """
    make = (lambda name: jaxvit.create(name, study.seed)) if study.random_weights else jaxvit.load
    models = {Path(name).name: cast(make(name), study.dtype) for name in study.model_names}
    if len(models) < len(study.model_names):
        raise ValueError(f"two models share a name in {', '.join(study.model_names)}; rename one of the folders")
    layer = study.readouts.layer
    return models if layer is None else {name: truncated(model, layer + 1) for name, model in models.items()}


def study_data(study: Study) -> StudyData:
    """The images of a study.

    Raises:
        ValueError: the images that a preset needs are not named or not there.
    """
    size = study.image_size or study.chosen_preset.image_size
    if size is None:
        if any(vars(study.folders).values()):
            raise ValueError(f"the {study.preset} preset reads no folders; choose another --preset, or give --image-size")
        return digit_scenes(study.data, study.seed, study.chosen_preset.size)
    return folder_data(study.folders, study.data, size, study.seed, study.chosen_preset.size)


def targets_of(study: Study, models: Mapping[str, jaxvit.ViT], data: StudyData, mesh: Mesh) -> list[Target]:
    """The models, then the baselines: each architecture once at random initialisation, and raw pixels."""
    chosen = settings(study, data, mesh)
    targets = [Target(name, model, mesh, data, chosen) for name, model in models.items()]
    if not study.chosen_preset.baselines:
        return targets
    shapes: dict[jaxvit.ViTConfig, str] = {}
    for name, model in models.items():
        shapes.setdefault(model.config, demo.twin_of(model.config) or name)
    for config, name in shapes.items():
        untrained = cast(jaxvit.create(config, study.seed), study.dtype)
        targets.append(Target(f"{name}_random", untrained, mesh, data, chosen, baseline=True))
    return [*targets, Target(PIXELS, None, mesh, data, chosen, baseline=True)]


def settings(study: Study, data: StudyData, mesh: Mesh) -> Settings:
    """The options of a study as its jobs read them.

    Raises:
        ValueError: a number below 1, or a batch would leave one image alone.
    """
    preset = study.chosen_preset
    for name, number in (("seeds", study.seeds), ("resamples", study.resamples), ("batch-size", study.batch_size)):
        if number is not None and number < 1:
            raise ValueError(f"--{name} is {number}; give at least 1")
    return Settings(
        seed=study.seed,
        seeds=study.seeds or preset.seeds,
        batch_size=_batch_size(study, data, mesh),
        resamples=study.resamples or preset.resamples,
        precision=PRECISIONS[study.dtype],
        readouts=study.readouts,
        conditions=study.conditions or preset.conditions,
        tasks=study.tasks or preset.tasks,
    )


def _batch_size(study: Study, data: StudyData, mesh: Mesh) -> int:
    """Images per step: what was asked for, rounded up to the devices. Every batch must have two images to shuffle between."""
    batch = -(-(study.batch_size or study.chosen_preset.batch_size) // mesh.size) * mesh.size
    parts = {name: len(part.images) for name, part in data.parts.items()} | {"analysis_images": len(data.analysis_images)}
    single = [f"{name} ({count})" for name, count in parts.items() if any(stop - start == 1 for start, stop in bounds(count, batch))]
    if single:
        raise ValueError(
            f"batches of {batch} leave one image alone in {', '.join(single)}, which cannot be shuffled; give --batch-size 3 or more"
        )
    return batch


def _write_results(
    out: Path, study: Study, weights: Mapping[str, str], title: str, cells: Sequence[folder.CellName], seconds: float
) -> None:
    """Write results.jsonl and run.json, over the cells of this run and of earlier ones in the folder."""
    store, earlier = Store(out / "cells"), folder.read_manifest(out)
    merged = folder.merged_cells(out, store, cells)
    rows = attach_published(add_holm([row for name, _ in merged for row in store.open(name).rows]))
    rows = [{**row, "quick": True} for row in rows] if study.quick else rows
    write_text(out / "results.jsonl", "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
    names = folder.merge(list(earlier["models"]), list(weights))
    choices = {name: list(getattr(study, name)) for name in ("only", "models", "tasks", "conditions")}
    runs = [*earlier["runs"], {**choices, "seconds": seconds, **machine()}]
    known = {**earlier["models"], **weights}
    manifest = _manifest(study, title) | {"models": {name: known[name] for name in names}, "cells": merged, "runs": runs, "finished": True}
    folder.write_manifest(out, manifest)


def _manifest(study: Study, title: str) -> dict[str, Any]:
    """What `run.json` says of a study of which nothing is finished."""
    return {
        "study": study.identity,
        "hash": cell_hash(study.identity),
        "protocol": study.chosen_preset.protocol,
        "precision": PRECISIONS[study.dtype],
        "random_weights": study.random_weights,
        "images": title,
        "machine": machine(),
        "models": {},
        "cells": [],
        "runs": [],
        "finished": False,
    }


def study_of(manifest: Mapping[str, Any]) -> Study:
    """The study that a run.json records, with the preset's choices of models, analyses, tasks and conditions."""
    entries = dict(manifest["study"])
    paths = {name: Path(path) if path else None for name, path in entries["folders"].items()}
    readouts: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entries["readouts"].items()}
    entries |= {"data": DataSize(**entries["data"]), "folders": Folders(**paths), "readouts": Readouts(**readouts)}
    return Study(**entries)


def from_preset() -> Study:
    """A study with the defaults of the command line: the read-outs of the preset that it names.

    They are needed before the command line is parsed, so its two words for a preset are looked up beforehand.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", nargs="?", default="demo", const="demo")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_known_args()[0]
    preset = QUICK if options.quick else PRESETS.get(options.preset)
    return Study(readouts=preset.readouts) if preset else Study()


def _main(study: Study) -> None:
    prepare_devices()
    written = reproduce(study)
    if study.quiet and not study.dry_run:
        print(written)


if __name__ == "__main__":
    run(_main, Study, __doc__, from_preset())
