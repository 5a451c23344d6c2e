"""Probes of features: ridge, few-shot, logistic, SGD and k-NN, and segmentation from patches."""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

if not TYPE_CHECKING:  # which would then believe in every name

    def __getattr__(name: str) -> Any:
        """A module of the package that nothing has imported yet, such as `jaxvit.probes.knn`."""
        if name in _module_names():
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *_module_names()})


def _module_names() -> set[str]:
    return {module.name for module in pkgutil.iter_modules(__path__)}
