"""Pieces of a page."""

from __future__ import annotations

from experiments.plotting.elements import empty_cell, interval_cell, table
from tests.experiments.plotting.made_rows import PLAIN, made_row


def test_a_cell_shows_value_and_interval_in_their_unit_or_says_that_there_is_none():
    assert interval_cell(made_row(), ".1f") == "<td>50.0<small>40.0 – 60.0</small></td>"
    assert interval_cell(made_row(**PLAIN)) == "<td>0.500<small>0.400 – 0.600</small></td>"
    assert interval_cell(None) == empty_cell() == '<td class="none">not run</td>'


def test_a_table_scrolls_in_a_box_that_tab_reaches_and_that_says_what_it_is():
    page = table("condition", ["score"], [("zero_cls", ["<td>1</td>"]), ('"<b>', ["<td>2</td>"])], 'of "it"', {"zero_cls": 'far & "off"'})
    assert page.startswith('<div class="scroll" tabindex="0" role="region" aria-label="of &quot;it&quot;"><table>')
    assert '<th scope="col">condition</th><th scope="col">score</th>' in page
    assert '<th scope="row" title="far &amp; &quot;off&quot;">zero_<wbr>cls</th><td>1</td>' in page
    assert '<th scope="row">&quot;&lt;b&gt;</th><td>2</td>' in page
