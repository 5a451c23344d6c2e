"""The chart of the summary."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from experiments.report.chart import zeroing_chart
from experiments.report.summary import Change, Score

DENSE, GLOBAL = Score("mIoU", True), Score("probe", False)
CHANGES = [
    Change("<b>a</b>", "zero_registers", DENSE, -8.0, -10.0, -6.0, 0.001, False),
    Change("<b>a</b>", "zero_registers", GLOBAL, 0.5, -0.5, 1.5, 0.9, False),
    Change("<b>a</b>", "zero_cls", GLOBAL, -84.0, -88.0, -80.0, None, True),
    Change("b", "zero_cls", DENSE, 4.0, 2.0, 6.0, 0.001, False),
]


@pytest.mark.parametrize("narrow", [False, True])
def test_a_dot_stands_in_its_interval_and_is_filled_where_it_is_significant(narrow):
    chart = ElementTree.fromstring(zeroing_chart(CHANGES, ["<b>a</b>", "b", "not run"], narrow))
    marks = {group.find("title").text: group for group in chart.iter("g") if group.find("title") is not None}
    assert set(marks) == {
        "<b>a</b>, zero registers, probe: +0.5 points [−0.5, +1.5], Holm p = 0.9",
        "<b>a</b>, zero registers, mIoU: −8.0 points [−10.0, −6.0], Holm p = 0.001",
        "b, zero CLS, mIoU: +4.0 points [+2.0, +6.0], Holm p = 0.001",
    }
    assert [group.get("class") for group in marks.values()] == ["mark same", "mark costs", "mark gains"]
    zeros = sorted({float(line.get("x1")) for line in chart.iter("line") if line.get("class") == "zero"})
    pixels = {}
    for said, group in marks.items():
        line, dot = group.find("line"), group.find("circle")
        assert float(line.get("x1")) < float(dot.get("cx")) < float(line.get("x2"))
        zero = zeros["registers" in said]
        pixels[said.split(":")[1][:5]] = float(dot.get("cx")) - zero
    assert pixels[" −8.0"] == pytest.approx(-2 * pixels[" +4.0"], abs=0.2), "one scale for both panels"
    words = [text.text for text in chart.iter("text")]
    assert words.count("by construction") == 1
    assert "<b>a</b>: dense scores" in words
    assert float(chart.get("width")) <= (390 - 60 if narrow else 600)
    assert all(float(text.get("x")) <= float(chart.get("width")) for text in chart.iter("text"))


def test_a_number_by_construction_does_not_set_the_scale():
    def grid(changes: list[Change]) -> set[str | None]:
        chart = ElementTree.fromstring(zeroing_chart(changes, ["<b>a</b>", "b"], False))
        return {line.get("x1") for line in chart.iter("line") if line.get("class") == "grid"}

    assert grid(CHANGES) == grid([change for change in CHANGES if not change.by_construction])
