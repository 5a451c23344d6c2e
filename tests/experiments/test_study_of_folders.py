"""A study on folders of images: every task from files to the page."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import jaxvit
from experiments.reproduce import Study, reproduce
from experiments.rows import select
from experiments.study.results import read_results
from experiments.tasks.base import Readouts
from tests.experiments.tiny_folders import SIZE, write_folders
from tests.experiments.tiny_study import CONFIG

READOUTS = Readouts(features=("cls",), solvers=("ridge",), lambdas=(0.1, 1.0), neighbours=(5,), shots=(1,), memory=8)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXVIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def study(tmp_path) -> Study:
    jaxvit.save(jaxvit.create(dataclasses.replace(CONFIG, registers=0), 0), tmp_path / "tiny")
    return Study(
        "parodi2026",
        analyses=("ablation_table",),
        models=(str(tmp_path / "tiny"),),
        out=tmp_path / "out",
        data=write_folders(tmp_path / "data"),
        sizes=SIZE,
        image_size=16,
        readouts=READOUTS,
        seeds=1,
        batch_size=4,
        resamples=50,
    )


def test_a_study_of_folders_runs_every_task(study):
    reproduce(dataclasses.replace(study, dry_run=True))
    assert not study.out.exists(), "a dry run writes nothing"
    page = reproduce(study).read_text()
    assert "Parodi" in page
    rows = read_results(study.out).rows
    assert {row["task"] for row in rows} == {
        *("linear_probe", "few_shot", "knn", "retrieval", "correspondence", "spair", "segmentation"),
        *("effective_rank", "patch_norms"),
    }
    pck = select(rows, condition="full", task="spair", metric="pck_0.1")
    assert [row["feature"] for row in pck] == ["patches", "patches: bee"]
    assert (pck[0]["n"], pck[0]["n_unit"]) == (3, "source and target images")
    per_class = select(rows, condition="full", metric="iou")
    assert [row["feature"] for row in per_class] == ["patches: sky", "patches: road"]
    miou = select(rows, condition="full", metric="miou", readout="refitted")[0]["value"]
    assert np.mean([row["value"] for row in per_class]) == pytest.approx(miou)
