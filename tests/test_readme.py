"""The README does what it says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from experiments.figures import select
from experiments.report import SHOWN_ROWS, markdown_table

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_example_runs_and_is_short(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 15
    exec(compile(example, "README.md", "exec"), {})
    assert "(3, 16, 96) (3, 16, 64, 96)" in capsys.readouterr().out


ROWS = [json.loads(line) for line in (ROOT / SHOWN_ROWS).read_text().splitlines()]
TWINS = ("demo_reg", "demo")


def found(model: str, metric: str, feature: str, condition: str = "full") -> dict:
    (row,) = select(ROWS, model=model, condition=condition, metric=metric, feature=feature)
    return row


def test_the_table_is_generated_from_the_result_file():
    assert markdown_table(ROWS) in README


@pytest.mark.parametrize("model", TWINS)
def test_the_twins_are_worth_ablating(model):
    for metric in ("top1", "top1_k20"):
        row = found(model, metric, "cls")
        assert row["value"] >= 0.93
        assert row["ci_high"] - row["ci_low"] <= 0.03


@pytest.mark.parametrize("model", TWINS)
@pytest.mark.parametrize(("metric", "feature"), [("top1", "cls"), ("top1_k20", "cls"), ("accuracy", "digit_patches"), ("miou", "patches")])
def test_the_twins_beat_random_initialisation_and_raw_pixels_well_outside_the_intervals(model, metric, feature):
    """The gap between the intervals is wider than either of them."""
    ours = found(model, metric, feature)
    for baseline in (f"{model}_random", "raw_pixels"):
        theirs = found(baseline, metric, feature)
        assert ours["ci_low"] - theirs["ci_high"] > max(r["ci_high"] - r["ci_low"] for r in (ours, theirs))


@pytest.mark.parametrize("model", [*TWINS, "demo_reg_read"])
def test_zeroing_random_patches_costs_the_dense_tasks(model):
    for metric, feature in (("accuracy", "digit_patches"), ("accuracy", "patches"), ("miou", "patches")):
        assert found(model, metric, feature, "random_patches")["delta_ci_high"] < 0


def test_the_positive_control_reads_its_registers():
    row = found("demo_reg_read", "top1_k20", "cls")
    assert row["value"] >= 0.85
    assert row["ci_high"] - row["ci_low"] <= 0.03
    for condition in ("zero_registers", "mean_registers", "noise_registers", "shuffle_registers"):
        for metric in ("top1", "top1_k20"):
            assert found("demo_reg_read", metric, "cls", condition)["delta_ci_high"] < 0
    flow = [r for r in select(ROWS, model="demo_reg_read", task="attention_flow", metric="cls") if r["feature"].startswith("registers")]
    by_block = [sum(r["value"] for r in flow if r["layer"] == layer) for layer in range(6)]
    assert sum(share >= 0.15 for share in by_block) >= 3


def test_the_map_names_every_module():
    named = set(re.findall(r"(\w+)\.py", README)) | {"__init__", "__main__"}
    folders = {"jaxvit/probes", "convert", "tests", "jaxvit/demo"}
    modules = [p for room in ("jaxvit", "experiments") for p in sorted((ROOT / room).glob("*.py"))]
    missing = [str(p.relative_to(ROOT)) for p in modules if p.stem not in named and str(p.parent.relative_to(ROOT)) not in folders]
    assert not missing
