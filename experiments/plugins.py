"""The user's own conditions, tasks and analyses: a Python file or module with dictionaries of them. Nothing registers itself."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

KINDS = ("CONDITIONS", "TASKS", "ANALYSES")
"""Names of the dictionaries that a plug-in may have."""


class Plugin(NamedTuple):
    """A loaded plug-in.

    Attributes:
        source: the name of a module, or the whole path of a file.
        sha256: of its file; in the keys of what it defines.
        conditions: ablations, or functions (config, moments, seed) -> ablation, by name.
        tasks: `experiments.tasks.base.Task` by name.
        analyses: objects or modules like `experiments.analyses.base.Analysis`, by name.
    """

    source: str
    sha256: str
    conditions: Mapping[str, Any]
    tasks: Mapping[str, Any]
    analyses: Mapping[str, Any]


def load_plugin(source: str) -> Plugin:
    """Load a plug-in: a path that ends in .py, or the name of a module.

    Raises:
        ValueError: it cannot be found or imported, or has none of the dictionaries.
    """
    module = _load_file(Path(source)) if source.endswith(".py") else _load_module(source)
    tables = {name: getattr(module, name, {}) for name in KINDS}
    wrong = [name for name, table in tables.items() if not isinstance(table, Mapping)]
    if wrong:
        raise ValueError(f"{wrong[0]} of plug-in {source} is {type(tables[wrong[0]]).__name__}; it must be a dictionary by name")
    if not any(tables.values()):
        raise ValueError(f"plug-in {source} has none of {', '.join(KINDS)}; define at least one of these dictionaries")
    digest = hashlib.sha256(Path(str(module.__file__)).read_bytes()).hexdigest()
    name = str(Path(source).resolve()) if source.endswith(".py") else source  # to be found from another folder
    return Plugin(name, digest, tables["CONDITIONS"], tables["TASKS"], tables["ANALYSES"])


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ValueError(f"there is no plug-in {path}; give the path of a Python file or the name of a module")
    name = f"plug-in {path.resolve()}"  # no module of another plug-in or package
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look up the module of their annotations there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(_broken(str(path), error)) from error
    return module


def _load_module(name: str) -> ModuleType:
    sys.path.insert(0, "")  # modules of the current folder, as `python -m` finds them
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name.partition(".")[0]:
            raise ValueError(f"there is no module {name} for a plug-in; give its name, or the path of a file that ends in .py") from error
        raise ValueError(_broken(name, error)) from error
    except Exception as error:
        raise ValueError(_broken(name, error)) from error
    finally:
        sys.path.remove("")


def _broken(source: str, error: Exception) -> str:
    """That a plug-in could not be loaded, and the line of it that failed."""
    trace, line = error.__traceback__, ""
    names = _file_parts(source) if source.endswith(".py") else tuple(source.split("."))
    while trace is not None:
        if _file_parts(trace.tb_frame.f_code.co_filename)[-len(names) :] == names:
            line = f", line {trace.tb_lineno}"
        trace = trace.tb_next
    return f"plug-in {source} cannot be loaded{line}: {type(error).__name__}: {' '.join(str(error).split())}"


def _file_parts(path: str) -> tuple[str, ...]:
    """The names that lead to a file of Python, the last without its ending; a package's are those of its folder."""
    *folders, name = Path(path).resolve().parts
    return tuple(folders) if name == "__init__.py" else (*folders, name.removesuffix(".py"))


def source_hash(function: Any) -> str:
    """SHA-256 of the source text of a function, for keys; "" where there is none (typed at a prompt, or no function)."""
    try:
        return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()
    except (OSError, TypeError):
        return ""
