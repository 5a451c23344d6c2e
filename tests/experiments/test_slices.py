"""Machines of one slice start together, and each computes on its own devices. Processes of this machine play them, as jobs of Slurm."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

from experiments.reproduce import Options

PROGRAM = """
import time
from dataclasses import dataclass
import jax
from experiments import program
from jaxvit.sharding import batch_mesh

@dataclass
class Nothing: ...

def main(nothing):
    program.prepare_devices()
    own = jax.local_device_count()
    print(jax.process_count(), jax.device_count() == 2 * own, batch_mesh().size == own, flush=True)
    time.sleep(60)

program.run(main, Nothing, None)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def machine(number: int, address: str, timeout: int) -> subprocess.Popen:
    slurm = {"JOB_ID": "1", "NTASKS": "2", "PROCID": str(number), "LOCALID": "0", "STEP_NODELIST": "localhost", "JOB_NUM_NODES": "2"}
    settings = {"JAXVIT_DISTRIBUTED": address, "JAXVIT_DISTRIBUTED_TIMEOUT": str(timeout), "JAX_PLATFORMS": "cpu"}
    environment = {**os.environ, **{f"SLURM_{name}": value for name, value in slurm.items()}, **settings}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", PROGRAM], env=environment, **pipes)


def test_two_machines_find_one_another_use_their_own_devices_and_end_by_sigterm_with_code_143():
    address = f"127.0.0.1:{free_port()}"
    machines = [machine(number, address, 60) for number in range(2)]
    try:
        for process in machines:
            assert process.stdout.readline() == "2 True True\n"
        machines[1].send_signal(signal.SIGTERM)
        _, printed = machines[1].communicate(timeout=60)
        assert machines[1].returncode == 143
        assert "stopped by SIGTERM; what was finished is kept" in printed
    finally:
        for process in machines:
            process.kill()
            process.communicate()


def test_a_machine_that_stays_alone_ends_in_time_by_one_line():
    process = machine(1, f"127.0.0.1:{free_port()}", 2)
    _, printed = process.communicate(timeout=60)
    assert (process.returncode, printed.count("error: ")) == (2, 1)
    assert "error: the machines of the slice have not found one another; start the same command on all of them within 2 s" in printed


@pytest.mark.parametrize(
    ("address", "timeout", "line"),
    [("first", 2, 'JAXVIT_DISTRIBUTED="first" is no address'), ("auto", 0, 'JAXVIT_DISTRIBUTED_TIMEOUT="0" is no number of seconds')],
)
def test_what_is_no_address_or_time_is_refused(address, timeout, line):
    process = machine(0, address, timeout)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 2
    assert printed.startswith(f"error: {line}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distributed": True, "cluster": "local:2"}, "set JAXVIT_DISTRIBUTED=auto where the workers are started"),
        ({"distributed_address": "host:1"}, "is for --distributed; add it"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Options(**options)
