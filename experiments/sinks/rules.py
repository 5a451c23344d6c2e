"""The decision list: from what edits of a token group cost to words for what the group is for.

Nothing here runs a model: rules read costs in points with their intervals and p-values after Holm. `docs/content_or_sink.md` says why each
rule is what it is, and which constructed model would be misread without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

MARGIN = 2.0
"""Points: a smaller cost is none, and a bound below it is "free"."""
ALPHA = 0.05
"""Family-wise error of what is called a cost."""
SHARE = 0.01
"""Of attention: a group that gets less in every head of every block is not read."""
LEAST_TO_LOSE = 10.0
"""Points above chance without edits; of less, edits that cost nothing say nothing."""
FLOOR = 0.8
"""Share of what the clean model has above chance; a cost of as much leaves nothing that could be lost besides."""
OFF_MANIFOLD = 2.0
"""Times the clean run's distance of patches from their mean, beyond which a word about a constant or a sink has a note."""
_FAR_OFF = 100.0
MASSIVE = 100.0
"""Times the median channel, from which on a channel is called massive."""
_ONE_SIDED = 1.6449 / 1.9600
"""How far the end of a one-sided 95 % interval lies from the estimate, as a share of that of the two-sided one."""

VALUE_MEAN, VALUE_OTHER, KEY_OTHER = "value_mean", "value_other", "key_other"
LOST, RENORMALISED = "cut_lost", "cut_renormalised"
ZERO, MASS, BUT = "zero", "massive_zeroed", "all_but_massive_zeroed"
CONSTANT, SINK, JOINT = "constant", "sink", "joint"
"""Names of the rows that the rules read; the last three are contrasts."""

NOT_READ = "not read"
CONTENT_VALUES = "image content (values)"
CONTENT_REPLACEABLE = "image content, replaceable"
CONTENT_KEYS = "image content (keys)"
IS_CONSTANT = "constant"
IS_SINK = "sink"
NOTHING_LOST = "read, nothing lost"
OPEN = "open"
WORDS = (NOT_READ, CONTENT_VALUES, CONTENT_REPLACEABLE, CONTENT_KEYS, IS_CONSTANT, IS_SINK, NOTHING_LOST, OPEN)
"""What a verdict begins with, in the order of the list."""
_READ = {VALUE_MEAN: "values", KEY_OTHER: "keys", LOST: "lost cut", RENORMALISED: "renormalised cut"}
"""Rows that all have to be free for "read, nothing lost", and what an open verdict calls them."""


_DECIDED_BY = {
    CONTENT_VALUES: (VALUE_MEAN,),
    CONTENT_REPLACEABLE: (VALUE_OTHER,),
    CONTENT_KEYS: (KEY_OTHER,),
    IS_CONSTANT: (LOST, CONSTANT),
    IS_SINK: (RENORMALISED, SINK),
    NOTHING_LOST: tuple(_READ),
}
"""Rows whose costs decide a word."""


class Cost(NamedTuple):
    """What an edit costs, in points: the score of the clean run minus that of the edited one, or a difference of two such costs.

    Attributes:
        estimate: of the cost.
        low, high: ends of its paired 95 % interval.
        p_holm: after Holm over all rows and contrasts of one target; None where there is no test.
        meter: distance of the patches from their calibrated mean, as a multiple of the clean run's.
    """

    estimate: float
    low: float
    high: float
    p_holm: float | None = None
    meter: float = 1.0

    def costs(self, margin: float = MARGIN) -> bool:
        """Whether it is a cost: significant, and of the margin or more."""
        return self.p_holm is not None and self.p_holm < ALPHA and self.estimate >= margin

    def gains(self, margin: float = MARGIN) -> bool:
        """Whether the whole interval is a gain of more than the margin."""
        return self.high < -margin

    def is_free(self, margin: float = MARGIN) -> bool:
        """Whether a cost of the margin is excluded, with 95 % confidence on one side."""
        return self.estimate + _ONE_SIDED * (self.high - self.estimate) < margin

    def is_wide(self, margin: float = MARGIN) -> bool:
        """Whether the interval is wider than the margin to either side: there are too few images."""
        return (self.high - self.low) / 2 > margin


@dataclass(frozen=True)
class Evidence:
    """What is known of one token group, for one target.

    Attributes:
        attention: the largest share of attention from another kind of token to the group, over heads and blocks.
        rows: refitted costs by name; contrasts among them.
        frozen: costs by read-outs that were fitted without edits.
        clean, chance: score of the model without edits, and of a read-out that knows nothing, in points.
        own, others: names of the rows of the lost cut for single readers: of the target's own kind (None where it reads nothing of the
            group itself), and of other kinds by what these are called.
        carriers: by name of another group, the name of the contrast that says what both together cost beyond the sum.
        channel, massive: the group's largest channel, and how many times the median channel that is.
    """

    attention: float
    rows: Mapping[str, Cost]
    frozen: Mapping[str, Cost]
    clean: float
    chance: float
    own: str | None = None
    others: Mapping[str, str] = field(default_factory=dict)
    carriers: Mapping[str, str] = field(default_factory=dict)
    channel: int | None = None
    massive: float = 1.0

    def costs(self, row: str) -> bool:
        return row in self.rows and self.rows[row].costs()

    def is_free(self, row: str) -> bool:
        return row in self.rows and self.rows[row].is_free()

    def at_floor(self, row: str) -> bool:
        """Whether a row costs nearly all that there is to lose."""
        return row in self.rows and self.rows[row].estimate >= FLOOR * (self.clean - self.chance)


class Verdict(NamedTuple):
    """What a group is for.

    Attributes:
        words: of `WORDS`, those that hold; an open one says which rows are open.
        notes: qualifiers and cautions, which are no verdicts.
    """

    words: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "; ".join([" + ".join(self.words), *self.notes])


def decide(evidence: Evidence) -> Verdict:
    """The words for a token group, by the rules in their order."""
    if evidence.attention < SHARE:
        return Verdict((NOT_READ,))
    if evidence.clean - evidence.chance < LEAST_TO_LOSE:
        return Verdict((f"{OPEN}: without edits the score is near chance, and nothing could be lost",))
    words = [*_content(evidence), *_constant(evidence), *_sink(evidence)]
    cautions = _about_sinks(evidence, words)
    if not words:
        words, cautions = [_nothing_or_open(evidence)], [*_moves(evidence), *cautions]
    notes = [*_redundant(evidence), *_channel(evidence), *_path(evidence), *cautions, *_off_manifold(evidence, words)]
    return Verdict(tuple(words), tuple(notes))


def deciding(evidence: Evidence, verdict: Verdict) -> list[str]:
    """Names of the rows that the words of a verdict rest on: whose costs made them, and of an open one those that are open."""
    if evidence.clean - evidence.chance < LEAST_TO_LOSE:
        return []
    if verdict.words[0].startswith(OPEN):
        return [row for row in _READ if row in evidence.rows and not (evidence.rows[row].is_free() or evidence.rows[row].gains())]
    return list(dict.fromkeys(row for word in verdict.words for row in _DECIDED_BY.get(word, ()) if row in evidence.rows))


def _content(evidence: Evidence) -> list[str]:
    """Rules 2 and 3: content in values, and in keys."""
    words = []
    if evidence.costs(VALUE_MEAN):
        words.append(CONTENT_VALUES)
    elif evidence.costs(VALUE_OTHER):
        words.append(CONTENT_REPLACEABLE)
    return [*words, CONTENT_KEYS] if evidence.costs(KEY_OTHER) else words


def _constant(evidence: Evidence) -> list[str]:
    """Rule 4: what no image changes is needed. Where the values' own content is all that there is to lose, nothing more can be said."""
    needed = evidence.costs(LOST) and evidence.costs(CONSTANT)
    return [IS_CONSTANT] if needed and not (evidence.costs(VALUE_MEAN) and evidence.at_floor(VALUE_MEAN)) else []


def _sink(evidence: Evidence) -> list[str]:
    """Rule 5: attention that goes here does harm where it would go instead."""
    return [IS_SINK] if evidence.costs(SINK) and evidence.costs(RENORMALISED) else []


def _about_sinks(evidence: Evidence, words: list[str]) -> list[str]:
    """What rule 5 says beside a word: freed attention repairs, or nothing is left to tell a sink by."""
    if IS_SINK in words or SINK not in evidence.rows:
        return []
    if words and evidence.rows[SINK].gains():
        return ["a way round opens; the renormalised cut is no evidence"]
    return ["sink not measurable"] if evidence.costs(LOST) and evidence.at_floor(LOST) else []


def _nothing_or_open(evidence: Evidence) -> str:
    """Rule 6: nothing is lost, or it is not known."""
    rows = {name: evidence.rows[row] for row, name in _READ.items() if row in evidence.rows}
    undecided = [name for name, cost in rows.items() if not (cost.is_free() or cost.gains())]
    if rows and not undecided:
        return NOTHING_LOST
    few = ", too few images" if any(rows[name].is_wide() for name in undecided) else ""
    return f"{OPEN}: {', '.join(undecided) or 'no rows'}{few}"


def _moves(evidence: Evidence) -> list[str]:
    """Rule 6, its note: a lost offset moves what a frozen read-out sees, and a refitted one undoes that."""
    moved = any(row in evidence.frozen and evidence.frozen[row].costs() for row in (LOST, RENORMALISED))
    return ["moves the read-out only"] if moved and _nothing_or_open(evidence) == NOTHING_LOST else []


def _redundant(evidence: Evidence) -> list[str]:
    """Rule 7: both together cost more than the sum of each."""
    return [f"redundant with {name}" for name, row in evidence.carriers.items() if evidence.costs(row)]


def _channel(evidence: Evidence) -> list[str]:
    """Rule 8: one channel holds the rest of the token back, or is all that counts."""
    if evidence.channel is None or not evidence.costs(MASS):
        return []
    name = f"{'massive ' if evidence.massive >= MASSIVE else ''}channel {evidence.channel}"
    if evidence.is_free(ZERO):
        return [f"{name} holds the rest back"]
    half = evidence.costs(ZERO) and evidence.rows[MASS].estimate >= evidence.rows[ZERO].estimate / 2
    return [f"in one channel ({name})"] if half and evidence.is_free(BUT) else []


def _path(evidence: Evidence) -> list[str]:
    """Rule 9: who reads what is lost, from the lost cuts of single readers."""
    if not evidence.costs(LOST) or not (evidence.others or evidence.own):
        return []
    direct = evidence.own is not None and evidence.costs(evidence.own)
    via = [name for name, row in evidence.others.items() if evidence.costs(row)]
    if direct and via:
        return ["both paths"]
    return ["direct"] if direct else [f"via {' and '.join(via)}"] if via else ["either path"]


def _off_manifold(evidence: Evidence, words: list[str]) -> list[str]:
    """Rule 10: the edit itself may do what is seen."""
    rows = [row for word, row in ((IS_CONSTANT, LOST), (IS_SINK, RENORMALISED)) if word in words]
    meter = max((evidence.rows[row].meter for row in rows), default=0.0)
    times = f"x {meter:.1f}" if meter < _FAR_OFF else f"more than x {_FAR_OFF:.0f}"
    return [f"off manifold {times}; may be the edit's"] if meter > OFF_MANIFOLD else []
