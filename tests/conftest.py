"""What all tests share: where the fixtures beside the checkout lie, and the parity table printed at the end of a run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

SHARED = Path(__file__).resolve().parents[2] / "shared"

# one jitted call may compile, so examples have no deadline; drawn the same way in every run
settings.register_profile("jaxvit", deadline=None, derandomize=True, max_examples=15)
settings.load_profile("jaxvit")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def golden_names() -> list[str]:
    return sorted(p.stem for p in (SHARED / "golden").glob("*.json"))


@pytest.fixture(scope="session")
def golden() -> Callable[[str], tuple[dict, Path]]:
    """Description and weights of a golden fixture."""

    def read(name: str) -> tuple[dict, Path]:
        path = SHARED / "golden" / f"{name}.json"
        if not path.exists():
            pytest.skip(f"needs the golden fixtures beside the checkout ({path})")
        meta = json.loads(path.read_text())
        return meta, path.parent / meta["weights"]

    return read


@pytest.fixture
def record_parity(record_property: Callable[[str, object], None]) -> Callable[[str, str, float, float], None]:
    """Note a measured error for the table at the end: what, tensor, error, tolerance."""

    def record(what: str, tensor: str, error: float, tolerance: float) -> None:
        record_property("parity", (what, tensor, float(error), tolerance))

    return record


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
    rows = [value for report in reports for name, value in report.user_properties if name == "parity"]
    if rows:
        terminalreporter.section("parity with the originals: max |error| / max(1, max |reference|)")
        for what, tensor, error, tolerance in sorted(map(tuple, rows)):
            terminalreporter.write_line(f"{what:28} {tensor:40} {error:9.2e}   (tolerance {tolerance:.0e})")
