"""The page that explains results: its table is that of the code, and its example runs."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import numpy as np

import jaxvit
from experiments import open_study
from experiments.report.tables import rows_table
from experiments.reproduce import Study, reproduce
from experiments.rows import SCHEMA
from jaxvit.sites import SITES, TRANSFORMER_LENS
from tests.experiments.tiny_study import READOUTS, SIZE, save_models
from tests.jaxvit import tiny

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = DOCS / "results.md"


def test_the_table_of_fields_is_that_of_the_code():
    text = PAGE.read_text()
    assert f"<!-- row fields: begin -->\n{rows_table()}\n<!-- row fields: end -->" in text, "run python -m experiments.report.tables"
    assert f"Version {SCHEMA}." in text


def test_the_example_leads_from_a_number_to_its_scores(tmp_path):
    few = {"sizes": SIZE, "batch_size": 16, "resamples": 50, "seeds": 1, "readouts": READOUTS}
    models = save_models(tmp_path / "models")
    reproduce(Study(models=models[1:], out=tmp_path / "run", tasks=("knn",), analyses=("ablation_table",), conditions=("zero_cls",), **few))
    example = re.search(r"<!-- example -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    names = {"folder": tmp_path / "run"}
    exec(example, names)
    assert names["value"] == names["row"]["value"]
    assert names["text"].startswith("{")
    assert len(names["numbers"]) == len(names["study"].rows)


def test_every_block_of_python_on_interventions_runs():
    names = {"__name__": "page"}
    for block in re.findall(r"```python\n(.*?)```", (DOCS / "interventions.md").read_text(), re.DOTALL):
        exec(block, names)
    assert float(names["pair"].captured["attention_divergence"].max()) == 0
    np.testing.assert_allclose(names["joint"], names["exact"], rtol=0.05, atol=0.02)


def test_the_table_of_sites_has_all_of_them_and_what_transformer_lens_calls_them():
    table = re.search(r"<!-- sites: begin -->\n(.*?)<!-- sites: end -->", (DOCS / "interventions.md").read_text(), re.DOTALL)[1]
    rows = [re.findall(r"`([\w.]+)`", line) for line in table.splitlines()]
    assert [row[0] for row in rows] == list(SITES)
    assert {row[0]: row[1] for row in rows} == TRANSFORMER_LENS


def test_the_example_of_a_study_of_ones_own_runs(tmp_path):
    example = re.search(r"<!-- example -->\n```python\n(.*?)```", (DOCS / "own_studies.md").read_text(), re.DOTALL)[1]
    generator = np.random.default_rng(0)
    images, labels = generator.integers(0, 256, (40, 64, 64, 3), np.uint8), np.arange(40) % 2
    names = {"images": images, "labels": labels, "test_images": images[:12], "test_labels": labels[:12], "folder": tmp_path / "own"}
    exec(example, names)
    assert names["page"].exists()
    conditions = {row["condition"] for row in open_study(names["folder"]).rows}
    assert conditions == {"full", *names["conditions"]}
    numbers = names["numbers"]
    assert set(numbers["condition"] if hasattr(numbers, "columns") else [row["condition"] for row in numbers]) == conditions


def test_the_example_of_split_weights_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXVIT_CACHE", str(tmp_path))
    jaxvit.save(tiny.model(), tmp_path / "dinov3_vit7b16")
    example = re.search(r"<!-- example: split weights -->\n```python\n(.*?)```", (DOCS / "launching.md").read_text(), re.DOTALL)[1]
    names = {"pixels": np.zeros((jax.device_count(), *tiny.SIZE, 3), np.uint8)}
    exec(example, names)
    assert names["model"].weight_shards.mesh == names["mesh"]
    assert names["out"].tokens.shape == (len(names["pixels"]), tiny.LAYOUT.tokens, tiny.CONFIG.width)
