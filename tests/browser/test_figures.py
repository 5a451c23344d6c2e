"""The script of figures: controls show their panels, and pictures say their numbers."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.plotting.controls import Axis, view, views
from experiments.plotting.pictures import definitions, drawn, ramp, sheet, steps

pytestmark = pytest.mark.browser
MODELS = Axis("model", {"m0": "one", "m1": "two"}, group="model")
BLOCKS = Axis("block", {"0": "0", "1": "1"}, chosen="1", slider=True, group="block")


def figure(name: str, *shown: tuple[str | None, str | None]) -> str:
    """A figure of two controls with a panel for each of these choices."""
    panels = "".join(f"<p {view((MODELS, BLOCKS), *choice)}>{name} {choice[0]} {choice[1]}</p>" for choice in shown)
    return views(name, (MODELS, BLOCKS), f'{panels}<p data-view="none">{name} none</p>')


def run(chromium, folder: Path, body: str, steps: str, script: str = "figures.js") -> Any:
    """What the steps return, an async function's body of JavaScript, after a script of the page has made the page alive."""
    path = folder / "page.html"
    path.write_text(f"<!doctype html><meta charset=utf-8>{body}<script>{(files('experiments.report') / script).read_text()}</script>")
    seen = "const seen = () => [...document.querySelectorAll('p')].filter((p) => !p.hidden).map((p) => p.textContent);"
    tab = chromium.new_page(offline=True)
    try:
        tab.goto(path.as_uri())
        return tab.evaluate(f"async () => {{{seen}{steps}}}")
    finally:
        tab.close()


def test_panels_follow_their_controls_and_those_of_their_group(chromium, tmp_path):
    every = [("m0", "0"), ("m0", "1"), ("m1", "0"), (None, "1")]
    body = figure("a", *every) + figure("b", *every[:2])
    steps = """
      const choose = (selector, value) => {
        const control = document.querySelector(selector);
        if (control.type === "radio") control.checked = true;
        else control.value = value;
        control.dispatchEvent(new Event("input", { bubbles: true }));
        return seen();
      };
      const states = [seen(), choose("#a input[type=range]", "0"), choose("#b input[value=m1]")];
      const late = document.body.appendChild(document.createElement("div"));
      late.innerHTML = document.querySelector("#a").outerHTML.replaceAll("a-0", "c-0").replace("views on", "views");
      window.jaxvitFigures(late);
      return [...states, [document.querySelector("#a output").value, late.querySelector("input:checked").value]];
    """
    first, block, model, (said, late) = run(chromium, tmp_path, body, steps)
    assert first == ["a m0 1", "a None 1", "b m0 1"]
    assert block == ["a m0 0", "b m0 0"]
    assert model == ["a m1 0", "b none"]
    assert said == "block 0"
    assert late == "m1", "a section that is opened later has what was chosen before"


def test_a_picture_says_the_number_of_the_patch_under_the_pointer_and_of_the_arrow_keys(chromium, tmp_path):
    values = np.random.default_rng(0).random((2, 3, 4))
    made, definition = sheet("numbers", steps(values, 0.0, 1.0))
    maps = drawn(3, 4, made.show(1), "norms: 10 to 20", ' data-low="10" data-high="20"', "map")
    body = f'{definitions([ramp(), definition])}<figure style="width:400px" data-unit=" %">{maps}<output class="value"></output></figure>'
    script = """
      const map = document.querySelector("svg.map");
      const said = async (before) => {
        const output = document.querySelector("output");
        while (output.value === before) await new Promise((done) => setTimeout(done, 20)); // a picture is decoded in its own time
        return output.value;
      };
      const box = map.getBoundingClientRect();
      map.dispatchEvent(new PointerEvent("pointermove", { clientX: box.left + 0.6 * box.width, clientY: box.top + 0.9 * box.height }));
      const pointed = await said("");
      map.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowUp" }));
      return [pointed, await said(pointed)];
    """
    for text, (row, column) in zip(run(chromium, tmp_path, body, script), ((2, 2), (1, 2)), strict=True):
        where, number = text.removesuffix(" %").split(": ")
        assert where == f"norms, row {row + 1}, column {column + 1}"
        assert abs(float(number) - (10 + 10 * values[1, row, column])) < 0.1
