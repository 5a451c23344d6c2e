"""What an ablation is, known before anything is measured: its definition as text, the tokens and the blocks that it ablates.

Keys of cells hold this text and not the condition's name, so that a changed definition is another cell.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from experiments.features.conditions import Condition, Optimal
from experiments.rows import token_name
from jaxvit import Ablation, Moments, ViTConfig
from jaxvit.serial import block_ranges
from jaxvit.sites import SITES, STREAM_SITES, width_at
from jaxvit.specs import Cut, Edit, Positions, RandomPatches, StoredArray
from jaxvit.tokens import TokenLayout


class Recipe(NamedTuple):
    """The definition of an ablation.

    Attributes:
        text: JSON of the ablation (`Ablation.to_json`). Arrays made from moments of activations have the name of what makes them,
            {"calibration": ..., "site": ..., "moment": "mean" or "deviation"}; other arrays their SHA-256.
        tokens: which tokens are ablated, in words; "" for none.
        window: at which blocks: "all", or numbers and ranges such as "6-11"; None for none.
        sites: where moments of activations are read.
    """

    text: str
    tokens: str
    window: str | None
    sites: tuple[str, ...]

    @property
    def hash(self) -> str:
        """SHA-256 (first 20 hex digits) of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:20]


@dataclass(frozen=True)
class Sourced:
    """A condition of the user with the hash of its source, which becomes part of its definition: what it does may depend on moments in
    ways that made-up ones do not show."""

    condition: Condition
    source: str

    def __call__(self, config: ViTConfig, moments: Moments, seed: int) -> Ablation:
        return self.condition(config, moments, seed)


def recipe_of(condition: Condition, config: ViTConfig, image_size: tuple[int, int], seed: int, calibration: str) -> Recipe:
    """The definition of a condition's ablation, found by building it from made-up moments: no model is run.

    An array that a condition computes from moments (twice the mean, say) gets the SHA-256 of what it computes from the made-up ones,
    which tells one such computation from another.

    Args:
        calibration: names how the moments of the study are measured.

    Raises:
        ValueError: the condition refuses the model.
    """
    sites = _Reads(SITES)
    moments, names = sites.of(made_up_moments(config, image_size)), _origins(config, image_size)
    ablation = condition(config, moments, seed)
    entry = json.loads(ablation.to_json())
    if isinstance(condition, Sourced) and condition.source:
        entry["source"] = condition.source
    if isinstance(condition, Optimal):
        entry["fitted"] = condition.definition
    for replacement in entry["replacements"]:
        for name in ("value", "deviation"):
            if origin := names.get(replacement.get(name)):
                replacement[name] = {"calibration": calibration, **origin}
    text = json.dumps(entry, sort_keys=True, separators=(",", ":"))
    return Recipe(text, tokens_in_words(ablation), window_of(ablation, config.depth), sites.read)


def is_random(condition: Condition, config: ViTConfig, image_size: tuple[int, int]) -> bool:
    """Whether the seed makes a difference to a condition."""
    first, second = (recipe_of(condition, config, image_size, seed, "").text for seed in (0, 1))
    return first != second


@functools.lru_cache(maxsize=4096)
def effect(text: str, feature: str | None) -> str:
    """What an ablation does to what is read, as text: equal where two ablations are one intervention.

    They are where their definitions are equal, and in one case more. What enters block 0 as CLS and registers is the same for all images,
    and every other block's input is the output before it: their mean at the input of every block is, for all other tokens, their mean at
    the output of every block.

    Args:
        text: of a `Recipe`.
        feature: tokens that are read, as rows name them.
    """
    entry = json.loads(text)
    if feature is None or len(entry["replacements"]) != 1:
        return text
    (replacement,) = entry["replacements"]
    if replacement["kind"] == "cut" or (replacement["kind"], replacement["at"], replacement["layers"]) != ("mean", "block_input", "all"):
        return text
    origin, tokens = replacement["value"], replacement["tokens"]
    if not isinstance(origin, dict) or not isinstance(tokens, str | list):
        return text
    overwritten = _token_groups([tokens] if isinstance(tokens, str) else tokens)
    if "patches" in overwritten or overwritten & _token_groups(feature.split("+")):
        return text
    moved = {**replacement, "at": "block_output", "value": {**origin, "site": "block_output"}}
    return json.dumps({**entry, "replacements": [moved]}, sort_keys=True, separators=(",", ":"))


def _token_groups(names: Sequence[str | int]) -> set[str]:
    """Which of cls, registers and patches selectors or names of features are of; "patches" for all that are not known to be of others."""
    kinds = (("cls", r"cls"), ("registers", r"registers?\b.*|register_mean|r\d+"))
    return {next((kind for kind, pattern in kinds if re.fullmatch(pattern, str(name))), "patches") for name in names}


def tokens_in_words(ablation: Ablation) -> str:
    """The tokens that an ablation ablates: "registers", "r1 to r3", "cls & registers", "random patches"; "CLS -> registers" where it cuts
    attention, or the function that edits all of them; "" for none."""
    return " & ".join(dict.fromkeys(_tokens_of(part) for part in ablation.replacements))


def window_of(ablation: Ablation, depth: int) -> str | None:
    """The blocks at which an ablation acts in a model of some depth: "all", or numbers and ranges such as "0-2,5"; of several parts each,
    joined by " & ". None for an empty one."""

    def blocks(layers: str | Sequence[int]) -> str:
        return layers if isinstance(layers, str) else block_ranges(sorted({n + depth if -depth <= n < 0 else n for n in layers}))

    return " & ".join(dict.fromkeys(blocks(r.layers) for r in ablation.replacements)) or None


class _Reads:
    """The sites at which moments are read."""

    def __init__(self, sites: Sequence[str]):
        self._sites, self._read = sites, set[str]()

    @property
    def read(self) -> tuple[str, ...]:
        return tuple(site for site in self._sites if site in self._read)

    def of(self, moments: Moments) -> Moments:
        """The moments, whose reads are noticed."""
        return dataclasses.replace(moments, mean=_Noticed(moments.mean, self._read), variance=_Noticed(moments.variance, self._read))


class _Noticed(dict[str, np.ndarray]):
    """Arrays by site; notes the sites that are read."""

    def __init__(self, arrays: Mapping[str, np.ndarray], read: set[str]):
        super().__init__(arrays)
        self._read = read

    def __getitem__(self, site: str) -> np.ndarray:
        array = super().__getitem__(site)
        self._read.add(site)
        return array


@functools.lru_cache(maxsize=16)
def made_up_moments(config: ViTConfig, image_size: tuple[int, int]) -> Moments:
    """Moments of random numbers, the same on every machine, at every site: for what depends on their shapes and names alone."""
    slots = len(TokenLayout.of(config, image_size).groups)
    mean: dict[str, np.ndarray] = {}
    variance: dict[str, np.ndarray] = {}
    # what a condition computes from them is part of its definition: sites of the stream come first, as when there were no others
    for sites in (STREAM_SITES, [site for site in SITES if site not in STREAM_SITES]):
        generator = np.random.default_rng(0 if sites is STREAM_SITES else 1)
        for moments in (mean, variance):
            moments |= {site: generator.random((config.depth, slots, width_at(site, config)), np.float32) for site in sites}
    return Moments({site: mean[site] for site in SITES}, {site: variance[site] for site in SITES}, 1, image_size)


@functools.lru_cache(maxsize=16)
def _origins(config: ViTConfig, image_size: tuple[int, int]) -> dict[str, dict[str, str]]:
    """What every array of an ablation that is made from made-up moments stands for, by its SHA-256."""
    moments = made_up_moments(config, image_size)
    origins = {StoredArray.of(moments.mean[site]).sha256: {"site": site, "moment": "mean"} for site in SITES}
    return origins | {StoredArray.of(np.sqrt(moments.variance[site])).sha256: {"site": site, "moment": "deviation"} for site in SITES}


def _tokens_of(part: Edit) -> str:
    if isinstance(part, Cut):
        return f"{_selector_in_words(part.queries)} -> {_selector_in_words(part.keys)}"
    if part.function is not None:
        return part.function.name
    partners = () if part.partners is None else (part.partners,)
    return " & ".join(dict.fromkeys(map(_selector_in_words, (part.tokens, *partners))))


def _selector_in_words(selector: str | int | Sequence[str | int] | RandomPatches | Positions) -> str:
    if isinstance(selector, RandomPatches):
        return "random patches"
    if isinstance(selector, Positions):
        return f"tokens of {selector.name}"
    if isinstance(selector, int):
        return f"token {selector}"
    if isinstance(selector, str):
        return token_name(selector)
    names = [_selector_in_words(single) for single in selector]
    numbers = [int(name[1:]) for name in names if name[0] == "r" and name[1:].isdigit()]
    if len(numbers) == len(names) > 1 and numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return f"r{numbers[0]} to r{numbers[-1]}"
    return ", ".join(names)
