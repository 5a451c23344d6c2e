"""From scores to rows: what has no value has no row, and one intervention is one test, whatever names it has."""

from __future__ import annotations

import json

import numpy as np
import pytest

import jaxvit
from experiments.features.conditions import conditions
from experiments.features.recipes import recipe_of
from experiments.study.compare import add_holm, compared_rows, mark_repeats
from experiments.tasks.base import MetricResult, mean_over_seeds
from jaxvit import metrics
from jaxvit.inference import Scores, holm, ratio_scores
from tests.experiments.plotting.made_rows import made_row
from tests.experiments.tiny_study import CONFIG

RUN = {"model": "m", "condition": "zero_cls", "tokens": "cls", "task": "segmentation"}
TABLE = {
    **conditions(CONFIG),
    "late": lambda config, moments, seed: jaxvit.mean("registers", moments, layers=[1], at="block_input"),
    "then_zero": lambda config, moments, seed: jaxvit.mean("registers", moments, at="block_input") & jaxvit.zero("registers"),
    "again": lambda config, moments, seed: jaxvit.zero("cls"),
    "mean_cls_in": lambda config, moments, seed: jaxvit.mean("cls", moments, at="block_input"),
    "mean_patches_in": lambda config, moments, seed: jaxvit.mean("patches", moments, at="block_input"),
    "mean_patches": lambda config, moments, seed: jaxvit.mean("patches", moments),
}
RECIPES = {name: recipe_of(condition, CONFIG, (64, 64), 0, "32 images") for name, condition in TABLE.items()}


def rows_of(*names: str, feature: str | None = "cls", p_value: float = 0.01) -> list[dict]:
    return [
        made_row(condition=name, feature=feature, ablation=[RECIPES[name].hash], p_value=p_value, p_holm=None, holm_tests=None)
        for name in names
    ]


def repeats(rows: list[dict]) -> list[str | None]:
    return [row["repeats"] for row in mark_repeats(rows, {recipe.hash: recipe.text for recipe in RECIPES.values()})]


@pytest.mark.parametrize(
    ("feature", "same"),
    [
        ("cls", True),
        ("patch_mean", True),
        ("cls+patch_mean", True),
        ("digit_patches", True),
        ("patches: digit 3", True),
        ("register_mean", False),
        ("r1", False),
        ("cls+registers", False),
        (None, False),
    ],
)
def test_the_mean_of_registers_at_inputs_repeats_that_at_outputs_for_all_other_tokens(feature, same):
    assert repeats(rows_of("mean_registers", "fix_reg_mean", feature=feature)) == [None, "mean_registers" if same else None]
    assert repeats(rows_of("fix_reg_mean", "zero_registers", feature=feature)) == [None, None]


def test_only_what_is_one_intervention_repeats_another():
    assert repeats(rows_of("mean_registers", "late", "then_zero", "noise_registers")) == [None] * 4
    assert repeats(rows_of("zero_cls", "again")) == [None, "zero_cls"], "one definition under two names"
    assert repeats(rows_of("mean_cls", "mean_cls_in", feature="patches")) == [None, "mean_cls"]
    assert repeats(rows_of("mean_cls", "mean_cls_in", feature="cls")) == [None, None]
    assert repeats(rows_of("mean_patches", "mean_patches_in")) == [None, None], "patches that enter block 0 differ between images"
    assert repeats(rows_of("full", "full")) == [None, None]


def test_holm_counts_one_intervention_once():
    p_values = {"zero_cls": 0.02, "mean_registers": 0.03, "fix_reg_mean": 0.03, "late": 0.04}
    rows = [row for name, p_value in p_values.items() for row in rows_of(name, p_value=p_value)]
    corrected = add_holm(mark_repeats(rows, {recipe.hash: recipe.text for recipe in RECIPES.values()}))
    assert [row["holm_tests"] for row in corrected] == [3, 3, None, 3]
    np.testing.assert_allclose([row["p_holm"] for row in corrected if not row["repeats"]], holm([0.02, 0.03, 0.04]))


def test_what_is_undefined_has_no_row_and_what_is_undefined_in_full_no_comparison():
    hits, none = ratio_scores(np.array([1.0, 2, 0]), np.array([2.0, 2, 1])), ratio_scores(np.zeros(3), np.zeros(3))
    results = [MetricResult("iou", f"patches: {i}", "p()", [s]) for i, s in enumerate((none, hits, hits))]
    rows = compared_rows(RUN, results, 50, 0, full=[mean_over_seeds([s]) for s in (hits, none, hits)])
    assert [(row["feature"], row["delta"], row["reference"]) for row in rows] == [
        ("patches: 1", None, None),
        ("patches: 2", 0.0, {"model": "m", "condition": "full", "value": 0.6}),
    ]
    assert [row["scores_array"] for row in rows] == ["scores/1", "scores/2"], "where its scores are in the cell"
    json.dumps(rows, allow_nan=False)


def test_a_class_that_is_predicted_and_nowhere_true_counts_in_the_mean_and_has_a_row():
    confusion = np.zeros((2, 3, 3), int)
    confusion[0] = [[5, 0, 1], [2, 3, 0], [0, 0, 0]]
    overlap = metrics.class_overlap(confusion)
    results = [MetricResult("miou", "patches", "p()", [Scores(confusion, metrics.mean_iou)])]
    results += [MetricResult("iou", f"patches: {c}", "p()", [ratio_scores(*overlap[:, c].T)]) for c in range(3)]
    miou, *ious = compared_rows(RUN, results, 50, 0)
    assert [row["value"] for row in ious] == [5 / 8, 3 / 5, 0]
    assert miou["value"] == pytest.approx(np.mean([5 / 8, 3 / 5, 0]))
