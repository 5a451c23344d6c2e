"""Values of register 2 are zeroed with attention free to follow, then frozen: the direct effect is what is left."""

import jax.numpy as jnp

import jaxvit
from experiments.datasets.scenes import scenes

model = jaxvit.load("demo_reg_read")  # trained so that its registers are read
images = jaxvit.normalise(scenes("test", 8).images, model.config)
everyone = ["cls", "registers", "patches"]
frozen = jaxvit.patch(everyone, "clean", at="query") & jaxvit.patch(everyone, "clean", at="key")
silent = jaxvit.zero("registers[2]", at="value")
for name, ablation in (("free", silent), ("frozen", silent & frozen)):
    pair = jaxvit.contrast(model, images, ablation, capture="attention_divergence")
    change = jnp.linalg.norm(pair.ablated.cls - pair.clean.cls, axis=-1).mean()
    print(f"{name}: attention diverges by {float(pair.captured['attention_divergence'].max()):.4f}, CLS moves by {float(change):.3f}")
