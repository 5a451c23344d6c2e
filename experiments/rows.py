"""Rows of results: one dictionary per number, a line of `results.jsonl`. Their fields, and what each means, are those of `RowFields`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, TypedDict, get_args, get_origin, get_type_hints

SCHEMA = 6
"""Version of the fields and their meanings. It stands in run.json and in the keys of cells that hold rows."""

Row = dict[str, Any]


class Reference(TypedDict):
    """The run that a number is compared with, and its value on the same units and places."""

    model: str
    condition: str
    value: float


class RowFields(TypedDict):
    """Every field of a row, in order; all are there in every row, and null where they do not apply."""

    model: Annotated[str, "name of the model in the study"]
    condition: Annotated[str, "name of the condition; `full` is the model without ablation"]
    tokens: Annotated[str, "tokens that are ablated, in words; empty for none"]
    ablation: Annotated[
        list[str] | None,
        "hash of the ablation of every draw; `run.json` has their texts. Null for raw pixels and for means over several conditions",
    ]
    window: Annotated[str | None, "blocks at which the ablation acts: `all`, or numbers and ranges such as `6-11`; null for none"]
    task: Annotated[str, "what was asked"]
    metric: Annotated[str, "name of the number"]
    feature: Annotated[str | None, "tokens that are read: `cls`, `patch_mean`, `r1`, `patches`, ...; null for flows and cosines"]
    readout: Annotated[
        str | None,
        "`refitted`: fitted under this condition; `frozen`: fitted without ablation and applied unchanged; null: nothing is fitted",
    ]
    layer: Annotated[int | None, "block whose output is read, from 0; null for raw pixels"]
    head: Annotated[int | None, "attention head, from 0; null for a mean over heads and for numbers that know no heads"]
    index: Annotated[int | None, "position in a series, from 0, such as the number of an eigenvalue"]
    source: Annotated[str | None, "of attention: the token group that attends"]
    target: Annotated[str | None, "of attention: the token group that is attended to"]
    register_a: Annotated[str | None, "first register of a pair, such as `r1`"]
    register_b: Annotated[str | None, "second register of a pair"]
    unit: Annotated[str, "unit of the value times `scale`; empty for a plain number"]
    scale: Annotated[float, "factor that takes value, intervals and differences to the unit: 100 where it is percent"]
    higher_is_better: Annotated[bool | None, "direction of the metric; null where neither is better"]
    primary: Annotated[bool, "whether it is one of the study's main scores, which are shown first"]
    value: Annotated[float, "the number, a mean over draws where there are several"]
    ci_low: Annotated[float, "lower end of its 95 % interval"]
    ci_high: Annotated[float, "upper end"]
    ci_covers: Annotated[
        str,
        "what the interval and the test cover: `units` is sampling of the units, with draws as they are; `units and draws`; `units and "
        "draws of the read-out`, where the condition was drawn fewer than 5 times",
    ]
    n: Annotated[int, "number of independent units"]
    n_unit: Annotated[str, "what an independent unit is: images, pairs of views, digits that scenes show, source and target images"]
    seeds: Annotated[int, "number of draws of what is random in the condition or the read-out"]
    by_seed: Annotated[list[float], "the number under every draw"]
    reference: Annotated[
        Reference | None,
        "model and condition that it is compared with, and their value, without the patches that are left out here; null where it is not "
        "compared",
    ]
    delta: Annotated[float | None, "value minus that of the reference"]
    delta_ci_low: Annotated[float | None, "lower end of the paired 95 % interval of the difference"]
    delta_ci_high: Annotated[float | None, "upper end"]
    p_value: Annotated[
        float | None,
        "of a paired test of the difference, two-sided: by permutation, or Student's t where draws or the two images of pairs are covered",
    ]
    p_holm: Annotated[float | None, "the same, corrected by Holm within its family"]
    holm_family: Annotated[str | None, "the family of tests, in words"]
    holm_tests: Annotated[int | None, "number of tests of the family"]
    by_construction: Annotated[bool, "the number is what it is because of how the condition is made, and is no finding"]
    repeats: Annotated[
        str | None,
        "an earlier condition of the model that is one intervention with this one for what is read, as `mean_registers` is with "
        "`fix_reg_mean` for CLS and patches: the number is the same, and no test of its own; null for none",
    ]
    note: Annotated[str | None, "what a reader must know about it"]
    flag: Annotated[str | None, "what may be wrong with it, such as a penalty at the edge of its grid"]
    detail: Annotated[str | None, "what was chosen, and how the solver ended"]
    published: Annotated[
        list[dict[str, Any]] | None,
        "published counterparts: value, source, protocol, difference (measured minus published), in_interval (of the value)",
    ]
    protocol: Annotated[str, "everything that defines the number besides model, condition and data"]
    analysis: Annotated[str | None, "analysis that computes it; null for scores of tasks"]
    cell: Annotated[str, "hash of the cell that holds the row: `cells/HASH.json`"]
    scores_cell: Annotated[
        list[str] | None, "hash of the cell with the scores of every unit, for every draw: `cells/HASH.npz`; null for none"
    ]
    scores_array: Annotated[str | None, "name of the array there, [units, seeds, parts]"]
    quick: Annotated[bool, "the study was a quick look"]


class Field(NamedTuple):
    """A field of a row: its name, the types of its value, and what it means."""

    name: str
    types: tuple[Any, ...]
    meaning: str


def _fields() -> Iterator[Field]:
    for name, hint in get_type_hints(RowFields, include_extras=True).items():
        kind, meaning = get_args(hint)
        members = get_args(kind) if not isinstance(kind, type) and get_origin(kind) not in (list, dict) else (kind,)
        yield Field(name, members, meaning)


FIELDS = tuple(_fields())
"""The fields of `RowFields` in their order."""
_NAMES = frozenset(field.name for field in FIELDS)


def make_row(**values: Any) -> Row:
    """A row with these values, and null in all other fields.

    Raises:
        ValueError: a value of no field.
    """
    if unknown := sorted(values.keys() - _NAMES):
        raise ValueError(f"a row has no field {unknown[0]}; its fields are those of experiments.rows.RowFields")
    return {field.name: values.get(field.name) for field in FIELDS}


def check_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Check that every row has exactly the fields of `RowFields`, of their types.

    Raises:
        ValueError: one has not.
    """
    for row in rows:
        if list(row) != [field.name for field in FIELDS]:
            raise ValueError(f"the fields of a row of {row.get('task')} are not those of experiments.rows.RowFields: {', '.join(row)}")
        for field in FIELDS:
            if not any(_fits(row[field.name], kind) for kind in field.types):
                raise ValueError(f"{field.name} of a row of {row['task']} is {row[field.name]!r}, which is not of the types {field.types}")


def _fits(value: Any, kind: Any) -> bool:
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(item, get_args(kind)[0]) for item in value)
    if get_origin(kind) is dict or kind is Reference:
        return isinstance(value, dict)
    if kind in (int, float):  # a whole number is a float, True is no number
        return isinstance(value, int | float if kind is float else int) and not isinstance(value, bool)
    return isinstance(value, kind)


def select(rows: Sequence[Row], **fields: Any) -> list[Row]:
    """Rows whose fields have these values."""
    return [row for row in rows if all(row[name] == value for name, value in fields.items())]


def token_name(group: str) -> str:
    """The name of a token group in rows and for people: register selectors count from 0 ("registers[0]"), names from 1 ("r1")."""
    match = re.fullmatch(r"registers\[(\d+)\]", group)
    return f"r{int(match[1]) + 1}" if match else group
