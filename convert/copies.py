"""Where vision transformers stand among the keys of a file: their prefixes, and which of two copies (raw and EMA) is taken."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from convert.layouts import LAYOUTS
from convert.naming import is_training_state, pattern_of

Use = Literal["ema", "raw"]
_WRAPPERS = {"module", "_module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module"}
"""Modules that PyTorch and its trainers put around others, anywhere in a key."""
_CHUNK = re.compile(r"(^|\.)blocks\.\d+\.(?=\d+\.)")
_AVERAGED = re.compile(r"(^|_)(ema|teacher|target|momentum|averaged|avg|swa|shadow|slow|k)(_|$)|^ema|ema$")
_COPY = 0.5  # share of the first model's key patterns that another copy of it has at least


@dataclass(frozen=True)
class Model:
    """The keys of one vision transformer in a file that may hold more.

    Attributes:
        prefix: what stands before all its keys, without the names of wrapper modules; "teacher.backbone", or "".
        keys: the source's keys by plain name, without that prefix and the names of wrapper modules.
    """

    prefix: str
    keys: Mapping[str, str]

    @property
    def averaged(self) -> bool:
        """Whether the prefix says that these weights are an average over training: an EMA copy, a teacher."""
        return any(_AVERAGED.search(part.lower()) for part in self.prefix.split("."))


def find_models(shapes: Mapping[str, tuple[int, ...]]) -> list[Model]:
    """Return every whole vision transformer among the keys of a file, in their order there; if there is none, all keys as one model.

    A prefix is known by what follows it: the keys of a layout. A lone tensor in front of all modules belongs to every model, so that it
    is accounted for, unless it is a state of training.

    Args:
        shapes: by key of the source.

    Raises:
        ValueError: two keys differ only by names of wrapper modules.
    """
    plain: dict[str, str] = {}
    for key in shapes:
        name = _CHUNK.sub(r"\1blocks.", ".".join(part for part in key.split(".") if part not in _WRAPPERS))
        if name in plain:
            raise ValueError(f'keys "{plain[name]}" and "{key}" both mean "{name}"; pass a file that holds one model')
        plain[name] = key
    prefixes = _prefixes(plain)
    lone = {n: k for n, k in plain.items() if "." not in n and shapes[k] and not is_training_state(n)} if "" not in prefixes else {}
    models = []
    for prefix in prefixes:
        below = [other for other in prefixes if other != prefix and other.startswith(prefix)]
        names = [name for name in plain if name.startswith(prefix) and not any(name.startswith(other) for other in below)]
        keys = {name.removeprefix(prefix): plain[name] for name in names}
        models.append(Model(prefix.rstrip("."), {**{name: key for name, key in lone.items() if name not in keys}, **keys}))
    return models


def choose(models: Collection[Model], use: Use | None, are_equal: Callable[[Model, Model], bool]) -> Model:
    """Return the model to read. Of a teacher and a student it is the teacher, as Meta publishes it, unless `use` says "raw".

    Args:
        use: which of two copies.
        are_equal: whether two models have the same weights, so that there is nothing to choose.

    Raises:
        ValueError: there are several and nothing says which, or no copy of the kind that `use` asks for.
    """
    averaged = [model for model in models if model.averaged]
    raw = [model for model in models if not model.averaged]
    teacher = teacher_of(models)
    if use == "raw" and len(raw) == 1:
        return raw[0]
    if use != "raw" and teacher is not None:
        return teacher
    if use == "ema" and len(averaged) == 1:
        return averaged[0]
    names = " and ".join(f'"{model.prefix}"' if model.prefix else "one without a prefix" for model in models)
    if len(models) == 1:
        if use is None:
            return next(iter(models))
        raise ValueError(f"the file holds one model only, {names}, and nothing names it {use} weights; leave out use, or --use")
    first, *others = models
    if use is None and all(are_equal(first, other) for other in others):
        return first
    if len(averaged) == len(raw) == 1:
        raise ValueError(
            f"the file holds two copies of the model that differ, {names}: choose the averaged one by --use ema (use='ema') or the other "
            "by --use raw"
        )
    raise ValueError(f"the file holds {len(models)} models, {names}, and no name tells which is meant; pass a file that holds one of them")


def teacher_of(models: Collection[Model]) -> Model | None:
    """The teacher of a training checkpoint, where there is a student too."""
    parts = {model.prefix: model.prefix.split(".") for model in models}
    teachers = [model for model in models if "teacher" in parts[model.prefix]]
    return teachers[0] if len(teachers) == 1 and any("student" in names for names in parts.values()) else None


def groups(left_out: Collection[str], used: Collection[str]) -> dict[str, int]:
    """Number of keys that are left out, by the outermost module that holds none that is used: "classifier", "student.backbone"."""
    inner = {key[: dot.start()] for key in used for dot in re.finditer(r"\.", key)}
    counts: Counter[str] = Counter()
    for key in left_out:
        ends = (*(dot.start() for dot in re.finditer(r"\.", key)), len(key))
        counts[next((key[:end] for end in ends if key[:end] not in inner), key)] += 1
    return dict(sorted(counts.items()))


def _prefixes(names: Collection[str]) -> list[str]:
    """The prefixes, with their dot, after which the keys of whole models stand; [""] where there is no model.

    Taken one by one, most keys first, because a part of one layout's keys may look like another layout with a longer prefix. Blocks that
    embed no patches are a decoder or a predictor: never a second model.
    """
    layouts_of: dict[str, list[int]] = defaultdict(list)
    for i, layout in enumerate(LAYOUTS):
        for pattern in set(layout.patterns()):
            layouts_of[pattern].append(i)
    patch_keys = {source for layout in LAYOUTS for source in layout.outer["patch_embed.kernel"].sources}
    matches = []  # name, prefix, pattern
    for name in names:
        for start in (0, *(dot.end() for dot in re.finditer(r"\.", name))):
            pattern = pattern_of(name[start:])[0]
            if pattern in layouts_of:
                matches.append((name, name[:start], pattern))
    chosen: list[str] = []
    most = 0
    while matches:
        patterns: dict[tuple[str, int], set[str]] = defaultdict(set)
        for _, prefix, pattern in matches:
            for i in layouts_of[pattern]:
                patterns[prefix, i].add(pattern)
        best = max(patterns, key=lambda candidate: (not patch_keys.isdisjoint(patterns[candidate]), len(patterns[candidate])))
        if chosen and (patch_keys.isdisjoint(patterns[best]) or len(patterns[best]) < _COPY * most):
            break
        most = most or len(patterns[best])
        chosen.append(best[0])
        explained = {name for name, prefix, _ in matches if prefix == best[0]}
        matches = [match for match in matches if match[0] not in explained]
    order = {prefix: next(i for i, name in enumerate(names) if name.startswith(prefix)) for prefix in chosen}
    return sorted(chosen, key=lambda prefix: order[prefix]) or [""]
