"""From scores to rows: what has no value has no row, and one intervention is one test, whatever names it has."""

from __future__ import annotations

import json

import numpy as np
import pytest

import jaxvit
from experiments.datasets.base import Shown
from experiments.features.conditions import conditions
from experiments.features.recipes import recipe_of
from experiments.study.changes import change_rows
from experiments.study.compare import AND_DRAWS, AND_READOUT, UNITS, Inference, add_holm, compared_rows, mark_repeats
from experiments.tasks.base import MetricResult
from jaxvit import metrics
from jaxvit.inference import Scores, between, bootstrap, compare, holm, mean_scores, median_scores, over_seeds, ratio_scores, value
from tests.experiments.plotting.made_rows import made_row
from tests.experiments.tiny_study import CONFIG

PLAIN = Inference(50, 0, {})
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
    rows = compared_rows(RUN, results, PLAIN, [[s] for s in (hits, none, hits)])
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
    miou, *ious = compared_rows(RUN, results, PLAIN)
    assert [row["value"] for row in ious] == [5 / 8, 3 / 5, 0]
    assert miou["value"] == pytest.approx(np.mean([5 / 8, 3 / 5, 0]))


def tables(seed: int, draws: int, units: int = 20) -> list[Scores]:
    generator = np.random.default_rng(seed)
    return [mean_scores(column) for column in (generator.normal(size=(units, draws)) + generator.normal(size=draws)).T]


def test_intervals_cover_the_draws_that_are_enough():
    """Of a read-out or a condition, at least five; few draws of a condition are not covered by those of its read-out."""
    single, four, eight = (MetricResult("score", "cls", "p()", tables(0, draws)) for draws in (1, 4, 8))
    drawn = eight._replace(draws=tuple(range(8)))
    covers = [
        compared_rows(RUN, [result], PLAIN, condition_draws=draws)[0]["ci_covers"]
        for result, draws in ((single, 0), (four, 4), (eight, 8), (drawn, 0), (drawn, 1), (drawn, 2), (drawn, 5))
    ]
    assert covers == [UNITS, UNITS, AND_DRAWS, AND_DRAWS, AND_READOUT, AND_READOUT, AND_DRAWS]
    (row,), (apart,) = (compared_rows(RUN, [result], PLAIN) for result in (drawn, four))
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(bootstrap(over_seeds(drawn.scores, drawn=True)))
    assert (apart["ci_low"], apart["ci_high"]) == pytest.approx(bootstrap(over_seeds(four.scores), 50))
    assert row["by_seed"] == [value(score) for score in drawn.scores]
    medians = single._replace(scores=[median_scores(np.random.default_rng(i).normal(size=9)) for i in range(5)])
    assert compared_rows(RUN, [medians], PLAIN)[0]["ci_covers"] == UNITS, "a median has no error by deletion"


def test_conditions_that_are_averaged_share_the_draws_of_their_read_outs():
    """Four conditions under the same six draws: six draws are covered, not twenty-four."""
    by_condition = [tables(seed, 6) for seed in range(4)]
    joined = MetricResult("score", "cls", "p()", [s for scores in by_condition for s in scores], draws=tuple(range(6)) * 4)
    (row,) = compared_rows(RUN, [joined], PLAIN, average=True)
    together = over_seeds([over_seeds(same) for same in zip(*by_condition, strict=True)], drawn=True)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(bootstrap(together))
    assert row["seeds"] == 1
    without = compared_rows(RUN, [joined._replace(draws=())], PLAIN, average=True)
    assert without[0]["ci_covers"] == UNITS


def test_units_are_what_is_shown():
    """Of the part that the scores are of; the leading images of it where there are fewer."""
    digits = np.arange(30) // 3
    shown = {"test": Shown("digits", digits[:, None])}
    scores = mean_scores(np.random.default_rng(0).normal(size=21) + digits[:21])
    results = [
        MetricResult("score", "cls", "p()", [scores]),
        MetricResult("score", "patches", "p()", [scores], n_unit="pairs", part="first"),
    ]
    of_digits, of_pairs = compared_rows(RUN, results, Inference(200, 0, shown))
    assert MetricResult("score", "cls", "p()", [scores], n_unit="pairs").units_of is None, "pairs of what, it has not said"
    assert [(row["n"], row["n_unit"]) for row in (of_digits, of_pairs)] == [(7, "digits"), (21, "pairs")]
    assert (of_digits["ci_low"], of_digits["ci_high"]) == bootstrap(scores._replace(clusters=digits[:21, None]), 200)
    assert of_digits["ci_high"] - of_digits["ci_low"] > of_pairs["ci_high"] - of_pairs["ci_low"]


def test_main_scores_are_one_family_of_all_models_and_the_others_are_secondary():
    main = [made_row(model=model, condition=c, primary=True, p_value=0.01) for model in "ab" for c in ("zero_cls", "zero_registers")]
    others = [made_row(model=model, metric="top1_k10", p_value=0.01) for model in "ab"]
    differences = [made_row(model="b", metric="top1_change", analysis="model_differences", p_value=0.01)]
    corrected = add_holm([*main, *others, *differences])
    assert [row["holm_tests"] for row in corrected] == [4, 4, 4, 4, 1, 1, 1]
    families = [row["holm_family"] for row in corrected]
    assert families[0] == "primary: the main scores of all models under all conditions"
    assert families[4] == "secondary: top1_k10 of linear_probe of a, refitted read-outs, all conditions and features"
    assert families[6] == "secondary: top1_change of linear_probe of b against model, all conditions"


def test_differences_between_models_are_those_of_their_differences():
    """Of a mean over units: the paired comparison of the two models' differences; nothing where a model has it by construction."""
    generator = np.random.default_rng(3)
    values = generator.normal(size=(4, 25))
    full, ablated, their_full, theirs = (mean_scores(v) for v in values)
    result, other = (MetricResult("top1", "cls", "p()", [scores], readout="refitted") for scores in (ablated, theirs))
    key = result.identity
    (row,) = change_rows(RUN, "other", {key: (result, [full])}, {key: (other, [their_full])}, Inference(300, 0, {}), 0)
    assert (row["metric"], row["model"], row["reference"]["model"]) == ("top1_change", "m", "other")
    assert row["value"] == pytest.approx((values[1] - values[0]).mean())
    assert row["reference"]["value"] == pytest.approx((values[3] - values[2]).mean())
    own = compare(mean_scores(np.zeros(25)), mean_scores(values[1] - values[0] - values[3] + values[2]), 300)
    assert (row["delta"], row["delta_ci_low"], row["delta_ci_high"], row["p_value"]) == pytest.approx(own)
    assert row["delta"] == pytest.approx(row["value"] - row["reference"]["value"])
    constant = other._replace(by_construction=True)
    assert change_rows(RUN, "other", {key: (result, [full])}, {key: (constant, [their_full])}, PLAIN, 0) == []
    with pytest.raises(ValueError, match="same units"):
        between(full, mean_scores(np.zeros(9)))
