"""The ten short scripts of interventions run, print something, are short, and do what they say: checked by other means than their own."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxvit

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "interventions"
SCRIPTS = sorted(FOLDER.glob("*.py"))
BLOCKS, CLS, REGISTERS = 6, 0, slice(1, 5)
Names = dict[str, Any]


def close(measured: Any, expected: Any, relative: float = 1e-4) -> None:
    """Equal, up to a share of the largest expected number."""
    expected = np.asarray(expected)
    np.testing.assert_allclose(np.asarray(measured), expected, rtol=relative, atol=relative * np.abs(expected).max())


def numbers(line: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+\.\d+", line)]


def scale_registers(names: Names, lines: list[str]) -> None:
    """Each block's registers are half of what the block makes of the stream that the edited run gives it."""
    model, images = names["model"], names["images"]
    edited = jaxvit.forward(model, images, jaxvit.scale("registers", 0.5), capture="block_output").captured["block_output"]
    expected = np.asarray(jaxvit.resume(model, edited[4], image_size=64, start=5).prenorm).copy()
    expected[:, REGISTERS] /= 2
    close(names["halved"].prenorm, expected)
    assert len(lines) == 2


def steer_patches(names: Names, lines: list[str]) -> None:
    """At block 4 every patch has moved by half the direction, and nothing else has; CLS follows in block 5."""
    moved = np.asarray(names["steered"].captured["block_output"] - names["clean"].captured["block_output"])
    assert not moved[:4].any()
    assert not moved[4, :, :5].any()
    close(moved[4, :, 5:], np.broadcast_to(names["direction"] / 2, moved[4, :, 5:].shape))
    assert moved[5, :, CLS].any(axis=-1).all()
    assert [numbers(line)[0] > 0 for line in lines] == [False, False, True]


def cut_cls(names: Names, lines: list[str]) -> None:
    """No attention of CLS goes to registers in blocks 2 to 5; as much as before in blocks 0 and 1; nobody else is cut."""
    flow = np.asarray(names["flow"])
    assert not flow[2:, CLS, REGISTERS].any()
    assert (flow[:, REGISTERS, REGISTERS].sum(axis=-1) > 0).all()
    close(flow.sum(axis=-1), np.ones((BLOCKS, 6)))
    clean, cut = (numbers(line) for line in lines)
    assert clean[:2] == cut[:2]
    assert min(clean) > 0.5
    assert cut[2:] == [0.0] * 4


def zero_a_value(names: Names, lines: list[str]) -> None:
    """What head 2 reads lacks exactly its attention to register 2 times the value there; the other heads read the same."""
    captures = {"attention": "attention", "value": lambda state: state.trace.value}
    captured = jaxvit.forward(names["model"], names["images"], capture=captures).captured
    weight, value = captured["attention"][3, :, 2, :, 3], captured["value"][3, :, 3, 2]  # [images, queries], [images, head width]
    lost = np.asarray(names["clean"] - names["edited"])
    assert not lost[:, :, :2].any()
    close(lost[:, :, 2], weight[:, :, None] * value[:, None])


def zero_a_channel(names: Names, lines: list[str]) -> None:
    """Registers after block 4 differ in that channel of register 2 alone, which is 0; no channel is larger on average."""
    clean, edited = (np.asarray(names[name].captured["registers"][4]) for name in ("clean", "edited"))
    channel = names["channel"]
    assert np.argwhere((clean != edited).any(axis=0)).tolist() == [[2, channel]]
    assert not edited[:, 2, channel].any()
    assert channel == np.abs(clean[:, 2]).sum(axis=0).argmax()


def registers_of_another_image(names: Names, lines: list[str]) -> None:
    """Only A changes, to what the rest of the run makes of its stream with B's registers put in by hand."""
    model, images, patched = names["model"], names["images"], names["patched"]
    stream = np.asarray(jaxvit.forward(model, images, capture="block_output").captured["block_output"][4]).copy()
    close(patched.tokens[1:], names["clean"].tokens[1:], 1e-6)
    stream[0, REGISTERS] = stream[1, REGISTERS]
    close(patched.tokens, jaxvit.resume(model, stream, image_size=64, start=5).tokens)
    before, after = (numbers(line)[0] for line in lines)
    assert after < before


def freeze_attention(names: Names, lines: list[str]) -> None:
    """Frozen, all maps equal the clean ones, and what is read does not."""

    def gaps(clean: Any, ablated: Any) -> Any:
        return abs(clean.attention - ablated.attention).max(), abs(clean.trace.head_output - ablated.trace.head_output).max()

    attention, read = jaxvit.contrast(names["model"], names["images"], names["ablation"], capture={"gaps": gaps}).captured["gaps"]
    assert not np.asarray(attention).any()
    assert np.asarray(read).min() > 0
    free, frozen = (numbers(line) for line in lines)
    assert frozen[0] == 0 < free[0]
    assert frozen[1] > 0


def attribution(names: Names, lines: list[str]) -> None:
    """In the last block CLS alone counts, by the derivative of LayerNorm and probe along (mean - CLS), here in float64."""
    model, probe, labels = names["model"], names["probe"], names["test"].labels
    captured = jaxvit.forward(model, names["images"][1], capture="cls").captured["cls"]
    x = np.asarray(captured[-1], np.float64)
    train = np.asarray(jaxvit.extract(model, names["train"].images, keep="prenorm").prenorm, np.float64)
    step = train[:, CLS].mean(axis=0) - x

    def centred(rows: Any) -> Any:
        return rows - rows.mean(axis=-1, keepdims=True)

    spread = np.sqrt((centred(x) ** 2).mean(axis=-1, keepdims=True) + model.config.norm_eps)
    slope = (centred(step) - centred(x) * (centred(x) * step).mean(axis=-1, keepdims=True) / spread**2) / spread
    weights = (np.asarray(probe.weights, np.float64) / np.asarray(probe.scale, np.float64)[:, None])[:, labels].T
    expected = (slope * np.asarray(model.norm.scale[...], np.float64) * weights).sum(axis=-1)
    effects = np.asarray(names["effects"])
    close(effects[-1, :, CLS], expected, 1e-3)
    assert not effects[-1, :, 1:].any()
    assert len(lines) == BLOCKS


def largest_patch(names: Names, lines: list[str]) -> None:
    """From block 3 on one token is zero in every image: the patch that NumPy finds to be the longest; another one in another image."""
    prenorm = np.asarray(names["clean"].prenorm)
    expected = 1 + (prenorm[:, 1:] ** 2).sum(axis=-1).argmax(axis=-1)
    assert len(set(expected.tolist())) > 1
    edit, given = names["edits"]["largest"], {"p": names["largest"]}
    stream = jaxvit.forward(names["model"], names["images"], edit, given=given, capture="block_output").captured["block_output"]
    zero = ~np.asarray(stream).any(axis=-1)  # [blocks, images, tokens]
    assert not zero[:3].any()
    assert (zero[3:] == (np.arange(65) == expected[:, None])).all()
    assert all(numbers(line)[0] > 0 for line in lines)


def own_function(names: Names, lines: list[str]) -> None:
    """39 of 384 neurons fire in every token of the last two blocks, in the first of them those that are the largest of the clean run."""
    capture = {"neurons": lambda state: state.trace.mlp_hidden}
    clean = np.asarray(jaxvit.forward(names["model"], names["images"], capture=capture).captured["neurons"])
    sparse = np.asarray(names["out"].captured["neurons"])
    close(sparse[:4], clean[:4], 1e-6)
    assert ((sparse[4:] != 0).sum(axis=-1) == 39).all()
    order = np.argsort(-np.abs(clean[4]), axis=-1)
    close(np.take_along_axis(sparse[4], order[..., :39], -1), np.take_along_axis(clean[4], order[..., :39], -1), 1e-6)
    assert not np.take_along_axis(sparse[4], order[..., 39:], -1).any()


CHECKS: tuple[Callable[[Names, list[str]], None], ...] = (
    scale_registers,
    steer_patches,
    cut_cls,
    zero_a_value,
    zero_a_channel,
    registers_of_another_image,
    freeze_attention,
    attribution,
    largest_patch,
    own_function,
)


@pytest.mark.parametrize(("script", "check"), list(zip(SCRIPTS, CHECKS, strict=True)), ids=[script.stem for script in SCRIPTS])
def test_a_script_does_what_it_says(script, check, capsys):
    names = runpy.run_path(str(script), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert "nan" not in " ".join(lines)
    check(names, lines)


def test_scripts_are_short_and_say_in_a_line_what_they_show():
    for script in SCRIPTS:
        lines = [line for line in script.read_text().splitlines() if line.strip()]
        assert len(lines) <= 15, script.name
        assert re.fullmatch(r'""".+"""', lines[0]), script.name
