"""Lines over blocks: points are where the axis says, styles are those of the entries, and tables hold the numbers."""

from __future__ import annotations

import re

import numpy as np
import pytest

from experiments.plotting.layer_lines import Along, Line, LogScale, layer_chart, plot_condition_lines, plot_layer_lines
from tests.experiments.plotting.drawings import axis_up, charts, heading, lines, notes
from tests.experiments.plotting.made_rows import PLAIN, made_row


def drawn(*features: str, values: tuple[float, ...] = (0.2, 0.6), model: str = "model") -> list[dict]:
    fields = {"task": "layer_probe", "model": model}
    return [made_row(**fields, feature=f, layer=n, value=v) for f in features for n, v in enumerate(values)]


def test_points_stand_at_their_values_on_the_numbered_axis_and_bands_at_their_intervals():
    (chart,) = charts(plot_layer_lines(drawn("cls", values=(0.2, 0.6, 0.5)), ["model"], "layer_probe", "top1", ["cls"], "top-1"), "lines")
    ((_, points),) = lines(chart)
    numbers, places = zip(*sorted(axis_up(chart).items()), strict=True)
    assert len(numbers) > 1
    slope, start = np.polyfit(places, numbers, 1)
    np.testing.assert_allclose([slope * y + start for _, y in points], [20, 60, 50], atol=0.2)
    blocks = {text.text: float(text.get("x")) for text in chart.iter("text") if text.get("text-anchor") == "middle"}
    assert [x for x, _ in points] == [blocks["0"], blocks["1"], blocks["2"]]
    (band,) = [polygon.get("points").split() for polygon in chart.iter("polygon")]
    ends = [slope * float(point.split(",")[1]) + start for point in band]
    np.testing.assert_allclose(ends, [30, 70, 60, 40, 50, 10], atol=0.2)
    assert notes(chart)[1] == "model, CLS, block 1: 60.0 % [50.0, 70.0]"


def test_a_line_has_one_style_in_every_panel_and_one_entry_in_the_legend():
    rows = [*drawn("cls", model="without"), *drawn("cls", "r1", model="with")]
    page = plot_layer_lines(rows, ["without", "with"], "layer_probe", "top1", ["cls", "r1"], "top-1")
    first, second = charts(page, "lines")
    assert [heading(first), heading(second)] == ["without", "with"]
    assert [style for style, _ in lines(first)] == ["line s0 d0 w0"]
    assert [style for style, _ in lines(second)] == ["line s0 d0 w0", "line s1 d0 w0"]
    assert re.findall(r'<li class="line (s\d d\d) w0">.*?</svg>(\w+)</li>', page) == [("s0 d0", "CLS"), ("s1 d0", "r1")]


def test_twenty_seven_features_are_twenty_seven_lines():
    features = ["cls", *(f"r{i}" for i in range(1, 27))]
    (chart,) = charts(plot_layer_lines(drawn(*features), ["model"], "layer_probe", "top1", features, "top-1"), "lines")
    assert len({style for style, _ in lines(chart)}) == 27


def test_the_numbers_stand_in_a_table_and_a_missing_block_is_empty_there():
    rows = [r for r in drawn("cls", "r1") if (r["feature"], r["layer"]) != ("r1", 0)]
    page = plot_layer_lines(rows, ["model"], "layer_probe", "top1", ["cls", "r1"], "top-1")
    assert '<th scope="row">CLS</th><td>20.0</td><td>60.0</td>' in page
    assert '<th scope="row">r1</th><td></td><td>60.0</td>' in page


def test_conditions_are_lines_without_bands_in_the_unit_of_the_number():
    rows = [
        made_row(task="off_manifold", metric="attention_divergence", condition=condition, layer=layer, value=0.25 * layer, **PLAIN)
        for condition in ("zero_cls", "zero_registers")
        for layer in (0, 1)
    ]
    page = plot_condition_lines(rows, ["model"], "off_manifold", "attention_divergence", "bits")
    (chart,) = charts(page, "lines")
    assert len(lines(chart)) == 2
    assert not list(chart.iter("polygon"))
    assert "<td>0.000</td><td>0.250</td>" in page


def test_a_log_axis_has_powers_of_ten_equally_far_apart():
    rows = [made_row(index=k, value=10.0**-k, ci_low=10.0**-k, ci_high=10.0**-k, **PLAIN) for k in range(4)]
    (chart,) = charts(
        layer_chart("spectrum", [Line("m", 0, rows)], (1e-3, 1.0), along=Along("index", "number", 1), scale=LogScale), "lines"
    )
    places = axis_up(chart)
    assert sorted(places) == [0.001, 0.01, 0.1, 1]
    ((_, points),) = lines(chart)
    assert [y for _, y in points] == [places[10.0**-k] for k in range(4)]
    np.testing.assert_allclose(np.diff([y for _, y in points]), 190 / 3, atol=0.1)


def test_a_mark_for_each_block_that_a_control_chooses_stands_at_its_block():
    chart = layer_chart("heading", [Line("CLS", 0, drawn("cls"))], (0, 100), blocks={0: "m0 0", 1: "m0 1"})
    (root,) = charts(chart, "lines")
    marks = {line.get("data-view"): line.get("x1") for line in root.iter("line") if line.get("data-view")}
    ((_, points),) = lines(root)
    assert list(marks) == ["m0 0", "m0 1"]
    assert [float(x) for x in marks.values()] == [x for x, _ in points]


def test_a_published_number_is_a_circle_at_its_value_on_the_axis_and_its_source_is_said():
    rows = drawn("cls", values=(0.2, 0.6))
    rows[1]["published"] = [{"value": 0.95, "difference": -0.35, "in_interval": False, "source": "a paper", "protocol": "?"}]
    page = plot_layer_lines(rows, ["model"], "layer_probe", "top1", ["cls"], "top-1")
    (chart,) = charts(page, "lines")
    (circle,) = [dot for dot in chart.iter("circle") if dot.get("class") == "published"]
    numbers, places = zip(*sorted(axis_up(chart).items()), strict=True)
    assert np.polyval(np.polyfit(places, numbers, 1), float(circle.get("cy"))) == pytest.approx(95, abs=0.3)
    assert notes(chart)[1].endswith("\nPublished 95.0: a paper")
    assert "published</li>" in page


@pytest.mark.parametrize("name", ["שלום", "<b>&\"'"])
def test_names_keep_their_markup_and_direction_to_themselves(name):
    (chart,) = charts(plot_layer_lines(drawn("cls", model=name), [name], "layer_probe", "top1", ["cls"], "top-1"), "lines")
    assert name in heading(chart)
    assert name in notes(chart)[0]


def test_nothing_is_drawn_without_rows():
    assert plot_layer_lines([made_row()], ["model"], "layer_probe", "top1", ["cls"], "top-1") == ""
    assert plot_condition_lines([made_row()], ["other"], "linear_probe", "top1", "bits") == ""
