"""The places in a block where tokens can be edited or read."""

from __future__ import annotations

SITES: tuple[str, ...] = ("block_input", "attention_output", "mlp_output", "block_output")
"""Names of the places, in the order of computation.

- block_input: the residual stream entering the block.
- attention_output, mlp_output: what attention or the feed-forward layer adds to the stream, after LayerScale, before the residual sum.
- block_output: the residual stream leaving the block.
"""
