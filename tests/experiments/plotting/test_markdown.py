"""Markdown tables, and text between marks."""

from __future__ import annotations

import pytest

from experiments.plotting.markdown import fill_between, table

MARKS = ("<!-- begin -->", "<!-- end -->")


def test_a_table_has_a_rule_below_its_headings():
    assert table(["", "top-1"], [["demo", "94.8"], ["raw", ""]]) == "|  | top-1 |\n|---|---|\n| demo | 94.8 |\n| raw |  |"


def test_only_what_stands_between_the_marks_is_replaced(tmp_path):
    file = tmp_path / "README.md"
    file.write_text("before\n<!-- begin -->\nold\n<!-- end -->\nafter\n")
    fill_between(file, MARKS, "new")
    assert file.read_text() == "before\n<!-- begin -->\nnew\n<!-- end -->\nafter\n"
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.parametrize("text", ["", "<!-- begin -->", "<!-- end -->"])
def test_a_file_without_the_marks_is_refused_and_stays_as_it_is(tmp_path, text):
    file = tmp_path / "README.md"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"lacks the marks .* add them where the table shall stand"):
        fill_between(file, MARKS, "new")
    assert file.read_text() == text
