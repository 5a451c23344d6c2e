"""Imports run one way: experiments -> convert -> jaxvit, and inside them from the later packages to the earlier ones, without circles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = (
    ("config",),
    ("sites", "tokens", "moments", "geometry", "sharding", "checks", "calls", "printing"),
    ("position", "cuts", "attention", "vit"),
    ("functions", "specs", "serial", "ablation"),
    ("ops", "given", "apply", "interventions", "sources", "cut_lowering", "lowering"),
    ("capture", "run", "forward", "resume", "attribution"),
    ("calibration", "batching", "extract"),
    ("optimal", "registers", "rollout"),
    ("neighbours", "metrics", "probes"),
    ("multiway", "resampling", "inference"),
    ("files", "stored", "checkpoint", "demo"),
    ("__init__",),
)
"""Modules of jaxvit/ from the ground up; those of a group may import one another, but not in a circle."""
PROGRAMS = (
    ("program", "preemption", "slices", "demo", "rows", "plugins", "numerics"),
    ("datasets",),
    ("features", "plotting"),
    ("tasks",),
    ("study",),
    ("sinks",),
    ("__init__",),
    ("analyses",),
    ("definition",),
    ("planning", "report"),
    ("cluster",),
    ("reproduce", "pack"),
    ("pretrain", "simulations"),
    ("bench",),
)
"""The same for experiments/; `__init__` is its door to finished studies."""
APART = {("features", "plotting"), ("plotting", "features")}
"""Packages of one group that know nothing of each other."""


def modules(root: Path) -> dict[str, Path]:
    """Every module by its dotted name; a package is its `__init__`."""
    found = {}
    for package in ("jaxvit", "convert", "experiments"):
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Modules of the project that a file imports anywhere: lazily, for types only, in `__main__`, or by name."""
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            targets = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
            targets = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        else:
            continue
        for target in targets:
            while target and target not in known:
                target = target.rpartition(".")[0]
            if target and target != name:
                yield target


def graph(root: Path) -> dict[str, set[str]]:
    known = modules(root)
    return {name: set(imported(name, path, known)) for name, path in known.items()}


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Modules of a circle, or nothing."""
    done: set[str] = set()

    def search(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for other in sorted(arrows[name]):
            if found := search(other, [*way, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(arrows) if (found := search(name, []))), [])


def part(name: str) -> str:
    """The module or package below jaxvit/ or experiments/ that a module belongs to."""
    return name.split(".")[1] if "." in name else "__init__"


def runs_back(name: str, other: str) -> bool:
    """Whether `name` may not import `other`."""
    packages = ("jaxvit", "convert", "experiments")
    ours, theirs = name.split(".")[0], other.split(".")[0]
    if ours != theirs:
        return packages.index(theirs) > packages.index(ours)
    if ours == "convert":
        return False
    rank = {member: i for i, group in enumerate(LIBRARY if ours == "jaxvit" else PROGRAMS) for member in group}
    return rank[part(other)] > rank[part(name)] or (ours == "experiments" and (part(name), part(other)) in APART)


ARROWS = graph(ROOT)


def test_nothing_imports_in_a_circle():
    assert circle(ARROWS) == []


def test_no_arrow_runs_against_the_order():
    assert [f"{name} -> {other}" for name, others in sorted(ARROWS.items()) for other in sorted(others) if runs_back(name, other)] == []


@pytest.mark.parametrize(("package", "order"), [("jaxvit", LIBRARY), ("experiments", PROGRAMS)])
def test_every_module_has_its_place_in_the_order(package, order):
    placed = {member for group in order for member in group}
    assert {part(name) for name in ARROWS if name.split(".")[0] == package} <= placed
    assert placed <= {part(name) for name in ARROWS if name.split(".")[0] == package}


def test_a_package_says_what_it_is_for_and_imports_nothing():
    """Importing one module of a package costs nothing of the others."""
    for name, path in modules(ROOT).items():
        if path.stem == "__init__" and name.startswith("experiments."):
            tree = ast.parse(path.read_text())
            assert ast.get_docstring(tree), name
            assert len(tree.body) == 1, name


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def late():\n    from experiments.b import x\n", {"experiments.b"}),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import experiments.b\n", {"experiments.b"}),
        ("if __name__ == '__main__':\n    from experiments import b\n", {"experiments.b"}),
        ("from . import b\n", {"experiments.b"}),
        ("from .b import x as y\n", {"experiments.b"}),
        ("import importlib\nimportlib.import_module('experiments.b')\n", {"experiments.b"}),
    ],
)
def test_hidden_imports_are_seen(tmp_path, source, expected):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "a.py").write_text(source)
    (tmp_path / "experiments" / "b.py").write_text("from experiments import a\n")
    arrows = graph(tmp_path)
    assert arrows["experiments.a"] == expected
    assert circle(arrows) == ["experiments.a", "experiments.b", "experiments.a"]
