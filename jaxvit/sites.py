"""The places in a block where tokens can be edited or read."""

from __future__ import annotations

from jaxvit.config import ViTConfig

SITES: tuple[str, ...] = (
    "block_input",
    "query",
    "key",
    "value",
    "head_output",
    "attention_output",
    "mlp_hidden",
    "mlp_output",
    "block_output",
)
"""Names of the places, in the order of computation.

- block_input: the residual stream entering the block.
- query, key, value: those of every head [B, T, heads, head width], after bias and rotation.
- head_output: the values of every head averaged under its attention, before the output projection.
- attention_output, mlp_output: what attention or the feed-forward layer adds to the stream, after LayerScale, before the residual sum.
- mlp_hidden: the neurons of the feed-forward layer, after the non-linearity (SwiGLU: after the product).
- block_output: the residual stream leaving the block.
"""

STREAM_SITES = ("block_input", "attention_output", "mlp_output", "block_output")
"""Sites where tokens are as wide as the residual stream and no heads are apart: the stream, and what is added to it."""

HEAD_SITES = ("query", "key", "value", "head_output")
"""Sites where heads are apart: the last two axes, heads and head width, count as one axis of channels, head by head."""

NOISE_NUMBERS = {"query": 1, "key": 2, "value": 3, "head_output": 4, "mlp_hidden": 5}
"""What noise folds into its seed, so that one seed at two sites is two draws. Stream sites fold nothing in and share their draws: what
noise draws there is part of results. Numbers are never changed, for the same reason."""

TRANSFORMER_LENS = {
    "block_input": "hook_resid_pre",
    "query": "attn.hook_q",  # attn.hook_rot_q under RoPE
    "key": "attn.hook_k",  # attn.hook_rot_k
    "value": "attn.hook_v",
    "head_output": "attn.hook_z",
    "attention_output": "hook_attn_out",
    "mlp_hidden": "mlp.hook_post",
    "mlp_output": "hook_mlp_out",
    "block_output": "hook_resid_post",
}
"""What TransformerLens calls the sites, in a block."""


def check_site(site: str) -> None:
    """Refuse what is no site.

    Raises:
        ValueError: the name is not in `SITES`.
    """
    if site not in SITES:
        raise ValueError(f'unknown site "{site}"; at is one of {", ".join(SITES)}')


def width_at(site: str, config: ViTConfig) -> int:
    """The number of channels of a token at a site; at a head site those of all heads together.

    Raises:
        ValueError: the name is not in `SITES`.
    """
    check_site(site)
    return config.mlp_dim if site == "mlp_hidden" else config.width
