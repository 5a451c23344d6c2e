"""Results of the benchmark: one JSON file for each kind of device, and the pages that are made of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from experiments.plotting.markdown import fill_between, table
from jaxvit.files import write_text

Results = Mapping[str, Any]
""""rows": results by the name of the row; "scaling": points by axis."""

HERE = Path(__file__).parent
PAGE = HERE / "RESULTS.md"
SUMMARY_ROWS = ("forward_s", "conditions", "layer_sweep", "attention_flow", "probes")
_SUMMARY_MARKS = ("<!-- bench summary: begin -->", "<!-- bench summary: end -->")
_INTRODUCTION = """# Results of the benchmark

`python -m experiments.bench` measures every row side by side with what people use today (opponents: `pip install -e '.[test]'`) and
writes this page; it takes about half an hour on 2 cores. `--rows NAME ...` measures some rows, `--scaling AXIS ...` how cost grows,
`--small` runs everything in small sizes within seconds. Rows for TPUs are the TPU compiler's estimates (`pip install libtpu`) for every
program of a study; of a program with a loop or an operation that the compiler has no estimate for, only the memory is given. On a GPU:
`XLA_PYTHON_CLIENT_PREALLOCATE=false python -m experiments.bench`. [NOTES.md](NOTES.md) says what was tried, predicted and seen."""


def results_file(device_kind: str) -> Path:
    """The file of results of a kind of device, in this package."""
    return HERE / f"results_{re.sub(r'[^a-z0-9]+', '_', device_kind.lower()).strip('_')}.json"


def read(path: Path) -> dict[str, Any]:
    """The results in a file; empty ones where there is no file.

    Raises:
        ValueError: the file holds something else.
    """
    if not path.exists():
        return {"rows": {}, "scaling": {}}
    try:
        content = json.loads(path.read_text())
        return {"rows": dict(content["rows"]), "scaling": dict(content["scaling"])}
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} holds no results of the benchmark; remove it or choose another --out") from None


def write(path: Path, results: Results) -> None:
    """Write results so that the file is either the old one or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(results, indent=1, allow_nan=False) + "\n")


def page() -> str:
    """The page of all results in this package, as Markdown."""
    files = [read(path) for path in sorted(HERE.glob("results_*.json"))]
    measured = {name for results in files for name, row in results["rows"].items() if "note" not in row}
    for results in files:  # a row that waits in one file and is measured in another stands there alone
        results["rows"] = {name: row for name, row in results["rows"].items() if "note" not in row or name not in measured}
    return "\n\n".join([_INTRODUCTION, *map(tables, files)]) + "\n"


def write_page() -> None:
    """Write the page into this package."""
    write_text(PAGE, page())


def summary(results: Results) -> str:
    """A few rows as a Markdown table: ratio, work, opponent, device."""
    rows = [results["rows"][name] for name in SUMMARY_ROWS]
    return table(["ratio", "row", "against", "device"], [[_ratio(row), row["what"], row["against"], row["device"]] for row in rows])


def fill_readme(readme: Path, results: Results) -> None:
    """Put the summary between its marks in a README.

    Raises:
        ValueError: the marks are missing.
    """
    fill_between(readme, _SUMMARY_MARKS, summary(results))


def tables(results: Results) -> str:
    """Results as Markdown: a table of all rows, then of scaling, of the effect of precision on metrics, and of the programs compiled for
    devices that are not at hand."""
    heads = ["ratio", "row", "dtype", "ours", "against", "theirs", "goal", "met", "device"]
    parts = [table(heads, [row_cells(row) for row in results["rows"].values()])]
    for axis, points in results["scaling"].items():
        lines = [[str(p["value"]), _time(p["seconds"]), _time(p["per_unit"]), _number(p.get("peak_mb"))] for p in points]
        parts.append(table([axis, "seconds", "seconds per unit", "peak memory, MB"], lines))
    for row in results["rows"].values():
        facts = row.get("facts", {})
        if "metrics" in facts:
            parts.append(_folded(row["what"], _metrics(facts["metrics"])))
        if isinstance(facts.get("programs"), list):
            split = "weight_bytes" in facts["programs"][0]
            title, made = (
                ("program with split weights (float32: exact products, as in a study)", _split_programs)
                if split
                else ("program", _programs)
            )
            parts.append(_folded(f"every {title} for {row['device']}", made(row["device"], facts["programs"])))
    return "\n\n".join(parts)


def row_cells(row: Mapping[str, Any]) -> list[str]:
    """The line of a row in the table."""
    unmeasured = row.get("note", "not for this device or size" if row["goal"] else "")
    met = {True: "yes", False: "no, NOTES.md says why", None: unmeasured}[row["met"]]
    extras = [f"memory {row['memory']:.2f}x"] if "memory" in row else []
    extras += [f"{100 * row['utilisation']:.0f} % of peak"] if "utilisation" in row else []
    work = row["what"] + (f" ({', '.join(extras)})" if extras else "") + (f" [{row['estimate']}]" if row.get("estimate") else "")
    ours, theirs = (_time(row.get(side)) for side in ("seconds", "theirs_seconds"))
    return [_ratio(row), work, row["dtype"], ours, row["against"], theirs, row["goal"], met, row["device"]]


def _folded(title: str, text: str) -> str:
    """A long table, collapsed under its title."""
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


def _metrics(metrics: Iterable[Mapping[str, Any]]) -> str:
    """How far two precisions are apart, in the metrics' own units."""
    numbers = ("mean_difference", "largest_difference", "half_interval")
    lines = [[m["task"], m["metric"], str(m["numbers"]), *(f"{m[name]:.2g}" for name in numbers)] for m in metrics]
    return table(["task", "metric", "numbers", "mean difference", "largest", "half the 95 % interval"], lines)


def _programs(device: str, programs: Iterable[Mapping[str, Any]]) -> str:
    """The compiler's estimates for each program; no time where it has none."""
    lines = []
    for p in programs:
        milliseconds = f"{1e3 * p['seconds']:.2f}" if "seconds" in p else ""
        speed, megabytes = _number(p.get("images_per_second_per_chip")), _number(p["bytes"] / 1e6 if "bytes" in p else None)
        lines.append([p["program"], p["model"], p["dtype"], milliseconds, speed, megabytes, "yes" if p["fits"] else "no"])
    return table([device, "model", "dtype", "ms", "images/s per chip", "MB of a chip", "fits"], lines)


def _split_programs(device: str, programs: Iterable[Mapping[str, Any]]) -> str:
    """The compiler's numbers for programs of a model whose weights are split over the chips."""
    lines = []
    for p in programs:
        sizes = [f"{p[name] / 1e9:.2f}" if name in p else "" for name in ("weight_bytes", "temporary_bytes", "bytes")]
        between = ", ".join(p.get("collectives", ()))
        lines.append([p["program"], p["model"], p["dtype"], str(p["images"]), *sizes, between, "yes" if p["fits"] else "no"])
    heads = [device, "model", "dtype", "images a chip", "GB of a chip: weights", "temporaries", "everything", "between chips", "fits"]
    return table(heads, lines)


def _ratio(row: Mapping[str, Any]) -> str:
    return f"**{row['ratio']:.2f}x**" if "ratio" in row else ""


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
