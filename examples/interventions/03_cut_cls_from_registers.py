"""CLS no longer reads the registers in the last four of the six blocks: the share of its attention that goes to them."""

import jaxvit
from experiments.datasets.scenes import scenes

model = jaxvit.load("demo_reg_read")  # trained so that its registers are read
images = jaxvit.normalise(scenes("test", 8).images, model.config)
cut = jaxvit.cut("cls", "registers", layers="2-5")
for name, ablation in (("clean", None), ("cut", cut)):
    out = jaxvit.forward(model, images, ablation, capture="attention_flow")
    flow = out.captured["attention_flow"].mean(axis=(1, 2))  # [blocks, source, target]; CLS is group 0, registers 1 to 4, patches 5
    print(f"{name}: CLS -> registers by block", *(f"{share:.3f}" for share in flow[:, 0, 1:5].sum(axis=-1)))
