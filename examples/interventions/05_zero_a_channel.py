"""The largest channel of register 2 after block 4 is zeroed: how much of that register, and of CLS after the next block, was it?"""

import jax.numpy as jnp

import jaxvit
from experiments.datasets.scenes import scenes

model = jaxvit.load("demo_reg_read")  # trained so that its registers are read
images = jaxvit.normalise(scenes("test", 8).images, model.config)
clean = jaxvit.forward(model, images, capture="registers")
register = clean.captured["registers"][4, :, 2]  # [images, width]
channel = int(jnp.abs(register).mean(axis=0).argmax())
edited = jaxvit.forward(model, images, jaxvit.zero("registers[2]", channels=[channel], layers=4), capture="registers")
share = (register[:, channel] ** 2).sum() / (register**2).sum()
print(f"channel {channel} has {float(share):.1%} of the register's squared norm ({1 / model.config.width:.1%} is an equal share)")
print(f"CLS moves by {float(jnp.linalg.norm(edited.cls - clean.cls) / jnp.linalg.norm(clean.cls)):.2%} of its norm")
