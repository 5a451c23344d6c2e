"""Differences as dots with intervals: none is dropped, and they stand where the rows say."""

from __future__ import annotations

import re

import pytest

from experiments.plotting.columns import Column
from experiments.plotting.deltas import plot_deltas
from experiments.plotting.svg import FONT_SIZE, WIDTH
from experiments.tasks.table import score_columns
from tests.experiments.plotting.drawings import panels
from tests.experiments.plotting.made_rows import PLAIN, made_row

COLUMNS = score_columns()
CONDITIONS = {f"zero_r{i}": f"r{i}" for i in range(1, 28)}
PROBE = "model: linear probe CLS"


def test_twenty_seven_conditions_are_twenty_seven_lines_for_every_model():
    rows = [made_row(model=model, condition=condition) for model in ("first", "second") for condition in CONDITIONS]
    drawn = panels(plot_deltas(rows, COLUMNS, ["first", "second"], CONDITIONS))
    assert list(drawn) == ["first: linear probe CLS", "second: linear probe CLS"]
    for lines in drawn.values():
        assert [line.name for line in lines] == list(CONDITIONS.values())
        assert len({line.says for line in lines}) == 27


def test_a_dot_and_its_interval_stand_at_their_numbers_and_say_them():
    rows = [
        made_row(delta=-0.25, delta_ci_low=-0.375, delta_ci_high=-0.125),
        made_row(condition="b", delta=0.01, delta_ci_low=-0.01, delta_ci_high=0.03),
    ]
    (lines,) = panels(plot_deltas(rows, COLUMNS, ["model"], {"zero_cls": "CLS", "b": "b"})).values()
    assert lines[0].numbers == pytest.approx([-25, -37.5, -12.5], abs=0.3), "a tenth of a pixel"
    assert lines[0].words == ["−25.0"]
    assert [line.kind for line in lines] == ["costs", "same"], "an interval that holds 0 is no gain"
    assert lines[0].says.startswith(
        "model · zero_cls, linear probe CLS: 50.0 % [40.0, 60.0], −25.0 points [−37.5, −12.5] against full, Holm p = 0.0200"
    )


def test_a_dot_and_its_interval_are_in_the_unit_of_the_score_on_an_axis_of_its_own():
    columns = [*COLUMNS, Column("length", "cls", "length", task="mine")]
    fields = {"task": "mine", "metric": "length", "readout": None, **PLAIN, "unit": "m"}
    row = made_row(delta=-250.0, delta_ci_low=-350.0, delta_ci_high=-50.0, **fields)
    page = plot_deltas([row, made_row()], columns, ["model"], {"zero_cls": "CLS"})
    (line,) = panels(page)["model: length"]
    assert line.numbers == pytest.approx([-250, -350, -50], abs=2)
    alone = plot_deltas([made_row()], columns, ["model"], {"zero_cls": "CLS"})
    ticks = [re.findall(r'class="soft">([^<]*)<', text.split("</svg>")[0]) for text in (page, alone)]
    assert ticks[0] == ticks[1] != [], "the axis of points is not that of metres"
    assert "change, m" in page


def test_all_scores_in_points_have_one_axis():
    rows = [made_row(), made_row(task="knn", metric="top1_k20", delta=-0.5, delta_ci_low=-0.75)]
    drawn = re.findall("<svg.*?</svg>", plot_deltas(rows, COLUMNS, ["model"], {"zero_cls": "CLS"}), re.DOTALL)
    assert len({tuple(re.findall(r'<line x1="([\d.]+)" y1="24"', drawing)) for drawing in drawn}) == 1


def test_only_the_columns_that_are_given_are_drawn():
    rows = [made_row(), made_row(readout="frozen"), made_row(task="knn", metric="top1_k20")]
    drawn = panels(plot_deltas(rows, COLUMNS[:2], ["model"], {"zero_cls": "CLS"}))
    assert list(drawn) == [PROBE, "model: frozen probe CLS"]


def test_what_is_no_finding_or_no_number_is_named_in_its_place_and_does_not_set_the_axis():
    rows = [
        made_row(condition="a"),
        made_row(condition="b", repeats="a"),
        made_row(condition="c", by_construction=True, delta=-0.9, delta_ci_low=-1.0),
        made_row(condition="d", task="knn", metric="top1_k20"),
    ]
    drawn = panels(plot_deltas(rows, COLUMNS, ["model"], {name: name for name in "abcde"}))
    words = {line.name: line.words for line in drawn[PROBE]}
    assert words == {"a": ["−25.0"], "b": ["as a"], "c": ["by construction"], "d": ["not run"]}, "e is no condition of this model"
    (only,) = panels(plot_deltas(rows[:1], COLUMNS, ["model"], {"a": "a"})).values()
    assert drawn[PROBE][0].numbers == pytest.approx(only[0].numbers, abs=0.3)


@pytest.mark.parametrize(("model", "condition"), [("other", "zero_cls"), ("model", "mean_cls")])
def test_nothing_is_drawn_where_no_model_ran_a_condition(model, condition):
    assert plot_deltas([made_row()], COLUMNS, [model], {condition: condition}) == ""


def test_names_with_markup_are_text_and_names_written_from_right_to_left_keep_to_themselves():
    evil, turned = '<b>"&', "תמונה"
    rows = [made_row(model=evil), made_row(model=evil, condition=turned)]
    page = plot_deltas(rows, COLUMNS, [evil], {"zero_cls": evil, turned: turned})
    assert "<b>" not in page
    (lines,) = panels(page).values()
    assert [line.name for line in lines] == [evil, turned]
    assert f"\u2068{turned}\u2069" in page


def test_letters_are_never_smaller_than_drawn_on_a_phone_and_stay_inside():
    rows = [made_row(condition="shuffle_registers_whole_and_more", delta=-12.345, delta_ci_low=-15.0)]
    page = plot_deltas(rows, COLUMNS, ["model"], {rows[0]["condition"]: rows[0]["condition"]})
    assert FONT_SIZE >= 11
    assert WIDTH <= 330
    assert set(re.findall(r'<svg viewBox="0 0 (\d+) \d+" width="(\d+)"', page)) == {(str(WIDTH), str(WIDTH))}
    assert "shuffle_registers_whole_and_more" in page, "cut names are said whole"
    assert all(0 <= float(x) <= WIDTH for x in re.findall(r'(?:x|x1|x2|cx)="([\d.-]+)"', page))
