"""A function of one's own at the neurons of the last two blocks: in every token only the strongest tenth keeps firing."""

import jax.numpy as jnp

import jaxvit
from experiments.datasets.scenes import scenes


def strongest_tenth(x, context, arrays):
    """Zeroes all but the largest tenth of the neurons, x [images, tokens, neurons]."""
    size = jnp.abs(x)
    return jnp.where(size >= jnp.quantile(size, 0.9, axis=-1, keepdims=True), x, 0)


model = jaxvit.load("demo_reg")
images = jaxvit.normalise(scenes("test", 8).images, model.config)
sparse = jaxvit.custom(strongest_tenth, at="mlp_hidden", layers="4-5")
neurons = {"neurons": lambda state: state.trace.mlp_hidden}  # [blocks, images, tokens, neurons]
out, clean = jaxvit.forward(model, images, sparse, capture=neurons), jaxvit.forward(model, images)
print("share of neurons that fire, by block:", *(f"{share:.3f}" for share in (out.captured["neurons"] != 0).mean(axis=(1, 2, 3))))
print(f"CLS moves by {float(jnp.linalg.norm(out.cls - clean.cls) / jnp.linalg.norm(clean.cls)):.1%} of its norm")
