"""What would a linear probe's logit of the true digit become if tokens were replaced by their mean? First order, in one backward pass."""

import jax.numpy as jnp

import jaxvit
from experiments.datasets.scenes import scenes

model, train, test = jaxvit.load("demo_reg"), scenes("train", 256), scenes("test", 32)
features = jaxvit.extract(model, train.images, keep="cls").cls
probe = jaxvit.probes.ridge.fit(features, jnp.eye(10)[train.labels], lambdas=(0.1,)).at(0)


def logit(output):
    """The score of each image's own digit."""
    return jaxvit.probes.ridge.predict(probe, output.cls)[jnp.arange(len(test.labels)), test.labels]


images = [jaxvit.normalise(part.images, model.config) for part in (train, test)]
mean = jaxvit.mean(["cls", "registers", "patches"], jaxvit.calibrate(model, [(images[0], None)]))
effects = jaxvit.attribution(model, images[1], logit, mean)  # [blocks, images, tokens]
for block, of_tokens in enumerate(effects.mean(axis=1)):
    print(f"block {block}: CLS {of_tokens[0]:+.3f}, registers {of_tokens[1:5].sum():+.3f}, patches {of_tokens[5:].sum():+.3f}")
