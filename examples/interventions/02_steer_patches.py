"""A direction is added to all patches at block 4: patches hold it at once, CLS reads it from them in block 5."""

import jax.numpy as jnp

import jaxvit
from experiments.datasets.scenes import scenes

model = jaxvit.load("demo_reg")
images = jaxvit.normalise(scenes("test", 8).images, model.config)
clean = jaxvit.forward(model, images, capture="block_output")  # captured: [blocks, images, tokens, width]
direction = clean.captured["block_output"][4, 0, 0] - clean.captured["block_output"][4, 1, 0]  # from CLS of image 1 to that of image 0
steering = jaxvit.add("patches", direction, strength=0.5, layers=4)
steered = jaxvit.forward(model, images, steering, capture="block_output")
change = jnp.linalg.norm(steered.captured["block_output"] - clean.captured["block_output"], axis=-1).mean(axis=1)  # [blocks, tokens]
for block in (3, 4, 5):
    print(f"block {block}: CLS moves by {float(change[block, 0]):.2f}, patches by {float(change[block, clean.layout.prefix :].mean()):.2f}")
