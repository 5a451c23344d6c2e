"""Texts of rows."""

from __future__ import annotations

import pytest

from experiments.plotting.hover import hover, meter_lines, token_label
from tests.experiments.plotting.made_rows import made_row


@pytest.mark.parametrize(
    ("name", "label"),
    [("cls", "CLS"), ("register_mean", "register mean"), ("patch_mean", "patch mean"), ("r1", "r1"), ("patches", "patches")],
)
def test_tokens_have_labels(name, label):
    assert token_label(name) == label


def test_a_hover_text_says_everything_that_is_known_of_a_number():
    published = [{"value": 0.75, "difference": -0.25, "source": "a paper", "protocol": "?"}]
    row = made_row(seeds=2, by_seed=[0.25, 0.75], note="by construction", flag="edge", detail="penalty 1", published=published)
    assert hover(row).split("<br>") == [
        "model · zero_cls",
        "linear_probe: top1 of cls, layer last",
        "ridge(select=val)",
        "value 50.000 [40.000, 60.000], n = 30",
        "mean over 2 seeds, from 25.000 to 75.000",
        "against full -25.000 [-37.500, -12.500], p = 0.0100, by Holm over 2 0.0200",
        "published 75.00 (-25.00 here): a paper",
        "† by construction",
        "‡ edge",
        " penalty 1",
        f"cell {'0' * 20}",
    ]
    assert hover(None) == "not run"


def test_the_off_manifold_line_of_a_condition_is_of_its_last_block():
    rows = [
        made_row(task="off_manifold", metric=metric, layer=layer, value=layer)
        for metric in ("patch_cosine", "patch_norm_ratio")
        for layer in (0, 1)
    ]
    assert meter_lines(rows) == {("model", "zero_cls"): "off manifold, last block: patch cosine 1.000, patch norm ratio 1.000"}
