"""The last head's value of register 2 is zeroed (heads and registers count from 0): what does CLS read less?"""

import jax.numpy as jnp

import jaxvit
from experiments.datasets.scenes import scenes

model = jaxvit.load("demo_reg_read")  # trained so that its registers are read
images = jaxvit.normalise(scenes("test", 8).images, model.config)
head = model.config.heads - 1  # 2: the demo has heads 0, 1, 2, so that head 3 of larger models does not exist here
ablation = jaxvit.zero("registers[2]", at="value", heads=[head], layers=3)
reading = {"read": lambda state: state.trace.head_output}  # [blocks, images, tokens, heads, head width]
clean, edited = (jaxvit.forward(model, images, edit, capture=reading).captured["read"][3] for edit in (None, ablation))
change = jnp.linalg.norm(edited - clean, axis=-1) / jnp.linalg.norm(clean, axis=-1)  # [images, tokens, heads]
print("what CLS reads in block 3 changes by, in heads 0, 1, 2:", change[:, 0].mean(axis=0).round(3))
