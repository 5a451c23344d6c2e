"""Results of the benchmark on disk, one file per kind of device, and their table in the README."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from experiments.cells import fill_between, write_text

BEGIN, END = "<!-- bench table: begin -->", "<!-- bench table: end -->"
HERE = Path(__file__).parent


def results_file(device_kind: str) -> Path:
    """Where the results of a kind of device stand beside this program."""
    return HERE / f"results_{re.sub(r'[^a-z0-9]+', '_', device_kind.lower()).strip('_')}.json"


def read(path: Path) -> dict[str, Any]:
    """Results by row name; none where there is no file.

    Raises:
        ValueError: the file is not of this program.
    """
    if not path.exists():
        return {"rows": {}, "scaling": {}}
    try:
        found = json.loads(path.read_text())
        return {"rows": dict(found["rows"]), "scaling": dict(found["scaling"])}
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} holds no results of the benchmark; remove it or choose another --out") from None


def write(path: Path, results: Mapping[str, Any]) -> None:
    """Write results so that the file is the old one or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(results, indent=1, allow_nan=False) + "\n")


def markdown(results: Mapping[str, Any]) -> str:
    """The table: ratio first, then the seconds of both, the goal and whether it is met. Behind it scaling, what precision does to
    metrics, and programs compiled for devices that are not at hand."""
    lines = ["| ratio | row | dtype | ours | against | theirs | goal | met | device |", "|---|---|---|---|---|---|---|---|---|"]
    lines += [_line(row) for row in results["rows"].values()]
    for axis, points in results["scaling"].items():
        lines += ["", f"| {axis} | seconds | seconds per unit | peak memory, MB |", "|---|---|---|---|"]
        lines += [f"| {p['value']} | {_time(p['seconds'])} | {_time(p['per_unit'])} | {_number(p.get('peak_mb'))} |" for p in points]
    for row in results["rows"].values():
        facts = row.get("facts", {})
        if "metrics" in facts:
            lines += ["", *_folded(row["what"], _metrics(facts["metrics"]))]
        if isinstance(facts.get("programs"), list):
            lines += ["", *_folded(f"every program for {row['device']}", _programs(row["device"], facts["programs"]))]
    return "\n".join(lines)


def _folded(title: str, lines: Iterable[str]) -> list[str]:
    """A long table, behind a line to click on."""
    return [f"<details><summary>{title}</summary>", "", *lines, "", "</details>"]


def _metrics(metrics: Iterable[Mapping[str, Any]]) -> list[str]:
    """How far two precisions are apart, in the metrics' own units."""
    lines = ["| task | metric | numbers | mean difference | largest | half the 95 % interval |", "|---|---|---|---|---|---|"]
    for m in metrics:
        apart = " | ".join(f"{m[name]:.2g}" for name in ("mean_difference", "largest_difference", "half_interval"))
        lines.append(f"| {m['task']} | {m['metric']} | {m['numbers']} | {apart} |")
    return lines


def into_readme(readme: Path, paths: Iterable[Path]) -> None:
    """Put the tables of result files between the marks of a README.

    Raises:
        ValueError: the marks are missing.
    """
    fill_between(readme, (BEGIN, END), "\n\n".join(markdown(read(path)) for path in paths))


def _line(row: Mapping[str, Any]) -> str:
    ratio = f"**{row['ratio']:.2f}x**" if "ratio" in row else ""
    unmeasured = row.get("note", "not for this device or size" if row["goal"] else "")
    met = {True: "yes", False: "no, NOTES.md says why", None: unmeasured}[row["met"]]
    more = [f"memory {row['memory']:.2f}x"] if "memory" in row else []
    more += [f"{100 * row['utilisation']:.0f} % of peak"] if "utilisation" in row else []
    what = row["what"] + (f" ({', '.join(more)})" if more else "") + (f" [{row['estimate']}]" if row.get("estimate") else "")
    ours, theirs = (_time(row[key]) if key in row else "" for key in ("seconds", "theirs_seconds"))
    return f"| {ratio} | {what} | {row['dtype']} | {ours} | {row['against']} | {theirs} | {row['goal']} | {met} | {row['device']} |"


def _programs(device: str, programs: Iterable[Mapping[str, Any]]) -> list[str]:
    """What a compiler says of each program; no time where it has no estimate of a part."""
    lines = [f"| {device} | model | dtype | ms | images/s per chip | MB of a chip | fits |", "|---|---|---|---|---|---|---|"]
    for p in programs:
        milliseconds = f"{1e3 * p['seconds']:.2f}" if "seconds" in p else ""
        numbers = f"{milliseconds} | {_number(p.get('images_per_second_per_chip'))} | {_number(p['bytes'] / 1e6 if 'bytes' in p else None)}"
        lines.append(f"| {p['program']} | {p['model']} | {p['dtype']} | {numbers} | {'yes' if p['fits'] else 'no'} |")
    return lines


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for unit, factor in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * factor:
            return f"{seconds / factor:.1f} {unit}"
    for unit, factor in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= factor:
            return f"{seconds / factor:.2f} {unit}"
    return f"{seconds * 1e6:.0f} µs"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"
