"""The decision list, rule by rule, on rows made by hand."""

from __future__ import annotations

import dataclasses

import pytest

from experiments.sinks import rules
from experiments.sinks.rules import Cost, Evidence, decide

FREE = Cost(0.1, -0.8, 1.0, 1.0)
COST = Cost(10.0, 8.0, 12.0, 0.001)
GAIN = Cost(-10.0, -12.0, -8.0, 0.001)
UNSURE = Cost(1.5, -0.2, 3.2, 0.3)
WIDE = Cost(1.0, -3.0, 5.0, 0.9)
FLOORED = Cost(78.0, 74.0, 82.0, 0.001)
ROWS = (rules.ZERO, rules.VALUE_MEAN, rules.VALUE_OTHER, rules.KEY_OTHER, rules.RENORMALISED, rules.LOST, rules.MASS, rules.BUT)
NOTHING = dict.fromkeys((*ROWS, rules.CONSTANT, rules.SINK), FREE)


def evidence(frozen=None, attention=0.3, **rows: Cost) -> Evidence:
    """Evidence of a group that costs nothing but what is given; 90 points without edits, 10 by chance."""
    return Evidence(attention, {**NOTHING, **rows}, frozen or {}, 90.0, 10.0)


def test_a_cost_is_significant_and_of_the_margin():
    assert COST.costs()
    assert not Cost(10.0, 8.0, 12.0, 0.06).costs()
    assert not Cost(1.9, 1.5, 2.3, 0.001).costs()
    assert not Cost(10.0, 8.0, 12.0, None).costs(), "what is no test is no cost"


def test_free_is_a_bound_on_one_side():
    """The end of a one-sided 95 % interval: 1 + 1.645 x 0.6 is below 2, though 1 + 1.96 x 0.6 is not."""
    assert Cost(1.0, 1 - 1.96 * 0.6, 1 + 1.96 * 0.6, 1.0).is_free()
    assert not Cost(1.1, 1.1 - 1.96 * 0.6, 1.1 + 1.96 * 0.6, 1.0).is_free()


def test_what_no_head_attends_to_is_not_read_whatever_edits_cost():
    assert decide(evidence(attention=0.009, **dict.fromkeys(ROWS, COST))).words == (rules.NOT_READ,)
    assert decide(evidence(attention=0.01)).words == (rules.NOTHING_LOST,)


@pytest.mark.parametrize(
    ("rows", "deciding"),
    [
        ({rules.VALUE_MEAN: COST, rules.VALUE_OTHER: COST}, [rules.VALUE_MEAN]),
        ({rules.RENORMALISED: COST, rules.SINK: COST, rules.KEY_OTHER: COST}, [rules.KEY_OTHER, rules.RENORMALISED, rules.SINK]),
        ({}, [rules.VALUE_MEAN, rules.KEY_OTHER, rules.LOST, rules.RENORMALISED]),
        ({rules.LOST: UNSURE, rules.ZERO: UNSURE}, [rules.LOST]),
    ],
)
def test_the_rows_that_decide_are_named(rows, deciding):
    known = evidence(**rows)
    assert rules.deciding(known, decide(known)) == deciding


def test_near_chance_no_row_decides():
    known = dataclasses.replace(evidence(**{rules.VALUE_MEAN: COST}), clean=15.0)
    assert rules.deciding(known, decide(known)) == []


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({rules.VALUE_MEAN: COST, rules.VALUE_OTHER: COST, rules.LOST: COST}, (rules.CONTENT_VALUES,)),
        ({rules.VALUE_OTHER: COST}, (rules.CONTENT_REPLACEABLE,)),
        ({rules.KEY_OTHER: COST}, (rules.CONTENT_KEYS,)),
        ({rules.VALUE_MEAN: COST, rules.KEY_OTHER: COST}, (rules.CONTENT_VALUES, rules.CONTENT_KEYS)),
        ({rules.LOST: COST, rules.CONSTANT: COST}, (rules.IS_CONSTANT,)),
        ({rules.LOST: COST, rules.CONSTANT: COST, rules.VALUE_MEAN: COST}, (rules.CONTENT_VALUES, rules.IS_CONSTANT)),
        ({rules.LOST: FLOORED, rules.CONSTANT: COST, rules.VALUE_MEAN: FLOORED}, (rules.CONTENT_VALUES,)),
        ({rules.RENORMALISED: COST, rules.SINK: COST}, (rules.IS_SINK,)),
        ({rules.RENORMALISED: COST, rules.LOST: COST, rules.CONSTANT: COST, rules.SINK: COST}, (rules.IS_CONSTANT, rules.IS_SINK)),
    ],
)
def test_words_are_those_of_the_rows_that_cost(rows, words):
    assert decide(evidence(**rows)).words == words


def test_a_lost_cut_alone_is_no_constant():
    """What the value mean costs as well is content."""
    assert rules.IS_CONSTANT not in decide(evidence(**{rules.LOST: COST, rules.VALUE_MEAN: COST})).words


def test_a_renormalised_cut_alone_is_no_sink():
    assert rules.IS_SINK not in decide(evidence(**{rules.RENORMALISED: COST})).words


def test_where_freed_attention_repairs_the_verdict_says_so():
    repaired = {rules.VALUE_MEAN: FLOORED, rules.LOST: FLOORED, rules.SINK: GAIN}
    assert "a way round opens; the renormalised cut is no evidence" in decide(evidence(**repaired)).notes
    assert "sink not measurable" in decide(evidence(**{**repaired, rules.SINK: FREE})).notes


def test_nothing_is_lost_where_all_readings_are_free_or_gain():
    assert decide(evidence(**{rules.RENORMALISED: GAIN})).words == (rules.NOTHING_LOST,)
    moved = decide(evidence(frozen={rules.LOST: COST}))
    assert moved == ((rules.NOTHING_LOST,), ("moves the read-out only",))


def test_an_open_verdict_says_what_is_open_and_whether_images_are_too_few():
    assert decide(evidence(**{rules.LOST: UNSURE})).words == ("open: lost cut",)
    assert decide(evidence(**{rules.KEY_OTHER: WIDE})).words == ("open: keys, too few images",)
    assert "moves" not in str(decide(evidence(frozen={rules.LOST: COST}, **{rules.LOST: UNSURE})))


def test_both_carriers_cost_more_than_the_sum():
    found = dataclasses.replace(evidence(**{rules.JOINT: COST}), carriers={"CLS": rules.JOINT})
    assert decide(found).notes == ("redundant with CLS",)


def test_a_channel_holds_back_or_is_all_that_counts():
    held = dataclasses.replace(evidence(**{rules.MASS: COST}), channel=7, massive=150.0)
    assert decide(held).notes == ("massive channel 7 holds the rest back",)
    assert decide(dataclasses.replace(held, massive=99.0)).notes == ("channel 7 holds the rest back",)
    alone = dataclasses.replace(evidence(**{rules.MASS: COST, rules.ZERO: COST}), channel=7)
    assert decide(alone).notes == ("in one channel (channel 7)",)
    assert decide(dataclasses.replace(alone, rows={**alone.rows, rules.BUT: COST})).notes == ()


@pytest.mark.parametrize(
    ("own", "other", "path"), [(COST, FREE, "direct"), (FREE, COST, "via patches"), (COST, COST, "both paths"), (FREE, FREE, "either path")]
)
def test_the_path_is_that_of_the_reader_whose_cut_costs(own, other, path):
    rows = {rules.LOST: COST, rules.VALUE_MEAN: COST, "own": own, "other": other}
    found = dataclasses.replace(evidence(**rows), own="own", others={"patches": "other"})
    assert path in decide(found).notes


def test_an_edit_far_off_the_manifold_is_a_caution_for_sinks_and_constants_alone():
    far = COST._replace(meter=3.0)
    assert "off manifold x 3.0; may be the edit's" in decide(evidence(**{rules.RENORMALISED: far, rules.SINK: COST})).notes
    assert decide(evidence(**{rules.VALUE_MEAN: far, rules.RENORMALISED: far})).notes == ()


def test_a_row_that_a_model_lacks_is_no_evidence():
    """Under RoPE patches have no mean key; what is written where it is read is no row."""
    rows = {name: FREE for name in (rules.VALUE_MEAN, rules.LOST)}
    assert decide(Evidence(0.3, rows, {}, 90.0, 10.0)).words == (rules.NOTHING_LOST,)
    assert decide(Evidence(0.3, {}, {}, 90.0, 10.0)).words == ("open: no rows",)


def test_a_model_that_scores_as_chance_does_can_lose_nothing():
    assert decide(dataclasses.replace(evidence(), clean=19.0)).words[0].startswith("open: without edits the score is near chance")
