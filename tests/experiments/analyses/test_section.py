"""Sections of analyses from rows alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from experiments.analyses import (
    ablation_table,
    instrument_check,
    model_differences,
    off_manifold,
    patch_geometry,
    register_lesions,
    register_probes,
    scale_comparison,
)
from experiments.analyses.presets import ANALYSES
from experiments.plotting.columns import Column
from experiments.rows import Row
from experiments.study.results import StudyResults
from experiments.tasks.table import score_columns
from tests.experiments.plotting.drawings import charts, lines, notes
from tests.experiments.plotting.made_rows import PLAIN, made_row, traces


def results(rows: list[Row], *models: str) -> StudyResults:
    """A finished study of these rows, without pictures."""
    columns = [list(column) for column in [*score_columns(), Column("length", "cls", "how long<br>CLS is", task="mine")]]
    return StudyResults(rows, {"cells": [], "columns": columns}, Path("nowhere"), list(models or ("model",)))


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
    (legend,) = re.findall(r'<ul class="legend">(.*?)</ul>', tokens)
    assert re.findall(r"</svg>([^<]+)</li>", legend) == ["CLS", "r1", "r2"]
    routing, of_means = re.findall(r'<ul class="legend">(.*?)</ul>', means)
    assert re.findall(r"</svg>([^<]+)</li>", routing) == ["CLS", "r1", "r2"]
    assert re.findall(r"</svg>([^<]+)</li>", of_means) == ["CLS", "patch mean", "register mean"]
    assert register_probes.TITLE not in means


def test_the_last_block_of_every_condition_stands_in_the_off_manifold_table():
    rows = [
        made_row(task="off_manifold", condition=condition, metric=metric, layer=layer, value=layer + 0.125, **PLAIN)
        for condition in ("zero_cls", "zero_registers")
        for metric in off_manifold.METRICS
        for layer in (0, 1)
    ]
    page = off_manifold.section(results(rows))
    assert re.findall(r'<th scope="row">model · (\w+)</th>', page) == ["zero_cls", "zero_registers"]
    assert page.count("<td>1.125<small>") == 2 * len(off_manifold.METRICS)
    assert [trace["name"] for trace in traces(page)] == ["zero_cls", "zero_registers"]


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


def test_the_heat_map_shows_values_and_differences_in_their_units():
    """What holds by construction is marked and does not set the colours; what is no share is coloured by the largest of its own."""
    length = {"task": "mine", "metric": "length", "readout": None, **PLAIN}
    alone = {"delta": None, "delta_ci_low": None, "delta_ci_high": None, "p_value": None, "p_holm": None}
    rows = [
        made_row(condition="full", **alone),
        made_row(condition="full", value=4.0, **length, **alone),
        made_row(value=0.125, delta=-0.375, by_construction=True, note="constant by construction"),
        made_row(value=2.0, delta=-2.0, **length),
        made_row(readout="frozen", value=0.25, delta=-0.25),
    ]
    page = ablation_table.section(results(rows))
    raw, delta = traces(page)
    assert raw["x"] == ["linear probe<br>CLS", "frozen probe<br>CLS", "how long<br>CLS is"]
    assert raw["y"] == ["model · full", "model · zero_cls"]
    assert raw["z"] == [[50, None, 100], [12.5, 25, 50]]
    assert raw["text"] == [["50.0", "", "4.0"], ["12.5†", "25.0", "2.0"]]
    assert delta["text"] == [["", "", ""], ["-37.5†", "-25.0", "-2.0"]]
    assert (delta["zmin"], delta["zmax"]) == (-50, 50)
    assert '<th scope="col">linear probe<br>CLS</th><th scope="col">how long<br>CLS is</th>' in page, "the table is of refitted read-outs"


def test_models_are_compared_with_others_of_their_family_alone():
    rows = [made_row(model=model) for model in ("dinov2_vits14", "dinov2_vitb14", "dinov3_vits16")]
    page = scale_comparison.section(results(rows, *(row["model"] for row in rows)))
    assert "dinov2_vitb14" in page
    assert "dinov3_vits16" not in page


def test_a_change_of_another_token_is_shown_exactly():
    rows = [made_row(task="instrument_check", condition="zero_cls_last", metric="largest_change", readout=None, value=2e-7, **PLAIN)]
    assert '<th scope="row">model · zero_cls_last</th><td>2e-07</td>' in instrument_check.section(results(rows))


def test_differences_between_models_stand_in_a_table_for_each_pair():
    common = {"metric": "top1_change", "analysis": "model_differences", "primary": False}
    rows = [
        made_row(**common, model=model, condition=condition, p_holm=p, reference={"model": other, "condition": condition, "value": 0.0})
        for model, other in (("a", "b"), ("a", "c"))
        for condition, p in (("zero_cls", 0.01), ("random_patches", 0.2))
    ]
    page = model_differences.section(results(rows, "a", "b", "c"))
    assert page.count("<table>") == 2
    assert '<th scope="col">a − b</th>' in page
    assert '<th scope="row">zero_cls</th><td><b>-25.0</b><small>-37.5 to -12.5</small></td>' in page
    assert '<th scope="row">random_patches</th><td>-25.0<small>' in page
