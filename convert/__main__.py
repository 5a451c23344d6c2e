"""`python -m convert`: weights of someone else -> a jaxvit checkpoint folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from convert import convert, to_safetensors
from convert.layouts import Oracle


@dataclass(frozen=True)
class Arguments:
    """Convert a .pth file, a .safetensors file or a Hugging Face folder to a jaxvit checkpoint."""

    source: Annotated[str, tyro.conf.Positional]
    """File or folder to read."""
    out: Path | None = None
    """Checkpoint folder to write; an existing checkpoint is replaced."""
    heads: int | None = None
    """Attention heads, where neither the source nor a released model of the same sizes tells their number."""
    name: str | None = None
    """A released model (sizes checked, pixel statistics kept) or any label."""
    oracle: Oracle | None = None
    """Whose implementation to agree with where they differ; by default that of the source's layout."""
    to_safetensors: Path | None = None
    """Only turn a .pth file into this .safetensors file: the one step that needs torch."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 2, with one line on stderr, where the input is bad."""
    args = tyro.cli(Arguments, prog="python -m convert", args=arguments)
    try:
        print(f"wrote {_run(args)}")
    except (ValueError, OSError) as error:
        print("convert:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


def _run(args: Arguments) -> Path:
    if (args.out is None) == (args.to_safetensors is None):
        raise ValueError("pass either --out DIR (convert) or --to-safetensors FILE (only change the file format)")
    if args.to_safetensors is not None:
        if (args.heads, args.name, args.oracle) != (None, None, None):
            raise ValueError("--to-safetensors only changes the file format; pass --heads, --name and --oracle when converting its result")
        return to_safetensors(args.source, args.to_safetensors)
    assert args.out is not None
    return convert(args.source, args.out, args.heads, args.name, args.oracle)


if __name__ == "__main__":
    raise SystemExit(main())
