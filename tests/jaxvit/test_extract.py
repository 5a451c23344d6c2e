"""Extraction from many images: what a loop over single images gives, whatever the batches, and only what was asked for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxvit
from jaxvit.batching import GROUP, group_order
from jaxvit.extract import run_batch
from jaxvit.vit import cast
from tests.jaxvit import tiny

COUNT = 21
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, *tiny.SIZE, 3), np.uint8)
FORMS = {
    "an array": lambda: PIXELS,
    "batches of any lengths": lambda: (part for part in np.split(PIXELS, [1, 12, 12, 20])),
    "images one by one": lambda: list(PIXELS),
}


def one_by_one(ablation=None, ids=tuple(range(COUNT)), **more):
    """Outputs of single images, put together by hand."""
    runs = [
        jaxvit.forward(tiny.model(), jaxvit.normalise(image[None], tiny.CONFIG), ablation, example_ids=np.array([number]), **more)
        for image, number in zip(PIXELS, ids, strict=True)
    ]
    captured = {name: np.concatenate([run.captured[name] for run in runs], axis=1) for name in runs[0].captured}
    return np.concatenate([run.tokens for run in runs]), captured


@pytest.mark.parametrize("form", FORMS)
def test_it_gives_what_a_loop_over_images_gives(form):
    ids = np.arange(COUNT) * 3 + 7
    ablation = jaxvit.noise("registers", tiny.statistics(), seed=3)
    tokens, captured = one_by_one(ablation, ids, capture=("cls", "attention_flow"))
    out = jaxvit.extract(tiny.model(), FORMS[form](), ablation, 4, ("cls", "attention_flow"), example_ids=ids)
    np.testing.assert_allclose(out.tokens, tokens, atol=5e-6)
    np.testing.assert_allclose(out.captured["cls"], captured["cls"], atol=5e-6)
    np.testing.assert_allclose(out.captured["attention_flow"], captured["attention_flow"], atol=5e-6)
    assert out.captured["cls"].shape == (tiny.CONFIG.depth, COUNT, tiny.CONFIG.width)
    np.testing.assert_array_equal(out.cls, out.tokens[:, 0])
    np.testing.assert_array_equal(out.registers, out.tokens[:, 1:3])
    np.testing.assert_array_equal(out.patches, out.tokens[:, 3:])
    assert all(type(array) is np.ndarray for array in (out.tokens, out.cls, out.patches, out.captured["cls"]))


def test_all_batches_share_one_program():
    before = run_batch._cache_size()
    for _ in range(2):
        jaxvit.extract(tiny.model(), PIXELS, jaxvit.zero("cls"), 5, keep=["cls", "prenorm"])
    assert run_batch._cache_size() == before + 1


def rows_and_norms(model, output):
    """As a user writes it: something of each image, and a capture reduced."""
    return {"norms": jnp.linalg.norm(output.patches, axis=-1)}, {"longest": output.captured["block_output"].max(axis=(2, 3))}


def test_what_is_not_asked_for_is_not_there():
    out = jaxvit.extract(tiny.model(), PIXELS, batch_size=8, keep="patch_mean")
    tokens, captured = one_by_one(capture="block_output")
    np.testing.assert_allclose(out.patch_mean, tokens[:, 3:].mean(axis=1), atol=5e-6)
    assert set(out.arrays) == {"patch_mean"}
    with pytest.raises(ValueError, match=r'"cls" was not kept, only patch_mean; extract with keep=\("cls",\)'):
        _ = out.cls
    out = jaxvit.extract(tiny.model(), PIXELS, None, 8, "block_output", rows_and_norms)
    np.testing.assert_allclose(out.arrays["norms"], np.linalg.norm(tokens[:, 3:], axis=-1), rtol=1e-5)
    np.testing.assert_allclose(out.captured["longest"], captured["block_output"].max(axis=(2, 3)), atol=5e-6)
    assert set(out.captured) == {"longest"}


@pytest.mark.parametrize(("form", "leading"), [(form, leading) for form in ("an array", "images one by one") for leading in (0, 5, 100)])
def test_of_some_only_the_leading_images_are_kept(form, leading):
    out = jaxvit.extract(tiny.model(), FORMS[form](), batch_size=4, keep=("cls", "patches"), leading={"patches": leading})
    full = jaxvit.extract(tiny.model(), PIXELS, batch_size=4, keep=("cls", "patches"))
    np.testing.assert_array_equal(out.cls, full.cls)
    np.testing.assert_array_equal(out.patches, full.patches[:leading])


@pytest.mark.parametrize("form", FORMS)
def test_a_shuffle_takes_its_donors_from_groups_over_all_images(form):
    ablation = jaxvit.zero("cls", at="block_input", layers=[1]) & jaxvit.shuffle("registers", seed=3)
    out = jaxvit.extract(tiny.model(), FORMS[form](), ablation, 5)
    for group in group_order(COUNT, 3).reshape(-1, GROUP):
        members = group[group >= 0]
        alone = jaxvit.forward(tiny.model(), jaxvit.normalise(PIXELS[members], tiny.CONFIG), ablation, example_ids=members)
        np.testing.assert_allclose(out.tokens[members], alone.tokens, atol=1e-5)


def test_batches_are_prepared_while_others_run():
    """And progress is told: when the first results are there, `ahead` more batches have been read."""
    read, seen = [], []

    def images():
        for start in range(0, 20, 4):
            read.append(start)
            yield PIXELS[start : start + 4]

    jaxvit.extract(tiny.model(), images(), batch_size=4, keep="cls", ahead=2, progress=lambda done, total: seen.append((done, len(read))))
    assert seen == [(4, 3), (8, 4), (12, 5), (16, 5), (20, 5)]
    jaxvit.extract(tiny.model(), PIXELS, batch_size=8, keep="cls", progress=lambda *now: seen.append(now))
    assert seen[5:] == [(8, COUNT), (16, COUNT), (COUNT, COUNT)]


def test_bfloat16_arrives_as_float32():
    out = jaxvit.extract(cast(tiny.model(), jnp.bfloat16), PIXELS, batch_size=8, capture="cls")
    assert out.tokens.dtype == out.captured["cls"].dtype == np.float32


def test_a_model_on_a_mesh_runs_there():
    mesh = jaxvit.sharding.batch_mesh(jax.devices())
    assert jaxvit.sharding.mesh_of(jaxvit.sharding.replicate(tiny.model(), mesh)) == mesh
    assert jaxvit.sharding.mesh_of(tiny.model()).devices.tolist() == jax.devices()[:1]


def no_images_left(model, output):
    return {"mean": output.cls.mean(axis=0)}, {}


def layer_mean(state):
    return state.stream_out.mean(axis=(0, 1))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"images": PIXELS / 255}, "uint8 in 0..255"),
        ({"images": PIXELS.transpose(0, 3, 1, 2)}, r"images.transpose\(0, 2, 3, 1\)"),
        ({"images": PIXELS[0]}, r"images\[None\]"),
        ({"images": PIXELS[..., :1]}, "repeat"),
        ({"images": PIXELS[:0]}, "there are no images"),
        ({"images": iter(())}, "there are no images"),
        ({"images": "folder"}, "images is a str"),
        ({"images": 3}, "images is a int"),
        ({"images": [(PIXELS, None)]}, "images for images, labels in batches"),
        ({"images": [PIXELS, PIXELS[:, :8]]}, "changed from 16x12 to 8x12"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"ahead": 0}, "ahead is 0"),
        ({"keep": "norms"}, "nothing to keep"),
        ({"keep": no_images_left}, "keep an axis of images"),
        ({"capture": {"mean": layer_mean}}, "keep an axis of images"),
        ({"example_ids": np.arange(3)}, "21 images"),
        ({"images": list(PIXELS), "example_ids": np.arange(30)}, "30 numbers, and there were 21"),
        ({"images": list(PIXELS), "example_ids": np.arange(3)}, "at least 8 images"),
        ({"images": PIXELS[:1], "ablation": jaxvit.shuffle("cls")}, "at least 2 images"),
        ({"ablation": jaxvit.lower(jaxvit.shuffle("cls"), tiny.CONFIG, tiny.SIZE)}, "pass the ablation"),
    ],
)
def test_bad_input_says_what_is_wrong_in_one_line(change, says):
    with pytest.raises(ValueError, match=says) as error:
        jaxvit.extract(**({"model": tiny.model(), "images": PIXELS, "batch_size": 8} | change))
    assert "\n" not in str(error.value)


def test_given_arrays_go_with_their_images():
    """In batches of 3 with padding, per layer and not, also where the number of images is not known."""
    model, pixels = tiny.model(), np.random.default_rng(0).integers(0, 256, (7, *tiny.SIZE, 3), np.uint8)
    donor = np.random.default_rng(1).normal(size=(3, 7, 2, 24)).astype(np.float32)
    numbers = np.arange(7)[:, None] % 3
    ablation = jaxvit.patch("registers", "donor") & jaxvit.cut("patches", jaxvit.Positions("sink"), mass="lost")
    given = {"donor": jaxvit.per_layer(donor), "sink": numbers}
    want = jaxvit.forward(model, jaxvit.normalise(pixels, model.config), ablation, given=given).tokens
    for images in (pixels, iter([pixels[:2], pixels[2:]])):
        np.testing.assert_allclose(jaxvit.extract(model, images, ablation, 3, given=given).tokens, want, atol=2e-6)
    with pytest.raises(ValueError, match="7 images, and there were 5"):
        jaxvit.extract(model, iter([pixels[:5]]), ablation, 3, given=given)
