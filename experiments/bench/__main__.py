"""Measure how fast everything is, each row side by side with what people use today: `python -m experiments.bench`."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from experiments.bench import compiling, large, models, page, precision, readouts, results, scaling, study, tpu
from experiments.bench.opponents import cores
from experiments.bench.rows import BenchRow, Size, measure
from experiments.numerics import compiler_flags
from experiments.program import prepare_devices, run
from jaxvit.files import refuse_remote


@dataclass(frozen=True)
class Bench:
    """What to measure, and how often.

    Attributes:
        rows: names of rows (default: all for this device).
        scaling: axes to measure cost against: images, conditions, layers, tokens, devices.
        small: small sizes, in seconds on a CPU; goals are not for them.
        repeats: pairs of runs of each row.
        out: file of results (default: results_<device>.json in this package, and with small sizes runs/bench/small.json). Rows measured
            before stay.
        readme: also write a summary between the marks of this file.
    """

    rows: tuple[str, ...] = ()
    scaling: tuple[str, ...] = ()
    small: bool = False
    repeats: int = 5
    out: Path | None = None
    readme: Path | None = None


def all_rows() -> dict[str, BenchRow]:
    """Every row by name."""
    return {row.name: row for module in (models, readouts, compiling, study, page, precision, tpu, large) for row in module.rows()}


def bench(settings: Bench) -> Path:
    """Measure rows, writing the results after each, then the pages that show them; returns the results' path.

    Raises:
        ValueError: an unknown row or axis, no repetition, a remote path, or small sizes for a README.
    """
    known = all_rows()
    _check(settings, known)
    for path in filter(None, (settings.out, settings.readme)):
        refuse_remote(path)
    default = Path("runs/bench/small.json") if settings.small else results.results_file(jax.devices()[0].device_kind)
    out = settings.out or default
    measured, size, console = results.read(out), Size(settings.small), Console()
    for name in settings.rows or (() if settings.scaling else _usual_rows(known)):
        row = known[name]
        console.print(f"[bold]{name}[/]: {row.what}")
        result = _described(row, measure(row, size, settings.repeats), size)
        measured["rows"][name] = result
        results.write(out, measured)
        console.print(" | ".join(results.row_cells(result)), soft_wrap=True, markup=False)
    done = {name: result for name, result in measured["rows"].items() if "note" not in result}
    measured["rows"] = {name: done.get(name) or _waiting(row, size) for name, row in known.items()}
    results.write(out, measured)
    for axis in settings.scaling:
        measured["scaling"][axis] = scaling.AXES[axis](size, settings.repeats)
        results.write(out, measured)
    if not settings.small:
        results.write_page()
    if settings.readme is not None:
        results.fill_readme(settings.readme, measured)
    console.print(f"results in {out}", soft_wrap=True)
    return out


def _check(settings: Bench, known: dict[str, BenchRow]) -> None:
    for names, possible, kind in ((settings.rows, known, "row"), (settings.scaling, scaling.AXES, "axis")):
        unknown = [name for name in names if name not in possible]
        if unknown:
            raise ValueError(f'unknown {kind} "{unknown[0]}"; known are {", ".join(possible)}')
    if settings.repeats < 1:
        raise ValueError(f"repeats is {settings.repeats}; measure at least once")
    if settings.small and settings.readme is not None:
        raise ValueError("--readme shows full sizes; leave out --small or --readme")


def _usual_rows(known: dict[str, BenchRow]) -> list[str]:
    """Rows for this device; the compiler for TPUs runs on any machine."""
    platforms = {"any", jax.default_backend()} | ({"tpu"} if tpu.available() else set())
    return [name for name, row in known.items() if row.platform in platforms]


def _described(row: BenchRow, result: dict[str, Any], size: Size) -> dict[str, Any]:
    """A result together with everything that it depends on."""
    judged = not size.small and row.platform in ("any", "tpu", jax.default_backend())
    goals = row.current_goals
    description: dict[str, Any] = {
        "what": row.what,
        "against": row.against,
        "dtype": row.dtype,
        "goal": ", ".join(map(str, goals)),
        "met": _all_met(goal.met(result) for goal in goals) if judged and goals else None,
        "estimate": row.estimate,
        "small": size.small,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "threads": cores(),
        "compiler_flags": compiler_flags(),
        "processor": platform.processor() or platform.machine(),
        "versions": _versions(),
    }
    return description | result


def _waiting(row: BenchRow, size: Size) -> dict[str, Any]:
    """The entry of a row that is not measured yet, with the command that measures it."""
    where = {"gpu": "on a GPU", "tpu": "where libtpu is installed"}.get(row.platform, "here")
    return _described(row, {"device": "", "note": f"python -m experiments.bench --rows {row.name}, {where}"}, size) | {"met": None}


def _all_met(met: Iterable[bool | None]) -> bool | None:
    outcomes = list(met)
    return False if False in outcomes else None if None in outcomes else True


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("jaxvit", "jax", "jaxlib", "numpy", "torch", "transformers", "scikit-learn", "libtpu"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _main(settings: Bench) -> None:
    prepare_devices()
    bench(settings)


if __name__ == "__main__":
    run(_main, Bench, __doc__)
