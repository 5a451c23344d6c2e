"""Image A's registers become image B's as they enter block 5, the last one: does A's CLS come closer to B's?"""

import jax.numpy as jnp

import jaxvit
from experiments.datasets.scenes import scenes

model = jaxvit.load("demo_reg_read")  # trained so that its registers are read
images = jaxvit.normalise(scenes("test", 8).images, model.config)
a, b = 0, 1
clean = jaxvit.forward(model, images, capture="registers")
own = clean.captured["registers"][4]  # [images, registers, width]: what leaves block 4 enters block 5
patch = jaxvit.patch("registers", "donor", layers=5, at="block_input")  # at its output nothing would read them any more
patched = jaxvit.forward(model, images, patch, given={"donor": own.at[a].set(own[b])})  # the other images keep their own
for name, out in (("before", clean), ("after", patched)):
    print(f"{name}: A's CLS is {float(jnp.linalg.norm(out.cls[a] - clean.cls[b])):.3f} away from B's")
