"""Names of tensors: the layout recognised, and every key accounted for."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from convert.layouts import LAYOUTS, Layout, Rule

_BLOCK = re.compile(r"(blocks\.|encoder\.layer\.|layer\.)(\d+)(\..+)")
_NAMES_SHOWN = 5
_TRAINING_STATE = re.compile(r"(.*_)?(rng_states?|step|epoch|queue|queue_ptr|center|n_averaged|logit_scale|logit_bias)")
_HEADS = re.compile(
    r"(^|_)(heads?|classifiers?|decode|decoders?|fc|linear|predictor|proj|projectors?|projection|loss|criterion|probe|neck|text)(_|\d|$)"
)
_TRUNK = re.compile(r"(^|_)(norm|ln|layernorm|embed\w*|tokens?|adapters?|lora|prompts?|blocks?|layers?|rope|pos|position|patch|attn|stem)")
"""Words in the name of a module beside blocks: those of heads, which read a model's tokens, and those of parts that make them."""


def pattern_of(name: str) -> tuple[str, int | None]:
    """A name with "{}" in place of the number of its block, and that number (None outside blocks)."""
    match = _BLOCK.fullmatch(name)
    return (f"{match[1]}{{}}{match[3]}", int(match[2])) if match else (name, None)


def recognise(names: Iterable[str], timm: bool = False) -> Layout:
    """The layout that explains most keys; at least half of its own keys must be there.

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
    if max(scores) < min(len(best.required(variant)) for variant in range(len(best.feed_forward))) / 2:
        raise ValueError(
            f"no known layout: keys like {listing(patterns)} belong to none of {', '.join(layout.name for layout in LAYOUTS)}; "
            "pass a DINO, DINOv2 or DINOv3 vision transformer as Meta, Hugging Face or timm publish it"
        )
    return best


def is_ignored(name: str, layout: Layout) -> bool:
    """Whether the layout lists this tensor as no part of the model."""
    return any(re.fullmatch(pattern, name) for pattern in layout.ignored)


def is_training_state(name: str) -> bool:
    """Whether a lone tensor of this name is a counter or a state of training, not a part of a model."""
    return bool(_TRAINING_STATE.fullmatch(name))


def is_beside(name: str, layout: Layout) -> bool:
    """Whether this tensor plainly stands beside the model: in a module that the layout does not have and that is called like a head,
    or at least not like a part that makes or changes tokens."""
    module, dot, _ = name.partition(".")
    if not dot or module in {pattern.partition(".")[0] for pattern in layout.patterns()}:
        return is_training_state(name)
    return bool(_HEADS.search(module.lower())) or not _TRUNK.search(module.lower())


def check_complete(layout: Layout, rules: Mapping[str, Rule], depth: int, shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
    """Check that every tensor is used, ignored or beside the model, and that every tensor that the rules need is there.

    An optional tensor is present in all blocks or absent from all. Empty tensors are ignored.

    Args:
        shapes: by plain name.

    Returns:
        The names that are used.

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
    unused = {name for name in shapes.keys() - used if 0 not in shapes[name]}
    unknown = {name for name in unused if not is_ignored(name, layout) and not is_beside(name, layout)}
    faults = [f"{len(names)} {fault} ({listing(names)})" for fault, names in (("missing", missing), ("unknown", unknown)) if names]
    if faults:
        raise ValueError(
            f"keys do not fit the layout {layout.name} with {depth} blocks: {'; '.join(faults)}; pass the complete, original file"
        )
    return used & shapes.keys()


def listing(names: Collection[str]) -> str:
    """The first few names, in one string."""
    return ", ".join(sorted(names)[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")
