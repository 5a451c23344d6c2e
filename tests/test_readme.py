"""The README does what it says."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from experiments.report.tables import SHOWN_ROWS, markdown_table
from experiments.rows import select

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_it_is_read_in_one_sitting():
    assert len(README.splitlines()) <= 180


def test_the_example_runs_and_is_short(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 10
    exec(compile(example, "README.md", "exec"), {})
    assert "(2, 16, 96) (2, 16, 64, 96)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("quick", "pip install -e . && python -m experiments.reproduce --quick"),
        ("demo", "pip install -e . && python -m experiments.reproduce"),
        ("tests", "pip install -e '.[test]' && pytest"),
    ],
)
def test_the_commands_are_found_by_their_marks(name, command):
    """By the function of `.ci/run`, whatever other commands stand above or below."""
    (function,) = re.findall(r"^readme_command\(\) \{.*\}$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    done = subprocess.run(["bash", "-c", f"{function}; readme_command {name}"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [command]


def test_the_map_has_every_package_and_every_module_of_the_library():
    where = README.split("## Where things are")[1].split("## Licence")[0]
    named = set(re.findall(r"`([\w/.]+)`", where))
    packages = {path.parent.name for path in (ROOT / "experiments").glob("*/__init__.py")}
    assert all(any(entry.endswith(f"{name}/") for entry in named) for name in packages)
    library = {path.stem for path in (ROOT / "jaxvit").glob("*.py")} - {"__init__"}
    assert library <= named


def test_the_map_names_no_file_that_is_not_there():
    where = README.split("## Where things are")[1].split("## Licence")[0]
    files = {name for name in re.findall(r"`([\w/]+\.py)`", where)}
    present = [path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py")]
    assert [name for name in files if not any(f"/{path}".endswith(f"/{name}") for path in present)] == []


ROWS = [json.loads(line) for line in (ROOT / SHOWN_ROWS).read_text().splitlines()]
WIDTH = 0.04
"""Of an interval of 95 % correct answers, at most: 471 test digits give 0.039 if every scene of a digit agreed, 0.024 if none did."""
TWINS = ("demo_reg", "demo")


def row_of(model: str, metric: str, feature: str, condition: str = "full") -> dict:
    rows = select(ROWS, model=model, condition=condition, metric=metric, feature=feature)
    (row,) = [row for row in rows if row["readout"] != "frozen"]
    return row


def test_the_table_is_generated_from_the_result_file():
    assert markdown_table(ROWS) in README


@pytest.mark.parametrize("model", TWINS)
def test_the_twins_are_worth_ablating(model):
    for metric in ("top1", "top1_k20"):
        row = row_of(model, metric, "cls")
        assert row["value"] >= 0.93
        assert row["ci_high"] - row["ci_low"] <= WIDTH


@pytest.mark.parametrize("model", TWINS)
@pytest.mark.parametrize(("metric", "feature"), [("top1", "cls"), ("top1_k20", "cls"), ("accuracy", "digit_patches"), ("miou", "patches")])
def test_the_twins_beat_random_initialisation_and_raw_pixels_well_outside_the_intervals(model, metric, feature):
    """The gap between the intervals is wider than either of them."""
    ours = row_of(model, metric, feature)
    for baseline in (f"{model}_random", "raw_pixels"):
        theirs = row_of(baseline, metric, feature)
        assert ours["ci_low"] - theirs["ci_high"] > max(r["ci_high"] - r["ci_low"] for r in (ours, theirs))


def test_the_positive_control_reads_its_registers():
    row = row_of("demo_reg_read", "top1_k20", "cls")
    assert row["value"] >= 0.85
    assert row["ci_high"] - row["ci_low"] <= WIDTH
    for condition in ("zero_registers", "mean_registers", "noise_registers", "shuffle_registers"):
        for metric in ("top1", "top1_k20"):
            assert row_of("demo_reg_read", metric, "cls", condition)["delta_ci_high"] < 0
    flow = [r for r in select(ROWS, model="demo_reg_read", task="attention_flow", source="cls") if re.fullmatch(r"r\d", r["target"])]
    by_block = [sum(r["value"] for r in flow if r["layer"] == layer) for layer in range(6)]
    assert sum(share >= 0.15 for share in by_block) >= 3
