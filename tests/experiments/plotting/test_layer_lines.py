"""Lines over blocks: a panel for each model, a line for each feature or condition."""

from __future__ import annotations

from experiments.plotting.layer_lines import plot_condition_lines, plot_layer_lines
from tests.experiments.plotting.made_rows import made_row, traces


def test_a_line_is_a_feature_over_blocks_in_percent():
    rows = [made_row(task="layer_probe", layer=layer, value=0.25 * layer) for layer in (0, 1, 2)]
    (line,) = traces(plot_layer_lines(rows, ["model"], "layer_probe", "top1", ["cls"], "top-1"))
    assert line["name"] == "CLS"
    assert line["x"] == [0, 1, 2]
    assert line["y"] == [0, 25, 50]
    assert len(line["error_y"]["array"]) == 3


def test_twenty_seven_features_are_twenty_seven_lines():
    features = ["cls", *(f"r{i}" for i in range(1, 27))]
    rows = [made_row(task="layer_probe", layer=layer, feature=feature) for layer in (0, 1) for feature in features]
    lines = traces(plot_layer_lines(rows, ["model"], "layer_probe", "top1", features, "top-1"))
    assert [line["legendgroup"] for line in lines] == features
    assert len({(line["line"]["color"], line["line"]["dash"]) for line in lines}) == 27


def test_a_line_is_in_the_legend_once_where_it_comes_first():
    rows = [made_row(model="with", layer=0, feature=feature) for feature in ("cls", "r1")]
    rows += [made_row(model="without", layer=0)]
    lines = traces(plot_layer_lines(rows, ["without", "with"], "linear_probe", "top1", ["cls", "r1"], "top-1"))
    assert [(line["name"], line["xaxis"], line["showlegend"]) for line in lines] == [
        ("CLS", "x", True),
        ("CLS", "x2", False),
        ("r1", "x2", True),
    ]


def test_conditions_are_lines_in_the_metrics_own_unit():
    rows = [made_row(task="off_manifold", metric="attention_divergence", condition=c, layer=0, value=0.5) for c in ("zero_cls", "mean_cls")]
    lines = traces(plot_condition_lines(rows, ["model"], "off_manifold", "attention_divergence", "bits"))
    assert [(line["name"], line["y"]) for line in lines] == [("zero_cls", [0.5]), ("mean_cls", [0.5])]


def test_nothing_is_drawn_without_rows():
    assert plot_layer_lines([made_row()], ["model"], "layer_probe", "top1", ["cls"], "top-1") == ""
    assert plot_condition_lines([made_row()], ["other"], "linear_probe", "top1", "bits") == ""
