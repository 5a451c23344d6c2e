"""What a study costs, and the refusal of one that does not fit."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import jaxvit
from experiments.features.extraction import Runner
from experiments.study import cost, grid
from experiments.study.cells import Store
from experiments.study.cost import Cost, _host_memory, programs
from experiments.study.jobs import run_job
from jaxvit.sharding import with_weight_shards
from jaxvit.vit import abstract
from tests.experiments.tiny_study import save_models, targets

GIB = 2**30


def test_a_study_that_does_not_fit_is_refused_before_it_starts():
    memory = {"host_memory": GIB, "free_host_memory": 20 * GIB, "device_memory": 8 * GIB, "free_device_memory": GIB}
    needed = Cost(cells=1, images=1, seconds=None, disk=0, free_disk=GIB, **memory)
    with pytest.raises(
        ValueError, match=r"about 8\.0 GiB of memory of the device, 1\.0 GiB are free; choose smaller images, --dtype bfloat16, "
    ):
        needed.check()
    with pytest.raises(ValueError, match=r"needs about 9\.0 GiB of memory, 5\.0 GiB are free"):
        dataclasses.replace(needed, free_host_memory=5 * GIB, free_device_memory=None).check()
    with pytest.raises(ValueError, match=r"needs about 2\.0 GiB of disk, 1\.0 GiB are free; choose another --out"):
        dataclasses.replace(needed, device_memory=0, disk=2 * GIB).check()
    dataclasses.replace(needed, device_memory=0).check()


@pytest.mark.parametrize(
    ("model", "devices", "of_device", "of_host", "expected"),
    [
        ("dinov3_vit7b16", 8, 16e9, 400e9, True),  # a v5e-8
        ("dinov3_vit7b16", 4, 32e9, 400e9, True),  # a v4-8
        ("dinov3_vit7b16", 8, 141e9, 1e12, False),
        ("dinov3_vit7b16", 1, 16e9, 400e9, False),
        ("dinov3_vit7b16", 7, 16e9, 400e9, False),  # which divide nothing
        ("dinov2_vitg14_reg", 8, 16e9, 400e9, False),
        ("dinov3_vit7b16", 16, None, 256e9, True),  # a CPU, whose devices share its memory: 16 copies
        ("dinov2_vitb14", 16, None, 256e9, False),
    ],
)
def test_weights_are_split_where_copies_take_half_of_the_memory(model, devices, of_device, of_host, expected, monkeypatch):
    stats = None if of_device is None else {"bytes_limit": of_device}
    monkeypatch.setattr(cost.jax, "local_devices", lambda: [SimpleNamespace(memory_stats=lambda: stats)])
    monkeypatch.setattr(cost, "free_host_memory", lambda: of_host)
    assert cost.is_large(jaxvit.MODELS[model], jax.sharding.AbstractMesh((devices,), ("batch",))) == expected


def test_split_weights_are_there_already_and_cost_two_blocks(monkeypatch):
    config = dataclasses.replace(jaxvit.MODELS["dinov3_vit7b16"], width=64, heads=4, mlp_dim=128)
    images = SimpleNamespace(analysis_images=np.empty((0, 32, 32, 3)))
    mesh = jax.sharding.AbstractMesh((8,), ("batch",))
    monkeypatch.setattr(cost, "_free_device_memory", lambda: 16 * GIB)
    monkeypatch.setattr(cost, "share_of", lambda *_: 1)
    model = abstract(config)
    whole, split = (
        cost._device_memory(SimpleNamespace(model=m, mesh=mesh, image_size=(32, 32), data=images))
        for m in (model, with_weight_shards(model, mesh))
    )
    matrices = sum(4 * leaf.size for leaf in jax.tree.leaves(model.blocks) if leaf.ndim == 3)
    assert whole - split == matrices - 2 * matrices // 40


def test_conditions_of_one_structure_are_one_program(tmp_path):
    """Full, constants at block outputs, random patches, noise, shuffle, constants at block inputs, cuts: seven for seventeen conditions."""
    target, _ = targets(save_models(tmp_path))
    jobs = list(grid.jobs(target))
    assert {kind for kind, _ in programs(target, jobs)} == {"scores"}
    assert len(programs(target, jobs)) == 7
    few = list(grid.jobs(target, ("zero_cls", "zero_r1", "mean_cls")))
    assert len(programs(target, few)) == 2, "full and one program of constants"


def test_images_that_are_run_for_overwritten_patches_are_counted(tmp_path, monkeypatch):
    """Those of which patches are read, in full too: once, and not for every draw. What is run is what was counted."""
    target, _ = targets(save_models(tmp_path))
    plans = {name: [job for job in grid.jobs(target, (name,)) if job.condition == name] for name in ("zero_cls", "random_patches")}
    once = 16 + 16 + 20 + 20  # both views of a pair, train and test images with masks
    zeroed, patches = (sum(job.images for job in plan) for plan in plans.values())
    assert (len(target.seeds_of("random_patches")), patches) == (2, 2 * zeroed + once)
    tasks = {name: target.settings.tasks[name] for name in ("correspondence", "segmentation")}
    target = dataclasses.replace(target, settings=dataclasses.replace(target.settings, tasks=tasks))
    target.statistics  # noqa: B018  its images are no features
    extract, run = Runner.extract, []

    def counting(self, images, *rest, **options):
        run.append(len(images))
        return extract(self, images, *rest, **options)

    monkeypatch.setattr(Runner, "extract", counting)
    plan, store = [job for job in grid.jobs(target, ("random_patches",)) if not job.host_only], Store(tmp_path)
    for job in plan:
        run_job(job, store)
    assert sum(run) == sum(job.images for job in plan)
    assert _host_memory(target) > _host_memory(dataclasses.replace(target, ablations={}))


def test_images_that_a_task_makes_are_counted(tmp_path):
    target, _ = targets(save_models(tmp_path))
    making = dataclasses.replace(target.settings.tasks["knn"], made_images=lambda data: 1000)
    counts = []
    for knn in (target.settings.tasks["knn"], making):
        tasks = {**target.settings.tasks, "knn": knn}
        planned = dataclasses.replace(target, settings=dataclasses.replace(target.settings, tasks=tasks))
        counts.append(sum(job.images for job in grid.jobs(planned, ("zero_cls",))))
    assert counts[1] - counts[0] == 2 * 1000, "in full and in zero_cls"
