"""Position tables and RoPE against torch and Pillow-style closed forms."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxvit.position import resize_matrix, resize_table, rope_angles, rope_periods, rotate


@pytest.mark.parametrize("grid", [(5, 5), (7, 7), (3, 4), (37, 16), (14, 9), (2, 2)])
@pytest.mark.parametrize("rule", ["offset", "plain", "antialias"])
@pytest.mark.parametrize("side", [5, 14])
def test_resized_tables_are_torchs(rule, grid, side):
    table = np.random.default_rng(0).normal(size=(side, side, 6)).astype(np.float32)
    nchw = torch.from_numpy(table).permute(2, 0, 1)[None].double()
    if rule == "offset":
        scale = tuple((n + 0.1) / side for n in grid)
        want = torch.nn.functional.interpolate(nchw, scale_factor=scale, mode="bicubic", antialias=False)
    else:
        want = torch.nn.functional.interpolate(nchw, size=grid, mode="bicubic", antialias=rule == "antialias")
    want = want[0].permute(1, 2, 0).reshape(-1, 6)
    if grid == (side, side):
        want = torch.from_numpy(table).reshape(-1, 6)
    np.testing.assert_allclose(resize_table(jnp.asarray(table), grid, rule), want.numpy(), atol=2e-6)


def test_a_non_square_grid_with_as_many_patches_is_resized():
    table = jnp.asarray(np.random.default_rng(0).normal(size=(6, 6, 2)), jnp.float32)
    assert np.any(np.abs(resize_table(table, (4, 9), "plain") - table.reshape(36, 2)) > 0.1)


@pytest.mark.parametrize("rule", ["offset", "plain", "antialias"])
def test_weights_keep_a_constant_table_constant(rule):
    for source, target in ((37, 16), (5, 11), (14, 14)):
        np.testing.assert_allclose(resize_matrix(source, target, rule).sum(axis=1), 1, atol=1e-12)


def test_rotation_keeps_lengths_and_leaves_the_prefix():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3 + 6, 2, 8)), jnp.float32)
    turned = rotate(x, *rope_angles(jnp.asarray(rope_periods(8)), (2, 3)))
    np.testing.assert_array_equal(turned[:, :3], x[:, :3])
    np.testing.assert_allclose(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5)
    assert np.abs(turned[:, 3:] - x[:, 3:]).max() > 0.1
