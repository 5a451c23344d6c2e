"""Write the cards of the bundled demo models from their training logs and a finished study: `python -m experiments.card --help`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
import tyro
from safetensors import safe_open

from experiments import demo, report, reproduce, table
from experiments.cells import Store, write_text
from experiments.figures import Finished, Row, group_label, percent, plain, read, select
from experiments.figures import columns as columns_of
from experiments.pretrain import log_lines
from experiments.program import prepare_devices, run
from experiments.study import Subject, run_job
from jaxvit.checkpoint import DEMO_FOLDER, assemble
from jaxvit.sharding import batch_mesh
from jaxvit.vit import ViT

_CURVE_ROWS = 12
_COSTS = ("random_patches", "zero_registers", "mean_registers", "noise_registers", "shuffle_registers")
_OBJECTIVE = (
    "Self-distillation from an EMA teacher, without labels: InfoNCE between the CLS tokens of two views of a scene, and prediction of the "
    "teacher's assignment of masked patches to prototypes. Not DINO proper. Muon for the block matrices, AdamW for the rest."
)
_DATA = (
    "Digit scenes: handwritten digits (`sklearn.datasets.load_digits`, 0 to 1296) over photographs (`load_sample_images`, left 60 % of the "
    "columns), each view with its own ground and colours. The scores are of digits 1297 to 1796 over the right 40 %."
)
_LIMITS = (
    "Demo numbers: a tiny model on composed scenes. Intervals cover the sampling of test scenes; the table over seeds covers training. "
    "Nothing here replicates a published effect of registers in DINO models."
)


@dataclass(frozen=True)
class Cards:
    """Write the model cards.

    Attributes:
        study: folder of a finished study of the bundled models.
        runs: folders of finished trainings, all seeds of all models; the bundled weights must be among them.
        out: where the cards go, beside the weights.
    """

    study: Annotated[Path, tyro.conf.Positional]
    runs: tuple[Path, ...]
    out: Path = DEMO_FOLDER


@dataclass(frozen=True)
class Trained:
    """A finished training run: its folder, the model's file and what its header says."""

    folder: Path
    file: Path
    training: dict[str, Any]

    @property
    def title(self) -> str:
        return f"{self.training['name']}, seed {self.training['seed']}"

    @property
    def bundled(self) -> bool:
        kept = DEMO_FOLDER / self.file.name
        return kept.exists() and kept.read_bytes() == self.file.read_bytes()

    def model(self) -> ViT:
        with safe_open(self.file, "numpy") as file:
            leaves = {name: jnp.asarray(file.get_tensor(name), jnp.float32) for name in file.keys()}  # noqa: SIM118
        return assemble(demo.CONFIGS[self.training["name"]], leaves)


def write(cards: Cards) -> list[Path]:
    """Score every seed on the study's test scenes, then write one card per bundled model; returns their paths.

    Raises:
        ValueError: no finished study or training in a folder, or the bundled weights are in none of the runs.
    """
    study = read(cards.study)
    rows = study.rows
    trained = [read_run(folder) for folder in cards.runs]
    names = list(dict.fromkeys(t.training["name"] for t in trained))
    for name in names:
        if not any(t.bundled for t in trained if t.training["name"] == name):
            raise ValueError(f"none of the runs of {name} has the bundled weights; name its folder, or train with --bundle")
        if not select(rows, model=name):
            raise ValueError(f"{cards.study} is no study of {name}; run python -m experiments.reproduce with it first")
    seeds = _score(trained, study)
    written = []
    for name in names:
        path = cards.out / f"{name}.md"
        write_text(path, card(name, [t for t in trained if t.training["name"] == name], rows, seeds))
        written.append(path)
    return written


def read_run(folder: Path) -> Trained:
    """The finished training in a folder.

    Raises:
        ValueError: there is none.
    """
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise ValueError(f"{folder} holds no finished training; run python -m experiments.pretrain --out {folder} to its end first")
    with safe_open(files[0], "numpy") as file:
        return Trained(folder, files[0], json.loads(file.metadata()["training"]))


def card(name: str, trained: Sequence[Trained], rows: Sequence[Row], seeds: Sequence[Row]) -> str:
    """The card as Markdown."""
    (kept,) = [t for t in trained if t.bundled]
    baselines = [m for m in dict.fromkeys(r["model"] for r in rows) if m.endswith("_random") or m == "raw_pixels"]
    shown = [r for r in rows if r["model"] in (name, *baselines)]
    sections = [
        f"# {demo.label(name)}",
        demo.NOTES[name],
        "## Training",
        f"{_OBJECTIVE}\n\n{_DATA}",
        _training_table(kept.training),
        "## Curve",
        "k-NN accuracy on training digits held out for choosing (never test digits), as trained with the bundled seed.",
        _curve(kept),
        "## Scores",
        report.markdown_table(shown),
        *_over_seeds(trained, seeds),
        "## What an ablation costs",
        "Points lost or won against the full model, with 95 % intervals of the paired difference.",
        _costs(name, rows),
        *_flow(name, rows),
        "## What it does not show",
        _LIMITS,
    ]
    return "\n\n".join(sections) + "\n"


def _score(trained: Sequence[Trained], finished: Finished) -> list[Row]:
    """The tasks of the study without any ablation, for every run."""
    study, mesh = reproduce.from_manifest(finished.manifest), batch_mesh()
    data = reproduce.study_data(study)
    settings = reproduce.settings(study, data, mesh)
    store, rows = Store(finished.folder / "seeds"), []
    for one in trained:
        for job in table.jobs(Subject(one.title, one.model(), mesh, data, settings, baseline=True)):
            cell = store.load(job.key) if job.key in store else run_job(job, store)
            rows += cell.rows
    return rows


def _training_table(training: dict[str, Any]) -> str:
    recipe = {k.replace("_", " "): v for k, v in training["recipe"].items()}
    facts: dict[str, Any] = {"steps": training["steps"], "seed": training["seed"], **recipe}
    if "start" in training:
        facts["started from"] = f"{training['start']['name']}, seed {training['start']['seed']}, {training['start']['steps']} steps"
    facts |= {"time": f"{training['seconds'] / 60:.0f} min on {training['device']}", "scenes per second": training["scenes_per_second"]}
    return _markdown(["", ""], [[key, str(value)] for key, value in facts.items()])


def _curve(trained: Trained) -> str:
    lines = log_lines(trained.folder)
    evaluated = [b for a, b in zip([{"knn": None}, *lines], lines, strict=False) if b["knn"] != a["knn"] or b is lines[-1]]
    picked = [evaluated[i] for i in np.unique(np.linspace(0, len(evaluated) - 1, _CURVE_ROWS).round().astype(int))]
    rows = [[str(line["step"]), percent(line["knn"]), f"{line['cls_loss']:.2f}", f"{line['patch_loss']:.2f}"] for line in picked]
    return _markdown(["step", "k-NN", "CLS loss", "patch loss"], rows)


def _over_seeds(trained: Sequence[Trained], seeds: Sequence[Row]) -> list[str]:
    if len(trained) < 2:
        return ["One seed was trained: there is no spread over training to report."]
    columns = _columns(seeds)
    values = [[_full(seeds, t.title, *column[:3])["value"] for column in columns] for t in trained]
    lines = [[f"seed {t.training['seed']}" + " (bundled)" * t.bundled, *map(percent, v)] for t, v in zip(trained, values, strict=True)]
    spread = [f"{percent(min(v))} to {percent(max(v))}, s.d. {percent(statistics.stdev(v))}" for v in zip(*values, strict=True)]
    heads = ["percent", *(plain(heading) for *_, heading in columns)]
    return [f"The same over {len(trained)} training seeds, on the same test scenes:", _markdown(heads, [*lines, ["spread", *spread]])]


def _costs(name: str, rows: Sequence[Row]) -> str:
    lines, columns = [], _columns(rows)
    for condition in [c for c in _COSTS if select(rows, model=name, condition=c)]:
        found = [_full(rows, name, *column[:3], condition=condition) for column in columns]
        lines.append([condition, *(f"{_points(r['delta'])} [{_points(r['delta_ci_low'])}, {_points(r['delta_ci_high'])}]" for r in found)])
    return _markdown(["points", *(plain(heading) for *_, heading in columns)], lines)


def _flow(name: str, rows: Sequence[Row]) -> list[str]:
    """Attention of CLS to the registers together, by block."""
    flow = [r for r in select(rows, model=name, task="attention_flow", metric="cls") if r["feature"].startswith("registers[")]
    if not flow:
        return []
    layers = sorted({r["layer"] for r in flow})
    targets = list(dict.fromkeys(r["feature"] for r in flow))
    by_place = {(r["layer"], r["feature"]): r["value"] for r in flow}
    lines = [
        [str(layer), *(percent(by_place[layer, t]) for t in targets), percent(sum(by_place[layer, t] for t in targets))] for layer in layers
    ]
    heads = ["block", *(group_label(t) for t in targets), "all registers"]
    return ["Share of CLS's attention that goes to the registers, percent:", _markdown(heads, lines)]


def _full(rows: Sequence[Row], model: str, task: str, metric: str, feature: str, condition: str = "full") -> Row:
    (row,) = select(rows, model=model, condition=condition, task=task, metric=metric, feature=feature)
    return row


def _columns(rows: Sequence[Row]) -> list[tuple[str, str, str, str]]:
    """The columns of the ablation table with refitted read-outs."""
    return [c for c in columns_of(rows) if not c[1].endswith("_frozen")]


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    table = [heads, ["---"] * len(heads), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in table)


def _main(cards: Cards) -> None:
    prepare_devices()
    for path in write(cards):
        print(path)


if __name__ == "__main__":
    run(_main, Cards, __doc__)
