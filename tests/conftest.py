"""What all tests share: the compiled programs of a run, the fixtures beside the checkout, and the parity table printed at its end."""

from __future__ import annotations

import gc
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

SHARED = Path(__file__).resolve().parents[2] / "shared"

# one jitted call may compile, so examples have no deadline; drawn the same way in every run
settings.register_profile("jaxvit", deadline=None, derandomize=True, max_examples=15)
settings.load_profile("jaxvit")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

COMPILED = pytest.StashKey[str]()

SLOW_FILES = (
    "experiments/test_end_to_end.py",
    "convert/test_transformers_parity.py",
    "experiments/pretrain/test_training.py",
    "test_examples.py",
    "jaxvit/probes/test_logistic.py",
    "jaxvit/test_hooks.py",
    "jaxvit/test_attribution.py",
    "jaxvit/test_cuts.py",
    "jaxvit/test_lowering.py",
    "jaxvit/test_ablation.py",
    "jaxvit/test_sites.py",
    "jaxvit/test_given.py",
    "jaxvit/test_apply.py",
    "convert/test_atomic.py",
    "jaxvit/test_custom.py",
    "jaxvit/test_forward.py",
    "jaxvit/test_optimal.py",
    "jaxvit/test_interventions.py",
    "convert/test_hub.py",
    "convert/test_oracles.py",
)
"""Files that take longest, slowest first. A worker gets a file at a time: the long ones must not be left to the end, and the files that
share compiled programs with one of these come after it."""


def pytest_configure(config: pytest.Config) -> None:
    """A folder for the compiled programs of this run, which its workers and their processes share: most of its time is compiling."""
    if not hasattr(config, "workerinput"):  # a worker inherits the environment
        config.stash[COMPILED] = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxvit-compiled-")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
        # tests run a program a few times: to compile less takes a third off. Studies pin it off, as they do all that can move a number
        os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        for name, size in (("MMAP_THRESHOLD", 2**28), ("TRIM_THRESHOLD", 2**30), ("TOP_PAD", 2**26)):  # as `experiments.program` does
            os.environ.setdefault(f"MALLOC_{name}_", str(size))
        if getattr(config.option, "numprocesses", None):  # threads of several workers would wait for one another, spinning
            os.environ.setdefault("OMP_NUM_THREADS", "1")
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        name = item.path.relative_to(Path(__file__).parent).as_posix()
        return SLOW_FILES.index(name) if name in SLOW_FILES else len(SLOW_FILES)

    items.sort(key=place)  # all else stays in its order


def pytest_unconfigure(config: pytest.Config) -> None:
    if (folder := config.stash.get(COMPILED, None)) is not None:
        shutil.rmtree(folder, ignore_errors=True)


MOST_MAPS = 20_000


@pytest.fixture(scope="module", autouse=True)
def few_programs() -> Iterator[None]:
    """Drops compiled programs between files where they are many: each takes some memory maps, of which Linux gives a process 65,530, and a
    worker that runs out of them ends in a segmentation fault. What is needed again is read from the folder of compiled programs."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        import jax  # not before `pytest_configure` has set what it reads when it is imported

        jax.clear_caches()
        gc.collect()


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
