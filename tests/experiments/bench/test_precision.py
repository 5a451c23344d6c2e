"""Precisions are compared number by number."""

from __future__ import annotations

import dataclasses

import pytest

from experiments.bench.precision import Number, NumberKey, compare
from experiments.rows import FIELDS

NONE = dict.fromkeys(field.name for field in dataclasses.fields(NumberKey))


def key(**fields: object) -> NumberKey:
    return NumberKey(**NONE | {"model": "m", "condition": "full", "task": "t", "metric": "accuracy", "layer": 0, "protocol": "p"} | fields)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"metric": "spectrum", "index": 1}, {"metric": "spectrum", "index": 2}),
        ({"metric": "cosine", "register_a": "r1", "register_b": "r2"}, {"metric": "cosine", "register_a": "r2", "register_b": "r3"}),
        ({"metric": "attention", "source": "cls", "target": "r1"}, {"metric": "attention", "source": "cls", "target": "r2"}),
    ],
)
def test_precisions_are_compared_number_by_number_and_numbered_metrics_together(one, other):
    full = {key(condition="a", **one): Number(0.5, 0.25), key(condition="b", **other): Number(0.75, 0.05)}
    half = {key: Number(number.value + (0.125 if key.condition == "a" else -0.375), 9.0) for key, number in full.items()}
    (difference,) = compare(full, half)
    assert difference.pop("half_interval") == pytest.approx(0.15)
    assert difference == {"task": "t", "metric": one["metric"], "numbers": 2, "mean_difference": 0.25, "largest_difference": 0.375}


def test_metrics_of_different_tasks_are_apart():
    numbers = {key(task=task): Number(0.5, 0.1) for task in ("s", "t")}
    assert [(d["task"], d["numbers"]) for d in compare(numbers, numbers)] == [("s", 1), ("t", 1)]


def test_frozen_read_outs_are_apart_from_those_that_are_refitted():
    numbers = {key(metric="top1", readout=readout): Number(0.5, 0.1) for readout in ("refitted", "frozen")}
    assert [(d["metric"], d["numbers"]) for d in compare(numbers, numbers)] == [("top1", 1), ("top1, frozen", 1)]


def test_numbers_are_told_apart_by_fields_of_rows():
    """Read-outs, registers and the ends of flows among them: no number stands for another."""
    names = [field.name for field in dataclasses.fields(NumberKey)]
    assert set(names) <= {field.name for field in FIELDS}
    changes = {"layer": 1, "index": 1}
    assert len({key(), *(key(**{name: changes.get(name, "other")}) for name in names)}) == 1 + len(names)
