"""Controls that choose what a figure shows: its states as panels, of which `experiments/report/figures.js` shows the chosen one. Without
script the controls are not there and all panels stand below one another."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from experiments.plotting.escape import escaped

_ROOM = 50  # letters of options that stand side by side, with those that the space around a name takes; more are a list that opens


class Axis(NamedTuple):
    """One thing that a reader chooses: a model, an image, a block, a register.

    Attributes:
        name: of the control, as text.
        options: what can be chosen: a word without spaces that stands for it, and its name as text. An axis of one option has no control.
        chosen: the option at first; by default the first.
        slider: a slider over options that are whole numbers in equal steps, which have `name` before them.
        group: axes of one group move together, wherever they are on the page.
        icons: what stands before the name of an option, as HTML; nothing in a list.
    """

    name: str
    options: Mapping[str, str]
    chosen: str = ""
    slider: bool = False
    group: str = ""
    icons: Mapping[str, str] = {}

    @property
    def first(self) -> str:
        """The option that is chosen at first."""
        return self.chosen or next(iter(self.options))


def words(axes: Sequence[Axis], *options: str | None) -> str:
    """What a panel belongs to: an option of every axis, None for any."""
    return " ".join(option or "*" for axis, option in zip(axes, options, strict=True) if len(axis.options) > 1)


def view(axes: Sequence[Axis], *options: str | None) -> str:
    """The attribute of a panel that holds its `words`."""
    return f'data-view="{html.escape(words(axes, *options))}"'


def views(name: str, axes: Sequence[Axis], body: str) -> str:
    """A figure with its controls.

    Args:
        name: an id, one on the page.
        body: panels as HTML, each with its `view`.
    """
    controls = "".join(_control(f"{name}-{i}", axis) for i, axis in enumerate(axes) if len(axis.options) > 1)
    return f'<div class="views" id="{html.escape(name)}"><div class="controls">{controls}</div>{body}</div>'


OUTDATED = "computed by an earlier version (run the study again in its folder)"
"""Why a figure does not show a model whose cells hold other arrays."""


def not_shown(names: Sequence[str], why: str = "not computed") -> str:
    """A line that names models that a figure does not show; empty where there are none."""
    return f'<p class="note">Not shown, {why}: {", ".join(map(escaped, names))}.</p>' if names else ""


def _control(name: str, axis: Axis) -> str:
    group = f' data-group="{html.escape(axis.group)}"' if axis.group else ""
    name = html.escape(name)
    if axis.slider:
        numbers = list(map(int, axis.options))
        ends = f'min="{numbers[0]}" max="{numbers[-1]}" step="{numbers[1] - numbers[0]}" value="{axis.first}"'
        # a label is that of the first field in it, which is the output
        field = f'<input type="range" {ends} data-label="{html.escape(axis.name)}" aria-label="{html.escape(axis.name)}"{group}>'
        return f'<label class="slide"><output>{escaped(axis.name)} {axis.first}</output>{field}</label>'
    if sum(3 + len(text) for text in axis.options.values()) > _ROOM:
        options = "".join(
            f'<option value="{html.escape(word)}"{" selected" if word == axis.first else ""}>{escaped(text)}</option>'
            for word, text in axis.options.items()
        )
        return f"<label>{escaped(axis.name)} <select{group}>{options}</select></label>"
    radios = "".join(
        f'<label><input type="radio" name="{name}" value="{html.escape(word)}"{" checked" if word == axis.first else ""}>'
        f"{axis.icons.get(word, '')}{escaped(text)}</label>"
        for word, text in axis.options.items()
    )
    return f'<fieldset class="switch"{group}><legend>{escaped(axis.name)}</legend>{radios}</fieldset>'
