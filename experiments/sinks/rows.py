"""The edits of a token group that tell what it is for: the rows of the experiment, their names, and what each is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

import jaxvit
from experiments.features.conditions import random_patch_count
from experiments.features.recipes import Recipe, recipe_of
from experiments.sinks import rules
from jaxvit import Ablation, Moments, ViTConfig
from jaxvit.specs import Selection

REGISTERS, CLS, RANDOM_PATCHES = "registers", "cls", "random_patches"
"""Names of token groups; single registers are r1, r2, ..."""
TARGETS = ("cls", "patches")
"""Tokens that are read at the end."""
FULL = "full"
"""The row without an edit."""
OPTIMAL = "optimal"
SITES = ("block_output", "block_input", "value", "key")
"""Where moments of activations are needed."""
DECIDING = (
    rules.ZERO,
    rules.VALUE_MEAN,
    rules.VALUE_OTHER,
    rules.KEY_OTHER,
    rules.RENORMALISED,
    rules.LOST,
    rules.MASS,
    rules.BUT,
)
"""Rows that the rules read, besides the lost cuts of single readers and contrasts."""
IN_WINDOWS = (rules.VALUE_MEAN, rules.VALUE_OTHER, rules.RENORMALISED, rules.LOST)
"""Rows that are shown in the early, middle and late third of the blocks too."""
ALL = "all"
LOST_BY = "cut_lost_by_"
"""Begins the names of lost cuts of single readers."""


Build = Callable[[Moments, int, str | Sequence[int]], Ablation]
"""From moments, a seed and blocks to an ablation."""


class Group(NamedTuple):
    """Tokens of which it is asked what they are for.

    Attributes:
        name: of the group.
        tokens: their selector.
        members: kinds of tokens that it holds all of, so that what is read there is what an edit wrote there.
        readers: kinds of tokens outside of it that may read it.
    """

    name: str
    tokens: Selection
    members: tuple[str, ...]
    readers: tuple[str, ...]


@dataclass(frozen=True)
class Edit:
    """One row: an edit of a group.

    Attributes:
        name: of the row.
        build: makes the ablation from moments, seed, blocks, and the channels that a channel row chooses.
        family: rows of a family have one structure of edits, and share a program.
        rule: how channels are chosen, in words, where moments decide that.
    """

    name: str
    build: Build
    family: str
    rule: str = ""


def groups(config: ViTConfig, seed: int, singles: bool) -> list[Group]:
    """The groups of a model: all registers, CLS, as many random patches as a control; and where `singles`, each register."""
    kinds = ("cls", *(["registers"] if config.registers else []), "patches")
    found = [Group(REGISTERS, "registers", ("registers",), ("cls", "patches"))] if config.registers else []
    found.append(Group(CLS, "cls", ("cls",), tuple(kind for kind in kinds if kind != "cls")))
    found.append(Group(RANDOM_PATCHES, jaxvit.random_patches(random_patch_count(config), seed), (), kinds))
    if singles and config.registers > 1:
        found += [Group(f"r{i + 1}", f"registers[{i}]", (), ("cls", "patches")) for i in range(config.registers)]
    return found


def windows(depth: int) -> dict[str, list[int]]:
    """The early, middle and late third of the blocks; none for models of fewer than three."""
    thirds = np.array_split(np.arange(depth), 3)
    return {name: third.tolist() for name, third in zip(("early", "middle", "late"), thirds, strict=True)} if depth >= 3 else {}


def edits_of(group: Group, config: ViTConfig) -> dict[str, Edit]:
    """All rows of a group by name, but the optimal constant, which is fitted."""
    tokens, table = group.tokens, dict[str, Edit]()

    def add(name: str, family: str, build: Build, rule: str = "") -> None:
        table[name] = Edit(name, build, family, rule)

    add(rules.ZERO, "fixed", lambda m, seed, at: jaxvit.zero(tokens, at))
    add("mean", "fixed", lambda m, seed, at: jaxvit.mean(tokens, m, at))
    add("noise", "noise", lambda m, seed, at: jaxvit.noise(tokens, m, seed, at))
    add("shuffle", "moved", lambda m, seed, at: jaxvit.shuffle(tokens, seed, at, same_donor=True))
    add("random_direction", "direction", lambda m, seed, at: jaxvit.noise(tokens, _isotropic(m), seed, at, norm="own"))
    add("value_zero", "moved", lambda m, seed, at: jaxvit.zero(tokens, at, "value"))
    add(rules.VALUE_MEAN, "moved", lambda m, seed, at: jaxvit.mean(tokens, m, at, "value"))
    add(rules.VALUE_OTHER, "moved", lambda m, seed, at: jaxvit.shuffle(tokens, seed, at, "value", same_donor=True))
    if config.position != "rope" or group.name != RANDOM_PATCHES:  # under RoPE patches have no mean key
        add("key_mean", "moved", lambda m, seed, at: jaxvit.mean(tokens, m, at, "key"))
    add(rules.KEY_OTHER, "moved", lambda m, seed, at: jaxvit.shuffle(tokens, seed, at, "key", same_donor=True))
    for mass, name in (("renormalise", rules.RENORMALISED), ("lost", rules.LOST)):
        add(name, "cut", _cutting(group, group.readers, mass))
    for reader in single_readers(group):
        for mass, name in (("renormalise", "cut_renormalised_by_"), ("lost", LOST_BY)):
            add(f"{name}{reader}", "cut", _cutting(group, (reader,), mass))
    add("own_queries_cut", "cut", lambda m, seed, at: jaxvit.cut(tokens, list(group.readers), at, itself=False))
    largest = "the largest root mean square of the group over blocks"
    add(rules.MASS, "fixed", lambda m, seed, at: jaxvit.zero(tokens, at, channels=[largest_channel(group, m, config)[0]]), largest)
    add(rules.BUT, "fixed", lambda m, seed, at: jaxvit.zero(tokens, at, channels=_others(group, m, config)), f"all but {largest}")
    add("zero_input", "fixed", lambda m, seed, at: jaxvit.zero(tokens, at, "block_input"))
    add("mean_input", "fixed", lambda m, seed, at: jaxvit.mean(tokens, m, at, "block_input"))
    return table


def _isotropic(moments: Moments) -> Moments:
    """Moments of noise that prefers no direction: what its norm is then made does not matter."""
    mean, variance = ({site: fill(array) for site, array in moments.mean.items()} for fill in (np.zeros_like, np.ones_like))
    return dataclasses.replace(moments, mean=mean, variance=variance)


def single_readers(group: Group) -> tuple[str, ...]:
    """The kinds of tokens whose reading is cut alone; none where there is one kind."""
    return group.readers if len(group.readers) > 1 else ()


def joint_cut(group: Group, other: Group) -> Ablation:
    """What others read of a group and what they read of another one, both cut, the mass lost."""
    return _cut(group, group.readers, "all", "lost") & _cut(other, other.readers, "all", "lost")


def _cutting(group: Group, readers: Sequence[str], mass: str) -> Build:
    """What builds a cut of some readers."""
    return lambda moments, seed, layers: _cut(group, readers, layers, mass)


def _cut(group: Group, readers: Sequence[str], layers: str | Sequence[int], mass: str) -> Ablation:
    """Readers kept from reading a group; members of the group among them still read themselves."""
    return jaxvit.cut(list(readers), group.tokens, layers, mass=mass, itself=False)


def largest_channel(group: Group, moments: Moments, config: ViTConfig) -> tuple[int, float]:
    """The channel of the stream in which a group is largest, as a root mean square over images, in any block; and how many times the
    median channel there that is."""
    slots = {REGISTERS: range(1, 1 + config.registers), CLS: [0], RANDOM_PATCHES: [-1]}
    single = [int(group.name[1:])] if group.name not in slots else []
    chosen = [*slots.get(group.name, single)]
    squares = moments.mean["block_output"] ** 2 + moments.variance["block_output"]
    size = np.sqrt(squares[:, chosen].max(axis=1))  # [layers, width]
    layer, channel = np.unravel_index(int(size.argmax()), size.shape)
    return int(channel), float(size[layer, channel] / max(float(np.median(size[layer])), 1e-12))


def _others(group: Group, moments: Moments, config: ViTConfig) -> list[int]:
    channel, _ = largest_channel(group, moments, config)
    return [c for c in range(config.width) if c != channel]


def recipe(
    edit: Callable[[ViTConfig, Moments, int], Ablation], rule: str, config: ViTConfig, size: tuple[int, int], seed: int, calibration: str
) -> Recipe:
    """The definition of a row's ablation; channels that moments choose are named by how they are chosen."""
    found = recipe_of(edit, config, size, seed, calibration)
    if not rule:
        return found
    entry = json.loads(found.text)
    for replacement in entry["replacements"]:
        replacement["channels"] = {"calibration": calibration, "channel": rule}
    return found._replace(text=json.dumps(entry, sort_keys=True, separators=(",", ":")))


LABELS = {
    "zero": "whole token: zero",
    "mean": "whole token: mean",
    OPTIMAL: "whole token: optimal constant",
    "noise": "whole token: noise",
    "shuffle": "whole token: another image's",
    "random_direction": "whole token: random direction, own norm",
    "zero_input": "whole token at block inputs: zero",
    "mean_input": "whole token at block inputs: mean",
    "value_zero": "value: zero",
    rules.VALUE_MEAN: "value: mean",
    rules.VALUE_OTHER: "value: another image's",
    "key_mean": "key: mean",
    rules.KEY_OTHER: "key: another image's",
    rules.RENORMALISED: "cut, weight renormalised",
    rules.LOST: "cut, weight lost",
    "own_queries_cut": "its own reading cut",
    rules.MASS: "largest channel: zero",
    rules.BUT: "all but the largest channel: zero",
    "other_cut_lost": "the other carrier cut, weight lost",
    "both_cut_lost": "both carriers cut, weight lost",
    rules.CONSTANT: "constant: cut (lost) less value mean",
    rules.SINK: "sink: cut (renormalised) less cut (lost)",
    rules.JOINT: "both carriers less the sum of each",
}
"""What rows are called on pages."""


def label_of(row: str) -> str:
    """What a row is called on pages; those of single readers and windows say which."""
    name, _, window = row.partition(".")
    for prefix, base in (("cut_renormalised_by_", rules.RENORMALISED), (LOST_BY, rules.LOST)):
        if name.startswith(prefix):
            reader = name.removeprefix(prefix)
            return f"{LABELS[base]}, for {'CLS' if reader == 'cls' else reader} alone" + (f", {window} blocks" if window else "")
    return LABELS.get(name, name) + (f", {window} blocks" if window else "")
