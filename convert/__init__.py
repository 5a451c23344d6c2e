"""Other people's weights become jaxvit checkpoints here: Meta's, Hugging Face's and timm's DINO, DINOv2 and DINOv3."""

from convert.conversion import convert, fetch
from convert.pickles import to_safetensors

__all__ = ["convert", "fetch", "to_safetensors"]
