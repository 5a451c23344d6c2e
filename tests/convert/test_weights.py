"""The released weights compute what they are known to compute: opt-in, `pytest -m weights`, for the models in the cache."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import jaxvit
from jaxvit.checkpoint import MANIFEST, load, read_manifest
from jaxvit.files import cache_folder

# CLS after the final norm for numpy.random.default_rng(42).normal(size=(3, side, side)) as normalised pixels: side, its first
# values, its length and the tolerance of the mean absolute error. DINOv3's is with periods in float32, as Hugging Face computes them.
GOLDEN = {
    "dinov2_vits14_reg": (518, (-2.380116, 0.011023, 1.852833, 2.207930, 1.103537, 1.477733, -0.138565, -1.825045), 27.7297, 1e-5),
    "dinov3_vits16": (256, (0.105079, -0.088798, -0.651389, 0.021211, 0.248320, -0.357753, 0.222425, 0.240977), 10.2702, 1e-4),
}


@pytest.fixture
def released(request):
    """A function that returns a model from the cache by name, or skips the test where it is not there or not asked for."""
    if "weights" not in request.config.getoption("-m"):
        pytest.skip("released weights are tested on request: pytest -m weights")

    def get(name: str) -> jaxvit.ViT:
        if not (cache_folder() / name / MANIFEST).is_file():
            pytest.skip(f"{name} is not in the cache {cache_folder()}: python -m convert {name}")
        return load(name)

    return get


@pytest.mark.weights
@pytest.mark.parametrize("name", GOLDEN)
def test_cls_is_the_known_one(name, released, record_parity):
    model = released(name)
    side, start, length, tolerance = GOLDEN[name]
    if name == "dinov3_vits16" and read_manifest(cache_folder() / name)["oracle"] == "meta":
        pytest.skip("the known values are those of float32 periods: python -m convert dinov3_vits16 --oracle hf")
    pixels = np.random.default_rng(42).normal(size=(3, side, side)).astype(np.float32)
    with jax.default_matmul_precision("highest"):
        cls = np.asarray(jaxvit.forward(model, pixels.transpose(1, 2, 0)[None]).cls[0])
    error = float(np.abs(cls[: len(start)] - start).mean())
    record_parity(f"released {name}", f"{side}x{side} CLS, mean abs of {len(start)}", error, tolerance)
    assert error <= tolerance
    assert abs(np.linalg.norm(cls) - length) <= 20 * tolerance


@pytest.mark.weights
@pytest.mark.parametrize("name", jaxvit.MODELS)
def test_the_config_is_that_of_the_release(name, released):
    config = released(name).config
    expected = jaxvit.MODELS[name]
    free = ("position", "norm_eps", "untied_norm")  # the oracle's, and releases vary in the last
    assert {f: v for f, v in vars(config).items() if f not in free} == {f: v for f, v in vars(expected).items() if f not in free}
