"""The page of any study, in a browser: many models and conditions, odd names, few numbers, nothing but numbers without labels."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from experiments.report import page
from experiments.rows import Row
from experiments.tasks.table import score_columns
from tests.browser.conftest import SIZES, open_all
from tests.experiments.plotting.made_rows import PLAIN, made_flow, made_row
from tests.experiments.report.made_tokens import made_token_cells
from tests.experiments.report.test_page import finished

pytestmark = pytest.mark.browser
EVIL = '<b>"evil"</b>&amp;\''
NAMES = ("dinov2_vitb14_reg", EVIL, "نموذج", "a" * 60, "my model/with a path.safetensors", "six")
CONDITIONS = ("full", "zero_cls", "zero_registers", *(f"c{i}: cut of {EVIL}" if i % 5 == 0 else f"condition_{i}" for i in range(18)))


def scores(models: tuple[str, ...], conditions: tuple[str, ...]) -> Iterator[Row]:
    """Every score of every model under every condition."""
    for m, model in enumerate(models):
        for c, condition in enumerate(conditions):
            for k, column in enumerate(score_columns()):
                fields = {"task": column.task, "metric": column.metric, "feature": column.feature, "readout": column.readout}
                delta = None if condition == "full" else ((7 * m + 3 * c + k) % 11 - 8) / 20
                yield made_row(model=model, condition=condition, delta=delta, primary=column.primary, **fields)


def geometry(models: tuple[str, ...]) -> Iterator[Row]:
    """Numbers that need no labels: flow and the meter of an ablation."""
    for model in models:
        for layer in range(3):
            yield from (made_flow("cls", target, model=model, condition="full", layer=layer) for target in ("cls", "patches"))
        fields = {"task": "off_manifold", "feature": None, "readout": None, **PLAIN}
        yield from (made_row(model=model, metric=metric, **fields) for metric in ("divergence", "norm_ratio"))


STUDIES = {
    "six models, twenty conditions, odd names": lambda: [*scores(NAMES, CONDITIONS), *geometry(NAMES)],
    "one model": lambda: list(scores(NAMES[:1], ("full", "zero_cls"))),
    "no labels": lambda: list(geometry(NAMES[:2])),
    "the full condition alone": lambda: list(scores(NAMES[:1], ("full",))),
    "nothing": list,
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", STUDIES)
def test_it_is_read_without_a_message_within_the_screen_and_without_a_violation(show, axe, tmp_path, name, size):
    rows = STUDIES[name]()
    models = {row["model"]: "0" for row in rows} or {"demo_reg": "0"}
    only = ("token_microscope", "ablation_table", "replacement_controls", "model_differences", "off_manifold", "attention_flow")
    changes = {"models": models, "images": EVIL, "random_weights": name == "one model"}
    folder = finished(tmp_path / "run", only, rows, **changes)
    cells = made_token_cells(folder, *models) if len(models) > 1 else []
    tab = show(size, path=page.write(finished(folder, only, rows, cells=cells, **changes)))
    open_all(tab)
    assert tab.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
    assert '"evil"' not in tab.locator("b").all_text_contents(), "markup of a name is text"
    tab.evaluate(axe)
    found = tab.evaluate("async () => (await axe.run(document, {resultTypes: ['violations']})).violations")
    serious = {v["id"]: [node["html"][:200] for node in v["nodes"]][:5] for v in found if v["impact"] in ("serious", "critical")}
    assert serious == {}
    if cells:
        tab.evaluate("window.jaxvitMicroscope.settled()")
        assert tab.locator("#ms-model option").count() == len(models)
