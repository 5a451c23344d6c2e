"""Run a study and write its page: `python -m experiments.reproduce`."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import jax
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import jaxvit
from experiments import published, report
from experiments.cells import Store, cell_hash, write_text
from experiments.cost import estimate
from experiments.data import DataSize, StudyData, digit_scenes
from experiments.folders import Folders, folder_data
from experiments.measures import Readouts
from experiments.presets import EXPERIMENTS, PRESETS, Preset
from experiments.program import prepare_devices, run
from experiments.study import PIXELS, Job, Settings, Subject, correct_tables, machine, run_job
from jaxvit.sharding import batch_mesh
from jaxvit.vit import cast, truncated

FORMAT = 2
PRECISIONS = {
    "float32": "float32, matmul precision highest",
    "bfloat16": "bfloat16 models with float32 norms, softmax and RoPE; all else float32, matmul precision highest",
}


@dataclass(frozen=True)
class Reproduce:
    """A whole study. What is not given is the preset's.

    Attributes:
        preset: which study; "demo" runs the bundled models on digit scenes, offline. The others read folders of images.
        out: folder of the study (default runs/<preset>); the same command continues there.
        models: bundled demo models, names in the local cache or checkpoint folders.
        folders: where images are.
        data: numbers of images.
        image_size: pixels of a side, for folders of images.
        readouts: how features are read; the command line starts from the preset's.
        random_weights: models of these names with random weights, for trying a study without any.
        seed: the first one of all random choices; seeds: how many of them there are.
        batch_size: images per step, over all devices; part of what determines a shuffle.
        dtype: of the models' weights and streams; norms, softmax, RoPE and everything after the models stay float32.
        resamples: of bootstrap and permutation tests.
        dry_run: say what the study costs on this device, and run nothing.
    """

    preset: Literal["demo", "parodi2026", "fix-reg-mean", "darcet-norms"] = "demo"
    out: Path | None = None
    models: tuple[str, ...] = ()
    folders: Folders = field(default_factory=Folders)
    data: DataSize = field(default_factory=DataSize)
    image_size: int | None = None
    readouts: Readouts = field(default_factory=Readouts)
    random_weights: bool = False
    seed: int = 0
    seeds: int | None = None
    batch_size: int | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    resamples: int = 10_000
    dry_run: bool = False

    @property
    def chosen(self) -> Preset:
        return PRESETS[self.preset]

    @property
    def names(self) -> tuple[str, ...]:
        return self.models or self.chosen.models


def reproduce(study: Reproduce, experiments: Sequence[ModuleType] = ()) -> Path:
    """Run every cell that is not there yet, then write results.jsonl, run.json and report.html; returns the page's path.

    Args:
        experiments: by default the preset's.

    Raises:
        ValueError: an unknown model, or a folder that holds something else or another study, or a study that does not fit here.
    """
    console, mesh = Console(), batch_mesh()
    experiments = experiments or study.chosen.experiments
    out = study.out or Path("runs") / study.preset
    models = load_models(study)
    check_folder(out, study, experiments)
    console.print(f"study [bold]{study.preset}[/] on {jax.device_count()} x {jax.devices()[0].device_kind} -> {out}")
    started = time.monotonic()
    with console.status("reading images"):
        data = study_data(study)
    subjects = subjects_of(study, models, data, mesh)
    jobs = plan(subjects, experiments)
    store = Store(out / "cells")
    missing = [job for job in jobs if job.key not in store]
    cost = estimate(subjects, missing, out, timed=study.dry_run)
    console.print(f"{len(jobs)} cells, {len(jobs) - len(missing)} already there; {cost}")
    cost.check()
    if study.dry_run:
        return out
    claim(out, study, experiments, models)
    _run(missing, subjects, store, console)
    cells = [store.load(job.key) for job in jobs]
    rows = published.beside(correct_tables([row for cell in cells for row in cell.rows]))
    write_text(out / "results.jsonl", "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
    seconds = round(time.monotonic() - started, 1)
    manifest = _manifest(study, experiments, models, data.title, seconds, [(c.hash, c.key["kind"]) for c in cells])
    write_text(out / "run.json", json.dumps(manifest, indent=1))
    page = report.write(out)
    console.print(f"{len(missing)} cells in {seconds:.0f} s; the page is [bold]{page}[/]", soft_wrap=True)
    return page


def plan(subjects: Sequence[Subject], experiments: Sequence[ModuleType]) -> list[Job]:
    """All cells in order, each once."""
    jobs: dict[str, Job] = {}
    for subject in subjects:
        for experiment in experiments:
            for job in experiment.jobs(subject):
                jobs.setdefault(cell_hash(job.key), job)
    return list(jobs.values())


def load_models(study: Reproduce) -> dict[str, jaxvit.ViT]:
    """The models by their names in the study, cut off after the layer that is read.

    Raises:
        ValueError: an unknown model, two of one name, or a layer that one does not have.
    """
    make = (lambda name: jaxvit.create(name, study.seed)) if study.random_weights else jaxvit.load
    models = {Path(name).name: cast(make(name), study.dtype) for name in study.names}
    if len(models) < len(study.names):
        raise ValueError(f"two models share a name in {', '.join(study.names)}; rename one of the folders")
    layer = study.readouts.layer
    return models if layer is None else {name: truncated(model, layer + 1) for name, model in models.items()}


def study_data(study: Reproduce) -> StudyData:
    """The images of a study.

    Raises:
        ValueError: the images that a preset needs are not named or not there.
    """
    size = study.image_size or study.chosen.image_size
    if size is None:
        if any(vars(study.folders).values()):
            raise ValueError(f"the {study.preset} preset reads no folders; choose another --preset, or give --image-size")
        return digit_scenes(study.data, study.seed)
    return folder_data(study.folders, study.data, size, study.seed, study.chosen.size)


def subjects_of(study: Reproduce, models: Mapping[str, jaxvit.ViT], data: StudyData, mesh: Mesh) -> list[Subject]:
    """The models, then the baselines: each architecture once at random initialisation, and raw pixels."""
    chosen = settings(study, data, mesh)
    subjects = [Subject(name, model, mesh, data, chosen) for name, model in models.items()]
    if not study.chosen.baselines:
        return subjects
    shapes: list[jaxvit.ViTConfig] = []
    for name, model in models.items():
        if model.config not in shapes:
            shapes.append(model.config)
            untrained = cast(jaxvit.create(model.config, study.seed), study.dtype)
            subjects.append(Subject(f"{name}_random", untrained, mesh, data, chosen, baseline=True))
    return [*subjects, Subject(PIXELS, None, mesh, data, chosen, baseline=True)]


def settings(study: Reproduce, data: StudyData, mesh: Mesh) -> Settings:
    """What the numbers of a study depend on beside models, conditions and data.

    Raises:
        ValueError: a batch would leave one image alone.
    """
    preset = study.chosen
    for name, given in (("seeds", study.seeds), ("resamples", study.resamples), ("batch-size", study.batch_size)):
        if given is not None and given < 1:
            raise ValueError(f"--{name} is {given}; give at least 1")
    return Settings(
        seed=study.seed,
        seeds=study.seeds or preset.seeds,
        batch_size=_batch_size(study, data, mesh),
        resamples=study.resamples,
        precision=PRECISIONS[study.dtype],
        readouts=study.readouts,
        conditions=preset.conditions,
        tasks=preset.tasks,
    )


def _batch_size(study: Reproduce, data: StudyData, mesh: Mesh) -> int:
    """Images per step: what was asked for, rounded up to the devices. Every batch must have two images to shuffle between."""
    batch = -(-(study.batch_size or study.chosen.batch_size) // mesh.size) * mesh.size
    parts = {name: len(part.images) for name, part in data.parts.items()} | {"flow": len(data.sample)}
    alone = [f"{name} ({count})" for name, count in parts.items() if batch < 2 or count % batch == 1]
    if alone:
        raise ValueError(f"batches of {batch} leave one image alone in {', '.join(alone)}, which cannot be shuffled; change --batch-size")
    return batch


def _run(jobs: Sequence[Job], subjects: Sequence[Subject], store: Store, console: Console) -> None:
    shown = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(BarColumn(), TaskProgressColumn(), *shown, console=console) as progress:
        bar = progress.add_task("starting", total=sum(job.weight for job in jobs))
        for job in jobs:
            for subject in subjects:
                if subject.name != job.key["model"]["name"]:
                    subject.release()
            progress.update(bar, description=job.label)
            run_job(job, store)
            progress.advance(bar, job.weight)


def check_folder(out: Path, study: Reproduce, experiments: Sequence[ModuleType]) -> None:
    """Whether a folder can be this study's: an empty one, or the one that this very study has begun.

    Raises:
        ValueError: the folder holds anything else.
    """
    marker = out / "run.json"
    if marker.exists():
        try:
            found = json.loads(marker.read_text())["study"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{marker} is not a study's run.json; choose another --out") from None
        wanted = _identity(study, experiments)
        different = sorted(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k))
        if different:
            raise ValueError(f"{out} holds another study (it differs in {', '.join(different)}); choose another --out or remove the folder")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and holds no study; choose another --out")


def claim(out: Path, study: Reproduce, experiments: Sequence[ModuleType], models: Mapping[str, jaxvit.ViT]) -> None:
    """Take a folder for a study."""
    if not (out / "run.json").exists():
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "run.json", json.dumps(_manifest(study, experiments, models, "", None, []), indent=1))


def from_manifest(manifest: Mapping[str, Any]) -> Reproduce:
    """The study that a run.json tells of."""
    told = {k: v for k, v in manifest["study"].items() if k != "experiments"}
    paths = {name: Path(path) if path else None for name, path in told["folders"].items()}
    readouts: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in told["readouts"].items()}
    told |= {
        "models": tuple(told["models"]),
        "data": DataSize(**told["data"]),
        "folders": Folders(**paths),
        "readouts": Readouts(**readouts),
    }
    return Reproduce(**told)


def _identity(study: Reproduce, experiments: Sequence[ModuleType]) -> dict[str, Any]:
    """What makes two runs the same study: everything but where it is written."""
    chosen = {k: v for k, v in asdict(study).items() if k not in ("out", "dry_run")}
    chosen["experiments"] = [module.__name__.rpartition(".")[2] for module in experiments]
    return json.loads(json.dumps(chosen, default=str))


def _manifest(
    study: Reproduce,
    experiments: Sequence[ModuleType],
    models: Mapping[str, jaxvit.ViT],
    title: str,
    seconds: float | None,
    cells: list[tuple[str, str]],
) -> dict[str, Any]:
    identity = _identity(study, experiments)
    return {
        "format": FORMAT,
        "study": identity,
        "protocol": study.chosen.protocol,
        "models": list(models),
        "random_weights": study.random_weights,
        "precision": PRECISIONS[study.dtype],
        "images": title,
        "hash": cell_hash(identity),
        "finished": bool(cells),
        "last_run_seconds": seconds,
        "machine": machine(),
        "cells": cells,
    }


def from_preset() -> Reproduce:
    """What the options of the command line start from: the defaults of the preset that it names."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", default="demo")
    named = parser.parse_known_args()[0].preset
    return Reproduce(readouts=PRESETS[named].readouts) if named in PRESETS else Reproduce()


def alone(name: str, description: str | None) -> None:
    """The program of one experiment: the same options as the whole study, its own folder."""

    def program(study: Reproduce) -> None:
        prepare_devices()
        (experiment,) = [module for module in EXPERIMENTS if module.__name__.rpartition(".")[2] == name]
        out = study.out or Path("runs") / f"{study.preset}_{name}"
        reproduce(replace(study, out=out), [experiment])

    run(program, Reproduce, description, from_preset())


def _main(study: Reproduce) -> None:
    prepare_devices()
    reproduce(study)


if __name__ == "__main__":
    run(_main, Reproduce, __doc__, from_preset())
