"""Models whose registers do what is known, made by hand from the bundled demo: the test of the rules (`docs/content_or_sink.md`)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

import jaxvit
from experiments.datasets.scenes import scenes
from experiments.sinks import rules
from experiments.sinks.surgery import (
    CLS_FLAG,
    FAR,
    FLAG,
    FREE_HEAD,
    HEADS,
    SPARE_DIM,
    Draft,
    directions,
)
from jaxvit import ViT

GATHER, SPREAD, READ = 6, 7, 8
"""Blocks after those of the demo in which content is gathered, spread, and read once more."""
COMPONENTS = 24
GATHERED, CONTENT = range(104, 104 + COMPONENTS), range(128, 128 + COMPONENTS)
"""Channels for content as it is gathered, and as it is spread: what is gathered by whom should not is read by nobody."""
_CENTRED = np.eye(COMPONENTS) - 1 / COMPONENTS
"""Content is written without its mean over channels."""
IDENTITY = [(152, 153), (154, 155), (156, 157), (158, 159)]
"""Channels that tell one register from another, plus and minus."""
IDENTITY_STRENGTH = 100.0
SCENES = 256
"""Training scenes from which the directions of content are taken."""


def constructed(name: str) -> ViT:
    """A constructed model by its name, such as "constructed_sink".

    Raises:
        ValueError: there is none of that name.
    """
    if name not in CONSTRUCTED:
        raise ValueError(f'there is no constructed model "{name}"; possible are {", ".join(CONSTRUCTED)}')
    draft = _draft()
    CONSTRUCTED[name].make(draft)
    return draft.model()


class Construction(NamedTuple):
    """A constructed model.

    Attributes:
        make: changes the draft of a model whose registers nobody reads.
        truth: what its registers do, by construction.
        words: expected of the group, for CLS and for patches; none where anything may be said.
        notes: expected beside the words.
        group: that is asked about.
    """

    make: Callable[[Draft], None]
    truth: str
    words: dict[str, tuple[str, ...]]
    notes: tuple[str, ...] = ()
    group: str = "registers"


def _draft() -> Draft:
    draft = Draft(jaxvit.load("demo"))
    draft.hide_registers()
    return draft


def _nothing(draft: Draft) -> None:
    """The base."""


def _sink(draft: Draft, blocks: range = range(1, 5), look: bool = True) -> None:
    """Patches carry noise, which a free head would add to all tokens; registers draw its attention, and hold none."""
    count = 8
    channels = range(104, 104 + count)
    random = np.random.default_rng(0)
    noise = 0.02 * random.choice([-1.0, 1.0], size=(len(draft.embed), count))
    for i, channel in enumerate(channels):  # plus and minus: the mean over channels stays
        draft.embed[:, channel], draft.embed[:, channel + count] = noise[:, i], -noise[:, i]
    add = _NOISE * directions(count, draft.narrow, 1)
    for block in blocks:
        for i, channel in enumerate(channels):
            draft.qkv[block, channel, 2, FREE_HEAD, i] = 1
        draft.out[block, FREE_HEAD, :count, : draft.narrow] = add
        if look:
            draft.look(block, FREE_HEAD)


_NOISE = 20000.0
_CONSTANT = 60.0


def _constant(draft: Draft, strength: float = _CONSTANT, dim: int = 0) -> None:
    """Registers give all tokens a vector that a bias takes back."""
    (vector,) = strength * directions(1, draft.narrow, 2)
    for block in range(1, 4):
        draft.look(block, FREE_HEAD)
        draft.qkv[block, FLAG[0], 2, FREE_HEAD, dim] = 1 / draft.flag
        draft.out[block, FREE_HEAD, dim, : draft.narrow] += vector
        draft.out_bias[block, : draft.narrow] -= vector


def _constant_and_sink(draft: Draft) -> None:
    _sink(draft)
    _constant(draft, dim=8)


def _values(draft: Draft) -> None:
    """Registers read CLS, all read registers, and nothing else is let through."""
    _gather(draft)
    draft.look(SPREAD, FREE_HEAD)
    _pass_on(draft, SPREAD)
    _only_content(draft)


def _via_patches(draft: Draft) -> None:
    """Registers read CLS, patches read registers, CLS reads patches."""
    _gather(draft)
    draft.look(SPREAD, FREE_HEAD)
    _but_not_cls(draft, SPREAD)
    _pass_on(draft, SPREAD)
    draft.hide(READ, FREE_HEAD)
    _pass_on(draft, READ, CONTENT, gain=10)
    _only_content(draft)


def _for_patches(draft: Draft) -> None:
    """Registers carry content for patches; CLS looks at itself alone where they are read, and has its own."""
    _gather(draft)
    draft.look(SPREAD, FREE_HEAD)
    for block in (GATHER, SPREAD):
        _but_not_cls(draft, block)
    _pass_on(draft, SPREAD)
    _only_content(draft)


def _redundant(draft: Draft) -> None:
    """Registers are copies of CLS, which patches read as well as CLS itself; either will do."""
    weak = 0.05
    draft.registers[:] = draft.cls + draft.cls_position
    draft.registers[:, list(CLS_FLAG)] = 0
    draft.registers[:, FLAG[0]], draft.registers[:, FLAG[1]] = weak, -weak
    for block in range(draft.depth):  # the flag is weak: hide them by a product that is as far
        for head in range(HEADS):
            draft.qkv[block, :, :2, head, SPARE_DIM] = 0
            draft.qkv[block, FLAG[0], 1, head, SPARE_DIM] = -1e3 * FAR
    look_at_copies = draft.qkv[SPREAD, :, :, FREE_HEAD]
    look_at_copies[FLAG[0], 1, SPARE_DIM] = 1e3 * FAR
    draft.qkv_bias[SPREAD, 0, FREE_HEAD, SPARE_DIM] = 1
    _read_components(draft, SPREAD, FREE_HEAD)
    _own_content(draft)
    _only_content(draft)


def _keys(draft: Draft) -> None:
    """Scalars of the image, gathered by registers, steer how attention is divided among them; what they give is constant."""
    mean, probes = _class_directions()
    for j, (plus, minus) in enumerate(IDENTITY):
        draft.registers[j, plus], draft.registers[j, minus] = IDENTITY_STRENGTH, -IDENTITY_STRENGTH
        draft.look(GATHER, j)
        _register_reads_cls(draft, GATHER, j, plus, draft.flag * IDENTITY_STRENGTH / draft.registers[0, FLAG[0]])
        for h in range(HEADS):
            if (scalar := 3 * h + j - 1) < len(probes) and j > 0:
                draft.qkv[GATHER, : draft.narrow, 2, j, h] = probes[scalar]
                draft.out[GATHER, j, h, CONTENT[h]] = IDENTITY_STRENGTH / _SMALL
                draft.qkv[SPREAD, plus, 1, h, SPARE_DIM - 2] = -mean @ probes[scalar]  # keys differ by what differs between images
    for h in range(HEADS):
        draft.look(SPREAD, h)
        draft.qkv[SPREAD, CONTENT[h], 1, h, SPARE_DIM - 2] = _SMALL
        draft.qkv_bias[SPREAD, 0, h, SPARE_DIM - 2] = _SHARPNESS
        for j, (plus, _) in enumerate(IDENTITY):
            draft.qkv[SPREAD, plus, 2, h, j] = 1
            draft.out[SPREAD, h, j, CONTENT[4 + 4 * h + j]] = 300
    _only_content(draft, CONTENT[4:20])


_SHARPNESS = 3.0
_SMALL = 20.0
"""Scalars are held so much smaller than flags that they do not move what LayerNorm makes of these."""


def _held_back(draft: Draft) -> None:
    """Registers hold something that would do harm, were it not for their flag, beside which LayerNorm leaves little of it."""
    (vector,) = directions(1, draft.narrow, 3)
    draft.registers[:, 152], draft.registers[:, 153] = 5, -5
    draft.registers[:, FLAG[1]] = 0
    draft.registers[:, FLAG[0]] = FLAG_HELD
    for block in range(1, 5):
        draft.qkv[block, :, :2, FREE_HEAD] = 0
        draft.qkv_bias[block, :2, FREE_HEAD] = 0
        draft.qkv[block, 152, 2, FREE_HEAD, 0] = 1
        draft.out[block, FREE_HEAD, 0, : draft.narrow] = 300 * vector


FLAG_HELD = 2000.0


def _gather(draft: Draft) -> None:
    """Registers read the leading components of CLS into their content channels."""
    draft.look(GATHER, FREE_HEAD)
    _register_reads_cls(draft, GATHER, FREE_HEAD, FLAG[0], draft.flag)
    mean, components = _components()
    draft.qkv[GATHER, : draft.narrow, 2, FREE_HEAD, :COMPONENTS] = components.T
    draft.qkv_bias[GATHER, 2, FREE_HEAD, :COMPONENTS] = -mean @ components.T
    draft.out[GATHER, FREE_HEAD, :COMPONENTS, GATHERED[0] : GATHERED[-1] + 1] = 20 * _CENTRED


def _register_reads_cls(draft: Draft, block: int, head: int, channel: int, strength: float) -> None:
    """Let registers that have a channel attend to CLS and nobody else."""
    draft.qkv[block, channel, 0, head, SPARE_DIM - 1] = 1 / strength
    draft.qkv[block, CLS_FLAG[0], 1, head, SPARE_DIM - 1] = 10 * FAR


def _pass_on(draft: Draft, block: int, channels: range = GATHERED, gain: float = 400.0) -> None:
    """What the free head reads in some channels, it writes as content."""
    draft.qkv[block, channels[0] : channels[-1] + 1, 2, FREE_HEAD, :COMPONENTS] = np.eye(COMPONENTS)
    draft.out[block, FREE_HEAD, :COMPONENTS, CONTENT[0] : CONTENT[-1] + 1] = gain * _CENTRED


def _but_not_cls(draft: Draft, block: int) -> None:
    """CLS looks at itself where the others look at registers."""
    draft.qkv[block, CLS_FLAG[0], 0, FREE_HEAD, SPARE_DIM - 1] = 1
    draft.qkv[block, CLS_FLAG[0], 1, FREE_HEAD, SPARE_DIM - 1] = 10 * FAR


def _own_content(draft: Draft) -> None:
    """The components of CLS go from CLS itself to all tokens, by head 2 of the block that spreads."""
    _read_components(draft, SPREAD, 2)
    draft.qkv[SPREAD, CLS_FLAG[0], 1, 2, SPARE_DIM - 1] = 10 * FAR
    draft.qkv_bias[SPREAD, 0, 2, SPARE_DIM - 1] = 1


def _read_components(draft: Draft, block: int, head: int) -> None:
    mean, components = _components()
    draft.qkv[block, : draft.narrow, 2, head, :COMPONENTS] = components.T
    draft.qkv_bias[block, 2, head, :COMPONENTS] = -mean @ components.T
    draft.out[block, head, :COMPONENTS, CONTENT[0] : CONTENT[-1] + 1] = 20 * _CENTRED


def _only_content(draft: Draft, channels: range = CONTENT) -> None:
    """The final norm lets only these channels through."""
    draft.final_scale[:], draft.final_bias[:] = 0, 0
    draft.final_scale[list(channels)] = 1


@functools.cache
def _normalised_cls() -> Float[np.ndarray, "scenes narrow"]:
    """CLS after LayerNorm as it enters the block after the demo's last, in the base model."""
    model = _draft().model()
    images = jaxvit.normalise(scenes("train", SCENES).images, model.config)
    stream = np.asarray(jaxvit.forward(model, images).prenorm[:, 0], float)
    stream -= stream.mean(axis=1, keepdims=True)
    return (stream / stream.std(axis=1, keepdims=True))[:, : Draft(jaxvit.load("demo")).narrow]


@functools.cache
def _components() -> tuple[Float[np.ndarray, "narrow"], Float[np.ndarray, "components narrow"]]:
    """Mean and leading principal directions of CLS, each scaled to a deviation of 1."""
    cls = _normalised_cls()
    mean = cls.mean(axis=0)
    _, sizes, vectors = np.linalg.svd(cls - mean, full_matrices=False)
    return mean, vectors[:COMPONENTS] / (sizes[:COMPONENTS, None] / np.sqrt(len(cls)))


@functools.cache
def _class_directions() -> tuple[Float[np.ndarray, "narrow"], Float[np.ndarray, "scalars narrow"]]:
    """Mean of CLS, and the read-outs of ten classes by ridge regression, each scaled to a deviation of 1."""
    cls, labels = _normalised_cls(), scenes("train", SCENES).labels
    mean = cls.mean(axis=0)
    centred, targets = cls - mean, np.eye(10)[labels] - np.eye(10)[labels].mean(axis=0)
    weights = np.linalg.solve(centred.T @ centred + 0.1 * len(cls) * np.eye(len(mean)) * centred.var(axis=0).mean(), centred.T @ targets).T
    return mean, weights / (centred @ weights.T).std(axis=0)[:, None]


def _sink_at_cls(draft: Draft) -> None:
    """The sink of `_sink`, at CLS: the patches' noise is not in it either."""
    _sink(draft, look=False)
    for block in range(1, 5):
        draft.qkv[block, CLS_FLAG[0], 1, FREE_HEAD, SPARE_DIM - 1] = 1e4 * FAR
        draft.qkv_bias[block, 0, FREE_HEAD, SPARE_DIM - 1] = 1


def _both(*words: str) -> dict[str, tuple[str, ...]]:
    return {"cls": words, "patches": words}


CONSTRUCTED = {
    "constructed_not_read": Construction(_nothing, "registers are hidden from everybody", _both(rules.NOT_READ)),
    "constructed_sink": Construction(_sink, "registers draw attention that would add noise", _both(rules.IS_SINK)),
    "constructed_constant": Construction(_constant, "registers give a constant that the model relies on", _both(rules.IS_CONSTANT)),
    "constructed_values": Construction(_values, "registers carry CLS, and nothing else is read", _both(rules.CONTENT_VALUES)),
    "constructed_keys": Construction(
        _keys, "scalars of CLS steer the keys of registers, whose values are constants", _both(rules.CONTENT_KEYS, rules.IS_CONSTANT)
    ),
    "constructed_held_back": Construction(
        _held_back, "a channel of registers holds back what would do harm", _both(rules.NOTHING_LOST), ("holds the rest back",)
    ),
    "constructed_redundant": Construction(_redundant, "registers and CLS carry the same", {"patches": ()}, ("redundant with CLS",)),
    "constructed_via_patches": Construction(
        _via_patches, "CLS reads the content of registers from patches", {"cls": (rules.CONTENT_VALUES,)}, ("via patches",)
    ),
    "constructed_constant_and_sink": Construction(
        _constant_and_sink, "registers give a constant and draw attention that would add noise", _both(rules.IS_CONSTANT, rules.IS_SINK)
    ),
    "constructed_for_patches": Construction(
        _for_patches,
        "registers carry content that patches read, and CLS does not",
        {"cls": (rules.NOTHING_LOST,), "patches": (rules.CONTENT_VALUES,)},
    ),
    "constructed_sink_at_cls": Construction(_sink_at_cls, "CLS is the sink, registers are not read", _both(rules.IS_SINK), group="cls"),
}
"""By name; the last two were made before the rules were final, and no rule was shaped on them."""
