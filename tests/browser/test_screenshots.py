"""Pictures of the page for whoever reviews a change: wide and phone, light and dark, in `runs/screenshots` (or JAXVIT_SCREENSHOTS)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.browser.conftest import SIZES, open_all

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_has_its_picture_taken(show, size, dark):
    folder = Path(os.environ.get("JAXVIT_SCREENSHOTS", "runs/screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    tab, name = show(size, dark), f"{size}-{'dark' if dark else 'light'}"
    tab.screenshot(path=folder / f"{name}-top.png")
    open_all(tab)
    for section in tab.locator("details.section").all():
        picture = folder / f"{name}-{section.get_attribute('id')}.png"
        section.screenshot(path=picture)
        assert picture.stat().st_size > 5_000
