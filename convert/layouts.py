"""The key layouts of other people's checkpoints, as tables: leaf of our tree, source keys, and the function from one to the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jaxvit.config import FeedForwardKind

Oracle = Literal["meta", "hf", "timm"]


@dataclass(frozen=True)
class Rule:
    """How one leaf is made from source tensors.

    Attributes:
        sources: plain names; "?" at the end marks one that a complete checkpoint may lack.
        make: function of their tensors (None where absent) that returns the leaf.
    """

    sources: tuple[str, ...]
    make: Callable[..., np.ndarray]


Rules = Mapping[str, Rule]


@dataclass(frozen=True)
class Layout:
    """One way of naming the tensors of a vision transformer.

    Attributes:
        oracle: whose implementation these files are made for.
        block_key: prefix of a block's keys, with "{}" for its number.
        outer: rules of the leaves outside blocks.
        block: rules of one block's leaves, without the feed-forward layer.
        feed_forward: the variants of the feed-forward layer.
        ignored: regular expressions of keys that are no part of the model.
    """

    name: str
    oracle: Oracle
    block_key: str
    outer: Rules
    block: Rules
    feed_forward: tuple[tuple[FeedForwardKind, Rules], ...]
    ignored: tuple[str, ...]

    def rules(self, variant: int) -> dict[str, Rule]:
        """All rules by full leaf name, with one variant of the feed-forward layer; block keys keep their "{}"."""
        block = {**self.block, **{f"feed_forward.{leaf}": rule for leaf, rule in self.feed_forward[variant][1].items()}}
        blocks = {
            f"blocks.{leaf}": Rule(tuple(self.block_key + source for source in rule.sources), rule.make) for leaf, rule in block.items()
        }
        return {**self.outer, **blocks}

    def required(self, variant: int) -> set[str]:
        """The keys, with "{}" for the number of a block, that a model with this variant of the feed-forward layer has in any case."""
        return {source for rule in self.rules(variant).values() for source in rule.sources if not source.endswith("?")}

    def patterns(self) -> Iterator[str]:
        """Every key that the layout may hold, with "{}" for the number of a block."""
        for variant in range(len(self.feed_forward)):
            for rule in self.rules(variant).values():
                yield from (source.removesuffix("?") for source in rule.sources)


def _unchanged(x: np.ndarray) -> np.ndarray:
    return x


def _unbatched(x: np.ndarray) -> np.ndarray:
    """[1, tokens, width] -> [tokens, width]."""
    return np.squeeze(x, 0)


def _one_token(x: np.ndarray) -> np.ndarray:
    """[1, 1, width] -> [width]."""
    return np.squeeze(x, (0, 1))


def _cls_row(table: np.ndarray) -> np.ndarray:
    """[1, 1 + side^2, width] -> [width]."""
    return np.squeeze(table[:, 0], 0)


def _patch_rows(table: np.ndarray) -> np.ndarray:
    """[1, 1 + side^2, width] -> [side, side, width]."""
    return _square(table[:, 1:])


def _square(table: np.ndarray) -> np.ndarray:
    """[1, side^2, width] -> [side, side, width]."""
    rows = _unbatched(table)
    side = round(len(rows) ** 0.5)
    return rows.reshape(side, side, rows.shape[1])


def _patch_kernel(x: np.ndarray) -> np.ndarray:
    """[width, channels, p, p] -> [(row column channel), width], the order in which `ViT.embed_patches` unrolls a patch."""
    return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])


def _masked(bias: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """The bias, zero where the mask is. Selected, not multiplied: Meta's files may hold NaN in the masked third."""
    return bias if mask is None else np.where(mask == 0, np.float32(0), bias * mask)


def _stacked(*weights: np.ndarray) -> np.ndarray:
    return np.concatenate(weights).T


def _stacked_biases(*biases: np.ndarray | None) -> np.ndarray:
    """Query, key and value biases in one vector; an absent one (DINOv3's key) is zero."""
    present = next(bias for bias in biases if bias is not None)
    return np.concatenate([np.zeros_like(present) if bias is None else bias for bias in biases])


def _without_key_bias(query: np.ndarray | None, value: np.ndarray | None) -> np.ndarray:
    return _stacked_biases(query, None, value)


def _first_half(x: np.ndarray) -> np.ndarray:
    return x[: len(x) // 2].T


def _second_half(x: np.ndarray) -> np.ndarray:
    return x[len(x) // 2 :].T


def _leaf(leaf: str, key: str, make: Callable[..., np.ndarray] = _unchanged) -> Rules:
    return {leaf: Rule((key,), make)}


def _norm(leaf: str, key: str) -> Rules:
    return {**_leaf(f"{leaf}.scale", f"{key}.weight"), **_leaf(f"{leaf}.bias", f"{key}.bias")}


def _linear(leaf: str, key: str, kernel: Callable[..., np.ndarray] = np.transpose) -> Rules:
    return {**_leaf(f"{leaf}.kernel", f"{key}.weight", kernel), **_leaf(f"{leaf}.bias", f"{key}.bias")}


def _separate_qkv(*keys: str) -> Rules:
    return {
        "attention.qkv.kernel": Rule(tuple(f"{k}.weight" for k in keys), _stacked),
        "attention.qkv.bias": Rule(tuple(f"{k}.bias?" for k in keys), _stacked_biases),
    }


def _mlp(up: str, down: str) -> tuple[FeedForwardKind, Rules]:
    return "mlp", {**_linear("up", up), **_linear("down", down)}


def _swiglu(gate: str, up: str, down: str) -> tuple[FeedForwardKind, Rules]:
    return "swiglu", {**_linear("gate", gate), **_linear("up", up), **_linear("down", down)}


def _fused_swiglu(gate_and_up: str, down: str) -> tuple[FeedForwardKind, Rules]:
    gate = {**_leaf("gate.kernel", f"{gate_and_up}.weight", _first_half), **_leaf("gate.bias", f"{gate_and_up}.bias", _first_half)}
    up = {**_leaf("up.kernel", f"{gate_and_up}.weight", _second_half), **_leaf("up.bias", f"{gate_and_up}.bias", _second_half)}
    return "swiglu", {**gate, **up, **_linear("down", down)}


def _table(key: str) -> Rules:
    return {**_leaf("cls_position", key, _cls_row), **_leaf("patch_position", key, _patch_rows)}


# rules that Meta's and timm's layouts share
_META_OUTER: Rules = {
    **_leaf("cls_token", "cls_token", _one_token),
    **_linear("patch_embed", "patch_embed.proj", _patch_kernel),
    **_norm("norm", "norm"),
}
_META_BLOCK: Rules = {
    **_norm("norm1", "norm1"),
    **_leaf("attention.qkv.kernel", "attn.qkv.weight", np.transpose),
    "attention.qkv.bias": Rule(("attn.qkv.bias", "attn.qkv.bias_mask?"), _masked),
    **_linear("attention.out", "attn.proj"),
    **_leaf("scale1", "ls1.gamma"),
    **_norm("norm2", "norm2"),
    **_leaf("scale2", "ls2.gamma"),
}
_EVA_BLOCK: Rules = {
    **_META_BLOCK,
    "attention.qkv.bias": Rule(("attn.q_bias?", "attn.v_bias?"), _without_key_bias),
    **_leaf("scale1", "gamma_1"),
    **_leaf("scale2", "gamma_2"),
}
_META_FEED_FORWARD = (
    _mlp("mlp.fc1", "mlp.fc2"),
    _fused_swiglu("mlp.w12", "mlp.w3"),
    _swiglu("mlp.w1", "mlp.w2", "mlp.w3"),
)
# projection heads and loss state of training checkpoints
_META_IGNORED = (r"mask_token", r"head\..+", r"(dino|ibot)_head\..+", r"(dino|ibot_patch)_loss\..+")

_TIMM_FEED_FORWARD = (_mlp("mlp.fc1", "mlp.fc2"), _fused_swiglu("mlp.fc1", "mlp.fc2"))
_TIMM_IGNORED = (r"head\..+",)

_HF_TOKENS: Rules = {
    **_leaf("cls_token", "embeddings.cls_token", _one_token),
    **_leaf("register_tokens", "embeddings.register_tokens", _unbatched),
}
_HF_OUTER: Rules = {
    **_leaf("cls_token", "embeddings.cls_token", _one_token),
    **_table("embeddings.position_embeddings"),
    **_linear("patch_embed", "embeddings.patch_embeddings.projection", _patch_kernel),
    **_norm("norm", "layernorm"),
}
_HF_ATTENTION: Rules = {
    **_separate_qkv(*(f"attention.attention.{x}" for x in ("query", "key", "value"))),
    **_linear("attention.out", "attention.output.dense"),
}
_HF_SCALES: Rules = {
    **_norm("norm1", "norm1"),
    **_leaf("scale1", "layer_scale1.lambda1"),
    **_norm("norm2", "norm2"),
    **_leaf("scale2", "layer_scale2.lambda1"),
}
_HF_IGNORED = (r"embeddings\.mask_token", r"classifier\..+")
_DINOV2_FEED_FORWARD = (_mlp("mlp.fc1", "mlp.fc2"), _fused_swiglu("mlp.weights_in", "mlp.weights_out"))
_VIT_BLOCK = {**_HF_ATTENTION, **_norm("norm1", "layernorm_before"), **_norm("norm2", "layernorm_after")}
_DINOV2_BLOCK = {**_HF_ATTENTION, **_HF_SCALES}

LAYOUTS: tuple[Layout, ...] = (
    Layout(
        name="meta",
        oracle="meta",
        block_key="blocks.{}.",
        outer={**_META_OUTER, **_table("pos_embed"), **_leaf("register_tokens", "register_tokens?", _unbatched)},
        block=_META_BLOCK,
        feed_forward=_META_FEED_FORWARD,
        ignored=_META_IGNORED,
    ),
    Layout(
        name="meta_v3",
        oracle="meta",
        block_key="blocks.{}.",
        outer={
            **_META_OUTER,
            **_leaf("register_tokens", "storage_tokens?", _unbatched),
            **_leaf("rope_periods", "rope_embed.periods"),
            **_norm("prefix_norm", "cls_norm"),
        },
        block=_META_BLOCK,
        feed_forward=_META_FEED_FORWARD,
        ignored=(*_META_IGNORED, r"local_cls_norm\..+"),  # used in training only
    ),
    # DINO and DINOv2 without registers have Meta's keys in timm's files, but for the feed-forward layer of ViT-g.
    Layout(
        name="timm",
        oracle="timm",
        block_key="blocks.{}.",
        outer={**_META_OUTER, **_table("pos_embed")},
        block=_META_BLOCK,
        feed_forward=_TIMM_FEED_FORWARD,
        ignored=_TIMM_IGNORED,
    ),
    Layout(
        name="timm_reg",
        oracle="timm",
        block_key="blocks.{}.",
        # timm adds the position of CLS to `cls_token`
        outer={**_META_OUTER, **_leaf("patch_position", "pos_embed", _square), **_leaf("register_tokens", "reg_token", _unbatched)},
        block=_META_BLOCK,
        feed_forward=_TIMM_FEED_FORWARD,
        ignored=_TIMM_IGNORED,
    ),
    Layout(
        name="timm_eva",
        oracle="timm",
        block_key="blocks.{}.",
        outer={**_META_OUTER, **_leaf("register_tokens", "reg_token?", _unbatched)},
        block=_EVA_BLOCK,
        feed_forward=(_mlp("mlp.fc1", "mlp.fc2"), _swiglu("mlp.fc1_g", "mlp.fc1_x", "mlp.fc2")),
        ignored=_TIMM_IGNORED,
    ),
    Layout(
        name="hf_vit",
        oracle="hf",
        block_key="encoder.layer.{}.",
        outer=_HF_OUTER,
        block=_VIT_BLOCK,
        feed_forward=(_mlp("intermediate.dense", "output.dense"),),
        ignored=(*_HF_IGNORED, r"pooler\..+"),
    ),
    Layout(
        name="hf_dinov2",
        oracle="hf",
        block_key="encoder.layer.{}.",
        outer=_HF_OUTER,
        block=_DINOV2_BLOCK,
        feed_forward=_DINOV2_FEED_FORWARD,
        ignored=_HF_IGNORED,
    ),
    Layout(
        name="hf_dinov2_with_registers",
        oracle="hf",
        block_key="encoder.layer.{}.",
        outer={**_HF_OUTER, **_HF_TOKENS},
        block=_DINOV2_BLOCK,
        feed_forward=_DINOV2_FEED_FORWARD,
        ignored=_HF_IGNORED,
    ),
    Layout(
        name="hf_dinov3",
        oracle="hf",
        block_key="layer.{}.",
        outer={**_HF_TOKENS, **_linear("patch_embed", "embeddings.patch_embeddings", _patch_kernel), **_norm("norm", "norm")},
        block={**_HF_SCALES, **_separate_qkv(*(f"attention.{x}_proj" for x in "qkv")), **_linear("attention.out", "attention.o_proj")},
        feed_forward=(_mlp("mlp.up_proj", "mlp.down_proj"), _swiglu("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")),
        ignored=_HF_IGNORED,
    ),
)
