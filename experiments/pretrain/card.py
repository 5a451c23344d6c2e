"""Model cards of the bundled demo models, written from their training logs and a finished study:
`python -m experiments.pretrain.card --help`.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
import tyro
from safetensors import safe_open

from experiments import demo, planning
from experiments.plotting.columns import Column, filled, plain_heading, refitted, score_key
from experiments.plotting.hover import percent, token_label
from experiments.plotting.markdown import table
from experiments.pretrain.recipe import Pretraining, Recipe
from experiments.pretrain.training import log_lines
from experiments.program import prepare_devices, run
from experiments.report.tables import markdown_table
from experiments.rows import Row, select
from experiments.study import grid
from experiments.study.cells import Store
from experiments.study.jobs import run_job
from experiments.study.results import StudyResults, read_results
from experiments.study.target import Target
from experiments.tasks.table import score_columns
from jaxvit.checkpoint import DEMO_FOLDER, assemble
from jaxvit.files import write_text
from jaxvit.sharding import batch_mesh
from jaxvit.vit import ViT

_CURVE_ROWS = 12
_CONDITIONS = ("random_patches", "zero_registers", "mean_registers", "noise_registers", "shuffle_registers", "shuffle_registers_whole")
"""Conditions whose costs a card shows."""
_OBJECTIVE = (
    "Self-distillation from an EMA teacher, without labels: InfoNCE between the CLS tokens of two views of a scene, and prediction of the "
    "teacher's assignment of masked patches to prototypes. Not DINO proper. Muon for the block matrices, AdamW for the rest."
)
_DATA = (
    "Digit scenes: handwritten digits (`sklearn.datasets.load_digits`, 0 to 1296) over photographs (`load_sample_images`, left 60 % of the "
    "columns), each view with its own ground and colours. The scores are of digits 1297 to 1796 over the right 40 %."
)
_LIMITS = (
    "Demo numbers: a tiny model on composed scenes. Intervals cover the sampling of test digits; the table over seeds covers training. "
    "Nothing here replicates a published effect of registers in DINO models."
)


@dataclass(frozen=True)
class Cards:
    """Write the model cards.

    Attributes:
        study: folder of a finished study of the bundled models.
        runs: folders of finished trainings, all seeds of all models; the bundled weights must be among them.
        out: where the cards are written, next to the weights.
    """

    study: Annotated[Path, tyro.conf.Positional]
    runs: tuple[Path, ...]
    out: Path = DEMO_FOLDER


@dataclass(frozen=True)
class TrainingRun:
    """A finished training run.

    Attributes:
        folder: of the run.
        file: the finished model.
        training: how it was trained, from the file's header.
    """

    folder: Path
    file: Path
    training: dict[str, Any]

    @property
    def name(self) -> str:
        return self.training["name"]

    @property
    def title(self) -> str:
        return f"{self.name}, seed {self.training['seed']}"

    @property
    def bundled(self) -> bool:
        """Whether the library ships these very weights."""
        bundled = DEMO_FOLDER / self.file.name
        return bundled.exists() and bundled.read_bytes() == self.file.read_bytes()

    def model(self) -> ViT:
        with safe_open(self.file, "numpy") as file:
            leaves = {name: jnp.asarray(file.get_tensor(name), jnp.float32) for name in file.keys()}  # noqa: SIM118
        return assemble(demo.CONFIGS[self.name], leaves)


def write(cards: Cards) -> list[Path]:
    """Score every seed on the study's test scenes, then write one card per bundled model; returns their paths.

    Raises:
        ValueError: no finished study or training in a folder, or the bundled weights are in none of the runs.
    """
    results = read_results(cards.study)
    runs = [read_run(folder) for folder in cards.runs]
    names = list(dict.fromkeys(r.name for r in runs))
    for name in names:
        if not any(r.bundled for r in runs if r.name == name):
            raise ValueError(f"none of the runs of {name} has the bundled weights; name its folder, or train with --bundle")
        if not select(results.rows, model=name):
            raise ValueError(f"{cards.study} is no study of {name}; run python -m experiments.reproduce with it first")
    scores = _score(runs, results)
    written = []
    for name in names:
        path = cards.out / f"{name}.md"
        write_text(path, card(name, [r for r in runs if r.name == name], results.rows, scores))
        written.append(path)
    return written


def read_run(folder: Path) -> TrainingRun:
    """The finished training in a folder.

    Raises:
        ValueError: there is none.
    """
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise ValueError(f"{folder} holds no finished training; run python -m experiments.pretrain --out {folder} to its end first")
    return read_run_file(files[0])


def read_run_file(path: Path) -> TrainingRun:
    """The training that made a model's file, from the file's header."""
    with safe_open(path, "numpy") as file:
        return TrainingRun(path.parent, path, json.loads(file.metadata()["training"]))


def card(name: str, runs: Sequence[TrainingRun], rows: Sequence[Row], scores: Sequence[Row]) -> str:
    """The card of a model as Markdown.

    Args:
        runs: its trainings, all seeds.
        rows: of the study.
        scores: rows of the full condition for every training, whose model is the training's title.
    """
    (bundled,) = [r for r in runs if r.bundled]
    baselines = [m for m in dict.fromkeys(r["model"] for r in rows) if m.endswith("_random") or m == "raw_pixels"]
    sections = [
        f"# {demo.label(name)}",
        demo.NOTES[name],
        "## Training",
        f"{_OBJECTIVE}\n\n{_DATA}",
        _training_table(bundled.training),
        "To train it again (about an hour on one core for 3,600 steps; the same command resumes, `--bundle` puts the model here):",
        training_command(bundled.training),
        "## Curve",
        "k-NN accuracy on held-out training digits (the scenes' val split, never test digits), as trained with the bundled seed.",
        _curve(bundled),
        "## Scores",
        markdown_table([r for r in rows if r["model"] in (name, *baselines)]),
        *_over_seeds(runs, scores),
        "## What an ablation costs",
        "Percentage points lost or won against the full model, with 95 % intervals of the paired difference. Under random_patches, scores "
        "of single patches leave out those that are zeroed, in the full model too.",
        ablation_costs(name, rows),
        *register_attention(name, rows),
        "## What it does not show",
        _LIMITS,
    ]
    return "\n\n".join(sections) + "\n"


def training_command(training: Mapping[str, Any]) -> str:
    """The command that repeats a training, from what the header of its file says, as a block of Markdown."""
    name, seed, defaults = training["name"], training["seed"], json.loads(json.dumps(asdict(Recipe())))
    options = [f"--name {name}", f"--seed {seed}"]
    if "start" in training:
        options.append(f"--start runs/pretrain/{training['start']['name']}_{training['start']['seed']}")
    if training["steps"] != Pretraining(Path()).steps:
        options.append(f"--steps {training['steps']}")
    for field, value in training["recipe"].items():
        default = defaults[field]
        # older headers have one number where both ends of a range were the same
        numbers = value if isinstance(value, list) else [value] * (len(default) if isinstance(default, list) else 1)
        if numbers != (default if isinstance(default, list) else [default]):
            option = f"--recipe.{field.replace('_', '-')}"
            options.append(option if value is True else " ".join([option, *(f"{number:g}" for number in numbers)]))
    return "\n".join(["```bash", f"python -m experiments.pretrain {' '.join(options)} --out runs/pretrain/{name}_{seed}", "```"])


def ablation_costs(name: str, rows: Sequence[Row]) -> str:
    """A table of what each condition costs a model, by score, with intervals."""
    scores, lines = refitted(filled(score_columns(), rows)), []
    for condition in [c for c in _CONDITIONS if select(rows, model=name, condition=c)]:
        lines.append([condition, *(_cost(_row(rows, name, column, condition)) for column in scores)])
    return table(["points", *(plain_heading(column.heading) for column in scores)], lines)


def register_attention(name: str, rows: Sequence[Row]) -> list[str]:
    """A table of how much of CLS's attention goes to each register and to all of them, by block; nothing for a model without registers."""
    flow = [r for r in select(rows, model=name, task="attention_flow", source="cls") if re.fullmatch(r"r\d+", r["target"])]
    if not flow:
        return []
    layers = sorted({r["layer"] for r in flow})
    registers = list(dict.fromkeys(r["target"] for r in flow))
    shares = {(r["layer"], r["target"]): r["value"] for r in flow}
    lines = [
        [str(layer), *(percent(shares[layer, r]) for r in registers), percent(sum(shares[layer, r] for r in registers))] for layer in layers
    ]
    heads = ["block", *map(token_label, registers), "all registers"]
    return ["Share of CLS's attention that goes to the registers, percent:", table(heads, lines)]


def _score(runs: Sequence[TrainingRun], results: StudyResults) -> list[Row]:
    """Rows of the study's tasks without any ablation, for every training."""
    study, mesh = planning.study_of(results.manifest), batch_mesh()
    data = planning.study_data(study)
    settings = planning.settings(study)
    store, rows = Store(results.folder / "seeds"), []
    for training_run in runs:
        for job in grid.jobs(Target(training_run.title, training_run.model(), mesh, data, settings, baseline=True)):
            cell = store.load(job.key) if job.key in store else run_job(job, store)
            rows += cell.rows
    return rows


def _training_table(training: dict[str, Any]) -> str:
    recipe = {k.replace("_", " "): v for k, v in training["recipe"].items()}
    facts: dict[str, Any] = {"steps": training["steps"], "seed": training["seed"], **recipe}
    if "start" in training:
        facts["started from"] = f"{training['start']['name']}, seed {training['start']['seed']}, {training['start']['steps']} steps"
    facts |= {"time": f"{training['seconds'] / 60:.0f} min on {training['device']}", "scenes per second": training["scenes_per_second"]}
    return table(["", ""], [[name, str(value)] for name, value in facts.items()])


def _curve(training_run: TrainingRun) -> str:
    """k-NN accuracy and losses at a few evaluations, evenly spread."""
    log = log_lines(training_run.folder)
    evaluated = [b for a, b in zip([{"knn": None}, *log], log, strict=False) if b["knn"] != a["knn"] or b is log[-1]]
    picked = [evaluated[i] for i in np.unique(np.linspace(0, len(evaluated) - 1, _CURVE_ROWS).round().astype(int))]
    lines = [[str(entry["step"]), percent(entry["knn"]), f"{entry['cls_loss']:.2f}", f"{entry['patch_loss']:.2f}"] for entry in picked]
    return table(["step", "k-NN", "CLS loss", "patch loss"], lines)


def _over_seeds(runs: Sequence[TrainingRun], scores: Sequence[Row]) -> list[str]:
    """The scores of every training seed, and their spread."""
    if len(runs) < 2:
        return ["One seed was trained: there is no spread over training to report."]
    shown = refitted(filled(score_columns(), scores))
    values = [[_row(scores, r.title, column)["value"] for column in shown] for r in runs]
    lines = [[f"seed {r.training['seed']}" + " (bundled)" * r.bundled, *map(percent, v)] for r, v in zip(runs, values, strict=True)]
    spread = [f"{percent(min(v))} to {percent(max(v))}, s.d. {percent(statistics.stdev(v))}" for v in zip(*values, strict=True)]
    heads = ["percent", *(plain_heading(column.heading) for column in shown)]
    return [f"The same over {len(runs)} training seeds, on the same test scenes:", table(heads, [*lines, ["spread", *spread]])]


def _row(rows: Sequence[Row], model: str, column: Column, condition: str = "full") -> Row:
    (row,) = [r for r in select(rows, model=model, condition=condition) if score_key(r) == column.key]
    return row


def _cost(row: Row) -> str:
    """The difference from the full condition and its interval, in percentage points."""
    delta, low, high = (f"{100 * row[name]:+.1f}" for name in ("delta", "delta_ci_low", "delta_ci_high"))
    return f"{delta} [{low}, {high}]"


def _main(cards: Cards) -> None:
    prepare_devices()
    for path in write(cards):
        print(path)


if __name__ == "__main__":
    run(_main, Cards, __doc__)
