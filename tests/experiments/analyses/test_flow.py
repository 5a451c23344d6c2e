"""Attention flow and routing on the page: numbers are those of the rows, states those of the controls."""

from __future__ import annotations

import re
from pathlib import Path

from experiments.analyses import attention_flow, layerwise_probes
from experiments.rows import Row
from experiments.study.results import StudyResults
from tests.experiments.plotting.drawings import charts, notes
from tests.experiments.plotting.made_rows import made_flow, made_row

GROUPS = ("cls", "r1", "r2", "patches", "registers")
NAMES = ("CLS", "r1", "r2", "patches")
TOKENS = [group for group in GROUPS if group != "registers"]


def value(model: str, layer: int, source: str, target: str) -> float:
    """Another number for each."""
    return (1 + 5 * GROUPS.index(source) + GROUPS.index(target) + 30 * layer + 100 * len(model)) / 1000


def flow(model: str, depth: int, groups: tuple[str, ...] = GROUPS) -> list[Row]:
    return [
        made_flow(source, target, model=model, layer=layer, value=value(model, layer, source, target))
        for layer in range(depth)
        for source in groups
        for target in groups
    ]


def results(rows: list[Row], *models: str) -> StudyResults:
    return StudyResults(rows, {"cells": [], "columns": []}, Path("nowhere"), list(models))


def tables(page: str) -> dict[str, list[list[str]]]:
    """The cells of every table of shares by its caption, with the names of lines."""
    found = re.findall(r'<table class="shares"><caption>(.*?)</caption>.*?<tbody>(.*?)</tbody>', page)
    return {caption: [re.findall(r"<t[dh][^>]*>([^<]*)", line) for line in re.findall(r"<tr>(.*?)</tr>", body)] for caption, body in found}


def test_every_block_of_every_model_has_its_numbers_in_a_table_of_groups_and_one_of_registers():
    page = attention_flow.section(results([*flow("deep", 3), *flow("flat", 2, ("cls", "patches"))], "deep", "flat"))
    shown = tables(page)
    assert len(shown) == 3 * 2 + 2, "a model without registers has no table of them"
    groups = shown["deep, block 2: from (row) to (column), percent"]
    assert [line[0] for line in groups] == ["CLS", "registers", "patches"]
    expected = [[f"{100 * value('deep', 2, a, b):.1f}" for b in ("cls", "registers", "patches")] for a in ("cls", "registers", "patches")]
    assert [line[1:] for line in groups] == expected
    single = shown["deep, block 1, each register"]
    assert [line[0] for line in single] == ["CLS", "r1", "r2", "patches"]
    assert [line[1:] for line in single] == [[f"{100 * value('deep', 1, a, b):.1f}" for b in TOKENS] for a in TOKENS]
    assert [line[0] for line in shown["flat, block 0: from (row) to (column), percent"]] == ["CLS", "patches"]


def test_the_controls_choose_among_the_blocks_of_the_models():
    page = attention_flow.section(results([*flow("deep", 3), *flow("flat", 2, ("cls", "patches"))], "deep", "other", "flat"))
    assert re.findall(r'data-view="(m\d \d)"><div class="tables">', page) == ["m0 0", "m0 1", "m0 2", "m2 0", "m2 1"]
    assert '<input type="range" min="0" max="2" step="1" value="2" data-label="block" aria-label="block" data-group="block">' in page
    assert re.findall(r'value="(m\d)"( checked)?>(\w+)', page) == [("m0", " checked", "deep"), ("m2", "", "flat")]
    assert "Not shown, not computed: other." in page
    alone = attention_flow.section(results(flow("deep", 3), "deep"))
    assert "radio" not in alone, "where there is one model none is chosen"
    assert re.findall(r'data-view="(\d)"><div class="tables">', alone) == ["0", "1", "2"]


def test_a_published_number_stands_beside_the_measured_one_with_its_source():
    published = [{"value": 0.2875, "difference": 0.01, "in_interval": False, "source": "a <paper>", "protocol": "?"}]
    rows = [r | {"published": published} if (r["source"], r["target"]) == ("cls", "registers") else r for r in flow("deep", 1)]
    page = attention_flow.section(results(rows, "deep"))
    assert page.count("<small>published 28.7</small>") + page.count("<small>published 28.8</small>") == 1
    assert "CLS to registers: published 28.75, here" in page
    assert "outside this interval (a &lt;paper&gt;)" in page


def test_bars_are_the_attention_of_cls_at_their_block_and_share_their_choice_with_the_probes():
    probes = [made_row(task="layer_probe", model="deep", feature=f, layer=n, value=0.5) for f in ("cls", "r1", "r2") for n in (0, 1)]
    page = layerwise_probes.section(results([*flow("deep", 2), *probes], "deep"))
    for layer, bars in enumerate(charts(page, "bars")):
        numbers = [f"{100 * value('deep', layer, 'cls', token):.1f}" for token in TOKENS]
        assert [note.split(" %")[0] for note in notes(bars)] == [f"{name}: {n}" for name, n in zip(NAMES, numbers, strict=True)]
        widths = [float(bar.get("width", "")) for bar in bars.iter("rect")]
        shares = [value("deep", layer, "cls", token) for token in TOKENS]
        for width, share in zip(widths, shares, strict=True):
            assert abs(width / widths[-1] - share / shares[-1]) < 0.01
    read, attended, *_ = charts(page, "lines")
    for chart in (read, attended):
        assert [line.get("data-view") for line in chart.iter("line") if line.get("data-view")] == ["0", "1"]
    assert re.findall(r'<div data-view="(\d)"><svg', page) == ["0", "1"]


def test_what_was_not_run_is_said_beside_what_was():
    probes = [made_row(task="layer_probe", model="deep", feature="cls", layer=0)]
    assert "Attention flow: not run." in layerwise_probes.section(results(probes, "deep"))
    assert "Probes: not run." in layerwise_probes.section(results(flow("deep", 1), "deep"))


def test_names_of_models_are_text():
    name = '<img src=x onerror="alert(1)"> שלום'
    rows = [r | {"model": name} for r in flow("deep", 2)]
    for analysis in (attention_flow, layerwise_probes):
        assert "<img" not in analysis.section(results(rows, name))
