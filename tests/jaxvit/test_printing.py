"""Results print in one line that says what they hold, whatever their leaves are."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import jaxvit
from tests.jaxvit import tiny

LINES = []


def both(state):
    return state.q[:, 0], state.k[:, 0]


def test_an_output_tells_its_tokens_and_captures():
    out = jaxvit.forward(tiny.model(), tiny.images(), capture=("cls", both))
    line = "Output(tokens [4, 15, 24]: cls, 2 registers, 4x3 patches; captured both ([3, 4, 3, 8], [3, 4, 3, 8]), cls [3, 4, 24])"
    assert repr(out) == line
    assert repr(jax.tree.map(np.asarray, out)) == line
    assert repr(jaxvit.forward(tiny.model(tiny.PLAIN), tiny.images())) == "Output(tokens [4, 13, 24]: cls, 4x3 patches)"


def test_traced_stacked_and_strange_leaves_print_too():
    edits = jaxvit.stack([jaxvit.zero("cls"), jaxvit.zero("registers")], tiny.model(), tiny.SIZE)

    def run(edits):
        out = jaxvit.forward(tiny.model(), tiny.images(), edits)
        LINES.append(repr(out))
        return out

    stacked = jax.vmap(run)(edits)
    assert LINES == ["Output(tokens [4, 15, 24]: cls, 2 registers, 4x3 patches)"]
    assert repr(stacked) == "Output(tokens [2, 4, 15, 24]: cls, 2 registers, 4x3 patches)"
    assert repr(jax.tree.map(lambda leaf: 0, stacked)) == "Output(tokens int: cls, 2 registers, 4x3 patches)"
    for value in (edits, tiny.model(), stacked):
        assert repr(jax.tree.map(lambda leaf: None, value)).count("\n") == 0
        assert repr(jax.eval_shape(lambda v: v, value)) == repr(value)


def test_a_pair_tells_both_runs():
    pair = jaxvit.contrast(tiny.model(), tiny.images(), jaxvit.zero("registers"), "patch_cosine")
    output = "Output(tokens [4, 15, 24]: cls, 2 registers, 4x3 patches)"
    assert repr(pair) == f"Pair(clean {output}, ablated {output}; captured patch_cosine [3, 4, 12])"


def test_edits_tell_what_they_do_where():
    layout = "cls, 2 registers, 4x3 patches"
    mixed = jaxvit.zero("cls") & jaxvit.shuffle("registers", at="value") & jaxvit.cut("cls", "registers")
    assert repr(jaxvit.lower(mixed, tiny.CONFIG, tiny.SIZE)) == f"Edits(shuffle at value; fixed at block_output; cuts: {layout})"
    assert repr(jaxvit.lower(jaxvit.Ablation(), tiny.CONFIG, tiny.SIZE)) == f"Edits(nothing: {layout})"
    for several in ([jaxvit.zero("cls")] * 3, [jaxvit.cut("cls", "registers")] * 3):
        assert repr(jaxvit.stack(several, tiny.CONFIG, tiny.SIZE)).startswith("Edits(3 conditions; ")


def test_models_moments_and_extractions_are_told_by_their_sizes():
    count = sum(leaf.size for leaf in jax.tree.leaves(tiny.model()))
    size = "width 24, 3 blocks of 3 heads, 2 registers, patches of 4 pixels"
    assert repr(tiny.model()) == str(tiny.model()) == f"ViT({size}; {count / 1000:.3g}k weights, float32)"
    assert repr(tiny.statistics()) == "Moments(block_output [3, 4, 24]: blocks, slots, width; over 8 images of 16x12)"
    out = jaxvit.extract(tiny.model(), np.zeros((5, *tiny.SIZE, 3), np.uint8), batch_size=8, keep=("cls", "patches"))
    assert repr(out) == "Extracted(5 images, cls [5, 24], patches [5, 12, 24]: cls, 2 registers, 4x3 patches)"


@pytest.mark.parametrize("name", ["metrics", "inference", "probes", "neighbours", "geometry", "sharding", "sites", "capture"])
def test_modules_are_found_by_their_names(name):
    assert name in dir(jaxvit)
    assert jaxvit.__getattr__(name).__name__ == f"jaxvit.{name}"
    assert "knn" in dir(jaxvit.probes)
    assert jaxvit.probes.__getattr__("knn").__name__ == "jaxvit.probes.knn"


def test_a_name_that_is_not_there_is_refused():
    with pytest.raises(AttributeError, match="no attribute 'metric'"):
        jaxvit.metric  # noqa: B018
