"""The memory of the retrieval segmentation."""

from __future__ import annotations

import numpy as np

from experiments.tasks.segmentation import draw_memory


def test_the_memory_is_drawn_from_usable_patches_with_the_seed():
    usable = np.arange(50) % 2 == 0
    memory = draw_memory(usable, 10, 0)
    assert len(set(memory)) == 10
    assert usable[memory].all()
    assert (draw_memory(usable, 10, 0) == memory).all()
    assert (draw_memory(usable, 10, 1) != memory).any()
    assert len(draw_memory(usable, 99, 0)) == 25
