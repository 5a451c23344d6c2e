"""The token microscope in a browser: its values are the model's, every control changes the picture, and the keyboard alone works it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import jaxvit
from experiments import reproduce
from experiments.analyses.token_microscope import KIND
from experiments.demo import NOTES
from experiments.report import page as report
from experiments.study.results import StudyResults
from tests.browser.conftest import missing, open_all
from tests.experiments.tiny_study import save_models, study

pytestmark = pytest.mark.browser


def settled(tab) -> None:
    tab.evaluate("window.jaxvitMicroscope.settled()")


def state(tab) -> dict:
    return tab.evaluate("window.jaxvitMicroscope.state")


def values(tab, quantity: str, view: str) -> np.ndarray:
    """What the microscope shows of every token."""
    settled(tab)
    shown = "([quantity, view]) => [...window.jaxvitMicroscope.measured()[quantity][view].values]"
    return np.array(tab.evaluate(shown, [quantity, view]))


def choose(tab, **changes) -> None:
    tab.evaluate("changes => window.jaxvitMicroscope.set(changes)", changes)
    settled(tab)


def seen(tab) -> tuple[str, bytes]:
    settled(tab)
    box = tab.locator("#microscope")
    return box.inner_text(), box.screenshot()


@pytest.fixture
def microscope(show, results: StudyResults):
    if not any(True for _ in results.cells(KIND)):
        missing("the study that is shown has no token data")
    tab = show()
    tab.locator("#ms-picture").scroll_into_view_if_needed()
    settled(tab)
    return tab


def test_values_are_those_of_the_model(microscope, results):
    """Attention, norms and cosines of the bundled models, against a run of the model outside of the study, within the codes' steps."""
    names = [name for name in results.models if name in NOTES]
    if not names:
        missing("the study that is shown has no bundled model")
    cells = {cell.key["name"]: cell.arrays for cell in results.cells(KIND)}
    for name in names:
        model, images = jaxvit.load(name), cells[name]["images"]
        for condition, ablation in {"full": jaxvit.Ablation(), "zero_cls": jaxvit.zero("cls")}.items():
            captures = {"attention": lambda s: s.attention.mean(axis=1), "tokens": jaxvit.capture.block_output}
            out = jaxvit.forward(model, jaxvit.normalise(images, model.config), ablation, captures)
            attention, tokens = (np.asarray(out.captured[key]) for key in ("attention", "tokens"))
            view = "full" if condition == "full" else "ablated"
            for image, layer, token in ((0, 0, 0), (1, len(tokens) - 1, 0), (len(images) - 1, len(tokens) // 2, 7)):
                choose(microscope, model=name, image=image, layer=layer, token=token, head="mean", condition="zero_cls")
                np.testing.assert_allclose(values(microscope, "attention", view), attention[layer, image, token], atol=0.012)
                norms = np.linalg.norm(tokens[layer, image], axis=-1)
                np.testing.assert_allclose(values(microscope, "norm", view), norms, rtol=2e-3, atol=1e-6)
                if norms[token] > 0:
                    units = tokens[layer, image] / np.maximum(norms, 1e-9)[:, None]
                    errors = np.abs(values(microscope, "cosine", view) - units @ units[token])
                    assert np.median(errors) < 0.02
                    assert errors.max() < 0.12


def test_every_control_changes_what_is_shown(microscope):
    unchanged = []
    for name, selector in (("model", "#ms-model"), ("condition", "#ms-condition"), ("heads", "#ms-head")):
        control = microscope.locator(selector)
        if control.locator("option").count() > 1:
            before = seen(microscope)
            control.select_option(index=control.evaluate("e => (e.selectedIndex + 1) % e.options.length"))
            unchanged += [name] if seen(microscope) == before else []
    before = seen(microscope)
    microscope.locator("#ms-layer").focus()
    microscope.keyboard.press("Home")
    unchanged += ["layer"] if seen(microscope) == before else []
    before = seen(microscope)
    microscope.locator("#ms-opacity").focus()
    microscope.keyboard.press("Home")
    unchanged += ["opacity"] if seen(microscope) == before else []
    for group in ("image", "quantity", "view"):
        for radio in microscope.locator(f"[name=ms-{group}]").all():
            if not radio.is_checked():
                before = seen(microscope)
                radio.check(force=True)
                unchanged += [f"{group} {radio.get_attribute('value')}"] if seen(microscope) == before else []
    for button in microscope.locator("#ms-prefix button").all()[1:]:
        before = seen(microscope)
        button.click()
        unchanged += [f"token {button.inner_text()}"] if seen(microscope) == before else []
    assert unchanged == []


def test_the_keyboard_alone_works_it(microscope):
    microscope.locator("#ms-picture").focus()
    choose(microscope, token=0, view="full")
    layers = microscope.evaluate("window.jaxvitMicroscope.models[0].layers")
    microscope.keyboard.press("ArrowUp")
    settled(microscope)
    assert state(microscope)["token"] > 0
    before = state(microscope)["layer"]
    microscope.keyboard.press("[" if before else "]")
    assert abs(state(microscope)["layer"] - before) == (layers > 1)
    microscope.keyboard.press("f")
    assert state(microscope)["view"] == "ablated"
    microscope.keyboard.press("f")
    assert state(microscope)["view"] == "full"
    chosen = state(microscope)["token"]
    microscope.keyboard.press("Shift+ArrowLeft")
    assert state(microscope)["token"] == chosen, "reading a value chooses nothing"
    assert "%" in microscope.locator("#ms-read").inner_text()
    assert microscope.locator("#ms-tip").is_visible()
    microscope.keyboard.press("Escape")
    assert not microscope.locator("#ms-tip").is_visible()


def test_the_pointer_reads_and_chooses_a_patch(microscope):
    choose(microscope, token=0)
    box = microscope.locator("#ms-picture").bounding_box()
    microscope.mouse.move(box["x"] + 3, box["y"] + 3)
    tip = microscope.locator("#ms-tip")
    assert tip.is_visible()
    assert "row 1, column 1" in tip.inner_text()
    microscope.mouse.click(box["x"] + 3, box["y"] + 3)
    settled(microscope)
    prefix = microscope.evaluate("window.jaxvitMicroscope.models[0].prefix")
    assert state(microscope)["token"] == prefix, "the first patch"


def test_a_finger_chooses_a_patch(show, results):
    if not any(True for _ in results.cells(KIND)):
        missing("the study that is shown has no token data")
    tab = show("phone")
    tab.locator("#ms-picture").scroll_into_view_if_needed()
    settled(tab)
    before = state(tab)["token"]
    tab.locator("#ms-picture").tap(position={"x": 20, "y": 20})
    settled(tab)
    assert state(tab)["token"] != before


def test_a_link_leads_to_the_same_view(microscope, show):
    choose(microscope, layer=0, token=3, quantity="norm", view="change", image=1)
    microscope.wait_for_function("location.hash.includes('q=norm')")
    address, here = microscope.url.split("#")[1], state(microscope)
    tab = show(at=address)
    settled(tab)
    assert state(tab) == here
    assert tab.locator("#ms-say").inner_text() == microscope.locator("#ms-say").inner_text()


def test_a_cut_is_seen_in_attention_and_a_model_without_registers_says_what_it_has(show, tmp_path):
    models = save_models(tmp_path)
    folder = tmp_path / "cut"
    chosen = dataclasses.replace(study(folder, models), conditions=("cut_registers",), analyses=("token_microscope",))
    reproduce.reproduce(chosen)
    tab = show(path=report.write(folder))
    open_all(tab)
    choose(tab, model="with_registers", condition="cut_registers", token=0, layer=0)
    assert (values(tab, "attention", "full")[1:3] > 0).all()
    assert (values(tab, "attention", "ablated")[1:3] == 0).all()
    assert values(tab, "attention", "ablated").sum() == pytest.approx(1, abs=0.01)
    assert "cuts" in tab.locator("#ms-say").inner_text()
    if tab.locator("#ms-model option").count() > 1:
        choose(tab, model="without")
        assert "registers" not in tab.locator("#ms-say").inner_text().split(" in full")[0]
