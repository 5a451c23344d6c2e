"""The page of a finished study: its sections, and what it says of those that are not there."""

from __future__ import annotations

import hashlib
import json
import re
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import pytest

from experiments.analyses import off_manifold
from experiments.plotting.heat import MOST
from experiments.plotting.svg import COLOURS
from experiments.report import page
from experiments.rows import Row
from experiments.study.folder import write_manifest
from experiments.tasks.table import score_columns
from tests.experiments.plotting.made_rows import made_row
from tests.experiments.report.made_tokens import made_token_cells

PLUGIN = """
from types import SimpleNamespace

mine = SimpleNamespace(TITLE="My section", NOTE="A note.", jobs=lambda target: iter(()), section=lambda results: "<p>body</p>")
ANALYSES = {"mine": mine}
"""
ROWS = [made_row(model="demo_reg", condition="full", delta=None), made_row(model="demo_reg")]


def finished(folder: Path, only: tuple[str, ...] = ("ablation_table",), rows: list[Row] = ROWS, **changes: Any) -> Path:
    """The folder of a finished study of these rows."""
    folder.mkdir(exist_ok=True)
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    machine = {"devices": 1, "device": "cpu", "python": "3.11", "versions": {"jax": "0"}}
    manifest = {"study": {"preset": "demo", "quick": False}, "hash": "0" * 20, "protocol": "As <always>.", "precision": "float32"}
    manifest |= {"images": "digits & more", "image_size": [64, 32], "image_counts": {"train": 2000, "val": 3, "test": 4}}
    manifest |= {"models": {"demo_reg": "0"}, "cells": [], "columns": [list(c) for c in score_columns()], "machine": machine}
    manifest |= {"random_weights": False, "plugins": {}, "runs": [{"only": list(only)}]} | changes
    write_manifest(folder, manifest)
    return folder


def headings(text: str) -> list[str]:
    return re.findall("<h2>(.*?)</h2>", text)


def test_the_page_has_the_sections_that_were_run_in_the_order_of_the_page_where_there_is_something_to_show(tmp_path):
    runs = [{"only": ["random_patch_control", "scale_comparison"]}, {"only": ["ablation_table"]}]
    rows = [*ROWS, made_row(model="demo_reg", condition="random_patches")]
    text = page.write(finished(tmp_path, rows=rows, runs=runs)).read_text()
    assert headings(text) == ["What an ablation costs", "Zeroing random patches instead"]
    assert "is left out" not in text
    assert "digits &amp; more (32 x 64 px; 2,000 to fit on, 3 to choose on, 4 to report)" in text
    assert "As &lt;always&gt;." in text


def test_a_section_of_a_plugin_is_written_from_the_file_that_the_study_names(tmp_path):
    plugin = tmp_path / "plugin.py"
    plugin.write_text(PLUGIN)
    sha256 = hashlib.sha256(plugin.read_bytes()).hexdigest()
    folder = finished(tmp_path / "run", ("mine", "ablation_table"), plugins={str(plugin): sha256})
    text = page.write(folder).read_text()
    assert headings(text) == ["What an ablation costs", "My section"]
    assert "has changed" not in text
    plugin.write_text(PLUGIN + "\nMORE = 1\n")
    text = page.write(folder).read_text()
    assert headings(text) == ["What an ablation costs", "My section"]
    assert f"plug-in {plugin} has changed since the study ran" in text


def test_what_is_not_there_any_more_is_named_and_the_others_are_written(tmp_path):
    folder = finished(tmp_path, ("mine", "ablation_table"), plugins={"nowhere.py": "0" * 64})
    text = page.write(folder).read_text()
    assert headings(text) == ["What an ablation costs"]
    assert "plug-in nowhere.py is not here, and what it would show is left out: there is no plug-in nowhere.py" in text
    assert "section mine is left out: its analysis is not here" in text
    given = {"mine": SimpleNamespace(TITLE="Given", NOTE="", section=lambda results: f"{len(results.rows)} rows")}
    text = page.write(folder, given).read_text()
    assert headings(text) == ["What an ablation costs", "Given"]
    assert "section mine is left out" not in text


def test_cautions_are_those_that_the_study_needs(tmp_path):
    demo = page.write(finished(tmp_path / "demo")).read_text()
    assert "These are demo numbers" in demo
    assert "Nothing in its training asks for the registers to be read" in demo
    assert "A quick look" not in demo
    assert "random initialisation" not in demo
    other = [made_row(model=name, condition="full", delta=None) for name in ("mine", "mine_random")]
    changes = {"models": {"mine": "0"}, "random_weights": True, "study": {"preset": "custom", "quick": True}}
    mine = page.write(finished(tmp_path / "mine", rows=other, **changes)).read_text()
    assert "These are demo numbers" not in mine
    for caution in ("Random weights", "A quick look", "random initialisation", "95 % intervals over independent units"):
        assert caution in mine


class Parts(HTMLParser):
    """Anchors, links within the page, tags in their order, and the text of a page; tags must close in the order in which they open."""

    VOID = ("meta", "link", "img", "input", "br", "hr", "wbr")

    def __init__(self, page: str):
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append(tag)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values["href"]] if tag == "a" else []
        self.open += [] if tag in self.VOID else [tag]

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += "" if self.open[-1:] in (["style"], ["script"]) else data


def test_sections_are_folded_but_the_first_and_all_of_them_can_be_read_without_a_script(tmp_path):
    runs = [{"only": ["ablation_table", "random_patch_control"]}]
    rows = [*ROWS, made_row(model="demo_reg", condition="random_patches")]
    text = page.write(finished(tmp_path, rows=rows, runs=runs)).read_text()
    assert re.findall(r'<details class="section" id="(\w+)"( open)?>', text) == [("ablation_table", " open"), ("random_patch_control", "")]
    assert "<template" not in text
    assert "jaxvitTokens" not in text, "the script of the microscope is there only where its data are"


@pytest.mark.parametrize(("models", "megabytes", "most"), [("a b", 0.12, 0.12), ("a b", None, 12), ("demo demo_reg", None, 5)])
def test_the_microscope_fills_a_page_up_to_its_size(tmp_path, models, megabytes, most):
    names = models.split()
    changes = {"cells": made_token_cells(tmp_path, *names), "models": dict.fromkeys(names, "0")}
    text = page.write(finished(tmp_path, ("token_microscope",), rows=[], **changes), megabytes=megabytes).read_text()
    assert len(text.encode()) <= 1e6 * most
    assert '<details class="section" id="token_microscope" open>' in text
    kept = re.search('"kept":"(.*?)"', text)
    assert ("--page-budget" in kept[1]) == (megabytes is not None)
    assert text.count('type="text/plain"') >= 2


DENSE = {"task": "segmentation", "metric": "miou", "feature": "patches", "primary": True, "condition": "zero_registers"}


def test_the_contents_lead_to_every_section_and_the_summary_stands_above_them(tmp_path):
    parts = Parts(page.write(finished(tmp_path, rows=[*ROWS, made_row(model="demo_reg", **DENSE)])).read_text())
    assert parts.links == ["#summary", "#summary", "#ablation_table", "#method"]
    assert len(set(parts.ids)) == len(parts.ids)
    assert {link[1:] for link in parts.links} <= set(parts.ids)
    order = [parts.text.rindex(words) for words in ("Summary of demo numbers", "What an ablation costs", "Method and cautions")]
    assert order == sorted(order)
    assert "demo_reg: costs 1 of 1 scores (worst −25.0 [−37.5, −12.5] in mIoU linear head)." in parts.text


def test_the_name_of_any_analysis_is_an_anchor(tmp_path):
    given = {"my share & 5 %": SimpleNamespace(TITLE="Given", NOTE="", section=lambda results: "body")}
    parts = Parts(page.write(finished(tmp_path, tuple(given)), given).read_text())
    assert {unquote(link[1:]) for link in parts.links} == {"summary", "my share & 5 %", "method"} <= set(parts.ids)


def test_a_model_with_an_induced_effect_has_a_panel_and_a_scale_of_its_own(tmp_path):
    rows = [made_row(model=name, **DENSE) for name in ("demo_reg_read", "demo_reg")]
    text = page.write(finished(tmp_path, rows=rows, models={"demo_reg_read": "0", "demo_reg": "0"})).read_text()
    natural, induced = text.split("Positive control: demo_reg_read (induced)")
    assert natural.count("<svg viewBox") == induced.count("<svg viewBox") == 2, "for wide and for narrow screens"
    assert "is <b>induced</b> by its training and is no finding" in induced
    own, findings = natural.split('<div class="summary"')
    assert "demo_reg_read (induced)" in own
    assert "demo_reg_read" not in findings


def test_where_no_rule_applies_the_summary_says_so_and_has_no_chart(tmp_path):
    for models in ({"demo_reg": "0"}, {"demo_reg_read": "0"}, {}):
        text = page.write(finished(tmp_path, rows=ROWS[:1], models=models)).read_text()
        assert text.count("No rule of the summary applies") == 1
        assert "<svg viewBox" not in text


def test_verdicts_of_analyses_stand_in_the_summary(tmp_path):
    analysis = SimpleNamespace(TITLE="Mine", NOTE="", section=lambda results: "", verdicts=lambda results: ["1 < 2"])
    text = page.write(finished(tmp_path, ("mine",)), {"mine": analysis}).read_text()
    assert "<li><b>Mine</b>: 1 &lt; 2</li>" in text
    check = made_row(task="instrument_check", condition="zero_cls_last", metric="largest_change", value=0.0, delta=None, model="demo_reg")
    for value, said in ((0.0, "passed: in 1 of 1 runs no other token changed"), (1e-3, "failed: other tokens changed in demo_reg")):
        rows = [*ROWS, {**check, "value": value}]
        assert said in page.write(finished(tmp_path, ("instrument_check",), rows=rows)).read_text()


def test_every_string_of_a_user_is_text_and_keeps_its_direction_to_itself(tmp_path):
    """Names of models and conditions, of images, notes and protocols, plug-ins, devices; in tables, pictures and the chart too."""
    evil, turned = "<script>alert(1)</script>\"'>", "\u202eתמונה<b>"
    rows = [made_row(model=evil, condition="full", delta=None, note=evil, protocol=turned)]
    rows += [made_row(model=evil, **{**DENSE, "condition": name}, note=turned) for name in ("zero_registers", evil, turned)]
    check = {"task": "instrument_check", "metric": "largest_change", "delta": None}
    rows += [made_row(model=evil, condition=turned, value=1.0, **check)]
    rows += [made_row(model=evil, condition=evil, task="off_manifold", metric=metric, delta=None) for metric in off_manifold.METRICS]
    changes = {"models": {evil: "0"}, "images": turned, "protocol": evil, "notes": [turned, evil], "plugins": {f"{evil}.py": "0"}}
    changes |= {"precision": evil, "machine": {"devices": 1, "device": evil, "python": "3", "versions": {"<i>": "<i>"}}}
    folder = finished(tmp_path, ("ablation_table", "instrument_check", "off_manifold", evil), rows=rows, **changes)
    text = page.write(folder).read_text()
    parts = Parts(text)
    assert parts.tags.count("script") == len(re.findall("<script", text)) == 1
    assert parts.tags.count("svg") > 4, "in drawings too"
    assert parts.text.count(evil) > 10
    isolates = 0
    for mark in re.findall("[\u2066-\u2069\u202a-\u202e]", parts.text):
        isolates += (mark == "\u2068") - (mark == "\u2069")
        assert mark in "\u2068\u2069" or isolates, "what turns the text stands between marks"
    assert isolates == 0


def _luminance(colour: str) -> float:
    """Relative luminance of an sRGB colour, as WCAG 2 defines it."""
    shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _mixed(colour: str, ground: str, percent: float) -> str:
    """color-mix(in srgb, colour percent, ground)."""
    pairs = ((int(colour[i : i + 2], 16), int(ground[i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(a * percent / 100 + b * (1 - percent / 100)):02x}" for a, b in pairs)


@pytest.mark.parametrize("dark", [False, True])
def test_text_and_marks_have_the_contrast_of_wcag_aa_in_both_styles_and_no_letter_is_small(dark):
    style = "".join((files("experiments.report") / name).read_text() for name in page.STYLES)
    colours = {name: pair[dark] for name, *pair in re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", style)}
    for text, ground, least in (
        *((text, ground, 4.5) for text in ("ink", "soft", "accent", "costs", "gains") for ground in ("page", "card")),
        ("ink", "caution", 4.5),
        ("caution-line", "page", 3),
        *((f"s{number}", ground, 3) for number in range(COLOURS) for ground in ("page", "card")),
    ):
        assert _contrast(colours[text], colours[ground]) >= least, (text, ground)
    for shade in ("costs", "gains", "s2"):
        for percent in (10, MOST):
            assert _contrast(colours["ink"], _mixed(colours[shade], colours["page"], percent)) >= 4.5, (shade, percent)
    assert _contrast(colours["soft"], colours["page"]) >= 4.5
    sizes = [float(number) * (16 if unit == "rem" else 1) for number, unit in re.findall(r"font(?:-size)?: ([\d.]+)(rem|px)", style)]
    assert len(sizes) > 5
    assert min(sizes) >= 11


def test_a_folder_without_a_finished_study_is_refused(tmp_path):
    folder = finished(tmp_path)
    (folder / "results.jsonl").unlink()
    with pytest.raises(ValueError, match="holds no finished study"):
        page.write(folder)
    assert not (folder / "report.html").exists()
