"""No setting of JAX moves a number of a study, whatever the environment or the calling program says."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest
from rich.console import Console

from experiments import numerics
from experiments.numerics import PROCESS, THREAD, compiler_flags, pinned_numerics, pinned_thread
from experiments.planning import settings
from experiments.reproduce import Study, reproduce
from experiments.study.cells import Store
from experiments.study.folder import read_manifest
from experiments.study.jobs import Job
from experiments.study.run import run_jobs
from tests.experiments.tiny_study import READOUTS, SIZE, save_models

FOREIGN = {
    "default_matmul_precision": "bfloat16",
    "enable_x64": True,
    "default_prng_impl": "rbg",
    "threefry_partitionable": False,
    "enable_custom_prng": True,
    "legacy_prng_key": "error",
    "numpy_dtype_promotion": "strict",
    "numpy_rank_promotion": "raise",
    "softmax_custom_jvp": True,
    "allow_f16_reductions": False,
    "disable_jit": True,
    "debug_nans": True,
    "debug_infs": True,
    "random_seed_offset": 7,
    "high_dynamic_range_gumbel": True,
    "disable_most_optimizations": True,
    "optimization_level": "O1",
    "exec_time_optimization_effort": -1.0,
}


def current(name):
    value = jax.config.values[f"jax_{name}"] if name in PROCESS else getattr(jax.config, f"jax_{name}")
    return getattr(value, "value", value)


def test_every_setting_is_tried():
    assert FOREIGN.keys() == (THREAD | PROCESS).keys()


@pytest.mark.parametrize("name", FOREIGN)
def test_a_setting_of_the_session_is_pinned_and_given_back(name):
    before, expected = jax.config.values[f"jax_{name}"], (THREAD | PROCESS)[name]
    jax.config.update(f"jax_{name}", FOREIGN[name])
    try:
        with ThreadPoolExecutor(1) as threads:
            with pinned_numerics():
                assert current(name) == expected
                assert threads.submit(lambda: _inside_a_thread(name)).result() == expected
            assert current(name) == FOREIGN[name]
    finally:
        jax.config.update(f"jax_{name}", getattr(before, "value", before))


def _inside_a_thread(name):
    with pinned_thread():
        return current(name)


def test_jobs_beside_the_devices_have_the_settings_too(tmp_path):
    seen = []

    def compute(store):
        seen.append(jax.config.jax_enable_x64)
        return [], {}

    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        with pinned_numerics():
            job = Job(key={"kind": "test"}, model="", label="test", weight=1.0, compute=compute, host_only=True)
            run_jobs([job], [], Store(tmp_path), Console(quiet=True))
    finally:
        jax.config.update("jax_enable_x64", before)
    assert seen == [False]


def study(out, models):
    few = {"sizes": SIZE, "batch_size": 16, "resamples": 20, "seeds": 1, "readouts": READOUTS, "quiet": True}
    chosen = {"tasks": ("knn",), "analyses": ("ablation_table",), "conditions": ("noise_registers", "mean_registers")}
    return Study(models=models[:1], out=out, **chosen, **few)


def test_the_environment_moves_no_number(tmp_path):
    models = save_models(tmp_path / "models")
    reproduce(study(tmp_path / "here", models))
    environment = {f"JAX_{name.upper()}": str(value) for name, value in FOREIGN.items() if name != "legacy_prng_key"}
    script = (
        "import sys; from pathlib import Path; from experiments.reproduce import reproduce;"
        "from tests.experiments.test_numerics import study; reproduce(study(Path(sys.argv[1]), sys.argv[2:]))"
    )
    _run(script, tmp_path / "there", models, environment)
    here, there = ((tmp_path / name / "results.jsonl").read_bytes() for name in ("here", "there"))
    assert here.count(b"\n") > 5
    assert here == there
    assert read_manifest(tmp_path / "there")["numerics"] == numerics.numerics()


def _run(script, out, models, environment=None):
    command = [sys.executable, "-c", script, str(out), *models]
    done = subprocess.run(command, env=os.environ | (environment or {}), capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr


EVERYTHING = {
    "sizes": dataclasses.replace(SIZE, train=59, test=33),
    "resamples": 20,
    "seeds": 1,
    "readouts": dataclasses.replace(READOUTS, solvers=("logistic", "ridge"), cs=(0.01, 1.0)),
    "quiet": True,
    "conditions": ("noise_registers", "mean_registers", "shuffle_registers", "shuffle_registers_whole", "random_patches"),
    "tasks": ("linear_probe", "knn", "correspondence", "segmentation", "patch_norms", "effective_rank"),
    "analyses": ("ablation_table", "off_manifold", "attention_flow", "layerwise_probes"),
}
"""A study in which images, probes, searches and moments are shared between devices, in numbers that two and three do not divide."""


def on_devices(out, models, devices, batch_size):
    jax.config.update("jax_num_cpu_devices", int(devices))
    jax.config.update("jax_default_matmul_precision", "highest")
    reproduce(Study(models=models[:1], out=out, batch_size=int(batch_size), **EVERYTHING))
    assert jax.device_count() == int(devices)


def test_neither_the_number_of_devices_nor_the_batch_size_moves_a_byte(tmp_path):
    """Each number of devices in a process of its own; a run on three goes on where one on one stopped, without computing anything."""
    models = save_models(tmp_path / "models")
    script = "import sys; from tests.experiments.test_numerics import on_devices; on_devices(sys.argv[1], sys.argv[4:], *sys.argv[2:4])"
    results = []
    for devices, batch_size in ((1, 4), (2, 59), (3, 128)):
        out = tmp_path / f"on {devices}"
        _run(script, out, (str(devices), str(batch_size), *models))
        results.append((out / "results.jsonl").read_bytes())
    assert results[0].count(b"\n") > 300
    assert results[0] == results[1]
    assert results[0] == results[2]
    cells = {path: path.stat().st_mtime_ns for path in (tmp_path / "on 1" / "cells").iterdir()}
    _run(script, tmp_path / "on 1", ("3", "16", *models))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "on 1" / "cells").iterdir()} == cells


def test_flags_of_the_compiler_stand_in_the_keys(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    assert compiler_flags() == ""
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x --xla_cpu_enable_fast_math=true")
    assert compiler_flags() == "XLA_FLAGS=--xla_cpu_enable_fast_math=true"
    chosen = settings(study(tmp_path, ()))
    assert chosen.extraction["precision"].endswith("highest; XLA_FLAGS=--xla_cpu_enable_fast_math=true")
