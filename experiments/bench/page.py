"""How soon a reader sees the page of the demo study."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from experiments.bench.rows import BenchRow, Case, Goal, Seconds, Size

PAGE = Path("runs/demo/report.html")
FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
_READY = """async () => {
    await new Promise((done) => (document.readyState === "complete" ? done() : addEventListener("load", done)));
    await window.jaxvitMicroscope?.settled();
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    return performance.now();
}"""


def rows() -> list[BenchRow]:
    """The row of this module."""
    what = "the demo study's page from a file in headless Chromium, until everything of it is drawn, the microscope's first view too"
    return [BenchRow("page_ready", what, "a page with plotly: 2.4 s", "-", (Goal("seconds", 0.5),), page_ready)]


def page_ready(size: Size) -> Case | dict[str, Any]:
    """Opens `runs/demo/report.html` in a window of its own; the browser's clock counts from the start of the navigation."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not PAGE.exists() or browser is None:
        return {"note": "python -m experiments.reproduce, then --rows page_ready where there is Chromium"}

    def run() -> Seconds:
        from playwright.sync_api import sync_playwright  # a dependency of tests

        with sync_playwright() as playwright:
            chromium = playwright.chromium.launch(executable_path=browser, args=list(FLAGS))
            tab = chromium.new_page(viewport={"width": 1440, "height": 900}, offline=True)
            tab.goto(PAGE.resolve().as_uri(), wait_until="commit")
            seconds = tab.evaluate(_READY) / 1000
            chromium.close()
        return Seconds(seconds)

    return Case(run, facts={"megabytes": round(PAGE.stat().st_size / 1e6, 2)})
