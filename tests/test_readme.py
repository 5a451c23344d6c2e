"""The README does what it says."""

from __future__ import annotations

import json
import re
from pathlib import Path

from experiments.report import TABLE_ROWS, markdown_table

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_example_runs_and_is_short(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 15
    exec(compile(example, "README.md", "exec"), {})
    assert "(3, 16, 96) (3, 16, 64, 96)" in capsys.readouterr().out


def test_the_table_is_generated_from_the_result_file():
    rows = [json.loads(line) for line in (ROOT / TABLE_ROWS).read_text().splitlines()]
    assert markdown_table(rows) in README


def test_both_trained_models_beat_random_initialisation_and_raw_pixels():
    """On the study's own numbers: lower end of the model's interval above the upper end of the baseline's."""
    rows = [json.loads(line) for line in (ROOT / TABLE_ROWS).read_text().splitlines()]
    for metric in ("top1", "top1_k20"):
        found = {r["model"]: r for r in rows if r["metric"] == metric and r["feature"] == "cls"}
        for model in ("demo_reg", "demo"):
            for baseline in (f"{model}_random", "raw_pixels"):
                assert found[model]["ci_low"] > found[baseline]["ci_high"], (model, baseline, metric)


def test_the_map_names_every_module():
    named = set(re.findall(r"(\w+)\.py", README)) | {"__init__", "__main__"}
    folders = {"jaxvit/probes", "convert", "tests", "jaxvit/demo"}
    modules = [p for room in ("jaxvit", "experiments") for p in sorted((ROOT / room).glob("*.py"))]
    missing = [str(p.relative_to(ROOT)) for p in modules if p.stem not in named and str(p.parent.relative_to(ROOT)) not in folders]
    assert not missing
