"""Texts of rows."""

from __future__ import annotations

import pytest

from experiments.plotting.hover import meter_lines, note, protocol, scaled, shown, signed, token_label
from experiments.plotting.marks import kind_of
from tests.experiments.plotting.made_rows import PLAIN, made_row


@pytest.mark.parametrize(
    ("name", "label"),
    [("cls", "CLS"), ("register_mean", "register mean"), ("patch_mean", "patch mean"), ("r1", "r1"), ("patches", "patches")],
)
def test_tokens_have_labels(name, label):
    assert token_label(name) == label


def test_a_note_is_a_sentence_first_and_says_everything_that_is_known_of_a_number():
    published = [{"value": 0.75, "difference": -0.25, "in_interval": False, "source": "a paper", "protocol": "?"}]
    row = made_row(seeds=2, by_seed=[0.25, 0.75], note="a token of its own", flag="edge", published=published, repeats="mean_cls")
    assert note(row).split("\n") == [
        "model · zero_cls, linear probe, top1 of cls, block 5, refitted: 50.0 % [40.0, 60.0], −25.0 points [−37.5, −12.5] against full, "
        "Holm p = 0.0200.",
        "p = 0.0100 before Holm over 2 secondary tests.",
        "Mean over 2 draws, from 25.0 to 75.0.",
        "One intervention with mean_cls for what is read here.",
        "Published 75.0, outside this interval: a paper",
        "† a token of its own",
        "‡ edge",
    ]


def test_a_note_is_in_the_unit_of_its_row():
    row = made_row(unit="bits", scale=1.0, readout=None, delta=None, p_value=None, p_holm=None, value=1.5, n_unit="pairs of views")
    assert note(row, "entropy") == "model · zero_cls, entropy: 1.500 bits [1.400, 1.600]."
    assert protocol(row) == "ridge(select=val); n = 30 pairs of views, the interval covers units"
    assert (shown(row), shown(made_row())) == ("1.500 bits [1.400, 1.600]", "50.0 % [40.0, 60.0]")
    assert [scaled(made_row()), scaled(made_row(), "ci_low"), scaled(made_row(), "delta", "+.2f")] == ["50.0", "40.0", "-25.00"]
    assert [signed(made_row(), value) for value in (-0.031, 0.0002, -0.0002, 0.02)] == ["−3.1", "0.0", "0.0", "+2.0"]
    assert [signed(made_row(**PLAIN), value) for value in (-0.031, 0.0002)] == ["−0.031", "0.000"]


def test_a_note_names_the_other_model_and_what_holds_by_construction():
    row = made_row(reference={"model": "other", "condition": "zero_cls", "value": 0.5})
    assert "−25.0 points [−37.5, −12.5] against other, Holm" in note(row)
    assert note(made_row(by_construction=True, p_value=None, p_holm=None)).split("\n")[0].endswith("against full, by construction.")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"layer": None}, "linear probe, top1 of cls, refitted"),
        ({"readout": "frozen"}, "linear probe, top1 of cls, block 5, frozen"),
        ({"readout": None, "metric": "spectrum", "index": 2, "feature": "patches"}, "linear probe, spectrum[2] of patches, block 5"),
        (
            {"readout": None, "metric": "cosine", "register_a": "r1", "register_b": "r3", "feature": None},
            "linear probe, cosine of r1 and r3, block 5",
        ),
    ],
)
def test_a_note_says_what_a_number_is_of(fields, text):
    assert note(made_row(**fields)).startswith(f"model · zero_cls, {text}: ")


@pytest.mark.parametrize(("better", "delta", "kind"), [(True, -0.25, "costs"), (False, -0.25, "gains"), (None, -0.25, "costs")])
def test_a_mark_is_a_cost_where_a_significant_difference_is_for_the_worse(better, delta, kind):
    fields = {"higher_is_better": better, "delta": delta}
    assert kind_of(made_row(**fields)) == kind
    assert kind_of(made_row(**fields, p_holm=0.05)) == kind_of(made_row(**fields, p_holm=None)) == "same"
    assert kind_of(made_row(**fields, delta_ci_high=0.001)) == "same", "an interval that holds 0"


def test_the_off_manifold_line_of_a_condition_is_of_its_last_block():
    rows = [
        made_row(task="off_manifold", metric=metric, layer=layer, value=layer)
        for metric in ("patch_cosine", "patch_norm_ratio")
        for layer in (0, 1)
    ]
    assert meter_lines(rows) == {("model", "zero_cls"): "off manifold, last block: patch cosine 1.000, patch norm ratio 1.000"}
