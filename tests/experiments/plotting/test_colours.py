"""Entries of a figure can be told apart."""

from __future__ import annotations

import plotly.graph_objects as go

from experiments.plotting.colours import style


def test_many_entries_are_told_apart_as_lines_and_as_bars():
    styles = [style(index) for index in range(54)]
    assert len({(s.colour, s.dash) for s in styles}) == 54
    assert len({(s.colour, s.pattern) for s in styles}) == 54


def test_no_entry_is_without_a_style():
    assert style(54) == style(0)
    assert style(1000).colour


def test_plotly_knows_every_dash_and_pattern():
    for index in range(54):
        go.Scatter(line={"dash": style(index).dash})
        go.Bar(marker={"pattern": {"shape": style(index).pattern}})
