"""The backbone in training: who attends to whom, and which views run together."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from experiments.pretrain import backbone
from jaxvit.forward import forward
from jaxvit.vit import create, truncated
from tests.draws import normal
from tests.experiments.pretrain.tiny_training import TINY


def test_tokens_are_those_of_the_model() -> None:
    model = create(TINY)
    images = normal(0, 3, 64, 64, 3)
    tokens, run = backbone.encode(model, images), forward(model, images)
    np.testing.assert_allclose(tokens.cls, run.cls, atol=1e-5)
    np.testing.assert_allclose(tokens.patches, run.patches, atol=1e-5)


def test_registers_attend_to_hidden_keys_and_nothing_else_does() -> None:
    """With every patch key hidden in the one block there is, CLS and patches depend on no other patch, the register on all."""
    model = truncated(create(TINY), 1)
    images = normal(0, 2, 1, 64, 64, 3)
    masks = backbone.StudentMasks(jnp.zeros((2, 1, 64), bool), jnp.ones((2, 1, 64), bool))
    changed = images.at[..., :8, :8, :].add(1.0)  # the first patch
    before, after = (backbone.encode(model, x, masks, jnp.zeros(16)) for x in (images, changed))
    np.testing.assert_array_equal(before.cls, after.cls)
    np.testing.assert_array_equal(before.patches[..., 1:, :], after.patches[..., 1:, :])
    assert (before.patches[..., 0, :] != after.patches[..., 0, :]).any()
    attends = backbone.attention_mask(masks.hidden_keys, 1)
    assert attends[:, 1].all()
    assert attends[:, :, :2].all()
    assert not attends[:, 0, 2:].any()
    assert not attends[:, 2:, 2:].any()
    plain = [backbone.encode(model, x).cls for x in (images, changed)]
    assert (plain[0] != plain[1]).any()


def test_with_no_key_hidden_a_view_in_a_group_of_its_own_runs_as_without_masks() -> None:
    model = create(TINY)
    images = normal(0, 2, 1, 64, 64, 3)
    nothing = backbone.StudentMasks(jnp.zeros((2, 1, 64), bool), jnp.zeros((2, 1, 64), bool))
    assert backbone.attention_mask(nothing.hidden_keys, 1).all()
    for masked, plain in zip(backbone.encode(model, images, nothing), backbone.encode(model, images), strict=True):
        np.testing.assert_allclose(masked, plain, atol=1e-5)


def test_foreign_keys_are_those_of_the_other_view() -> None:
    """In one block, CLS and patches of a view depend on its own patch only through itself, and on the other view's patches but for those
    whose keys are hidden; registers attend to their own view."""
    model = truncated(create(TINY), 1)
    images = normal(0, 2, 64, 64, 3)
    hidden_keys = jnp.zeros((2, 64), bool).at[:, 1].set(True)
    masks = backbone.StudentMasks(jnp.zeros((2, 64), bool), hidden_keys)

    def changes(patch: int) -> tuple[np.ndarray, np.ndarray]:
        """Which of the two views' CLS, and which patches, change with a patch of the first view."""
        changed = images.at[0, :8, 8 * patch : 8 * patch + 8].add(1.0)
        before, after = (backbone.encode(model, x, masks, jnp.zeros(16)) for x in (images, changed))
        return np.any(before.cls != after.cls, axis=-1), np.any(before.patches != after.patches, axis=-1)

    cls, patches = changes(0)
    np.testing.assert_array_equal(cls, [False, True])
    np.testing.assert_array_equal(patches[0], np.arange(64) == 0)
    assert patches[1].all()
    cls, patches = changes(1)  # its key is hidden
    assert not cls.any()
    assert not patches[1].any()
    attends = np.asarray(backbone.attention_mask(hidden_keys, 1))
    np.testing.assert_array_equal(attends[1], np.arange(132) < 66)  # the register of the first view
    assert attends.shape == (132, 132)


def test_views_are_paired_with_views_of_another_scene() -> None:
    scene = np.arange(24) // 2
    pairs = np.asarray(backbone.pair_views(jnp.asarray(scene)))
    assert pairs.shape == (12, 2)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    numbers = jnp.arange(48).reshape(24, 2)
    np.testing.assert_array_equal(backbone.unpair_views(backbone.pair_views(numbers)), numbers)
