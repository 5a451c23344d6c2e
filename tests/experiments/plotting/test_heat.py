"""Tables whose cells are coloured by their numbers."""

from __future__ import annotations

import html
import re

import pytest

from experiments.plotting.heat import MOST, Protocols, Shades, heat_cell
from tests.experiments.plotting.made_rows import PLAIN, made_row

LENGTH = {"task": "mine", "metric": "length", "readout": None, **PLAIN}


def test_a_cell_is_coloured_by_the_root_of_its_share_of_the_largest_change_and_by_its_value():
    """What holds by construction is hatched and does not set the range; what is no share has a range of its own."""
    rows = [
        made_row(delta=-0.4, value=0.5),
        made_row(delta=0.1, value=1.0),
        made_row(delta=-0.9, by_construction=True),
        made_row(delta=-3.0, value=6.0, **LENGTH),
        made_row(delta=1.5, value=3.0, **LENGTH),
    ]
    cells = [heat_cell(row, "score", Shades(rows), Protocols()) for row in rows]
    kinds, shares = zip(*(re.search('class="heat (\\w+)" style="([^"]*)"', cell).groups() for cell in cells), strict=True)
    assert kinds == ("costs", "gains", "built", "costs", "gains")
    changes = [re.findall(r"--d:(\d+)%", share) for share in shares]
    assert changes == [[str(round(MOST * root))] for root in (1, 0.25**0.5)] + [[]] + [[str(round(MOST * root))] for root in (1, 0.5**0.5)]
    values = [int(re.search(r"--r:(\d+)%", share)[1]) for share in shares]
    assert values == pytest.approx([MOST / 2, MOST, MOST / 2, MOST, MOST / 2], abs=0.5)


def test_a_cell_shows_value_and_change_and_says_all_that_is_known_with_the_protocol_last():
    protocols = Protocols()
    row = made_row(by_construction=True, note="constant <b>")
    cell = heat_cell(row, "probe", Shades([row]), protocols)
    assert re.sub("<.*?>", " ", cell, flags=re.DOTALL).split() == ["50.0†", "−25.0†"]
    said = html.unescape(re.search('title="(.*?)"', cell, re.DOTALL)[1]).split("\n")
    assert said[0] == "model · zero_cls, probe: 50.0 % [40.0, 60.0], −25.0 points [−37.5, −12.5] against full, by construction."
    assert said[-2:] == ["† constant <b>", f"Protocol 1, cell {'0' * 20}."]
    assert "<li>ridge(select=val); n = 30 images, the interval covers units</li>" in protocols.listed()
    assert protocols.named(made_row(protocol="<i>")).startswith("Protocol 2")
    assert protocols.named(row).startswith("Protocol 1")
    assert "<i>" not in protocols.listed()


def test_less_is_a_gain_where_less_is_better():
    row = made_row(higher_is_better=False)
    assert 'class="heat gains"' in heat_cell(row, "error", Shades([row]), Protocols())


def test_significance_is_bold_and_a_number_that_there_is_none_of_is_named():
    for p, bold in ((0.049, True), (0.051, False), (None, False)):
        row = made_row(p_holm=p)
        assert ("<b>" in heat_cell(row, "s", Shades([row]), Protocols())) is bold
    assert heat_cell(None, "s", Shades([]), Protocols()) == '<td class="none">not run</td>'
    alone = made_row(delta=None, p_value=None, p_holm=None)
    assert "delta" not in heat_cell(alone, "s", Shades([alone]), Protocols())


def test_where_nothing_changes_nothing_is_coloured():
    row = made_row(delta=0.0, value=0.0)
    assert "--r:0%;--d:0%" in heat_cell(row, "s", Shades([row]), Protocols())
