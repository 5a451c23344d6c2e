"""The fields of rows, and that no row has others."""

from __future__ import annotations

import json
from typing import Any, get_type_hints

import pytest

from experiments.rows import FIELDS, RowFields, check_rows, make_row, select, token_name
from tests.experiments.plotting.made_rows import made_flow, made_row


def test_every_field_stands_once_in_order_with_its_meaning():
    names = [field.name for field in FIELDS]
    assert names == list(get_type_hints(RowFields))
    assert len(set(names)) == len(names)
    assert all(field.meaning for field in FIELDS)
    assert all(field.types for field in FIELDS)


def test_rows_of_all_kinds_are_accepted_also_when_they_come_from_a_file():
    counterparts = [{"value": 0.5, "source": "a paper", "protocol": "?", "difference": 0.0}]
    rows = [
        made_row(published=counterparts, scores_cell=["b" * 20], scores_array="scores/0"),
        made_flow("cls", "r1"),
        made_row(layer=None, window=None, ablation=None, reference=None, delta=None, higher_is_better=None),
        made_row(metric="spectrum", index=0, head=1),
    ]
    check_rows(rows)
    check_rows([json.loads(json.dumps(row)) for row in rows])
    check_rows([])


def test_a_whole_number_is_a_float():
    check_rows([made_row(value=1, ci_low=0, ci_high=1, scale=1, by_seed=[1, 0.5])])


@pytest.mark.parametrize("name", [field.name for field in FIELDS])
def test_a_row_without_a_field_is_refused(name):
    row = {key: value for key, value in made_row().items() if key != name}
    with pytest.raises(ValueError, match=r"are not those of experiments\.rows\.RowFields"):
        check_rows([made_row(), row])


def test_a_row_with_a_field_of_its_own_is_refused():
    with pytest.raises(ValueError, match=r"the fields of a row of linear_probe are not those .*, colour"):
        check_rows([made_row() | {"colour": "red"}])


def test_fields_in_another_order_are_refused():
    row = made_row()
    with pytest.raises(ValueError, match="are not those of"):
        check_rows([{"condition": row["condition"], **row}])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", None),
        ("model", 3),
        ("layer", "last"),
        ("layer", True),
        ("layer", 5.0),
        ("n", True),
        ("n", 30.0),
        ("value", True),
        ("value", "0.5"),
        ("value", None),
        ("scale", None),
        ("by_seed", [True]),
        ("by_seed", 0.5),
        ("by_seed", ["0.5"]),
        ("by_seed", (0.5,)),
        ("ablation", "a" * 20),
        ("ablation", [None]),
        ("reference", "full"),
        ("published", {"value": 0.5}),
        ("published", ["a paper"]),
        ("primary", 1),
        ("primary", None),
        ("by_construction", None),
        ("quick", 0),
        ("readout", True),
        ("delta", "none"),
    ],
)
def test_a_field_of_another_type_is_refused(name: str, value: Any):
    with pytest.raises(ValueError, match=f"^{name} of a row of linear_probe is "):
        check_rows([made_row(), made_row() | {name: value}])


def test_a_made_row_has_every_field_in_order_and_null_where_nothing_was_said():
    row = make_row(layer=3, model="m")
    assert list(row) == [field.name for field in FIELDS]
    assert {name: value for name, value in row.items() if value is not None} == {"model": "m", "layer": 3}


def test_a_row_is_made_of_no_unknown_field():
    with pytest.raises(ValueError, match="a row has no field colour; its fields are those of"):
        make_row(model="m", colour="red")


def test_rows_are_selected_by_all_the_fields_that_are_named():
    rows = [made_row(layer=layer, feature=feature) for layer in (0, 1) for feature in ("cls", "r1")]
    assert select(rows, layer=1, feature="r1") == [rows[3]]
    assert select(rows, layer=None) == []
    assert select(rows) == rows


@pytest.mark.parametrize(
    ("group", "name"),
    [("registers[0]", "r1"), ("registers[11]", "r12"), ("registers", "registers"), ("cls", "cls"), ("patches[0]", "patches[0]")],
)
def test_registers_count_from_one_in_names(group, name):
    assert token_name(group) == name
