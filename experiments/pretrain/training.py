"""The training loop of the demo models: state, steps, evaluation, checkpoints, log, and the finished file.

Everything a step draws comes from fold_in(seed, step) and the whole state is one saved pytree, so a run that was killed
and started again ends with exactly the weights of an uninterrupted one. The finished model is the EMA teacher's backbone.
"""

from __future__ import annotations

import functools
import json
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, UInt8
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from safetensors.numpy import save_file

from experiments.datasets import scenes
from experiments.demo import CONFIGS
from experiments.pretrain import backbone, objective
from experiments.pretrain.recipe import Pretraining, identity, init_run_folder
from jaxvit.checkpoint import DEMO_FOLDER, named_leaves
from jaxvit.config import ViTConfig
from jaxvit.files import write_text
from jaxvit.sharding import batch_mesh, batches, replicate
from jaxvit.vit import create

_NEIGHBOURS = 10
_KNN_TEMPERATURE = 0.07
_KNN_BATCH = 96

State = dict[str, Any]


def train(run: Pretraining) -> Path:
    """Train, or continue, and write `<out>/<name>.safetensors`; returns its path.

    Raises:
        ValueError: the folder holds a run of another configuration.
    """
    init_run_folder(run)
    source, config = scenes.material("pretrain"), CONFIGS[run.name]
    evaluation = (scenes.scenes("train", run.bank, run.seed), scenes.scenes("val", run.queries, run.seed))
    state, seconds_before, accuracy = initial_state(run), 0.0, float("nan")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[now]}"))
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    mesh = training_mesh(run)
    with ocp.CheckpointManager(_checkpoints(run.out), options=options) as manager, Progress(*columns) as progress:
        if manager.latest_step() is not None:
            state, seconds_before, accuracy = _restore(manager, state)
        state = replicate(state, mesh)
        first = int(state["step"])
        truncate_log(run.out, first)
        bar = progress.add_task(run.name, total=run.steps, completed=first, now="compiling")
        started, seconds = time.monotonic(), seconds_before
        for step in range(first, run.steps):
            state, metrics = train_step(run, view_size(run, step), mesh, source, state)
            done, seconds = step + 1, seconds_before + time.monotonic() - started
            if done % run.evaluate_every == 0 or done == run.steps:
                accuracy = knn_accuracy(config, mesh, state["teacher"]["backbone"], *evaluation)
            if done % 20 == 0 or done == run.steps:
                _log(run, progress, bar, done, seconds, (done - first) / (seconds - seconds_before), metrics, accuracy)
            if done % run.checkpoint_every == 0 or done == run.steps:
                tree = {"state": state, "elapsed": seconds, "accuracy": accuracy}
                manager.save(done, args=ocp.args.StandardSave(tree), force=True)
        manager.wait_until_finished()
    return export(run, mesh, state["teacher"]["backbone"], accuracy, seconds)


def initial_state(run: Pretraining) -> State:
    """Step 0: student and teacher with the same weights, a random queue, and the optimiser's moments."""
    head_key, queue_key = jax.random.split(jax.random.fold_in(jax.random.key(run.seed), 1))
    config = CONFIGS[run.name]

    def weights() -> State:
        return {"backbone": named_leaves(create(config, run.seed)), "heads": objective.create_heads(config.width, head_key)}

    student = weights()
    state = {
        "step": jnp.zeros((), jnp.int32),
        "student": student,
        "teacher": weights(),
        "queue": objective.unit(jax.random.normal(queue_key, (run.recipe.queue, objective.PROJECTION))),
        "optimiser": optimiser(run).init(student),
    }
    if run.start is not None:
        with ocp.CheckpointManager(_checkpoints(run.start)) as manager:
            finished = _restore(manager, state)[0]
        state |= {part: finished[part] for part in ("student", "teacher", "queue")}
    return state


def training_mesh(run: Pretraining) -> Mesh:
    """A mesh of as many devices as divide the scenes of a step evenly; with foreign keys every device needs an even number of scenes.

    Raises:
        ValueError: the scenes of a step cannot be paired.
    """
    devices, batch = jax.local_devices(), run.recipe.batch
    if run.recipe.foreign_keys and batch % 2:
        raise ValueError(f"a batch of {batch} scenes cannot be paired; with foreign keys choose an even --recipe.batch")
    scenes_at_once = 2 if run.recipe.foreign_keys else 1
    count = max(n for n in range(1, len(devices) + 1) if batch % (n * scenes_at_once) == 0)
    return batch_mesh(devices[:count])


def train_step(run: Pretraining, size: int, mesh: Mesh, source: scenes.Material, state: State) -> tuple[State, dict[str, Array]]:
    """One step on views of a given size: the next state and the step's losses and gradient norm.

    Compiles once per size. `state` is consumed (its buffers are reused).
    """
    # Options that do not shape the program are set to fixed values, so that a change of theirs does not compile it again.
    static = replace(run, seed=0, out=Path(), start=None, checkpoint_every=1, evaluate_every=1, bank=1, queries=1, bundle=False)
    return _train_step(static, size, mesh, source, state, run.seed)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def _train_step(
    run: Pretraining, size: int, mesh: Mesh, source: scenes.Material, state: State, seed: int
) -> tuple[State, dict[str, Array]]:
    recipe, config, step = run.recipe, CONFIGS[run.name], state["step"]
    scene_key, mask_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), 2))
    strength = jnp.minimum(step / max(recipe.curriculum * run.steps, 1), 1.0)
    indices = jax.lax.with_sharding_constraint(step * recipe.batch + jnp.arange(recipe.batch), NamedSharding(mesh, PartitionSpec("batch")))
    views = scenes.training_views(source, scene_key, indices, strength, size).reshape(-1, size, size, 3)
    masks = objective.draw_masks(jax.random.fold_in(mask_key, step), len(views), *config.grid(size, size), recipe.hidden_keys)
    encode = functools.partial(backbone.encode_sharded, config, mesh, views)
    teacher_tokens = encode(state["teacher"]["backbone"])

    def loss(student: State) -> tuple[Array, tuple[Array, Array, Array]]:
        student_tokens = encode(student["backbone"], masks, student["heads"]["mask_token"], recipe.foreign_keys)
        heads = student["heads"], state["teacher"]["heads"]
        cls_loss, patch_loss, projections = objective.losses(*heads, student_tokens, teacher_tokens, masks.patches, state["queue"])
        return cls_loss + recipe.patch_weight * patch_loss, (cls_loss, patch_loss, projections)

    gradient, (cls_loss, patch_loss, projections) = jax.grad(loss, has_aux=True)(state["student"])
    updates, moments = optimiser(run).update(gradient, state["optimiser"], state["student"])
    student = optax.apply_updates(state["student"], updates)
    low, high = recipe.teacher
    momentum = high - (high - low) * (1 + jnp.cos(jnp.pi * step / run.steps)) / 2
    teacher = jax.tree.map(lambda t, s: momentum * t + (1 - momentum) * s, state["teacher"], student)
    queue = jnp.concatenate([projections, state["queue"]])[: recipe.queue]
    metrics = {"cls_loss": cls_loss, "patch_loss": patch_loss, "gradient_norm": optax.tree.norm(gradient)}
    next_state = {"step": step + 1, "student": student, "teacher": teacher, "queue": queue, "optimiser": moments}
    return jax.lax.with_sharding_constraint((next_state, metrics), NamedSharding(mesh, PartitionSpec()))


def view_size(run: Pretraining, step: int) -> int:
    """Side of the views of a step, in pixels."""
    return 48 if step < run.recipe.small_views * run.steps else scenes.SIZE


def optimiser(run: Pretraining) -> optax.GradientTransformation:
    """Muon for the block matrices, each block's by itself, and AdamW for everything else."""
    recipe = run.recipe
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, min(recipe.warmup, run.steps // 2), run.steps, 0.02)
    per_block = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)

    def is_matrix(name: str) -> bool:
        return name.startswith("blocks.") and name.endswith(".kernel")

    def dimension_numbers(weights: State) -> State:
        backbone_numbers = {name: per_block if is_matrix(name) else None for name in weights["backbone"]}
        return {"backbone": backbone_numbers, "heads": dict.fromkeys(weights["heads"])}

    return optax.chain(
        optax.clip_by_global_norm(recipe.clip),
        optax.contrib.muon(
            lambda count: recipe.matrix_rate * schedule(count),
            adam_learning_rate=lambda count: recipe.rest_rate * schedule(count),
            adam_weight_decay=recipe.decay,
            muon_weight_dimension_numbers=dimension_numbers,
        ),
    )


def knn_accuracy(config: ViTConfig, mesh: Mesh, leaves: backbone.Leaves, bank: scenes.Scenes, queries: scenes.Scenes) -> float:
    """k-NN accuracy: share of the queries whose digit wins the similarity-weighted vote of their neighbours in the bank (cosine, CLS)."""
    bank_cls, query_cls = (_unit_cls(config, mesh, leaves, s.images) for s in (bank, queries))
    similarity = query_cls @ bank_cls.T
    nearest = np.argsort(-similarity, axis=1)[:, :_NEIGHBOURS]
    weight = np.exp(np.take_along_axis(similarity, nearest, axis=1) / _KNN_TEMPERATURE)
    votes = (weight[..., None] * np.eye(10)[bank.labels[nearest]]).sum(axis=1)
    return float((votes.argmax(axis=1) == queries.labels).mean())


def _unit_cls(
    config: ViTConfig, mesh: Mesh, leaves: backbone.Leaves, images: UInt8[np.ndarray, "images height width 3"]
) -> Float[np.ndarray, "images width"]:
    """CLS of every image, divided by its length."""
    parts = batches(images, _KNN_BATCH, mesh)
    return np.concatenate([np.asarray(_batch_cls(config, mesh, leaves, part.rows))[part.source >= 0] for part in parts])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _batch_cls(
    config: ViTConfig, mesh: Mesh, leaves: backbone.Leaves, images: UInt8[Array, "batch height width 3"]
) -> Float[Array, "batch width"]:
    return objective.unit(backbone.encode_sharded(config, mesh, images, leaves).cls)


def _checkpoints(folder: Path) -> Path:
    return (folder / "checkpoints").absolute()


def _restore(manager: ocp.CheckpointManager, like: State) -> tuple[State, float, float]:
    """The newest saved state, the seconds trained until then, and its k-NN accuracy."""
    target = {"state": jax.eval_shape(lambda: like), "elapsed": 0.0, "accuracy": 0.0}
    saved = manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(target))
    return saved["state"], float(saved["elapsed"]), float(saved["accuracy"])


def log_lines(folder: Path) -> list[dict[str, Any]]:
    """Lines of a run's log so far: step, losses, k-NN accuracy, speed."""
    path = folder / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def truncate_log(folder: Path, step: int) -> None:
    """Remove what was logged after a step: a run that continues from its checkpoint logs it again."""
    lines = [line for line in log_lines(folder) if line["step"] <= step]
    write_text(folder / "log.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def _log(
    run: Pretraining,
    progress: Progress,
    bar: TaskID,
    done: int,
    seconds: float,
    steps_per_second: float,
    metrics: dict[str, Array],
    accuracy: float,
) -> None:
    """Append a line to the log and show it on the progress bar."""
    numbers = {name: round(float(value), 4) for name, value in metrics.items()}
    speed = round(steps_per_second * run.recipe.batch, 1)
    knn = None if np.isnan(accuracy) else accuracy
    line = {"step": done, **numbers, "knn": knn, "scenes_per_second": speed, "seconds": round(seconds, 1)}
    with (run.out / "log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    now = f"CLS {numbers['cls_loss']:.3f}  patches {numbers['patch_loss']:.3f}  k-NN {accuracy:.3f}  {speed} scenes/s"
    progress.update(bar, completed=done, now=now)


def export(run: Pretraining, mesh: Mesh, leaves: backbone.Leaves, accuracy: float, seconds: float) -> Path:
    """Write the backbone in float16, with its config and how it was trained in the header; returns the file's path."""
    speed = run.steps * run.recipe.batch / seconds if seconds else 0.0
    device = f"{mesh.size} x {mesh.devices.flat[0].device_kind}"
    outcome = {"knn": accuracy, "seconds": round(seconds, 1), "scenes_per_second": round(speed, 1), "device": device}
    training = {**identity(run), **outcome}
    metadata = {"config": json.dumps(asdict(CONFIGS[run.name])), "training": json.dumps(training)}
    path = run.out / f"{run.name}.safetensors"
    save_file({name: np.asarray(leaf, np.float16) for name, leaf in leaves.items()}, path, metadata)
    if run.bundle:
        shutil.copyfile(path, DEMO_FOLDER / path.name)
    return path
