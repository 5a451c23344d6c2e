"""Runs over many images: groups of shuffles are drawn over all of them, and no number depends on how they are batched."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxvit
from experiments.features.extraction import Runner
from jaxvit.batching import GROUP, group_order
from jaxvit.sharding import batch_mesh
from tests.jaxvit import tiny


@given(st.integers(2, 200), st.integers(0, 2**32 - 1))
def test_every_image_is_in_one_group_with_others(count, seed):
    groups = group_order(count, seed).reshape(-1, GROUP)
    assert sorted(groups[groups >= 0]) == list(range(count))
    assert (groups >= 0).sum(axis=1).min() >= 2
    assert (group_order(count, seed) == groups.ravel()).all()


def test_one_image_has_nobody_to_exchange_with():
    with pytest.raises(ValueError, match="a shuffle needs at least 2 images, there are 1"):
        group_order(1, 0)


def test_images_that_stand_by_category_get_donors_of_any():
    """In batches of neighbours a fifth of the donors and more were of the same category; by chance it is 19 of 399."""
    category = np.arange(400) // 20
    groups = category[np.concatenate([group_order(400, seed) for seed in range(20)])].reshape(-1, GROUP)
    same = (groups[:, :, None] == groups[:, None]).sum() - groups.size
    assert abs(same / (groups.size * (GROUP - 1)) - 19 / 399) < 0.01


@pytest.mark.parametrize("same_donor", [False, True])
def test_a_shuffle_takes_its_donors_from_the_group_whatever_is_under_way(same_donor):
    images = np.random.default_rng(0).integers(0, 256, (21, *tiny.SIZE, 3), np.uint8)
    ablation = jaxvit.shuffle("registers", seed=3, same_donor=same_donor)
    few, many = (Runner.on(batch_mesh(), tiny.model(), n).extract(images, ablation, 100) for n in (1, 1000))
    for name in ("cls", "registers", "patch_mean", "patches"):
        np.testing.assert_array_equal(getattr(few, name), getattr(many, name))
    order = group_order(21, 3)
    for group in order.reshape(-1, GROUP):
        members = group[group >= 0]
        alone = jaxvit.forward(tiny.model(), jaxvit.normalise(images[members], tiny.CONFIG), ablation, example_ids=100 + members)
        np.testing.assert_allclose(alone.registers, few.registers[members], atol=1e-5)


def test_moments_are_those_of_one_batch():
    images = np.random.default_rng(0).integers(0, 256, (21, *tiny.SIZE, 3), np.uint8)
    ours = Runner.on(batch_mesh(), tiny.model(), 128).calibrate(images)
    whole = jaxvit.calibrate(tiny.model(), [(jaxvit.normalise(images, tiny.CONFIG), None)], ("block_output", "block_input"))
    for site in whole.mean:
        np.testing.assert_allclose(ours.mean[site], whole.mean[site], atol=1e-5)
        np.testing.assert_allclose(ours.variance[site], whole.variance[site], rtol=1e-4, atol=1e-5)
    assert ours.examples == whole.examples == 21
