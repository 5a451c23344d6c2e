"""Measure how fast everything is, each row side by side with what people use today: `python -m experiments.bench`."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from experiments.bench import compiling, precision, readouts, runs, scaling, study, table, tpu
from experiments.bench.opponents import cores
from experiments.bench.rows import Row, Size, measure
from experiments.program import prepare_devices, run


@dataclass(frozen=True)
class Bench:
    """What to measure, and how often.

    Attributes:
        rows: names of rows (default: all that this device is for).
        scaling: axes to measure cost against: images, conditions, layers, tokens, devices.
        small: small sizes, in seconds on a CPU; goals are not for them.
        repeats: pairs of runs of each row.
        out: results (default: results_<device>.json beside this program; for small sizes runs/bench/small.json). Rows measured before stay.
        readme: write the table between the marks of this file too.
    """

    rows: tuple[str, ...] = ()
    scaling: tuple[str, ...] = ()
    small: bool = False
    repeats: int = 5
    out: Path | None = None
    readme: Path | None = None


def all_rows() -> dict[str, Row]:
    """Every row by name."""
    return {row.name: row for module in (runs, readouts, compiling, study, precision, tpu) for row in module.rows()}


def bench(settings: Bench) -> Path:
    """Measure rows, writing the results after each; returns the results' path.

    Raises:
        ValueError: an unknown row or axis, or no repetition.
    """
    known = all_rows()
    _check(settings, known)
    backend = jax.default_backend()
    usual = {"any", backend} | ({"tpu"} if tpu.available() else set())  # the compiler for TPUs runs on any machine
    names = settings.rows or (() if settings.scaling else tuple(name for name, row in known.items() if row.platform in usual))
    default = Path("runs/bench/small.json") if settings.small else table.results_file(jax.devices()[0].device_kind)
    out = settings.out or default
    results, size, console = table.read(out), Size(settings.small), Console()
    for name in names:
        row = known[name]
        console.print(f"[bold]{name}[/]: {row.what}")
        result = _described(row, measure(row, size, settings.repeats), size)
        results["rows"][name] = result
        table.write(out, results)
        console.print(table.markdown({"rows": {name: result}, "scaling": {}}).splitlines()[-1], soft_wrap=True, markup=False)
    results["rows"] = {name: results["rows"].get(name) or _waiting(row, size) for name, row in known.items()}
    table.write(out, results)
    for axis in settings.scaling:
        results["scaling"][axis] = scaling.AXES[axis](size, settings.repeats)
        table.write(out, results)
    if settings.readme is not None:
        table.into_readme(settings.readme, sorted(table.HERE.glob("results_*.json")))
    console.print(f"results in {out}", soft_wrap=True)
    return out


def _check(settings: Bench, known: dict[str, Row]) -> None:
    for chosen, possible, what in ((settings.rows, known, "row"), (settings.scaling, scaling.AXES, "axis")):
        unknown = [name for name in chosen if name not in possible]
        if unknown:
            raise ValueError(f'unknown {what} "{unknown[0]}"; known are {", ".join(possible)}')
    if settings.repeats < 1:
        raise ValueError(f"repeats is {settings.repeats}; measure at least once")


def _described(row: Row, result: dict[str, Any], size: Size) -> dict[str, Any]:
    """A result with everything that it depends on beside it."""
    judged = not size.small and row.platform in ("any", "tpu", jax.default_backend())
    met = _all(goal.met(result) for goal in row.current_goals) if judged and row.current_goals else None
    about: dict[str, Any] = {
        "what": row.what,
        "against": row.against,
        "dtype": row.dtype,
        "goal": ", ".join(map(str, row.current_goals)),
        "met": met,
    }
    about |= {"estimate": row.estimate, "small": size.small, "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}"}
    about |= {"threads": cores(), "processor": platform.processor() or platform.machine(), "versions": _versions()}
    return about | result


def _waiting(row: Row, size: Size) -> dict[str, Any]:
    """A row that is not measured yet keeps its place, with the command that measures it."""
    where = {"gpu": "on a GPU", "tpu": "where libtpu is installed"}.get(row.platform, "here")
    return _described(row, {"device": "", "note": f"python -m experiments.bench --rows {row.name}, {where}"}, size) | {"met": None}


def _all(met: Any) -> bool | None:
    found = list(met)
    return False if False in found else None if None in found else True


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("jaxvit", "jax", "jaxlib", "numpy", "torch", "transformers", "scikit-learn", "libtpu"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _main(settings: Bench) -> None:
    prepare_devices()
    bench(settings)


if __name__ == "__main__":
    run(_main, Bench, __doc__)
