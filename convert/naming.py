"""Names of tensors: prefixes and chunks removed, the layout recognised, and every key accounted for."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from convert.layouts import LAYOUTS, Layout, Rule

_PREFIX = re.compile(r"(module|_orig_mod|model|backbone|vit|dinov2|dinov2_with_registers|dinov3_vit)\.")
_BRANCHES = ("teacher.", "student.")  # where a file holds both, the first is read
_CHUNK = re.compile(r"^blocks\.\d+\.(?=\d+\.)")
_BLOCK = re.compile(r"(blocks\.|encoder\.layer\.|layer\.)(\d+)(\..+)")
_NAMES_SHOWN = 5


def plain_names(keys: Iterable[str]) -> dict[str, str]:
    """Map plain names, without prefixes, branches and chunks of blocks, to the source's keys.

    Raises:
        ValueError: two keys have the same plain name.
    """
    stripped = {key: _strip(key) for key in keys}
    branch = next((branch for branch in _BRANCHES if any(name.startswith(branch) for name in stripped.values())), "")
    plain: dict[str, str] = {}
    for key, name in stripped.items():
        if branch and name.startswith(_BRANCHES) and not name.startswith(branch):
            continue
        name = _CHUNK.sub("blocks.", _strip(name.removeprefix(branch)))
        if name in plain:
            raise ValueError(f'keys "{plain[name]}" and "{key}" both mean "{name}"; pass a file that holds one model')
        plain[name] = key
    return plain


def pattern_of(name: str) -> tuple[str, int | None]:
    """A name with "{}" in place of the number of its block, and that number (None outside blocks)."""
    match = _BLOCK.fullmatch(name)
    return (f"{match[1]}{{}}{match[3]}", int(match[2])) if match else (name, None)


def recognise(names: Iterable[str], timm: bool = False) -> Layout:
    """The layout that explains most keys; it must explain at least half of them.

    Args:
        names: plain names of the tensors.
        timm: whether other evidence than the keys says that timm wrote them: some of its files have exactly Meta's keys.

    Raises:
        ValueError: no layout does.
    """
    patterns = {pattern_of(name)[0] for name in names}
    scores = [len(patterns.intersection(layout.patterns())) for layout in LAYOUTS]
    candidates = [layout for layout, score in zip(LAYOUTS, scores, strict=True) if score == max(scores)]
    best = next((layout for layout in candidates if timm and layout.oracle == "timm"), candidates[0])
    if max(scores) < len([pattern for pattern in patterns if not is_ignored(pattern, best)]) / 2 or not max(scores):
        raise ValueError(
            f"no known layout: keys like {listing(patterns)} belong to none of {', '.join(layout.name for layout in LAYOUTS)}; "
            "pass a DINO, DINOv2 or DINOv3 vision transformer as Meta, Hugging Face or timm publish it"
        )
    return best


def is_ignored(name: str, layout: Layout) -> bool:
    """Whether the layout lists this tensor as no part of the model."""
    return any(re.fullmatch(pattern, name) for pattern in layout.ignored)


def check_complete(layout: Layout, rules: Mapping[str, Rule], depth: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that every tensor is used or ignored, and that every tensor that the rules need is there.

    An optional tensor is present in all blocks or absent from all. Empty tensors are ignored.

    Args:
        shapes: by plain name.

    Raises:
        ValueError: names are missing or unknown.
    """
    present = {pattern_of(name)[0] for name in shapes}
    used = set()
    for source in (source for rule in rules.values() for source in rule.sources):
        pattern = source.removesuffix("?")
        if pattern in present or not source.endswith("?"):
            used |= {pattern.format(i) for i in range(depth)} if "{}" in pattern else {pattern}
    missing = used - shapes.keys()
    unknown = {name for name in shapes.keys() - used if 0 not in shapes[name] and not is_ignored(name, layout)}
    faults = [f"{len(names)} {fault} ({listing(names)})" for fault, names in (("missing", missing), ("unknown", unknown)) if names]
    if faults:
        raise ValueError(
            f"keys do not fit the layout {layout.name} with {depth} blocks: {'; '.join(faults)}; pass the complete, original file"
        )


def listing(names: Collection[str]) -> str:
    """The first few names, in one string."""
    return ", ".join(sorted(names)[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")


def _strip(name: str) -> str:
    """The name without the prefixes that wrapper modules add."""
    while match := _PREFIX.match(name):
        name = name[match.end() :]
    return name
