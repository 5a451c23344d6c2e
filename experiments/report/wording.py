"""The words of the summary: one template for each thing that a rule can say, and numbers as text. Everything is plain text."""

from __future__ import annotations

import math
from collections.abc import Sequence

ZEROING = {"zero_registers": "Zeroing all registers", "zero_cls": "Zeroing CLS"}
"""Titles of the findings of rule 1 and 2."""
FIRST_COUNT = "{count} of {total} scores"
COSTS = "costs {count} ({extreme})"
GAINS = "raises {count} ({extreme})"
NO_DIFFERENCE = "makes no difference larger than ± {reach} points in {count}"
OPEN = "leaves {count} open (intervals reach ± {reach} points)"
NOTHING_COUNTED = "nothing is counted: every main score that was run holds by construction"
BY_CONSTRUCTION = "Read-outs of an overwritten CLS fall by construction; they are no finding and are not counted."

DISSOCIATION = "Double dissociation"
DISSOCIATION_LEAD = (
    "Dense scores are spared without CLS and fall without registers in {count} of {total} {models} with registers (and scores of both "
    "kinds). That read-outs of CLS fall with CLS is by construction and no part of it."
)
DISSOCIATED = "yes: zeroing CLS lowers no dense score by more than {reach} points; zeroing registers costs {fallen} of {total} ({extreme})"
NO_FALL = "no: zeroing registers spares every dense score (none lower by more than {reach} points)"
FALL_OPEN = (
    "open: zeroing registers is not shown to cost a dense score {margin} points, and may cost {open} of {total} that much (worst {extreme})"
)
CLS_COSTS = "no: zeroing CLS costs dense scores too ({extreme})"
CLS_OPEN = "open: zeroing registers costs dense scores, and zeroing CLS may cost them {margin} points or more too (worst {extreme})"

REPLACING = "Replacing registers instead of zeroing them"
REPLACING_LEAD = (
    "These replacements keep a place that attention can go to: that a score which falls with zeros is spared does not tell what the place "
    "is for, and a replacement that costs more than zeros proves nothing about content."
)
REPLACED = "{total} fall with zeros; {parts}"
FALLS_ALONE = "scores fall that do not fall with zeros: {parts}"
FALL_ALONE = "{count} of {total} with {name} ({extreme})"
REPLACEMENTS = {
    "mean_registers": "their mean",
    "noise_registers": "noise",
    "shuffle_registers": "registers of other images",
    "optimal_registers": "an optimal constant",
}
SPARED_BY = "{name} spares {spared} of {total}"
SPARED_AND_OPEN = "{name} spares {spared} of {total} (open in {open})"
WORSE = "{parts}. More than zeros, in at least one score, costs: {names}"

BETWEEN = "Between models"
BETWEEN_CHANGE = "{what} changes {score} by {change} points in {model} and by {other_change} in {other}: "
APART = "the changes differ by {difference} points [{low}, {high}]"
NOT_APART = "the changes do not differ by more than ± {reach} points"
APART_OPEN = "whether the changes differ is open ({difference} points [{low}, {high}])"
BETWEEN_LEAD = "One comparison, chosen by rule and not by its size; the others are in the section on differences between models."

HEADLINE = {"zero_registers": "Zeroing all registers", "zero_cls": "zeroing CLS, where CLS itself is not read,"}
LOWERS_SCORES = "lowers {models}"
LOWERS = "{count} of {total} main scores by up to {loss} points in {model}"
LOWERS_NONE = "lowers no main score by more than {reach} points in {models}"
LOWERS_UNCLEAR = "leaves open whether it costs 2 points or more in {models}"
REPLACED_ALONE = "{names} in their place costs up to {loss} points in {models}, where zeros do not"

UNTRAINED = "Read with care"
UNTRAINED_LEAD = "Without training the same scores are reached; a change in them says little about what a model has learnt."
REACHED = "{baseline} {value}, {models}"

AT = "{delta} [{low}, {high}] in {score}"
WORST, LARGEST = "worst {at}", "largest {at}"


def signed(points: float) -> str:
    """A number of points with its sign, one decimal: "−3.1", "+0.2", "0.0"."""
    text = f"{points:+.1f}".replace("-", "−")
    return "0.0" if text[1:] == "0.0" else text


def reach_text(points: float) -> str:
    """A bound on a size, rounded up: what it bounds stays inside."""
    return f"{math.ceil(round(10 * points, 6)) / 10:.1f}"


def listed(parts: Sequence[str]) -> str:
    """Parts of a sentence: "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
