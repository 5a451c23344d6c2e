"""Bars of differences: none is dropped, and they are those of the rows."""

from __future__ import annotations

import pytest

from experiments.plotting.columns import Column
from experiments.plotting.deltas import plot_deltas
from experiments.tasks.table import score_columns
from tests.experiments.plotting.made_rows import PLAIN, made_row, traces

COLUMNS = score_columns()
CONDITIONS = [f"zero_r{i}" for i in range(1, 16)]


def test_fifteen_conditions_are_fifteen_traces_in_the_panel_of_every_model():
    rows = [made_row(model=model, condition=condition) for model in ("first", "second") for condition in CONDITIONS]
    bars = traces(plot_deltas(rows, COLUMNS, ["first", "second"], CONDITIONS))
    for axis in ("y", "y2"):
        panel = [bar for bar in bars if bar["yaxis"] == axis]
        assert [bar["name"] for bar in panel] == CONDITIONS
        assert len({(bar["marker"]["color"], bar["marker"]["pattern"]["shape"]) for bar in panel}) == 15
    assert [bar["name"] for bar in bars if bar["showlegend"]] == CONDITIONS, "each once in the legend"


def test_a_bar_is_the_difference_in_points_with_its_interval():
    row = made_row(delta=-0.25, delta_ci_low=-0.375, delta_ci_high=-0.125)
    (bar,) = traces(plot_deltas([row], COLUMNS, ["model"], ["zero_cls"]))
    assert bar["x"] == ["linear probe<br>CLS"]
    assert bar["y"] == [-25]
    assert (bar["error_y"]["array"], bar["error_y"]["arrayminus"]) == ([12.5], [12.5])


def test_a_bar_and_its_interval_are_in_the_unit_of_the_score():
    row = made_row(task="mine", metric="length", readout=None, delta=-2.5, delta_ci_low=-3.5, delta_ci_high=-0.5, **PLAIN)
    (bar,) = traces(plot_deltas([row], [Column("length", "cls", "length", task="mine")], ["model"], ["zero_cls"]))
    assert (bar["x"], bar["y"]) == (["length"], [-2.5])
    assert (bar["error_y"]["array"], bar["error_y"]["arrayminus"]) == ([2], [1])


def test_only_the_columns_that_are_given_have_bars():
    rows = [made_row(), made_row(readout="frozen"), made_row(task="knn", metric="top1_k20")]
    (bar,) = traces(plot_deltas(rows, COLUMNS[:2], ["model"], ["zero_cls"]))
    assert bar["x"] == ["linear probe<br>CLS", "frozen probe<br>CLS"]


def test_a_condition_has_the_same_look_in_every_panel_also_where_others_are_missing():
    rows = [made_row(model="first", condition="a"), made_row(model="first", condition="b"), made_row(model="second", condition="b")]
    bars = traces(plot_deltas(rows, COLUMNS, ["first", "second"], ["a", "b"]))
    colours = {(bar["name"], bar["marker"]["color"]) for bar in bars}
    assert len(colours) == 2


def test_what_holds_by_construction_has_no_bar():
    rows = [made_row(by_construction=True, note="constant by construction"), made_row(task="knn", metric="top1_k20")]
    (bar,) = traces(plot_deltas(rows, COLUMNS, ["model"], ["zero_cls"]))
    assert bar["x"] == ["k-NN (k 20)<br>CLS"]


def test_what_repeats_another_condition_has_no_bar_of_its_own():
    rows = [made_row(condition="a"), made_row(condition="b", repeats="a")]
    bars = traces(plot_deltas(rows, COLUMNS, ["model"], ["a", "b"]))
    assert [bar["x"] for bar in bars] == [["linear probe<br>CLS"], []]


@pytest.mark.parametrize(("model", "condition"), [("other", "zero_cls"), ("model", "mean_cls")])
def test_nothing_is_drawn_where_no_model_ran_a_condition(model, condition):
    assert plot_deltas([made_row()], COLUMNS, [model], [condition]) == ""
