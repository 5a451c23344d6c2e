"""`ViTConfig`, the architecture of a model, and `MODELS`, the table of all released DINO vision transformers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SATELLITE_MEAN = (0.430, 0.411, 0.296)
SATELLITE_STD = (0.213, 0.156, 0.143)

Position = Literal["offset", "antialias", "plain", "rope"]
FeedForwardKind = Literal["mlp", "swiglu"]


@dataclass(frozen=True)
class ViTConfig:
    """The architecture of a vision transformer and its pixel normalisation; models with equal configs share compiled programs.

    Attributes:
        patch_size: side of a square patch, in pixels.
        width: width of the residual stream.
        depth: number of blocks.
        heads: attention heads; divides `width`.
        mlp_dim: inner width of the feed-forward layer.
        registers: register tokens between CLS and the patches.
        feed_forward: "mlp" (exact GELU) or "swiglu" (silu(gate) * up).
        position: "rope" (axial RoPE on patches, DINOv3), or the rule by which a learned position table is resized to
            another grid, always bicubic: "offset" (Meta's DINO and DINOv2: scale factor (n + 0.1) / side, no antialias),
            "antialias" (Meta's DINOv2 with registers, and timm), "plain" (Hugging Face's ViT and Dinov2).
        image_size: side in pixels that the position table was made for (nominal with RoPE).
        norm_eps: epsilon of every LayerNorm.
        layer_scale: whether attention and feed-forward outputs are multiplied by a learned per-channel scale.
        qkv_bias: whether the query, key and value projections have a bias.
        untied_norm: whether CLS and registers have a separate final norm.
        pixel_mean, pixel_std: normalisation of pixels scaled to [0, 1], per RGB channel.

    Raises:
        ValueError: the sizes do not fit together.
    """

    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_dim: int
    registers: int = 0
    feed_forward: FeedForwardKind = "mlp"
    position: Position = "offset"
    image_size: int = 224
    norm_eps: float = 1e-6
    layer_scale: bool = True
    qkv_bias: bool = True
    untied_norm: bool = False
    pixel_mean: tuple[float, float, float] = IMAGENET_MEAN
    pixel_std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide width {self.width}; heads must be a divisor of the width")
        if self.position == "rope" and self.head_width % 4:
            raise ValueError(f"RoPE needs a head width that is a multiple of 4, got {self.head_width}; change heads or width")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}; pick a multiple")

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def table_side(self) -> int:
        """Side of the square grid of patches that the position table was made for."""
        return self.image_size // self.patch_size

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an image of `height` x `width` pixels.

        Raises:
            ValueError: a side is no positive multiple of the patch size.
        """
        p = self.patch_size
        if height < p or width < p or height % p or width % p:
            rows, columns = (max(1, round(side / p)) for side in (height, width))
            raise ValueError(
                f"image size {height}x{width} is no multiple of the patch size {p}; resize or crop, for example to {rows * p}x{columns * p}"
            )
        return height // p, width // p


def _dino(width: int, heads: int, patch: int) -> ViTConfig:
    return ViTConfig(patch, width, 12, heads, 4 * width, layer_scale=False)


def _dinov2(width: int, depth: int, heads: int, registers: int) -> ViTConfig:
    giant = width == 1536
    return ViTConfig(
        14,
        width,
        depth,
        heads,
        mlp_dim=4096 if giant else 4 * width,
        registers=registers,
        feed_forward="swiglu" if giant else "mlp",
        position="antialias" if registers else "offset",
        image_size=518,
    )


def _dinov3(width: int, depth: int, heads: int, mlp_dim: int, feed_forward: FeedForwardKind = "mlp") -> ViTConfig:
    return ViTConfig(
        16,
        width,
        depth,
        heads,
        mlp_dim,
        registers=4,
        feed_forward=feed_forward,
        position="rope",
        norm_eps=1e-5,
        qkv_bias=width != 4096,
    )


def _satellite(config: ViTConfig) -> ViTConfig:
    return replace(config, pixel_mean=SATELLITE_MEAN, pixel_std=SATELLITE_STD)


_DINOV2_SIZES = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16), "g": (1536, 40, 24)}
_DINOV3_L = _dinov3(1024, 24, 16, 4096)
_DINOV3_7B = _dinov3(4096, 40, 32, 8192, "swiglu")

MODELS: dict[str, ViTConfig] = {
    "dino_vits16": _dino(384, 6, 16),
    "dino_vits8": _dino(384, 6, 8),
    "dino_vitb16": _dino(768, 12, 16),
    "dino_vitb8": _dino(768, 12, 8),
    **{f"dinov2_vit{s}14": _dinov2(*size, registers=0) for s, size in _DINOV2_SIZES.items()},
    **{f"dinov2_vit{s}14_reg": _dinov2(*size, registers=4) for s, size in _DINOV2_SIZES.items()},
    "dinov3_vits16": _dinov3(384, 12, 6, 1536),
    "dinov3_vits16plus": _dinov3(384, 12, 6, 1536, "swiglu"),
    "dinov3_vitb16": _dinov3(768, 12, 12, 3072),
    "dinov3_vitl16": _DINOV3_L,
    "dinov3_vith16plus": _dinov3(1280, 32, 20, 5120, "swiglu"),
    "dinov3_vit7b16": _DINOV3_7B,
    "dinov3_vitl16_sat493m": _satellite(_DINOV3_L),
    "dinov3_vit7b16_sat493m": _satellite(_DINOV3_7B),
}
"""Released models under Meta's hub names; satellite variants end in `_sat493m`."""
