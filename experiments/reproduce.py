"""Run a study, or some analyses of it, and write its page: `python -m experiments.reproduce`."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro
from rich.console import Console

from experiments.analyses.presets import ANALYSES, PRESETS, QUICK
from experiments.cluster.doctor import examine
from experiments.cluster.driver import run_on_cluster
from experiments.cluster.engine import check_cluster, connected, job_script
from experiments.datasets.base import DataSize, StudyData
from experiments.datasets.folders import Folders
from experiments.datasets.preprocess import different_protocols
from experiments.datasets.reading import MAX_PIXELS
from experiments.definition import FAMILY, PRECISIONS, Study
from experiments.features.expressions import parse_condition
from experiments.numerics import compiler_flags, numerics, pinned_numerics
from experiments.planning import Choices, Plan, chosen, load_models, make_plan, split_weights, study_images
from experiments.program import prepare_devices, run
from experiments.report import page
from experiments.rows import check_rows
from experiments.slices import DEFAULT_TIMEOUT, JOIN, TIMEOUT
from experiments.study import folder
from experiments.study.cells import Store, cell_hash
from experiments.study.compare import add_holm, mark_repeats
from experiments.study.cost import estimate
from experiments.study.jobs import Job, machine
from experiments.study.published import attach_published
from experiments.study.results import StudyResults
from experiments.study.run import run_jobs
from experiments.tasks.base import Readouts
from experiments.tasks.table import score_columns
from jaxvit.checkpoint import weights_hash
from jaxvit.files import write_text
from jaxvit.sharding import batch_mesh

__all__ = ["Options", "Study", "reproduce"]


def _shown(metavar: str, default: str) -> Any:
    """How the help shows an option, and what stands there where it is not given."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


@dataclass(frozen=True)
class Options:
    """A study, or some of its analyses. What is not given is the preset's.

    Attributes:
        preset: which study; "demo" runs the bundled models on digit scenes, offline. "custom" runs your models on your folders of
            images; the others follow publications.
        quick: the demo study on few images, two models and half of the conditions, in about two minutes; its page and rows say that it
            is a quick look.
        only: names of analyses, such as register_lesions attention_flow.
        models: bundled demo models, names in the local cache or checkpoint folders.
        tasks: names of tasks, such as linear_probe knn.
        conditions: names of conditions besides full, such as zero_registers.
        condition: a condition of your own, as name=expression: 'both=zero("cls") & mean("registers", layers="6-11")'. Repeat the option
            for more.
        plugin: a Python module, or a file that ends in .py, with dictionaries CONDITIONS, TASKS or ANALYSES of your own. Repeat the
            option for more.
        out: folder of the study. The same command continues there; other choices of models, analyses, tasks and conditions share its
            cells, and the page shows all that has been run.
        dry_run: say what the study costs on this device, and run nothing.
        doctor: say whether the study could start, here or on the workers of --cluster: devices, versions, cache, disk, memory, models,
            images; the exit code is 0 only then, else 1. Nothing is computed.
        quiet: print nothing but the path of the page.
        seed: the first seed.
        seeds: number of seeds. They vary what is random in a condition (noise, shuffle, random patches) and SGD, never the model, the
            images or the resampling; from 5 on intervals cover these draws. Memories of patches and few-shot samples are drawn
            --readouts.draws times, or as often as there are seeds, if that is more.
        image_size: pixels of a side, for folders of images.
        batch_size: images under way at a time, over all devices. It moves no number, nor does the number of devices.
        dtype: of the models' weights and streams; norms, softmax, RoPE and everything after the models stay float32.
        random_weights: models of these names with random weights, for trying a study without any.
        shard_weights: split the weights of every model over the devices of this machine (docs/launching.md), as is done by itself with
            weights of more than half of a device's memory. It moves no number.
        resamples: of bootstrap and permutation tests.
        preprocess: how files of images become the squares that models see. "family" takes the protocol of the implementation that each
            model's weights agree with: Hugging Face's for its oracle, else torchvision's; the others are for all models.
        max_pixels: of the largest image file that is read.
        keep_blank: accept images of one colour and masks without a label; otherwise they are refused, because a score on them means
            nothing.
        page_budget: megabytes that the page may weigh. What its other sections leave is for the data of the token microscope; the page
            says what did not fit.
        cluster: compute on other processes or machines (docs/launching.md): local:2 starts so many workers here, tcp://HOST:8786 is a
            scheduler that is running, slurm asks for jobs. The numbers are those of one process.
        cluster_config: a YAML file with the number of Slurm's workers and what each takes.
        distributed: this machine shares a slice of a TPU with others, which start together (docs/launching.md); each computes on its own
            chips. Workers of a cluster have JAXVIT_DISTRIBUTED in their environment instead, and JAXVIT_DISTRIBUTED=skip there wins.
        distributed_address: of the first machine of the slice.
        distributed_timeout: seconds until all machines must have started.
        folders: where images are.
        data: numbers of images.
        readouts: how features are read.
    """

    preset: Literal["demo", "custom", "parodi2026", "fix-reg-mean", "darcet-norms"] = "demo"
    quick: bool = False
    only: Annotated[tuple[str, ...], _shown("NAME ...", "all of the preset")] = ()
    models: Annotated[tuple[str, ...], _shown("NAME ...", "the preset's")] = ()
    tasks: Annotated[tuple[str, ...], _shown("NAME ...", "all that the data allow")] = ()
    conditions: Annotated[tuple[str, ...], _shown("NAME ...", "all that a model can run")] = ()
    condition: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, _shown("NAME=EXPRESSION", "none")] = ()
    plugin: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, _shown("MODULE|FILE.py", "none")] = ()
    out: Annotated[Path | None, _shown("PATH", "runs/PRESET, runs/demo-quick")] = None
    dry_run: bool = False
    doctor: bool = False
    quiet: bool = False
    seed: int = 0
    seeds: Annotated[int | None, _shown("INT", "the preset's")] = None
    image_size: Annotated[int | None, _shown("INT", "the preset's")] = None
    batch_size: Annotated[int | None, _shown("INT", "128")] = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    random_weights: bool = False
    shard_weights: bool = False
    resamples: Annotated[int | None, _shown("INT", "the preset's")] = None
    preprocess: Literal["family", "torchvision", "hf_dino", "hf_dinov2", "hf_dinov3"] = FAMILY
    max_pixels: int = MAX_PIXELS
    keep_blank: bool = False
    page_budget: Annotated[float | None, _shown("MB", "5 for the bundled demo models, else 12")] = None
    cluster: Annotated[str, _shown("local:N|tcp://HOST:PORT|slurm", "this process")] = ""
    cluster_config: Annotated[Path | None, _shown("FILE", "none")] = None
    distributed: bool = False
    distributed_address: Annotated[str, _shown("HOST:PORT", "JAX finds it")] = ""
    distributed_timeout: int = DEFAULT_TIMEOUT
    folders: Folders = field(default_factory=Folders)
    data: DataSize = field(default_factory=DataSize)
    readouts: Readouts = field(default_factory=Readouts)

    def __post_init__(self) -> None:
        check_cluster(self.cluster, self.cluster_config)
        if self.distributed and self.cluster:
            raise ValueError("--distributed is for a process that computes; set JAXVIT_DISTRIBUTED=auto where the workers are started")
        if self.distributed_address and not self.distributed:
            raise ValueError(f"--distributed-address {self.distributed_address} is for --distributed; add it, or leave this out")
        self.study()  # refuses what does not go together

    def study(self) -> Study:
        """The study that the command line describes.

        Raises:
            ValueError: options that do not go together, or a condition that cannot be read.
        """
        expressions = [parse_condition(text) for text in self.condition]
        names = [expression.name for expression in expressions]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"--condition {repeated[0]} is given twice; choose another name")
        chosen = (*self.conditions, *(name for name in names if name not in self.conditions)) if self.conditions else ()
        return Study(
            preset=self.preset,
            quick=self.quick,
            models=self.models,
            data=self.folders if self.folders != Folders() else None,
            sizes=self.data,
            conditions=chosen,
            added_conditions={expression.name: expression.text for expression in expressions},
            tasks=self.tasks,
            analyses=self.only,
            plugins=self.plugin,
            out=self.out,
            dry_run=self.dry_run,
            quiet=self.quiet,
            seed=self.seed,
            seeds=self.seeds,
            image_size=self.image_size,
            batch_size=self.batch_size,
            dtype=self.dtype,
            random_weights=self.random_weights,
            shard_weights=self.shard_weights,
            resamples=self.resamples,
            readouts=self.readouts,
            preprocess=self.preprocess,
            max_pixels=self.max_pixels,
            keep_blank=self.keep_blank,
            page_budget=self.page_budget,
            cluster=self.cluster,
            cluster_config=self.cluster_config,
        )


def reproduce(study: Study) -> Path:
    """Run every cell that is not there yet, then write results.jsonl, run.json and report.html; returns the page's path (of a
    dry run the folder's).

    Devices are used as JAX has them: in a program of your own, `experiments.program.prepare_devices()` before any computation gives
    a CPU one device per core.

    Raises:
        ValueError: an unknown name, a folder that holds something else or another study, or a study that does not fit here.
    """
    with pinned_numerics():
        return _reproduce(study)


def _reproduce(study: Study) -> Path:
    console, mesh, out = Console(quiet=study.quiet), batch_mesh(), study.folder
    folder.check_owner(out)
    models = load_models(study, mesh)
    weights = {name: weights_hash(model) for name, model in models.items()}
    choices = chosen(study, models)
    where = study.cluster or f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}"
    console.print(f"study [bold]{study.preset}[/] on {where} -> {out}")
    started = time.monotonic()
    with console.status("reading images"):
        data = study_images(study, models)
    images = list({entry.protocol: entry for entry in data.values()}.values())
    folder.check_run_folder(out, study.identity(*images), weights, images[0].files)
    plan = make_plan(study, choices, models, data, mesh)
    protocols = {target.name: target.data.protocols["labels"] for target in plan.targets}
    for line in (*images[0].notes, *different_protocols(protocols), *split_weights(models), *plan.skipped):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    store = Store(out / "cells")
    missing = [job for job in plan.jobs if job.key not in store]
    cost = estimate(plan.targets, missing, out, timed=study.dry_run and not study.cluster)
    console.print(f"{len(plan.jobs)} cells, {len(plan.jobs) - len(missing)} already there; {cost}")
    cost.check(computing=not study.cluster)
    if study.dry_run:
        if study.cluster == "slurm" and study.cluster_config:
            console.print(job_script(study.cluster_config), soft_wrap=True, markup=False, highlight=False)
        return out
    used = _run(study, missing, plan, store, console, _manifest(study, images))
    seconds = round(time.monotonic() - started, 1)
    _write_results(out, study, choices, plan, weights, images, seconds, used)
    written = page.write(out, choices.analyses, study.page_budget)
    console.print(f"{len(missing)} cells in {seconds:.0f} s; the page is [bold]{written}[/]", soft_wrap=True)
    return written


def _run(study: Study, jobs: Sequence[Job], plan: Plan, store: Store, console: Console, manifest: dict[str, Any]) -> dict[str, Any]:
    """Compute all jobs, here or on the workers of a cluster; returns what they were computed with."""
    if not study.cluster or not jobs:
        folder.init_run_folder(study.folder, manifest)
        run_jobs(jobs, plan.targets, store, console)
        return machine()
    used = dict(machine())

    def begin(worker: dict[str, Any]) -> None:
        used.update({name: worker[name] for name in used})
        folder.init_run_folder(study.folder, {**manifest, "machine": used, "workers": True})

    required = folder.required_devices(study.folder)
    with connected(study.cluster, study.cluster_config) as client:
        run_on_cluster(jobs, study, store, client, console, required, begin)
    return used


def _write_results(
    out: Path,
    study: Study,
    choices: Choices,
    plan: Plan,
    weights: Mapping[str, str],
    images: Sequence[StudyData],
    seconds: float,
    used: Mapping[str, Any],
) -> None:
    """Write results.jsonl and run.json, over the cells of this run and of earlier ones in the folder."""
    store, earlier = Store(out / "cells"), folder.read_manifest(out)
    merged = folder.merged_cells(out, store, [(cell_hash(job.key), job.key["kind"], job.label) for job in plan.jobs])
    texts = {**earlier["ablations"], **_ablation_texts(plan)}
    rows = [{**row, "quick": study.quick} for name, _, _ in merged for row in store.open(name).rows]
    rows = attach_published(add_holm(mark_repeats(rows, texts)))
    check_rows(rows)
    write_text(out / "results.jsonl", "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
    names = folder.merge(list(earlier["models"]), list(weights))
    runs = {
        "only": list(choices.analyses),
        "models": list(weights),
        "tasks": list(choices.tasks),
        "conditions": list(dict.fromkeys(name for target in plan.targets for name in target.conditions)),
    }
    known = {**earlier["models"], **weights}
    named = {name for row in rows for name in row["ablation"] or ()}
    results = StudyResults(rows, earlier, out, names)
    said = {name: words(results) for name, analysis in ANALYSES.items() if (words := getattr(analysis, "verdict_words", None))}
    manifest = _manifest(study, images, earlier["study"]["data"]) | {
        "machine": dict(used),
        "workers": bool(study.cluster),
        "models": {name: known[name] for name in names},
        "ablations": {name: text for name, text in texts.items() if name in named},
        "columns": folder.merge(
            [tuple(column) for column in earlier["columns"]], [tuple(column) for column in score_columns(choices.tasks)]
        ),
        "prepared": {**earlier.get("prepared", {}), **{target.name: target.data.protocols["labels"] for target in plan.targets}},
        "plugins": {**earlier["plugins"], **{plugin.source: plugin.sha256 for plugin in choices.plugins}},
        "skipped": plan.skipped,
        "cells": merged,
        "runs": [*earlier["runs"], {**runs, "seconds": seconds, "compiler_flags": compiler_flags(), **used}],
        "verdicts": {model: of_model for by_model in said.values() for model, of_model in by_model.items()},
        "finished": True,
    }
    folder.write_manifest(out, manifest)


def _ablation_texts(plan: Plan) -> dict[str, str]:
    """The definition of every ablation of a plan, by its hash."""
    recipes = [
        target.recipe(name, seed)
        for target in plan.targets
        if target.model is not None
        for name in target.conditions
        for seed in target.seeds_of(name)
    ]
    return {recipe.hash: recipe.text for recipe in recipes} | {name: text for job in plan.jobs for name, text in job.ablations.items()}


def _manifest(study: Study, images: Sequence[StudyData], earlier: folder.DataHashes | None = None) -> dict[str, Any]:
    """What `run.json` says of a study of which nothing is finished.

    Args:
        images: of the study, under every protocol of this run.
        earlier: what it says of the data of earlier runs.
    """
    data, identity = images[0], study.identity(*images)
    identity["data"] = folder.merge_hashes(earlier or {}, identity["data"])
    return {
        "study": identity,
        "hash": cell_hash(identity),
        "protocol": study.chosen_preset.protocol,
        "precision": PRECISIONS[study.dtype],
        "numerics": numerics(),
        "random_weights": study.random_weights,
        "images": data.title,
        "files": data.files,
        "notes": list(data.notes),
        "image_size": list(data.analysis_images.shape[1:3]),
        "image_counts": {part: len(data.parts[part].images) for part in ("train", "val", "test")},
        "machine": machine(),
        "models": {},
        "ablations": {},
        "columns": [],
        "prepared": {},
        "plugins": {},
        "cells": [],
        "runs": [],
        "verdicts": {},
        "finished": False,
    }


def from_preset(arguments: Sequence[str] | None = None) -> Options:
    """Options with the defaults of the command line: the read-outs of the preset that it names.

    They are needed before the command line is parsed, so its two words for a preset are looked up beforehand.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", nargs="?", default="demo", const="demo")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_known_args(arguments)[0]
    preset = QUICK if options.quick else PRESETS.get(options.preset)
    return Options(readouts=preset.readouts) if preset else Options()


def _main(options: Options) -> None:
    if options.distributed:
        os.environ.setdefault(JOIN, options.distributed_address or "auto")
        os.environ.setdefault(TIMEOUT, str(options.distributed_timeout))
    if options.doctor:
        raise SystemExit(0 if examine(options.study(), Console()) else 1)
    prepare_devices(only_cpu=bool(options.cluster))  # the accelerators of this machine are its workers'
    written = reproduce(options.study())
    if options.quiet and not options.dry_run:
        print(written)


if __name__ == "__main__":
    run(_main, Options, __doc__, from_preset())
