"""The tree of arrays inside a checkpoint: Orbax writes it whole and reads it leaf by leaf."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

Read = Callable[[str], np.ndarray]
"""From the name of a leaf to its array, on the host."""


def write_leaves(folder: Path, leaves: Mapping[str, Any]) -> None:
    """Write arrays of NumPy or JAX, by name, to a new folder. Errors are of many types, with messages of many lines (`first_line`)."""
    # imported here because it takes as long as the rest of the library, and most programs only load a demo model
    import orbax.checkpoint as ocp

    # Orbax's defaults copy and compress every array: twice the weights in memory, for a tenth less on disk. Early versions of 0.12
    # have no choice but to copy
    numpy_handler = ocp.type_handlers.NumpyHandler
    uncopied = {"deepcopy_host_arrays": False} if "deepcopy_host_arrays" in inspect.signature(numpy_handler).parameters else {}
    registry = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, numpy_handler(**uncopied)), (jax.Array, ocp.type_handlers.ArrayHandler())
    )
    handler = ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=registry)
    with _silent_absl(), ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(folder, leaves)


@contextlib.contextmanager
def stored_leaves(folder: Path) -> Iterator[tuple[dict[str, Any], Read]]:
    """Shape and dtype of each leaf by name, and what reads one: a model need not fit on the host, nor on one device. Errors as for
    `write_leaves`."""
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        description = checkpointer.metadata(folder).item_metadata
        if description is None:
            raise ValueError("the description of its tree is damaged")

        def read(name: str) -> np.ndarray:
            as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray)}
            wanted = ocp.args.PyTreeRestore(item={name: 0}, restore_args=as_numpy, partial_restore=True)
            leaf: np.ndarray = checkpointer.restore(folder, wanted)[name]
            return leaf

        yield dict(description.tree), read


def add_to_hash(digest: Any, name: str, leaf: np.ndarray) -> None:
    """Add name, dtype, shape and bytes of a leaf to a hash of `hashlib`."""
    array = np.ascontiguousarray(leaf)
    digest.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
    digest.update(array.reshape(-1).view(np.uint8).data)


def first_line(error: Exception) -> str:
    """The first line of an error's message, shortened; the type's name if there is no message."""
    return (next(iter(str(error).splitlines()), "") or type(error).__name__)[:300]


@contextlib.contextmanager
def _silent_absl() -> Iterator[None]:
    """Suppress Orbax's log, which repeats every error that it raises with its traceback."""
    logger = logging.getLogger("absl")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
