"""Registers at half their length after every block: how far do CLS and patches turn away from the clean run?"""

import jax.numpy as jnp

import jaxvit
from experiments.datasets.scenes import scenes

model = jaxvit.load("demo_reg_read")  # trained so that its registers are read
images = jaxvit.normalise(scenes("test", 8).images, model.config)
clean = jaxvit.forward(model, images)
halved = jaxvit.forward(model, images, jaxvit.scale("registers", 0.5))
for name in ("cls", "patches"):
    a, b = getattr(clean, name), getattr(halved, name)  # [images, width] and [images, patches, width]
    cosine = (a * b).sum(-1) / jnp.linalg.norm(a, axis=-1) / jnp.linalg.norm(b, axis=-1)
    print(f"{name}: cosine to the clean run {float(cosine.mean()):.3f}")
