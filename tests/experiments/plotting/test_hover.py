"""Texts of rows."""

from __future__ import annotations

import pytest

from experiments.plotting.hover import delta_errors, errors, hover, interval, meter_lines, scaled, token_label
from tests.experiments.plotting.made_rows import PLAIN, made_row


@pytest.mark.parametrize(
    ("name", "label"),
    [("cls", "CLS"), ("register_mean", "register mean"), ("patch_mean", "patch mean"), ("r1", "r1"), ("patches", "patches")],
)
def test_tokens_have_labels(name, label):
    assert token_label(name) == label


def test_a_hover_text_says_everything_that_is_known_of_a_number():
    published = [{"value": 0.75, "difference": -0.25, "in_interval": False, "source": "a paper", "protocol": "?"}]
    row = made_row(
        seeds=2, by_seed=[0.25, 0.75], by_construction=True, note="by construction", flag="edge", detail="penalty 1", published=published
    )
    assert hover(row).split("<br>") == [
        "model · zero_cls",
        "linear_probe: top1 of cls, block 5, refitted",
        "ridge(select=val)",
        "value 50.000 [40.000, 60.000] %, n = 30 images; the interval covers units",
        "mean over 2 draws, from 25.000 to 75.000",
        "against full -25.000 [-37.500, -12.500], p = 0.0100, by Holm over 2 p = 0.0200 (secondary family)",
        "published 75.00 (-25.00 here), outside this interval; protocols differ: a paper",
        "† by construction",
        "‡ edge",
        " penalty 1",
        f"cell {'0' * 20}",
    ]
    assert hover(None) == "not run"


def test_a_hover_text_is_in_the_unit_of_its_row():
    row = made_row(unit="bits", scale=1.0, readout=None, delta=None, value=1.5, n_unit="pairs of views", published=None)
    assert hover(row).split("<br>")[1:4] == [
        "linear_probe: top1 of cls, block 5",
        "ridge(select=val)",
        "value 1.500 [1.400, 1.600] bits, n = 30 pairs of views; the interval covers units",
    ]
    assert (interval(row), interval(made_row())) == ("1.500 [1.400, 1.600]", "50.000 [40.000, 60.000]")
    assert [scaled(made_row()), scaled(made_row(), "ci_low"), scaled(made_row(), "delta", "+.2f")] == ["50.0", "40.0", "-25.00"]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"layer": None}, "linear_probe: top1 of cls, refitted"),
        ({"readout": "frozen"}, "linear_probe: top1 of cls, block 5, frozen"),
        ({"readout": None, "metric": "spectrum", "index": 2, "feature": "patches"}, "linear_probe: spectrum[2] of patches, block 5"),
        (
            {"readout": None, "metric": "cosine", "register_a": "r1", "register_b": "r3", "feature": None},
            "linear_probe: cosine of r1 and r3, block 5",
        ),
    ],
)
def test_a_hover_text_says_what_a_number_is_of(fields, text):
    assert hover(made_row(**fields)).split("<br>")[1] == text


def test_error_bars_are_the_distances_to_the_ends_of_intervals():
    bars = errors([made_row(), made_row(value=0.25, ci_low=0.125, ci_high=0.5)])
    assert bars["array"] == pytest.approx([10, 25])
    assert bars["arrayminus"] == pytest.approx([10, 12.5])
    differences = delta_errors([made_row(), made_row(**PLAIN), made_row(delta=None, delta_ci_low=None, delta_ci_high=None)])
    assert differences["array"] == differences["arrayminus"] == [12.5, 0.125, 0]


def test_the_off_manifold_line_of_a_condition_is_of_its_last_block():
    rows = [
        made_row(task="off_manifold", metric=metric, layer=layer, value=layer)
        for metric in ("patch_cosine", "patch_norm_ratio")
        for layer in (0, 1)
    ]
    assert meter_lines(rows) == {("model", "zero_cls"): "off manifold, last block: patch cosine 1.000, patch norm ratio 1.000"}
