"""Models of other families, told by their keys or by `config.json`, so that a refusal says what it is that was passed."""

from __future__ import annotations

import re
from collections.abc import Collection

_KEYS = (
    (r"(dist|distillation)_token$", "a distilled DeiT, which has a distillation token beside CLS"),
    (
        r"(^|\.)decoder_(embed|blocks|pred)\.|(^|\.)decoder\.decoder_(embed|layers|pred)\.",
        'a masked autoencoder (MAE) with its decoder; only its encoder is a vision transformer: save its keys without those of "decoder"',
    ),
    (r"predictor_(blocks|embed|pos_embed|norm)", "an I-JEPA or V-JEPA, whose encoder has no CLS token"),
    (r"class_embedding$|(^|\.)visual\.conv1\.|\.resblocks\.", "a CLIP"),
    (r"attn_pool\.latent$|head\.probe$", "a SigLIP, which has no CLS token"),
    (r"(^|\.)vision_model\.", "the image tower of a CLIP or SigLIP"),
    (r"relative_position_bias_table$", "a BEiT or Swin transformer, with relative positions"),
    (r"local_mp\.|cls_attn_blocks\.", "an XCiT"),
    (r"dwconv\.|depthwise_conv\.|downsample_layers\.", "a ConvNeXt"),
    (r"(^|\.)layer[1-4]\.\d+\.conv\d\.", "a ResNet"),
    (r"lora_(A|B|down|up)|\.base_layer\.", "a model with adapters (LoRA); merge them (peft: merge_and_unload()) and save the whole model"),
)
_MODEL_TYPES = {
    "deit": "a DeiT",
    "ijepa": "an I-JEPA, which has no CLS token",
    "vjepa2": "a V-JEPA, which has no CLS token",
    "vit_msn": "an MSN",
    "vit_mae": "a masked autoencoder (MAE)",
    "clip": "a CLIP",
    "clip_vision_model": "the image tower of a CLIP",
    "siglip": "a SigLIP, which has no CLS token",
    "siglip_vision_model": "a SigLIP, which has no CLS token",
    "siglip2": "a SigLIP, which has no CLS token",
    "beit": "a BEiT, with relative positions",
    "data2vec-vision": "a data2vec, with relative positions",
    "swin": "a Swin transformer",
    "convnext": "a ConvNeXt",
    "dinov3_convnext": "a ConvNeXt of DINOv3",
    "resnet": "a ResNet",
}
_ADVICE = "only the vision transformers of DINO, DINOv2 and DINOv3 are read: pass one as Meta, Hugging Face or timm publish it"
_CLS = re.compile(r"(^|\.)(cls_token|class_token|class_embedding)$")
_PATCHES = re.compile(r"patch_embed")


def explain(error: str, keys: Collection[str], model_type: object) -> str:
    """The message of an error about a source's keys, with what the source is in front, where that can be told.

    Args:
        model_type: entry of the `config.json` beside the weights; None where there is none.
    """
    kind = next((kind for pattern, kind in _KEYS if any(re.search(pattern, key) for key in keys)), None)
    if isinstance(model_type, str) and model_type in _MODEL_TYPES:
        kind = _MODEL_TYPES[model_type]
    if kind is None and any(_PATCHES.search(key) for key in keys) and not any(_CLS.search(key) for key in keys):
        kind = "a model without a CLS token: an I-JEPA, a SigLIP or another that pools its patches, or a part of a model"
    if kind is None:
        return error
    what, _, advice = kind.partition("; ")
    detail = error.rpartition("; ")[0] or error  # without its own advice
    return f"this looks like {what} ({detail}); {advice or _ADVICE}"
