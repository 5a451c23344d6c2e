"""Every control of the page changes what it says it changes."""

from __future__ import annotations

import pytest

from tests.browser.conftest import open_all

pytestmark = pytest.mark.browser


def figure_of(control) -> str:
    """What a reader sees of the figure that a control belongs to: its text and pixels."""
    box = control.locator("xpath=ancestor::*[contains(concat(' ', @class, ' '), ' views ') or self::section or self::details][1]")
    return box.inner_text(), box.screenshot()


def test_every_choice_within_a_section_changes_its_figure(show):
    tab = show()
    open_all(tab)
    controls = tab.locator("main .views select, main .views input[type=range], main .views input[type=radio]").all()
    unchanged = []
    for control in controls:
        if not control.is_visible():
            continue
        name = control.evaluate("e => e.outerHTML.slice(0, 160)")
        before = figure_of(control)
        kind = control.evaluate("e => e.type")
        if kind == "radio":
            if control.is_checked():
                continue
            control.check(force=True)
        elif kind == "range":
            if control.evaluate("e => e.min === e.max"):
                continue
            control.focus()
            tab.keyboard.press("Home" if control.evaluate("e => +e.value > +e.min") else "End")
        else:
            count = control.locator("option").count()
            if count < 2:
                continue
            control.select_option(index=(control.evaluate("e => e.selectedIndex") + 1) % count)
        if figure_of(control) == before:
            unchanged.append(name)
    assert unchanged == []
