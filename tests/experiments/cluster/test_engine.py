"""Where workers come from, what a worker is refused for before it computes, and the script that Slurm gets."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.cluster.engine import check_cluster, job_script
from experiments.study.folder import check_owner, init_run_folder, required_devices

pytest.importorskip("dask_jobqueue", reason="needs the extra: pip install -e '.[cluster]'")
ROOT = Path(__file__).resolve().parents[3]
SLURM = """
workers: 8
cores: 16
memory: 64GB
queue: gpu
account: vision
walltime: "04:00:00"
job_extra_directives: ["--gres=gpu:1"]
job_script_prologue: ["source ~/jaxvit/bin/activate"]
"""


@pytest.mark.parametrize("cluster", ["local:1", "local:16", "tcp://10.0.0.2:8786", "tls://host.name:443"])
def test_workers_are_started_here_or_found_at_an_address(cluster):
    check_cluster(cluster, None)


@pytest.mark.parametrize("cluster", ["local", "local:0", "local:two", "tcp://host", "8786", "slurm:4", "pbs"])
def test_an_unknown_cluster_is_refused_with_what_is_possible(cluster):
    with pytest.raises(ValueError, match=rf'--cluster "{cluster}" is unknown; possible are local:2 .*tcp://HOST:8786 .*slurm'):
        check_cluster(cluster, None)


@pytest.mark.parametrize(
    ("cluster", "text", "message"),
    [
        ("", SLURM, "no --cluster is given"),
        ("local:2", SLURM, "is for --cluster slurm; leave it out"),
        ("slurm", None, "needs --cluster-config FILE; docs/launching.md has an example"),
        ("slurm", "workers: 2", "lacks cores, memory; give one line each"),
        ("slurm", "- workers", "lacks workers, cores, memory"),
        ("slurm", "workers: [", "cannot be read .*give a YAML file"),
        ("slurm", SLURM.replace("8", "0", 1), "workers is 0; give 1 or more"),
        ("slurm", f"{SLURM}\nnodes: 3", "has nodes, which dask_jobqueue.SLURMCluster does not take; remove it"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_by_one_line(cluster, text, message, tmp_path):
    config = tmp_path / "slurm.yaml"
    if text is not None:
        config.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        check_cluster(cluster, config if text is not None else None)
    assert "\n" not in str(error.value)


def test_a_job_of_slurm_is_one_worker_with_all_that_the_job_has(tmp_path):
    config = tmp_path / "slurm.yaml"
    config.write_text(SLURM)
    lines = job_script(config).splitlines()
    wanted = ["-p gpu", "-A vision", "-n 1", "--cpus-per-task=16", "--mem=60G", "-t 04:00:00", "--gres=gpu:1"]
    assert [f"#SBATCH {text}" for text in wanted if f"#SBATCH {text}" not in lines] == []
    assert lines.index("source ~/jaxvit/bin/activate") < len(lines) - 1
    worker = lines[-1]
    for text in (sys.executable, "--nthreads 1", "--memory-limit 0", "--no-dashboard", "--death-timeout"):
        assert text in worker
    assert "--nworkers" not in worker


TAKEN = """
import os, sys
os.sched_getaffinity = lambda process: set(range(5))
os.sched_setaffinity = lambda process, cores: print(sorted(cores), end=" ")
from experiments.cluster.machines import take_place
take_place(sys.argv[1])
print(os.environ.get("CUDA_VISIBLE_DEVICES"))
"""


@pytest.mark.parametrize(
    ("place", "gpus", "expected"),
    [("0/2", "0,1,2,3", "[0, 2, 4] 0,2"), ("1/2", "0,1,2,3", "[1, 3] 1,3"), ("6/8", None, "[1] None"), ("", "0,1", "0,1")],
)
def test_workers_of_one_machine_share_its_cores_and_gpus_out(place, gpus, expected):
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"} | (
        {} if gpus is None else {"CUDA_VISIBLE_DEVICES": gpus}
    )
    done = subprocess.run([sys.executable, "-c", TAKEN, place], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{expected}\n"


SUMMED = """
import sys, hashlib
import numpy as np
from experiments.cluster.machines import take_place
from experiments.numerics import cpu_threads
from experiments.program import prepare_devices
take_place(sys.argv[1])
prepare_devices()
import jax
from jaxvit.probes import logistic
rows, targets = (np.random.default_rng(i).normal(size=(1536, n)).astype(np.float32) for i, n in enumerate((96, 10)))
fitted = logistic.fit(rows, np.exp(targets) / np.exp(targets).sum(1, keepdims=True), 1e-4)
numbers = [*map(np.asarray, jax.tree.leaves(fitted)), np.asarray(jax.jit(lambda x: x.T @ x)(rows))]
print(cpu_threads(), hashlib.sha256(b"".join(x.tobytes() for x in numbers)).hexdigest(), jax.local_device_count())
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a worker has a part of the cores only where there are two")
def test_a_worker_with_a_part_of_the_cores_computes_the_same_bits_as_one_process_with_all_of_them():
    """Sums and products of matrices are cut by the number of threads: a worker of one core gave other last bits."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PJRT_NPROC", "NPROC", "XLA_FLAGS")}
    results = []
    for place in ("", "0/2"):
        done = subprocess.run([sys.executable, "-c", SUMMED, place], env=environment, capture_output=True, text=True, check=True)
        results.append(done.stdout.split())
    (threads, whole, devices), (same_threads, part, fewer) = results
    assert int(fewer) < int(devices)
    assert (same_threads, part) == (threads, whole)


def test_a_folder_asks_for_the_devices_of_the_workers_that_began_it(tmp_path):
    """Where one process began it only for their kind and threads: how many devices it used moves no number."""
    machine = {"device": "cpu", "devices": 2, "threads": 2}
    for name, workers in (("cluster", True), ("process", False)):
        init_run_folder(tmp_path / name, {"study": {}, "machine": machine, "workers": workers})
    assert required_devices(tmp_path / "cluster") == machine
    assert required_devices(tmp_path / "process") == {"device": "cpu", "threads": 2}
    assert required_devices(tmp_path / "new") == {}


def test_a_run_json_that_another_process_is_writing_makes_no_folder_foreign(tmp_path):
    (tmp_path / ".run.json.0123456789ab.tmp").touch()
    check_owner(tmp_path)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="holds no study"):
        check_owner(tmp_path)


def test_the_page_on_launching_names_files_that_are_there_and_can_be_read():
    named = set(re.findall(r"examples/launch/\S+?\.(?:sh|yaml)", (ROOT / "docs" / "launching.md").read_text()))
    there = {path.relative_to(ROOT).as_posix() for path in (ROOT / "examples" / "launch").iterdir()}
    assert named | {"examples/launch/worker.sh"} == there
    check_cluster("slurm", ROOT / "examples" / "launch" / "slurm.yaml")
    for script in (ROOT / "examples" / "launch").glob("*.sh"):
        subprocess.run(["sh", "-n", script], check=True)
