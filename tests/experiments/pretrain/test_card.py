"""Model cards say what the logs and the study say, and what is missing is named."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
from pathlib import Path

import pytest

import jaxvit.checkpoint
from convert.commandline import parse
from experiments import demo, reproduce
from experiments.plotting.hover import percent
from experiments.pretrain import card, training
from experiments.pretrain.card import Cards
from experiments.pretrain.recipe import Pretraining, init_run_folder
from experiments.report.tables import SHOWN_ROWS, markdown_table
from experiments.rows import check_rows, select
from experiments.study.results import read_results
from jaxvit.sharding import batch_mesh
from tests.experiments.tiny_study import CONFIG, READOUTS, SIZE

ROOT = Path(__file__).parents[3]


def finished_training(folder: Path, seed: int) -> Path:
    """The folder of a finished training: here, of no step."""
    run = Pretraining(folder, seed=seed, bundle=seed == 0)
    init_run_folder(run)
    lines = [
        {"step": step, "cls_loss": 5.0 - step / 100, "patch_loss": 4.0, "knn": 0.1 + step // 40 / 10, "seconds": step}
        for step in (20, 40, 60)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    training.export(run, batch_mesh(), training.initial_state(run)["teacher"]["backbone"], 0.2, 60.0)
    return folder


@pytest.fixture(scope="module")
def cards(tmp_path_factory) -> Cards:
    """A tiny model bundled in a folder of its own, its two seeds, its study, and the cards made of them. Sizes are those of the tiny
    study, whose compiled programs it shares."""
    folder = tmp_path_factory.mktemp("cards")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(demo.CONFIGS, "demo_reg", CONFIG)
        for module in (card, training, jaxvit.checkpoint):
            patch.setattr(module, "DEMO_FOLDER", folder / "demo")
        (folder / "demo").mkdir()
        runs = tuple(finished_training(folder / f"seed{seed}", seed) for seed in (0, 1))
        study = reproduce.Study(
            out=folder / "study",
            models=("demo_reg",),
            analyses=("ablation_table", "attention_flow"),
            sizes=SIZE,
            batch_size=16,
            resamples=200,
            seeds=1,
            readouts=READOUTS,
        )
        reproduce.reproduce(study)
        written = Cards(folder / "study", runs, folder / "demo")
        card.write(written)
        yield written


def test_the_card_says_what_logs_and_study_say(cards):
    text = (cards.out / "demo_reg.md").read_text()
    rows = read_results(cards.study).rows
    assert markdown_table(rows) in text
    assert demo.NOTES["demo_reg"] in text
    header = card.read_run(cards.runs[0]).training
    for part in (
        f"| steps | {header['steps']} |",
        "| seed | 0 |",
        f"| scenes per second | {header['scenes_per_second']} |",
        header["device"],
    ):
        assert part in text
    last = training.log_lines(cards.runs[0])[-1]
    assert f"| {last['step']} | {percent(last['knn'])} |" in text
    (row,) = select(rows, model="demo_reg", condition="zero_registers", task="segmentation", metric="miou", readout="refitted")
    assert f"{100 * row['delta']:+.1f}" in text
    assert "| block | r1 | r2 | all registers |" in text


def test_every_seed_stands_in_the_card_with_the_spread(cards):
    text = (cards.out / "demo_reg.md").read_text()
    assert "| seed 0 (bundled) |" in text
    assert "| seed 1 |" in text
    assert "| spread |" in text
    rows = read_results(cards.study).rows
    (row,) = select(rows, model="demo_reg", condition="full", task="knn", metric="top1_k20", feature="cls")
    line = next(line for line in text.splitlines() if line.startswith("| seed 0"))
    assert percent(row["value"]) in line, "the bundled seed scores as in the study"


def test_what_is_missing_is_named(cards, tmp_path):
    with pytest.raises(ValueError, match=r"holds no finished training; run python -m experiments\.pretrain"):
        card.write(dataclasses.replace(cards, runs=(tmp_path,)))
    with pytest.raises(ValueError, match="none of the runs of demo_reg has the bundled weights"):
        card.write(dataclasses.replace(cards, runs=cards.runs[1:]))
    elsewhere = tmp_path / "study"
    shutil.copytree(cards.study, elsewhere)
    rows = [dict(row, model="other") for row in read_results(elsewhere).rows]
    (elsewhere / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="is no study of demo_reg"):
        card.write(dataclasses.replace(cards, study=elsewhere))


def test_the_training_of_a_file_from_before_the_config_said_mlp_dim_is_read(tmp_path):
    """The weights bundled now are such a file."""
    shutil.copy(ROOT / "jaxvit" / "demo" / "demo.safetensors", tmp_path)
    run = card.read_run(tmp_path)
    assert run.title == "demo, seed 0"
    assert run.model().config == demo.CONFIGS["demo"]


def test_the_bundled_cards_are_made_of_the_bundled_results():
    rows = [json.loads(line) for line in (ROOT / SHOWN_ROWS).read_text().splitlines()]
    check_rows(rows)
    for name in demo.CONFIGS:
        text = (ROOT / "jaxvit" / "demo" / f"{name}.md").read_text()
        scores = [r for r in rows if r["model"] in (name, "raw_pixels") or r["model"].endswith("_random")]
        command = card.training_command(card.read_run_file(ROOT / "jaxvit" / "demo" / f"{name}.safetensors").training)
        for part in (
            command,
            markdown_table(scores),
            card.ablation_costs(name, rows),
            *card.register_attention(name, rows),
            demo.NOTES[name],
        ):
            assert part in text


def test_the_command_of_a_card_repeats_the_recipe():
    """The control's, with options of every kind, through the parser of the program."""
    training = card.read_run_file(ROOT / "jaxvit" / "demo" / "demo_reg_read.safetensors").training
    words = shlex.split(card.training_command(training).splitlines()[1])
    assert words[:3] == ["python", "-m", "experiments.pretrain"]
    run = parse(Pretraining, arguments=words[3:])
    assert (run.name, run.seed, run.steps) == ("demo_reg_read", 0, 1500)
    assert run.start == Path("runs/pretrain/demo_reg_0")
    assert json.loads(json.dumps(dataclasses.asdict(run.recipe))) == training["recipe"]
