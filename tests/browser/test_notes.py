"""What cells and marks say: where they are pointed at, and by the keys."""

from __future__ import annotations

import pytest

from experiments.plotting.deltas import plot_deltas
from experiments.plotting.elements import table
from experiments.plotting.heat import Protocols, Shades, heat_cell
from experiments.plotting.hover import protocol, sentence
from experiments.tasks.table import score_columns
from tests.browser.test_figures import run
from tests.experiments.plotting.made_rows import made_row

pytestmark = pytest.mark.browser
STEPS = """
  const tip = document.querySelector(".tip");
  const said = () => (tip.hidden ? "" : tip.textContent);
  const key = (name) => {
    document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true }));
    return [document.activeElement.textContent, said()];
  };
  const point = (element) => {
    element.dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
    return said();
  };
  document.querySelector(".scroll").focus();
  const cells = [key("ArrowDown"), key("ArrowRight"), key("ArrowDown"), key("ArrowRight"), key("ArrowRight")];
  key("Escape");
  const back = document.activeElement.className;
  document.querySelector(".charts").focus();
  const marks = [key("ArrowDown"), key("ArrowRight")].map(([, words]) => words);
  const pointed = [point(document.querySelector(".mark")), point(document.body)];
  return { cells, back, marks, pointed, titles: document.querySelectorAll("td[title]").length };
"""


def test_keys_lead_through_cells_and_marks_and_each_says_its_number_with_its_protocol(chromium, tmp_path):
    rows = [made_row(condition=name, value=value, protocol=f"of {name}") for name in ("a", "b") for value in (0.25, 0.75)]
    shades, protocols = Shades(rows), Protocols()
    cells = [heat_cell(row, "score", shades, protocols) for row in rows]
    lines = [("a", cells[:2]), ("b", [*cells[2:], heat_cell(None, "score", shades, protocols)])]
    chart = plot_deltas(rows[::2], score_columns(), ["model"], {"a": "a", "b": "b"})
    found = run(chromium, tmp_path, f"<section>{table('run', ['1', '2'], lines)}{protocols.listed()}{chart}</section>", STEPS, "notes.js")
    assert [text for text, _ in found["cells"]] == [f"{value}−25.0" for value in ("25.0", "75.0", "75.0", "75.0", "75.0")]
    for (_, said), row in zip(found["cells"], (rows[0], rows[1], rows[3], rows[3], rows[3]), strict=True):
        assert said.split("\n")[0] == sentence(row, "score")
        assert said.endswith(f": {protocol(row)}, cell {row['cell']}.")
    assert found["back"] == "scroll"
    assert found["marks"] == [sentence(row, "linear probe CLS") for row in rows[::2]]
    assert found["pointed"] == [found["marks"][0], ""]
    assert found["titles"] == 1, "what was not asked keeps its title for the browser; what was shows no two notes"
