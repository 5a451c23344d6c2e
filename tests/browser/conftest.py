"""The page of a study in headless Chromium, without a network: the browser, the study that is shown, and pages that fail on any message.

`pytest -m browser` runs these tests; the study is the finished one in the folder JAXVIT_STUDY, or a tiny one that is made here. They skip
with a reason where Chromium, playwright or axe-core is missing, and fail instead where JAXVIT_BROWSER is "required", as in CI.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from experiments import reproduce
from experiments.report import page as report
from experiments.study.results import StudyResults, read_results
from tests.experiments.tiny_study import save_models, study

FLAGS = (
    "--no-sandbox",  # CI runs as root, where the sandbox refuses to start
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
)
SIZES = {"wide": (1440, 900), "phone": (390, 844)}


def missing(reason: str) -> None:
    """Skip, or fail where nothing may be missing."""
    if os.environ.get("JAXVIT_BROWSER") == "required":
        pytest.fail(f"{reason}, and JAXVIT_BROWSER is required")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def chromium() -> Iterator:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        missing("needs Chromium (apt-get install chromium)")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("needs playwright (pip install -e '.[test]')")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def axe() -> str:
    """The script of axe-core, from the folder that `npm pack axe-core` was unpacked into."""
    path = Path(os.environ.get("JAXVIT_AXE", "node_modules/axe-core")) / "axe.min.js"
    if not path.exists():
        missing(f"needs axe-core in {path.parent} (npm install --no-save axe-core, or JAXVIT_AXE=FOLDER)")
    return path.read_text()


@pytest.fixture(scope="session")
def results(tmp_path_factory) -> StudyResults:
    """The study that is shown, its page written anew."""
    if given := os.environ.get("JAXVIT_STUDY"):
        folder = Path(given).resolve()
    else:
        folder = tmp_path_factory.mktemp("runs") / "tiny"
        reproduce.reproduce(study(folder, save_models(tmp_path_factory.mktemp("models"))))
    report.write(folder)
    return read_results(folder)


@pytest.fixture
def show(chromium, results) -> Iterator[Callable]:
    """Opens the page: `show("phone", dark=True, at="method", script=False)`. At the end of a test no page may have said anything on its
    console, and none may have asked for anything but its own file."""
    contexts, complaints = [], []

    def opened(size: str = "wide", dark: bool = False, at: str = "", script: bool = True, path: Path | None = None):
        width, height = SIZES[size]
        context = chromium.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            offline=True,
            java_script_enabled=script,
            has_touch=size == "phone",
        )
        contexts.append(context)
        tab = context.new_page()
        address = (path or results.folder / "report.html").as_uri()
        tab.on("console", lambda message: complaints.append(f"console: {message.text}"))
        tab.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        tab.on("request", lambda request: complaints.append(f"request: {request.url[:200]}") if not own(request.url, address) else None)
        tab.goto(f"{address}#{at}" if at else address)
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def own(url: str, address: str) -> bool:
    """Whether a request is for the page itself or for what it holds."""
    return url.split("#")[0] == address or url.startswith(("data:", "blob:"))


def open_all(tab) -> None:
    """Open every section, as a reader who clicks on all of them does."""
    for heading in tab.locator("main details > summary").all():
        if not heading.evaluate("summary => summary.parentElement.open") and heading.is_visible():
            heading.click()
