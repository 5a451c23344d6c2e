"""Run the token-ablation study and write its page: `python -m experiments.reproduce`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import jaxvit
from experiments import report
from experiments.cells import Store, cell_hash, write_text
from experiments.data import DataSize, StudyData, digit_scenes
from experiments.program import prepare_devices, run
from experiments.study import PIXELS, Settings, Subject, correct_tables, machine, plan, run_job
from jaxvit.sharding import batch_mesh

FORMAT = 1


@dataclass(frozen=True)
class Reproduce:
    """The whole study.

    Attributes:
        preset: which study; "demo" runs the bundled models on digit scenes, offline.
        out: folder of the study (default runs/<preset>); the same command continues there.
        models: bundled demo models, names in the local cache or checkpoint folders.
        data: numbers of scenes.
        seed: of the scenes, noise, shuffle, patch choice, random models and resampling.
        batch_size: images per step, over all devices; part of what determines a shuffle.
        resamples: of bootstrap and permutation tests.
    """

    preset: Literal["demo"] = "demo"
    out: Path | None = None
    models: tuple[str, ...] = ("demo_reg", "demo", "demo_reg_read")
    data: DataSize = field(default_factory=DataSize)
    seed: int = 0
    batch_size: int = 128
    resamples: int = 10_000


def reproduce(study: Reproduce) -> Path:
    """Run every cell that is not there yet, then write results.jsonl, run.json and report.html; returns the page's path.

    Raises:
        ValueError: an unknown model, or a folder that holds something else or another study.
    """
    mesh = batch_mesh()
    _batch_size(study, mesh)  # before anything is written
    out = study.out or Path("runs") / study.preset
    models = {Path(name).name: jaxvit.load(name) for name in study.models}
    if len(models) < len(study.models):
        raise ValueError(f"two models share a name in {', '.join(study.models)}; rename one of the folders")
    claim(out, study)
    console = Console()
    console.print(f"study [bold]{study.preset}[/] on {jax.device_count()} x {jax.devices()[0].device_kind} -> {out}")
    started = time.monotonic()
    with console.status("composing scenes"):
        data = digit_scenes(study.data, study.seed)
    jobs = plan(_subjects(study, models, data, mesh))
    store = Store(out / "cells")
    missing = [job for job in jobs if job.key not in store]
    console.print(f"{len(jobs)} cells, {len(jobs) - len(missing)} already there")
    columns = (
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("starting", total=sum(job.weight for job in missing))
        for job in missing:
            progress.update(bar, description=job.label)
            run_job(job, store)
            progress.advance(bar, job.weight)
    cells = [store.load(job.key) for job in jobs]
    rows = correct_tables([row for cell in cells for row in cell.rows])
    write_text(out / "results.jsonl", "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
    seconds = round(time.monotonic() - started, 1)
    write_text(out / "run.json", json.dumps(_manifest(study, machine(), seconds, [c.hash for c in cells]), indent=1))
    page = report.write(out)
    console.print(f"{len(missing)} cells in {seconds:.0f} s; the page is [bold]{page}[/]", soft_wrap=True)
    return page


def claim(out: Path, study: Reproduce) -> None:
    """Take a folder for a study: an empty one, or the one that this very study has begun.

    Raises:
        ValueError: the folder holds anything else.
    """
    marker = out / "run.json"
    if marker.exists():
        try:
            found = json.loads(marker.read_text())["study"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{marker} is not a study's run.json; choose another --out") from None
        wanted = _identity(study)
        different = sorted(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k))
        if different:
            raise ValueError(f"{out} holds another study (it differs in {', '.join(different)}); choose another --out or remove the folder")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and holds no study; choose another --out")
    else:
        out.mkdir(parents=True, exist_ok=True)
        write_text(marker, json.dumps(_manifest(study, machine(), None, []), indent=1))


def _subjects(study: Reproduce, models: dict[str, jaxvit.ViT], data: StudyData, mesh: Mesh) -> list[Subject]:
    """The models, then the baselines: each architecture once at random initialisation, and raw pixels."""
    chosen = settings(study, mesh)
    subjects = [Subject(name, model, mesh, data, chosen) for name, model in models.items()]
    shapes: list[jaxvit.ViTConfig] = []
    for name, model in models.items():
        if model.config not in shapes:
            shapes.append(model.config)
            subjects.append(Subject(f"{name}_random", jaxvit.create(model.config, study.seed), mesh, data, chosen, baseline=True))
    return [*subjects, Subject(PIXELS, None, mesh, data, chosen, baseline=True)]


def settings(study: Reproduce, mesh: Mesh) -> Settings:
    """What the numbers of a study depend on beside models, conditions and data.

    Raises:
        ValueError: a batch would leave one image alone.
    """
    return Settings(study.seed, _batch_size(study, mesh), study.resamples, "float32, matmul precision highest")


def from_manifest(manifest: Mapping[str, Any]) -> Reproduce:
    """The study that a run.json tells of."""
    told = manifest["study"]
    return Reproduce(**{**told, "models": tuple(told["models"]), "data": DataSize(**told["data"])})


def _batch_size(study: Reproduce, mesh: Mesh) -> int:
    """Images per step: what was asked for, rounded up to the devices. Every batch must have two images to shuffle between."""
    batch = -(-study.batch_size // mesh.size) * mesh.size
    parts = {name: getattr(study.data, name) for name in ("bank", "choose", "test", "pairs")}
    alone = [f"{name} ({count})" for name, count in parts.items() if batch < 2 or count % batch == 1]
    if alone:
        raise ValueError(f"batches of {batch} leave one image alone in {', '.join(alone)}, which cannot be shuffled; change --batch-size")
    return batch


def _identity(study: Reproduce) -> dict[str, Any]:
    """What makes two runs the same study: everything but where it is written."""
    chosen = {k: v for k, v in asdict(study).items() if k != "out"}
    return json.loads(json.dumps(chosen))


def _manifest(study: Reproduce, device: dict[str, Any], seconds: float | None, cells: list[str]) -> dict[str, Any]:
    identity = _identity(study)
    return {
        "format": FORMAT,
        "study": identity,
        "hash": cell_hash(identity),
        "finished": bool(cells),
        "last_run_seconds": seconds,
        "machine": device,
        "cells": cells,
    }


def _main(study: Reproduce) -> None:
    prepare_devices()
    reproduce(study)


if __name__ == "__main__":
    run(_main, Reproduce, __doc__)
