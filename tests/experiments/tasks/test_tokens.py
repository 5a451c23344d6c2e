"""The tokens that read-outs of images read."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from experiments.tasks.tokens import has_labels, labelled_parts, select_tokens, token_features
from tests.experiments.tasks.hand_made import make_features


def test_features_that_probes_read_are_the_tokens_they_name():
    part = make_features()
    tokens = token_features(part)
    assert list(tokens) == ["cls", "patch_mean", "register_mean", "r1", "r2", "cls+patch_mean", "cls+registers"]
    np.testing.assert_array_equal(tokens["r2"], part.registers[:, 1])
    np.testing.assert_allclose(tokens["register_mean"], part.registers.mean(axis=1))
    np.testing.assert_array_equal(tokens["cls+patch_mean"], np.hstack([part.cls, part.patches.mean(axis=1)]))
    np.testing.assert_array_equal(tokens["cls+registers"], np.hstack([part.cls, part.registers[:, 0], part.registers[:, 1]]))
    assert list(token_features(make_features(registers=0))) == ["cls", "patch_mean", "cls+patch_mean"]
    assert list(token_features(part, ("registers",))) == ["r1", "r2"]


def test_tokens_of_one_block_are_selected_as_those_of_features_are():
    part = make_features()
    captured = {"cls": part.cls, "patch_mean": part.patch_mean, "registers": part.registers}
    of_block, of_features = select_tokens(captured, ("cls", "registers", "register_mean")), token_features(part)
    assert list(of_block) == ["cls", "r1", "r2", "register_mean"]
    for name, array in of_block.items():
        np.testing.assert_array_equal(array, of_features[name])


@pytest.mark.parametrize("labels", [{}, {"train": np.arange(3)}])
def test_tasks_on_classes_need_labels_and_read_all_three_parts(labels):
    data = SimpleNamespace(labels=labels)
    assert has_labels(data) == bool(labels)
    assert labelled_parts(data) == ("train", "val", "test")
