"""Model cards: what they say is what the logs and the study say, and what is missing is named."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

import jaxvit.checkpoint
from experiments import ablation_table, attention_flow, card, demo, figures, pretrain, report, reproduce
from experiments.card import Cards
from experiments.data import DataSize
from experiments.figures import percent, select
from experiments.measures import Readouts
from jaxvit.config import ViTConfig
from jaxvit.sharding import batch_mesh

TINY = ViTConfig(8, 16, 2, 2, 32, registers=1, position="antialias", image_size=64)


def trained(folder: Path, seed: int) -> Path:
    """What a finished training leaves: here, of no step."""
    run = pretrain.Pretraining(folder, seed=seed, bundle=seed == 0)
    pretrain._claim(run)
    lines = [
        {"step": step, "cls_loss": 5.0 - step / 100, "patch_loss": 4.0, "knn": 0.1 + step // 40 / 10, "seconds": step}
        for step in (20, 40, 60)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pretrain._export(run, batch_mesh(), pretrain.initial_state(run)["teacher"]["backbone"], 0.2, 60.0)
    return folder


@pytest.fixture(scope="module")
def cards(tmp_path_factory) -> Cards:
    """A tiny model bundled in a folder of its own, its two seeds, its study, and the cards made of them."""
    folder = tmp_path_factory.mktemp("cards")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(demo.CONFIGS, "demo_reg", TINY)
        for module in (card, pretrain, jaxvit.checkpoint):
            patch.setattr(module, "DEMO_FOLDER", folder / "demo")
        (folder / "demo").mkdir()
        runs = tuple(trained(folder / f"seed{seed}", seed) for seed in (0, 1))
        size = DataSize(bank=60, choose=20, test=30, pairs=20, segmentation=20, segmentation_test=20, calibration=32, flow=10, gallery=10)
        readouts = Readouts(solvers=("ridge",), neighbours=(20,), shots=(1,), memory=200)
        study = reproduce.Reproduce(
            out=folder / "study", models=("demo_reg",), data=size, batch_size=16, resamples=200, seeds=1, readouts=readouts
        )
        reproduce.reproduce(study, [ablation_table, attention_flow])
        wanted = Cards(folder / "study", runs, folder / "demo")
        card.write(wanted)
        yield wanted


def test_the_card_says_what_logs_and_study_say(cards):
    text = (cards.out / "demo_reg.md").read_text()
    rows = figures.read(cards.study).rows
    assert report.markdown_table(rows) in text
    assert demo.NOTES["demo_reg"] in text
    training = card.read_run(cards.runs[0]).training
    for said in (
        f"| steps | {training['steps']} |",
        "| seed | 0 |",
        f"| scenes per second | {training['scenes_per_second']} |",
        training["device"],
    ):
        assert said in text
    last = pretrain.log_lines(cards.runs[0])[-1]
    assert f"| {last['step']} | {percent(last['knn'])} |" in text
    (row,) = select(rows, model="demo_reg", condition="zero_registers", task="segmentation", metric="miou")
    assert f"{100 * row['delta']:+.1f}" in text


def test_every_seed_stands_in_the_card_with_the_spread(cards):
    text = (cards.out / "demo_reg.md").read_text()
    assert "| seed 0 (bundled) |" in text
    assert "| seed 1 |" in text
    assert "| spread |" in text
    rows = figures.read(cards.study).rows
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
    rows = [dict(row, model="other") for row in figures.read(elsewhere).rows]
    (elsewhere / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="is no study of demo_reg"):
        card.write(dataclasses.replace(cards, study=elsewhere))


def test_the_bundled_cards_are_made_of_the_bundled_results():
    root = Path(__file__).parents[2]
    rows = [json.loads(line) for line in (root / report.SHOWN_ROWS).read_text().splitlines()]
    for name in demo.CONFIGS:
        text = (root / "jaxvit" / "demo" / f"{name}.md").read_text()
        scores = [r for r in rows if r["model"] in (name, "raw_pixels") or r["model"].endswith("_random")]
        for part in (report.markdown_table(scores), card._costs(name, rows), *card._flow(name, rows), demo.NOTES[name]):
            assert part in text
