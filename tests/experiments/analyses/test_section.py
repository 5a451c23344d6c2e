"""Sections of analyses from rows alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from experiments.analyses import (
    patch_geometry,
    register_probes,
)
from experiments.analyses.presets import ANALYSES
from experiments.plotting.columns import Column
from experiments.rows import Row
from experiments.study.results import StudyResults
from experiments.tasks.table import score_columns
from tests.experiments.plotting.drawings import charts, lines, notes
from tests.experiments.plotting.made_rows import PLAIN, made_row


def results(rows: list[Row], *models: str) -> StudyResults:
    """A finished study of these rows, without pictures."""
    columns = [list(column) for column in [*score_columns(), Column("length", "cls", "how long<br>CLS is", task="mine")]]
    return StudyResults(rows, {"cells": [], "columns": columns}, Path("nowhere"), list(models or ("model",)))


@pytest.mark.parametrize("name", ANALYSES)
def test_an_analysis_without_results_has_no_section(name):
    assert ANALYSES[name].section(results([])) == ""


def test_single_tokens_are_probed_in_one_section_and_means_in_another():
    features = ("cls", "patch_mean", "r1", "r2", "register_mean")
    rows = [made_row(task="layer_probe", feature=feature, layer=layer) for layer in (0, 1) for feature in features]
    tokens, means = (ANALYSES[name].section(results(rows)) for name in ("register_probes", "layerwise_probes"))
    (legend,) = re.findall(r'<ul class="legend">(.*?)</ul>', tokens)
    assert re.findall(r"</svg>([^<]+)</li>", legend) == ["CLS", "r1", "r2"]
    routing, of_means = re.findall(r'<ul class="legend">(.*?)</ul>', means)
    assert re.findall(r"</svg>([^<]+)</li>", routing) == ["CLS", "r1", "r2"]
    assert re.findall(r"</svg>([^<]+)</li>", of_means) == ["CLS", "patch mean", "register mean"]
    assert register_probes.TITLE not in means


def test_cosines_of_registers_stand_in_both_of_their_places():
    ranks = [made_row(task="effective_rank", condition="full", metric="gram_eigenvalues", feature="patches", readout=None, **PLAIN)]
    pair = {"task": "register_cosine", "condition": "full", "metric": "cosine", "feature": None, "readout": None, **PLAIN}
    values = {("r1", "r2"): 0.25, ("r1", "r10"): -0.5, ("r2", "r10"): 0.75}
    cosines = [made_row(**pair, register_a=a, register_b=b, value=value) for (a, b), value in values.items()]
    page = patch_geometry.section(results(ranks + cosines))
    shown = page[page.index("mean cosine of registers</caption>") :]
    assert re.findall(r'<th scope="(?:col|row)">(\w+)</th>', shown) == ["register", "r1", "r2", "r10", "r1", "r2", "r10"]
    assert re.findall(r"<td[^>]*>([^<]*)</td>", shown) == ["–", "0.25", "−0.50", "0.25", "–", "0.75", "−0.50", "0.75", "–"]
    assert shown.count('class="below"') == 2, "what points away has another colour"


def test_a_spectrum_is_its_eigenvalues_in_order_and_norms_stand_in_their_units():
    row = {"condition": "full", "feature": "patches", "readout": None}
    rows = [made_row(task="effective_rank", metric="gram_eigenvalues", value=3.5, **row, **PLAIN)]
    halves = [{"index": k, "value": 0.5**k, "ci_low": 0.5**k, "ci_high": 0.5**k} for k in range(3)]
    rows += [made_row(task="effective_rank", metric="spectrum", **half, **row, **PLAIN) for half in halves]
    norms = [made_row(task="patch_norms", metric=metric, value=30.0, **row, **PLAIN) for metric in ("norm_before_final", "norm")]
    share = made_row(task="patch_norms", metric="outlier_share_6_mad", value=0.25, **row)
    page = patch_geometry.section(results([*rows, *norms, share]))
    (spectrum,) = charts(page, "lines")
    assert [said.split(": ")[1].split(" ")[0] for said in notes(spectrum)] == ["1.000", "0.500", "0.250"]
    ((_, points),) = lines(spectrum)
    heights = [y for _, y in points]
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=0.2), "halves are equally far apart"
    (ranks,) = charts(page, "dots")
    assert notes(ranks) == ["model · full: 3.500 [3.400, 3.600]"]
    assert '<th scope="col">outliers by 6 MAD,<br>percent</th>' in page
    assert "outliers above" not in page.replace("Outliers above", ""), "no model has that number"
    assert page.count("<td>30.000<small>") == 2
    assert "<td>25.000<small>" in page
