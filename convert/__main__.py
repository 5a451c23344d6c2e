"""`python -m convert`: weights of someone else -> a jaxvit checkpoint folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from convert import convert, fetch, to_safetensors
from convert.commandline import describe, parse, print_anything
from convert.conversion import Dtype
from convert.copies import Use
from convert.formats import unknown_source
from convert.layouts import Oracle
from convert.pixels import DEFAULT
from convert.sizes import Resize
from jaxvit import MODELS
from jaxvit.checkpoint import read_manifest, verify
from jaxvit.files import refuse_remote

_SHOWN = 8  # modules that were left out


@dataclass(frozen=True)
class Arguments:
    """Convert weights to a jaxvit checkpoint: a .pth or .safetensors file, a Hugging Face or timm folder, or a released name."""

    source: Annotated[str | None, tyro.conf.Positional] = None
    """File or folder to read, or the name of a released model to download."""
    out: Path | None = None
    """Checkpoint folder to write (for a released name by default the cache); an existing checkpoint is replaced."""
    heads: int | None = None
    """Number of attention heads, where neither the source nor a released model of the same sizes tells it."""
    name: str | None = None
    """A released model (sizes checked, pixel statistics kept) or any label."""
    oracle: Oracle | None = None
    """Whose implementation to agree with where they differ; by default that of the source's layout."""
    dtype: Dtype = "float32"
    """Of the stored weights."""
    use: Use | None = None
    """Which of two copies of the model in one file: the one averaged over training (EMA, teacher) or the raw one."""
    mean: tuple[float, float, float] | None = None
    """Of pixels scaled to [0, 1]: red, green, blue. By default of the released name or of the files beside the weights, else ImageNet's."""
    std: tuple[float, float, float] | None = None
    """Of pixels, like --mean."""
    position: Resize | None = None
    """How a learned position table is resized; by default by the oracle's rule."""
    to_safetensors: Path | None = None
    """Only turn a .pth file into this .safetensors file: the one step that needs torch."""
    show: Path | None = None
    """Only print the manifest of this checkpoint folder."""
    verify: Path | None = None
    """Only check this checkpoint folder, byte by byte, against its manifest."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 2, with one line on stderr, where the input is bad."""
    print_anything()
    try:
        print(_run(parse(Arguments, prog="python -m convert", arguments=arguments)))
    except (ValueError, OSError, RuntimeError) as error:
        if (line := describe(error)) is None:
            raise
        sys.stderr.write(f"convert: {line}\n")  # in one write, so that lines of other threads do not cut it
        return 2
    except KeyboardInterrupt:
        print("convert: interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


def _run(args: Arguments) -> str:
    """Do what the arguments ask for; returns the text to print."""
    _check_combination(args)
    if args.show is not None:
        return json.dumps(read_manifest(args.show), indent=2)
    if args.verify is not None:
        return f"{args.verify} is whole: {verify(args.verify)}"
    assert args.source is not None
    if args.to_safetensors is not None:
        return f"wrote {to_safetensors(args.source, args.to_safetensors)}"
    if args.source in MODELS and not Path(args.source).exists():
        return f"wrote {fetch(args.source, args.out, args.oracle, args.dtype, args.heads)}"
    refuse_remote(args.source)
    if not Path(args.source).expanduser().exists():
        raise ValueError(unknown_source(args.source))
    if args.out is None:
        raise ValueError("pass --out DIR, or --to-safetensors FILE to change only the file format")
    options = {option: getattr(args, option) for option in ("use", "mean", "std", "position")}
    out = convert(args.source, args.out, args.heads, args.name, args.oracle, args.dtype, **options)
    return "\n".join([f"wrote {out}", *_remarks(read_manifest(out))])


def _remarks(manifest: Mapping[str, Any]) -> Iterator[str]:
    """What a person should know about a conversion: what was taken, what was left out, what was assumed; a line each."""
    source = manifest["source"]
    if source["use"]:
        where = f"under {source['wrapper']}" if source["wrapper"] else "those without a prefix"
        yield f"took the {source['use']} weights, {where}; --use ema|raw chooses"
    if source["left_out"]:
        modules = [f"{name} ({n} tensor{'s' * (n > 1)})" for name, n in source["left_out"].items()]
        more = f" and {len(modules) - _SHOWN} more, listed by --show" if len(modules) > _SHOWN else ""
        yield f"left out, as no part of the model: {', '.join(modules[:_SHOWN])}{more}"
    if manifest["pixel_statistics"] == DEFAULT:
        yield "pixel statistics: ImageNet's, for want of others that belong to these weights; --mean R G B --std R G B sets them"


def _check_combination(args: Arguments) -> None:
    """Refuse arguments that would have no effect together.

    Raises:
        ValueError: options of a conversion together with one that converts nothing, or not exactly one thing to do.
    """
    of_sources = {"--name": args.name, "--use": args.use, "--mean": args.mean, "--std": args.std, "--position": args.position}
    options = {"--out": args.out, "--heads": args.heads, "--oracle": args.oracle, **of_sources}
    conversion_options = [option for option, value in options.items() if value is not None] + ["--dtype"] * (args.dtype != "float32")
    for option, value in (("--show", args.show), ("--verify", args.verify), ("--to-safetensors", args.to_safetensors)):
        if value is not None and conversion_options:
            raise ValueError(f"{option} converts nothing, so {', '.join(conversion_options)} would have no effect: leave it out")
    actions = {"SOURCE": args.source, "--show": args.show, "--verify": args.verify}
    chosen = [action for action, value in actions.items() if value is not None]
    if len(chosen) != 1:
        raise ValueError(f"pass one of SOURCE, --show DIR and --verify DIR, got {' and '.join(chosen) or 'none'}; --help tells more")
    without_effect = [option for option, value in of_sources.items() if value is not None]
    if without_effect and args.source in MODELS and not Path(args.source).exists():
        raise ValueError(
            f"{', '.join(without_effect)} {'goes' if len(without_effect) == 1 else 'go'} with a file or folder; {args.source} is a "
            "released name already, with pixel statistics of its own, and --oracle chooses its rules"
        )


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # no accelerator is needed, and somebody else may be using it
    raise SystemExit(main())
