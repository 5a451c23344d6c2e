"""The page in a real browser: quiet, on wide and narrow screens, in light and dark, without script, by keyboard and in print."""

from __future__ import annotations

import json

import pytest

from tests.browser.conftest import SIZES, open_all

pytestmark = pytest.mark.browser

MODES = [(size, dark) for size in SIZES for dark in (False, True)]
IDS = [f"{size}-{'dark' if dark else 'light'}" for size, dark in MODES]


@pytest.mark.parametrize(("size", "dark"), MODES, ids=IDS)
def test_axe_finds_no_serious_violation(show, axe, size, dark):
    tab = show(size, dark)
    open_all(tab)
    tab.evaluate(axe)
    found = tab.evaluate("async () => (await axe.run(document, {resultTypes: ['violations']})).violations")
    serious = {v["id"]: [node["html"][:200] for node in v["nodes"]][:5] for v in found if v["impact"] in ("serious", "critical")}
    assert serious == {}, json.dumps(serious, indent=1)


@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_wider_than_the_screen(show, size):
    tab = show(size)
    open_all(tab)
    assert tab.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]


@pytest.mark.parametrize("size", SIZES)
def test_no_text_is_smaller_than_11_pixels(show, size):
    """Also in drawings, whose texts shrink with them."""
    tab = show(size)
    open_all(tab)
    small = tab.evaluate("""() => [...document.querySelectorAll('main *, nav *')].filter((e) =>
        [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) && e.checkVisibility({visibilityProperty: true})
        && !e.closest('title, desc, script, style, option') && !e.matches('title, desc, script, style, option')).map((e) => {
        const scale = e.ownerSVGElement ? e.getScreenCTM().a : 1;
        return [parseFloat(getComputedStyle(e).fontSize) * scale, e.tagName, e.textContent.trim().slice(0, 40)];
    }).filter(([px]) => px < 10.95)""")
    assert small[:10] == []


def test_each_entry_of_the_contents_leads_to_an_open_section(show):
    tab = show()
    for link in tab.locator("nav a").all():
        link.click()
        name = link.get_attribute("href")[1:]
        part = tab.locator(f"[id='{name}']")
        assert part.evaluate("e => e.tagName !== 'DETAILS' || e.open"), name
        tab.wait_for_function(
            "name => { const top = document.getElementById(name).getBoundingClientRect().top; return top > -5 && top < innerHeight }",
            arg=name,
        )


def test_an_address_with_a_section_opens_it(show, results):
    last = results.manifest["runs"][-1]["only"][-1]
    tab = show(at=last)
    if (part := tab.locator(f"[id='{last}']")).count():
        assert part.evaluate("e => e.tagName !== 'DETAILS' || e.open")


def test_without_script_every_section_can_be_read(show):
    """What script shows after all controls have been moved is there without it."""
    plain = show(script=False)
    open_all(plain)
    panels = plain.locator("main details[open] [data-view]:not([data-view=none], .now)").all()  # .now marks what a slider chose
    assert all(panel.is_visible() for panel in panels)
    with_script = show()
    for section in with_script.locator("details.section").all():
        name = section.get_attribute("id")
        assert plain.locator(f"[id='{name}']").inner_text().strip(), name


def test_print_unfolds_every_section_and_folds_it_again(show):
    tab = show()
    before = tab.evaluate("[...document.querySelectorAll('main details')].map((e) => e.open)")
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.evaluate("[...document.querySelectorAll('main details')].every((e) => e.open)")
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert tab.evaluate("[...document.querySelectorAll('main details')].map((e) => e.open)") == before


def test_the_colours_are_chosen_by_the_reader(show):
    tab = show()
    paper = "getComputedStyle(document.body).backgroundColor"
    light = tab.evaluate(paper)
    tab.locator("#style-dark").check()
    dark = tab.evaluate(paper)
    tab.locator("#style-light").check()
    assert tab.evaluate(paper) == light != dark
    assert show(dark=True).evaluate(paper) == dark


def test_the_tab_key_reaches_every_control(show):
    """From the top of the page, one stop after the other; radio buttons of a group are one stop."""
    tab = show()
    open_all(tab)
    wanted = tab.evaluate("""() => {
        const seen = new Set(), stops = [];
        for (const e of document.querySelectorAll('a[href], button, input, select, summary, [tabindex="0"]')) {
            if (e.disabled || !e.checkVisibility({visibilityProperty: true})) continue;
            if (e.type === 'radio') { if (seen.has(e.name)) continue; seen.add(e.name); }
            stops.push(e);
        }
        window.reached = new Set();
        document.addEventListener('focusin', ({target}) => window.reached.add(target.type === 'radio' ? target.name : target));
        window.wanted = new Set(stops.map((e) => (e.type === 'radio' ? e.name : e)));
        return window.wanted.size;
    }""")
    for _ in range(wanted + 5):
        tab.keyboard.press("Tab")
    lost = tab.evaluate("[...window.wanted].filter((e) => !window.reached.has(e)).map((e) => e.outerHTML?.slice(0, 120) ?? e)")
    assert lost == []
