"""Wrong calls are refused in one line that names the remedy, and what has a sensible reading is read so."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxvit
from jaxvit.forward import sweep_layers
from jaxvit.probes import few_shot, logistic, ridge
from tests.jaxvit import tiny

PIXELS = np.random.default_rng(0).integers(0, 256, (4, *tiny.SIZE, 3), np.uint8)
IMAGES = np.random.default_rng(1).normal(size=(4, *tiny.SIZE, 3)).astype(np.float32)
ZERO = jaxvit.zero("cls")
CUT = jaxvit.cut("cls", "registers")
WITH_NAN = np.where(np.arange(4)[:, None, None, None] == 2, np.nan, IMAGES)


@functools.cache
def stacked(*ablations):
    return jaxvit.stack(ablations or [ZERO, jaxvit.zero("registers"), CUT], tiny.CONFIG, tiny.SIZE)


def top(state):
    return state.stream_out.max(axis=(1, 2))


RUNS = {"forward": jaxvit.forward, "contrast": jaxvit.contrast, "sweep_layers": sweep_layers}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": tiny.CONFIG}, r"jaxvit.create\(config\)"),
        ({"model": "demo_reg"}, r'jaxvit.load\("demo_reg"\)'),
        ({"model": IMAGES, "images": None}, "a model comes first"),
        ({"images": torch.zeros(2, 16, 12, 3)}, r"images.detach\(\).cpu\(\).numpy\(\)"),
        ({"images": list(IMAGES)}, r"np.stack\(images\)"),
        ({"images": IMAGES.tolist()}, r"np.asarray\(images\)"),
        ({"images": IMAGES.transpose(0, 3, 1, 2)}, r"images.transpose\(0, 2, 3, 1\)"),
        ({"images": IMAGES[0]}, r"images\[None\]"),
        ({"images": IMAGES[:0]}, "at least one"),
        ({"images": PIXELS}, "jaxvit.normalise"),
        ({"images": PIXELS.astype(np.float32)}, "range from 0 to 255.*jaxvit.normalise"),
        ({"images": jnp.asarray(PIXELS.astype(np.float32))}, "range from 0 to 255"),
        ({"images": WITH_NAN}, "1 of 4 images, first in image 2; leave"),
        ({"images": WITH_NAN, "valid": [True, True, True, False]}, "first in image 2"),
        ({"ablation": "registers"}, r'jaxvit.zero\("registers"\)'),
        ({"ablation": [ZERO, ZERO]}, "a & b"),
        ({"ablation": jaxvit.zero}, "the function zero; call it"),
        ({"ablation": ("cls",)}, "pass an ablation"),
        (lambda: {"ablation": stacked()}, "3 conditions.*jax.vmap"),
        (lambda: {"ablation": stacked(CUT, CUT, CUT)}, "3 conditions.*jax.vmap"),
        ({"example_ids": np.arange(4.0)}, r"np.arange\(4\)"),
        ({"example_ids": list("abcd")}, "whole numbers"),
        ({"example_ids": [2**40, 0, 1, 2]}, "32 bits, got 1099511627776"),
        ({"groups": [0, 1]}, "one entry per image"),
        ({"valid": [0.5, 1, 1, 1]}, "True where an image is no padding"),
        ({"valid": np.arange(4)}, "True where an image is no padding"),
    ],
)
def test_what_runs_a_model_refuses_what_it_cannot_run(name, change, says):
    call = {"model": tiny.model(), "images": IMAGES, "ablation": ZERO}
    with pytest.raises(ValueError, match=says) as error:
        RUNS[name](**(call | (change() if callable(change) else change)))
    assert "\n" not in str(error.value)


def test_lists_are_read_as_arrays_and_functions_as_captures():
    model, shuffle = tiny.model(), jaxvit.shuffle("registers")
    want = jaxvit.forward(model, IMAGES, shuffle, "cls", np.arange(4), np.array([True] * 4), np.array([0, 0, 1, 1]))
    got = jaxvit.forward(model, IMAGES, shuffle, ["cls", top], range(4), [1, 1, 1, 1], [0, 0, 1, 1])
    np.testing.assert_array_equal(got.tokens, want.tokens)
    np.testing.assert_array_equal(got.captured["cls"], want.captured["cls"])
    alone = jaxvit.forward(model, IMAGES, capture=top).captured
    assert list(alone) == ["top"]
    assert alone["top"].shape == (tiny.CONFIG.depth, 4)
    edits = jaxvit.lower(ZERO, "dinov2_vits14_reg", [28, np.int64(42)])
    assert edits.layout == jaxvit.TokenLayout(4, 2, 3)
    np.testing.assert_array_equal(jaxvit.normalise(PIXELS, model), jaxvit.normalise(PIXELS, tiny.CONFIG))
    assert set(jaxvit.calibrate(model, [(IMAGES, [1, 1, 0, 1])], "mlp_output").mean) == {"mlp_output"}


def test_padding_may_hold_anything():
    out = jaxvit.forward(tiny.model(), WITH_NAN, valid=np.arange(4) != 2)
    np.testing.assert_allclose(out.cls[:2], jaxvit.forward(tiny.model(), IMAGES).cls[:2], atol=1e-6)


def test_a_transformed_call_has_no_values_to_look_at():
    run = jax.jit(lambda images, ids, valid: jaxvit.forward(tiny.model(), images, jaxvit.shuffle("cls"), (), ids, valid).cls)
    assert run(IMAGES, np.arange(4), np.ones(4, bool)).shape == (4, tiny.CONFIG.width)
    assert jax.vmap(lambda edits: jaxvit.forward(tiny.model(), IMAGES, edits).cls)(stacked()).shape == (3, 4, tiny.CONFIG.width)


SPLITS = 3 * (np.eye(4, 3, dtype=np.float32), np.array([0, 1, 0, 1]))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: jaxvit.contrast(tiny.model(), IMAGES, None), "ablation is None"),
        (lambda: jaxvit.forward(tiny.model(), IMAGES, capture=3), "capture is an int"),
        (lambda: jaxvit.forward(tiny.model(), IMAGES, capture={"a": 3}), 'capture "a" is an int'),
        (lambda: jaxvit.forward(tiny.model(), IMAGES, capture=[top, top]), 'two captures are called "top"'),
        (lambda: jaxvit.forward(tiny.model(), IMAGES, capture="mlp_output"), "lambda state: state.trace.mlp_output"),
        (lambda: jaxvit.forward(tiny.model(), IMAGES, capture="patch_cosine"), "contrast has it"),
        (lambda: jaxvit.lower("cls", tiny.model(), 16), r'jaxvit.zero\("registers"\)'),
        (lambda: jaxvit.lower(jaxvit.lower(ZERO, tiny.model(), 16), tiny.model(), 16), "lowered already"),
        (lambda: jaxvit.lower(tiny.model(), ZERO, 16), "ablation is a ViT"),
        (lambda: jaxvit.lower(ZERO, "dinov2", 16), "known are dino_vits16"),
        (lambda: jaxvit.lower(ZERO, None, 16), "where a model is expected"),
        (lambda: jaxvit.lower(ZERO, tiny.model(), 16.0), "image_size is 16.0"),
        (lambda: jaxvit.lower(ZERO, tiny.model(), IMAGES), r"images.shape\[1:3\]"),
        (lambda: jaxvit.lower(ZERO, tiny.model(), IMAGES.shape), "whole pixels"),
        (lambda: jaxvit.stack(ZERO, tiny.model(), 16), r"stack\(\[a, b\], model, image_size\)"),
        (lambda: jaxvit.stack("cls", tiny.model(), 16), "several ablations"),
        (lambda: jaxvit.stack([None], tiny.model(), 16), r"jaxvit.Ablation\(\) changes nothing"),
        (lambda: jaxvit.stack([stacked()], tiny.model(), tiny.SIZE), "3 conditions"),
        (lambda: jaxvit.calibrate(tiny.model(), IMAGES), r"\[\(images, None\)\]"),
        (lambda: jaxvit.calibrate(tiny.model(), (IMAGES, None)), "this is one batch"),
        (lambda: jaxvit.calibrate(tiny.model(), [IMAGES]), r"\(images, None\)"),
        (lambda: jaxvit.calibrate(tiny.CONFIG, [(IMAGES, None)]), r"jaxvit.create\(config\)"),
        (lambda: jaxvit.calibrate(tiny.model(), [(WITH_NAN, None)]), "first in image 2"),
        (lambda: jaxvit.calibrate(tiny.model(), [(IMAGES, np.arange(4))]), "no padding"),
        (lambda: jaxvit.normalise(torch.zeros(4, 4, 3), tiny.CONFIG), "torch tensor"),
        (lambda: jaxvit.normalise(list(PIXELS), tiny.CONFIG), r"np.stack\(images\)"),
        (lambda: jaxvit.normalise(PIXELS.transpose(0, 3, 1, 2), tiny.CONFIG), "transpose"),
        (lambda: jaxvit.normalise(PIXELS.astype(int), tiny.CONFIG), r"images.astype\(np.uint8\)"),
        (lambda: jaxvit.normalise(tiny.CONFIG, PIXELS), "images is a ViTConfig"),
        (lambda: jaxvit.create(tiny.model()), "model.config"),
        (lambda: jaxvit.create(tiny.CONFIG, 0.5), "seed is 0.5"),
        (lambda: jaxvit.load(tiny.model()), "a ViT stands where a path is expected"),
        (lambda: jaxvit.load(None), "None stands where a path is expected"),
        (lambda: jaxvit.save("folder", tiny.model()), r"jaxvit.save\(model, path\)"),
        (lambda: jaxvit.mean(tiny.statistics(), "cls"), "after the tokens"),
        (lambda: jaxvit.noise("cls", None), "statistics is None"),
        (lambda: jaxvit.zero(None), "None selects no token"),
        (lambda: jaxvit.zero(np.array([True, False])), r"np.flatnonzero\(mask\)"),
        (lambda: ZERO & "registers", 'the string "registers"'),
        (lambda: ridge.probe(*SPLITS, classes=2, lambdas=1.0), r"lambdas=\(1.0,\)"),
        (lambda: logistic.probe(*SPLITS, classes=2, cs=1.0), r"cs=\(1.0,\)"),
        (lambda: few_shot.few_shot(*SPLITS[:2], *SPLITS[4:], classes=2, shots=1), r"shots=\(1,\)"),
        (lambda: few_shot.few_shot(*SPLITS[:2], *SPLITS[4:], classes=2, seeds=0), r"seeds=\(0,\)"),
        (lambda: ridge.probe(torch.ones(4, 3), *SPLITS[1:], classes=2), r"train.detach\(\).cpu\(\).numpy\(\)"),
        (lambda: jaxvit.extract(tiny.model(), PIXELS, [ZERO]), "a & b"),
        (lambda: jaxvit.extract(tiny.model(), PIXELS, stacked()), "3 conditions"),
        (lambda: jaxvit.extract(tiny.CONFIG, PIXELS), r"jaxvit.create\(config\)"),
        (lambda: jaxvit.extract(tiny.model(), PIXELS, leading={"patches": 1}), 'leading names "patches"'),
        (lambda: jaxvit.extract(tiny.model(), PIXELS, leading={"tokens": -1}), "at least 0"),
        (lambda: jaxvit.with_registers(tiny.PLAIN, 1), r"jaxvit.create\(config\)"),
        (lambda: jaxvit.optimal(tiny.model(), IMAGES, "cls", top), "this is one batch"),
        (lambda: jaxvit.optimal(tiny.model(), [(IMAGES, None)], "cls", "cls"), "loss is the string"),
    ],
)
def test_bad_input_says_what_is_wrong_in_one_line(make, says):
    with pytest.raises(ValueError, match=says) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: jaxvit.shuffle("cls", seed="1"), "seed is '1'; use a whole number"),
        (lambda: jaxvit.shuffle("cls", seed=1.5), "seed is 1.5; use a whole number"),
        (lambda: jaxvit.random_patches("4"), "count is '4'; give an integer of at least 1"),
        (lambda: jaxvit.random_patches(2.5), "count is 2.5; give an integer of at least 1"),
        (lambda: jaxvit.Ablation([jaxvit.zero("cls")]), "made by constructors"),
        (lambda: jaxvit.constant("cls", "a"), "'a' is no array of numbers"),
        (lambda: jaxvit.constant("cls", [[1, 2], [3]]), "is no array of numbers"),
        (lambda: jaxvit.zero(True), "True selects no token"),
        (lambda: jaxvit.cut("cls", "registers", mass=True), "True selects no token"),
        (lambda: jaxvit.cut("cls", "registers", itself="no"), "itself is 'no'"),
    ],
)
def test_a_constructor_says_what_it_takes(make, says):
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        make()
    assert "\n" not in str(error.value)
