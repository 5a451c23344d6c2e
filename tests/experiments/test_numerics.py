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


EVERYTHING = {
    "sizes": dataclasses.replace(SIZE, train=59, test=33),
    "resamples": 20,
    "seeds": 1,
    "readouts": dataclasses.replace(READOUTS, solvers=("logistic", "ridge"), cs=(0.01, 1.0)),
    "quiet": True,
    "conditions": ("noise_registers", "shuffle_registers", "random_patches"),
    "tasks": ("linear_probe", "knn", "correspondence", "segmentation", "patch_norms"),
    "analyses": ("ablation_table", "off_manifold", "attention_flow"),
}
"""A study in which images, probes, searches and moments are shared between devices, in numbers that two and three do not divide."""


def on_devices(devices, batch_size, weights, out, model):
    jax.config.update("jax_num_cpu_devices", int(devices))
    reproduce(Study(models=[model], out=out, batch_size=int(batch_size), shard_weights=weights == "split", **EVERYTHING))
    assert jax.device_count() == int(devices)


@pytest.mark.slow
def test_neither_devices_nor_batches_nor_split_weights_nor_the_environment_move_a_byte(tmp_path):
    """Each in a process of its own; cells have the same keys, so that a study goes on wherever another stopped."""
    foreign = {f"JAX_{name.upper()}": str(value) for name, value in FOREIGN.items() if name != "legacy_prng_key"}
    model = save_models(tmp_path / "models")[0]
    script = "import sys; from tests.experiments.test_numerics import on_devices; on_devices(*sys.argv[1:])"
    results = []
    runs = (("1", "4", "copied", {}), ("2", "59", "copied", foreign), ("3", "128", "copied", {}), ("2", "16", "split", {}))
    for devices, batch_size, weights, environment in runs:
        out = tmp_path / f"{weights} on {devices}"
        command = [sys.executable, "-c", script, devices, batch_size, weights, str(out), model]
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 0, done.stderr
        results.append((out / "results.jsonl").read_bytes())
    assert results[0].count(b"\n") > 200
    assert [one == results[0] for one in results] == [True] * 4
    with pinned_numerics():
        assert read_manifest(tmp_path / "copied on 2")["numerics"] == numerics.numerics()


def test_flags_of_the_compiler_stand_in_the_keys(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    assert compiler_flags() == ""
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x --xla_cpu_enable_fast_math=true")
    assert compiler_flags() == "XLA_FLAGS=--xla_cpu_enable_fast_math=true"
    chosen = settings(Study(out=tmp_path))
    assert chosen.extraction["precision"].endswith("highest; XLA_FLAGS=--xla_cpu_enable_fast_math=true")
