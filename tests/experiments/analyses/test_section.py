"""Sections of analyses from rows alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from experiments.analyses import attention_flow, instrument_check, off_manifold, patch_geometry, register_lesions, register_probes
from experiments.analyses.presets import ANALYSES
from experiments.rows import Row
from experiments.study.results import StudyResults
from tests.experiments.plotting.made_rows import made_row, traces


def results(rows: list[Row], *models: str) -> StudyResults:
    """A finished study of these rows, without pictures."""
    return StudyResults(rows, {"cells": []}, Path("nowhere"), list(models or ("model",)))


@pytest.mark.parametrize("name", ANALYSES)
def test_an_analysis_without_results_has_no_section(name):
    assert ANALYSES[name].section(results([])) == ""


def test_lesions_of_the_model_with_the_most_registers_are_shown_in_their_order():
    names = [*(f"zero_r{i}" for i in range(1, 13)), *(f"zero_r1_to_r{n}" for n in range(2, 12)), "zero_registers"]
    rows = [made_row(condition=name) for name in sorted(names)]
    assert [trace["name"] for trace in traces(register_lesions.section(results(rows)))] == names


def test_single_tokens_are_probed_in_one_section_and_means_in_another():
    features = ("cls", "patch_mean", "r1", "r2", "register_mean")
    rows = [made_row(task="layer_probe", feature=feature, layer=layer) for layer in (0, 1) for feature in features]
    tokens, means = (ANALYSES[name].section(results(rows)) for name in ("register_probes", "layerwise_probes"))
    assert [trace["name"] for trace in traces(tokens)] == ["CLS", "r1", "r2"]
    assert [trace["name"] for trace in traces(means)] == ["CLS", "patch mean", "register mean"]
    assert register_probes.TITLE not in means


def test_the_slider_of_attention_flow_shows_one_block_of_every_model():
    """Models of different depth: where a model has no such block it has no panel."""
    groups = ("cls", "r1", "patches", "registers")
    rows = [
        made_row(model=model, task="attention_flow", metric=source, feature=target, layer=layer)
        for model, depth in (("deep", 3), ("shallow", 2))
        for layer in range(depth)
        for source in groups
        for target in groups
    ]
    panels = traces(attention_flow.section(results(rows, "deep", "shallow")))
    assert len(panels) == 3 + 2
    assert [panel["visible"] for panel in panels] == [False, False, True, False, False]
    assert all(panel["x"] == panel["y"] == ["CLS", "r1", "patches"] for panel in panels), "all registers together are no panel's row"


def test_the_last_block_of_every_condition_stands_in_the_off_manifold_table():
    rows = [
        made_row(task="off_manifold", condition=condition, metric=metric, layer=layer, value=layer + 0.125)
        for condition in ("zero_cls", "zero_registers")
        for metric in off_manifold.METRICS
        for layer in (0, 1)
    ]
    page = off_manifold.section(results(rows))
    assert re.findall(r"<td>model · (\w+)</td>", page) == ["zero_cls", "zero_registers"]
    assert page.count("<td>1.125<small>") == 2 * len(off_manifold.METRICS)
    assert [trace["name"] for trace in traces(page)] == ["zero_cls", "zero_registers"]


def test_cosines_of_registers_are_named_as_in_rows():
    ranks = [made_row(task="effective_rank", condition="full", metric="gram_eigenvalues", feature="patches")]
    cosines = [made_row(task="register_cosine", condition="full", metric="r1", feature=f"r{i}", value=i / 10) for i in (2, 3)]
    page = patch_geometry.section(results(ranks + cosines))
    assert "<th>r1 r2</th><th>r1 r3</th>" in page
    assert "<td>0.20</td><td>0.30</td>" in page


def test_a_change_of_another_token_is_shown_exactly():
    rows = [made_row(task="instrument_check", condition="zero_cls_last", value=2e-7)]
    assert "<td>model · zero_cls_last</td><td>2e-07</td>" in instrument_check.section(results(rows))
