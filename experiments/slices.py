"""Machines that share one slice of a TPU: their runtime waits until all of them have started, and each then computes on its own chips."""

from __future__ import annotations

import os
import sys
import threading

import jax

JOIN, TIMEOUT = "JAXVIT_DISTRIBUTED", "JAXVIT_DISTRIBUTED_TIMEOUT"
"""Environment variables: "auto", the address HOST:PORT of the first machine, or "skip"; seconds until all machines must have started."""
SKIP = "skip"
DEFAULT_TIMEOUT = 300


def join_slice() -> None:
    """Start JAX's runtime together with the other machines of the slice, where the environment asks for it; before any computation.

    Nothing is computed together: a mesh is of the devices of one process (`jaxvit.sharding.batch_mesh`).

    Raises:
        ValueError: the machines have not found one another in time, or nothing tells where they are.
    """
    asked, timeout = os.environ.get(JOIN, ""), os.environ.get(TIMEOUT, "") or str(DEFAULT_TIMEOUT)
    if asked in ("", SKIP):
        return
    if asked != "auto" and not asked.rpartition(":")[2].isdigit():
        raise ValueError(f'{JOIN}="{asked}" is no address; give auto, HOST:PORT of the first machine, or skip')
    if not timeout.isdigit() or not int(timeout):
        raise ValueError(f'{TIMEOUT}="{timeout}" is no number of seconds; give 1 or more')
    jax.config.update("jax_enable_preemption_service", False)  # it would swallow SIGTERM
    remedy = (
        f"start the same command on all of them within {timeout} s ({TIMEOUT}), give the address of the first ({JOIN}=HOST:PORT, a port "
        f"that its firewall opens), or {JOIN}={SKIP} where none belong together"
    )
    joined = threading.Event()
    threading.Thread(target=_end_late, args=(joined, int(timeout), remedy), daemon=True, name="slice").start()
    try:
        jax.distributed.initialize(None if asked == "auto" else asked, initialization_timeout=int(timeout) + 600)
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"the machines of the slice cannot find one another ({reason}); {remedy}") from error
    finally:
        joined.set()


def _end_late(joined: threading.Event, timeout: int, remedy: str) -> None:
    """End the process with one line if the machines are not joined in time: JAX itself would abort it, with no error to catch."""
    if not joined.wait(timeout):
        print(f"error: the machines of the slice have not found one another; {remedy}", file=sys.stderr, flush=True)
        os._exit(2)
