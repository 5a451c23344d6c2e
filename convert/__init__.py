"""Other people's weights become jaxvit checkpoints here: Meta's and Hugging Face's DINO, DINOv2 and DINOv3."""

from convert.conversion import convert
from convert.pickles import to_safetensors

__all__ = ["convert", "to_safetensors"]
