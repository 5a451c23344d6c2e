"""Decode images once and write them with labels and manifest as one portable folder: `python -m experiments.pack FOLDER --out X`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from experiments.datasets.packing import Packing, PackOptions, gigabytes
from experiments.datasets.packs import verify_pack
from experiments.datasets.reading import MAX_PIXELS
from experiments.program import run
from experiments.study.progress import report_progress
from jaxvit.files import refuse_remote


@dataclass(frozen=True)
class Options:
    """Images to pack, prepared as a study prepares them. A study opens the pack in place of the folder: --folders.images X.

    Attributes:
        folder: what --folders.images reads: class folders, images with a table of labels or without classes, parquet or tar files; with
            --verify a pack.
        out: folder of the pack. The same command continues there.
        size: pixels of a side; --image-size of the study.
        preprocess: how files of images become squares (docs/own_images.md); --preprocess of the study, or what its models need.
        limit: pack so many images, of every class its share.
        seed: of that draw.
        label: column or field of the classes, where a table or an archive has several.
        max_pixels: of the largest image file that is read.
        keep_blank: accept images of one colour.
        verify: read every byte of a pack, and say whether it is as it was packed.
        quiet: print nothing but the path of the pack.
    """

    folder: tyro.conf.Positional[Path]
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="(required unless --verify)")] = None
    size: int = 224
    preprocess: Literal["torchvision", "hf_dino", "hf_dinov2", "hf_dinov3"] = "torchvision"
    limit: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: all)")] = None
    seed: int = 0
    label: Annotated[str, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: found by its name)")] = ""
    max_pixels: int = MAX_PIXELS
    keep_blank: bool = False
    verify: bool = False
    quiet: bool = False


def pack(options: Options) -> Path:
    """Write the pack, or what is missing of it; returns its folder.

    Raises:
        ValueError: no --out is given, or as in `Packing`.
    """
    if options.out is None:
        raise ValueError("no folder for the pack is given; name one: --out PATH")
    refuse_remote(options.folder)
    refuse_remote(options.out)
    console = Console(quiet=options.quiet)
    names = ("size", "preprocess", "limit", "seed", "label", "max_pixels", "keep_blank")
    with console.status("reading the list of images"):
        packing = Packing(options.folder, options.out, PackOptions(**{name: getattr(options, name) for name in names}))
    for line in packing.notes:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    total, left = len(packing.sources), packing.left
    size = total * packing.bytes_of_image
    amount = f"{total:,} images as {packing.identity['protocol']}, {gigabytes(size)} -> {packing.out}"
    console.print(f"{amount}; {total - left:,} already there", soft_wrap=True, markup=False, highlight=False)
    started = time.monotonic()
    with report_progress(console, left, left or 1, "images") as progress:
        for place in packing.write():
            progress.end(1)
            progress.begin(place)
    seconds = time.monotonic() - started
    with console.status("hashing"):
        packing.finish()
    rate = f" in {seconds:.0f} s, {left / seconds:.0f} images/s" if left and seconds else ""
    line = f"{left:,} images packed{rate}; open it with --folders.images {packing.out} --image-size {options.size}"
    console.print(line, soft_wrap=True, markup=False, highlight=False)
    return packing.out


def _main(options: Options) -> None:
    if options.verify:
        manifest = verify_pack(options.folder.expanduser())
        print(f"{options.folder} is whole: {manifest['count']:,} images as {manifest['protocol']}")
        return
    written = pack(options)
    if options.quiet:
        print(written)


if __name__ == "__main__":
    run(_main, Options, __doc__)
