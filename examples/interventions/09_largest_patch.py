"""The patch with the largest norm, another one in every image, is zeroed from block 3 on; so is a random one, for comparison."""

import jax.numpy as jnp

import jaxvit
from experiments.datasets.scenes import scenes

model = jaxvit.load("demo")  # without registers, where outliers are expected among the patches
images = jaxvit.normalise(scenes("test", 8).images, model.config)
clean = jaxvit.forward(model, images)
prefix = clean.layout.prefix  # positions before the first patch: CLS alone
largest = prefix + jnp.linalg.norm(clean.prenorm[:, prefix:], axis=-1).argmax(axis=-1, keepdims=True)  # a position in every image
edits = {"largest": jaxvit.zero(jaxvit.Positions("p"), layers="3-5"), "random": jaxvit.zero(jaxvit.random_patches(1), layers="3-5")}
for name, ablation in edits.items():
    given = {"p": largest} if name == "largest" else None
    out = jaxvit.forward(model, images, ablation, example_ids=jnp.arange(8), given=given)
    print(f"{name}: CLS moves by {float(jnp.linalg.norm(out.cls - clean.cls, axis=-1).mean()):.3f}")
