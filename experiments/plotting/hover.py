"""Rows as texts of the page: numbers in their units, and what a number says where it is pointed at."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.demo import label
from experiments.plotting.escape import isolated, joined
from experiments.rows import Row, select


def token_label(name: str) -> str:
    """The name of a token or feature as figures show it: "cls" is "CLS", "register_mean" is "register mean", "r1" stays."""
    return "CLS" if name == "cls" else name.replace("_", " ")


def percent(value: float) -> str:
    """A share of 1 as a percentage with one decimal."""
    return f"{100 * value:.1f}"


def scaled(row: Row, field: str = "value", form: str = ".1f") -> str:
    """A number of a row in its unit, with one decimal: a share of 0.5 is "50.0"."""
    return format(row["scale"] * row[field], form)


def _p(p_value: float) -> str:
    """A p-value after its letter: "= 0.0312", "< 0.0001"."""
    return f"= {p_value:.4f}" if p_value >= 1e-4 else "< 0.0001"


def sentence(row: Row, name: str = "") -> str:
    """A number in one sentence, as text: whose it is, what, its value with its interval, its change, and p after Holm.

    Args:
        name: of the score; by default its task, metric and what is read.
    """
    readout = f", {row['readout']}" if row["readout"] else ""
    name = name or f"{row['task'].replace('_', ' ')}, {row['metric']}{read_of(row)}{readout}"
    return f"{joined(label(row['model']), row['condition'])}, {isolated(name)}: {shown(row)}{_changed(row)}."


def note(row: Row, name: str = "") -> str:
    """What a number says where it is pointed at or has the focus, as text: its `sentence`, then, a line each, the test, draws, published
    numbers and marks. The `protocol` is not part of it, nor what was chosen."""
    lines = [sentence(row, name)]
    if row["p_holm"] is not None:
        lines.append(f"p {_p(row['p_value'])} before Holm over {row['holm_tests']} {row['holm_family'].partition(':')[0]} tests.")
    elif row["p_value"] is not None:
        lines.append(f"p {_p(row['p_value'])}, in no family of tests.")
    if row["seeds"] > 1:
        lines.append(f"Mean over {row['seeds']} draws, from {plain(row, min(row['by_seed']))} to {plain(row, max(row['by_seed']))}.")
    if row["repeats"]:
        lines.append(f"One intervention with {isolated(row['repeats'])} for what is read here.")
    for other in row["published"] or ():
        where = "inside" if other["in_interval"] else "outside"
        lines.append(f"Published {plain(row, other['value'])}, {where} this interval: {isolated(other['source'])}")
    return "\n".join([*lines, *(f"{mark}{isolated(row[field])}" for mark, field in _MARKED if row[field])])


def protocol(row: Row) -> str:
    """How a number was measured, on how many units, and what its interval covers, as text."""
    return f"{row['protocol']}; n = {row['n']} {row['n_unit']}, the interval covers {row['ci_covers']}"


_MARKED = (("† ", "note"), ("‡ ", "flag"))


def shown(row: Row) -> str:
    """The value of a row with its 95 % interval and its unit: "50.0 % [40.0, 60.0]"."""
    # of two models' differences the value is a difference itself
    unit = "points" if row["unit"] == "%" and row["metric"].endswith("_change") else row["unit"]
    unit = f" {unit}" if unit else ""
    return f"{plain(row, row['value'])}{unit} [{plain(row, row['ci_low'])}, {plain(row, row['ci_high'])}]"


def change(row: Row) -> str:
    """The difference of a row with its interval, in points or its unit: "−25.0 points [−37.5, −12.5]"."""
    unit = f" {'points' if row['unit'] == '%' else row['unit']}" if row["unit"] else ""
    return f"{signed(row, row['delta'])}{unit} [{signed(row, row['delta_ci_low'])}, {signed(row, row['delta_ci_high'])}]"


def _changed(row: Row) -> str:
    """The second half of the sentence on a number: its change, and Holm's p."""
    if row["delta"] is None:
        return ""
    if row["by_construction"]:
        return f", {change(row)} against {_other(row)}, by construction"
    corrected = "" if row["p_holm"] is None else f", Holm p {_p(row['p_holm'])}"
    return f", {change(row)} against {_other(row)}{corrected}"


def _other(row: Row) -> str:
    """What a row is compared with."""
    other = row["reference"]
    return isolated(other["condition"] if other["model"] == row["model"] else label(other["model"]))


def plain(row: Row, value: float) -> str:
    """A number in the unit of a row: one decimal where that is percent, else three."""
    return f"{row['scale'] * value:.{_decimals(row)}f}".replace("-", "−")


def signed(row: Row, value: float) -> str:
    """A difference in the unit of a row, with its sign: "−3.1", "+0.2"; "0.0" where nothing is left of it."""
    text = f"{row['scale'] * value:+.{_decimals(row)}f}".replace("-", "−")
    return text[1:] if not text.strip("+−0.") else text


def _decimals(row: Row) -> int:
    return 1 if row["unit"] == "%" else 3


def read_of(row: Row) -> str:
    """What a number is read from, after its name: " of cls, block 5", "[2] of patches, block 11", " of r1 and r2, block 11"."""
    index = "" if row["index"] is None else f"[{row['index']}]"
    pair = [row[name] for name in ("register_a", "register_b") if row[name]]
    tokens = row["feature"] or " and ".join(pair) or f"{row['source']} to {row['target']}"
    block = "" if row["layer"] is None else f", block {row['layer']}"
    return f"{index} of {tokens}{block}"


def meter_lines(rows: Sequence[Row]) -> dict[tuple[str, str], str]:
    """The off-manifold metrics of every (model, condition) at the last block, as one line of text each."""
    last: dict[tuple[str, str], dict[str, Row]] = {}
    for row in select(rows, task="off_manifold"):
        last.setdefault((row["model"], row["condition"]), {})[row["metric"]] = row  # layers come in order
    return {
        run: "off manifold, last block: " + ", ".join(f"{metric.replace('_', ' ')} {r['value']:.3f}" for metric, r in by_metric.items())
        for run, by_metric in last.items()
    }
