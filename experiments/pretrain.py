"""Train one of the tiny demo models on digit scenes, without labels: `python -m experiments.pretrain --help`.

Everything a step draws comes from fold_in(seed, step) and the whole state is one saved pytree, so a run that was killed
and started again ends at the very weights of one that was not. What ships is the EMA teacher's backbone.
"""

from __future__ import annotations

import functools
import json
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.numpy import save_file

from experiments import backbone, objective, program, scenes
from experiments.cells import write_text
from experiments.demo import CONFIGS
from jaxvit.checkpoint import DEMO_FOLDER, named_leaves
from jaxvit.config import ViTConfig
from jaxvit.sharding import batch_mesh, batches, replicate
from jaxvit.vit import create

_NEIGHBOURS = 10
_QUERY_BATCH = 96

State = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters, chosen on training digits only.

    Attributes:
        batch: scenes per step, two views each.
        queue: teacher projections kept as further negatives.
        matrix_rate: peak learning rate of the block matrices (Muon).
        rest_rate: peak learning rate of everything else (AdamW).
        decay: weight decay of AdamW.
        warmup: steps of linear warm-up; a cosine to 2 % follows.
        clip: largest global norm of the gradient.
        patch_weight: weight of the patch loss beside the CLS loss.
        curriculum: share of the steps over which ground contrast and geometry grow from 0 to full.
        small_views: share of the steps with views of 48 instead of 64 pixels.
        hidden_keys: smallest and largest share of a view's patch keys that CLS and patches cannot see; above 0, registers come to be read.
        foreign_keys: the patch keys that CLS and patches see are those of a view of another scene, and never their own: only registers
            tell them of their view, and other patches mislead.
        teacher: first and last momentum of the EMA teacher.
    """

    batch: int = 48
    queue: int = 1024
    matrix_rate: float = 0.02
    rest_rate: float = 1e-3
    decay: float = 0.04
    warmup: int = 50
    clip: float = 1.0
    patch_weight: float = 0.5
    curriculum: float = 0.4
    small_views: float = 0.7
    hidden_keys: tuple[float, float] = (0.0, 0.0)
    foreign_keys: bool = False
    teacher: tuple[float, float] = (0.98, 0.999)


@dataclass(frozen=True)
class Pretraining:
    """One training run.

    Attributes:
        out: folder of the checkpoints, the log and the finished model; the same command continues there.
        name: model to train.
        steps: optimiser steps; the schedules stretch with them.
        seed: seed of the weights and of everything drawn during training.
        start: folder of a finished run to go on from, with schedules of its own: weights, heads and queue are taken over.
        recipe: hyper-parameters.
        checkpoint_every: steps between checkpoints.
        evaluate_every: steps between k-NN evaluations on training digits.
        bank, queries: scenes of the k-NN evaluation.
        bundle: copy the finished model into the library.
    """

    out: Path
    name: Literal["demo_reg", "demo", "demo_reg_read"] = "demo_reg"
    steps: int = 3600
    seed: int = 0
    start: Path | None = None
    recipe: Recipe = Recipe()
    checkpoint_every: int = 100
    evaluate_every: int = 200
    bank: int = 1000
    queries: int = 500
    bundle: bool = False


def train(run: Pretraining) -> Path:
    """Train, or continue, and write `<out>/<name>.safetensors`; returns its path.

    Raises:
        ValueError: the folder holds a run of another configuration.
    """
    _claim(run)
    source, config = scenes.material("train"), CONFIGS[run.name]
    evaluation = (scenes.scenes("bank", run.bank, run.seed), scenes.scenes("choose", run.queries, run.seed))
    state, elapsed, accuracy = initial_state(run), 0.0, float("nan")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[now]}"))
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    mesh = _mesh(run)
    with ocp.CheckpointManager(_checkpoints(run.out), options=options) as manager, Progress(*columns) as progress:
        if manager.latest_step() is not None:
            state, elapsed, accuracy = _restore(manager, state)
        state = replicate(state, mesh)
        first = int(state["step"])
        _cut_log(run, first)
        bar = progress.add_task(run.name, total=run.steps, completed=first, now="compiling")
        started, seconds = time.monotonic(), elapsed
        for step in range(first, run.steps):
            state, report = train_step(run, view_size(run, step), mesh, source, state)
            done, seconds = step + 1, elapsed + time.monotonic() - started
            if done % run.evaluate_every == 0 or done == run.steps:
                accuracy = neighbours(config, mesh, state["teacher"]["backbone"], *evaluation)
            if done % 20 == 0 or done == run.steps:
                _log(run, progress, bar, done, seconds, (done - first) / (seconds - elapsed), report, accuracy)
            if done % run.checkpoint_every == 0 or done == run.steps:
                tree = {"state": state, "elapsed": seconds, "accuracy": accuracy}
                manager.save(done, args=ocp.args.StandardSave(tree), force=True)
        manager.wait_until_finished()
    return _export(run, mesh, state["teacher"]["backbone"], accuracy, seconds)


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
        with ocp.CheckpointManager(_checkpoints(run.start)) as earlier:
            before = _restore(earlier, state)[0]
        state |= {part: before[part] for part in ("student", "teacher", "queue")}
    return state


def _mesh(run: Pretraining) -> Mesh:
    """As many devices as the scenes of a step divide evenly over; in twos where views of two scenes are paired.

    Raises:
        ValueError: the scenes of a step cannot be paired.
    """
    devices, batch = jax.devices(), run.recipe.batch
    if run.recipe.foreign_keys and batch % 2:
        raise ValueError(f"a batch of {batch} scenes cannot be paired; with foreign keys choose an even --recipe.batch")
    scenes_at_once = 2 if run.recipe.foreign_keys else 1
    count = max(n for n in range(1, len(devices) + 1) if batch % (n * scenes_at_once) == 0)
    return batch_mesh(devices[:count])


def _checkpoints(folder: Path) -> Path:
    return (folder / "checkpoints").absolute()


def _restore(manager: ocp.CheckpointManager, like: State) -> tuple[State, float, float]:
    """The newest saved state, the seconds trained until then, and its k-NN accuracy."""
    target = {"state": jax.eval_shape(lambda: like), "elapsed": 0.0, "accuracy": 0.0}
    saved = manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(target))
    return saved["state"], float(saved["elapsed"]), float(saved["accuracy"])


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def _train_step(
    run: Pretraining, size: int, mesh: Mesh, source: scenes.Material, state: State, seed: int
) -> tuple[State, dict[str, Array]]:
    recipe, config, step = run.recipe, CONFIGS[run.name], state["step"]
    scene_key, hide_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), 2))
    strength = jnp.minimum(step / max(recipe.curriculum * run.steps, 1), 1.0)
    numbers = jax.lax.with_sharding_constraint(step * recipe.batch + jnp.arange(recipe.batch), _over(mesh))
    views = scenes.training_views(source, scene_key, numbers, strength, size).reshape(-1, size, size, 3)
    hiding = objective.hide(jax.random.fold_in(hide_key, step), len(views), *config.grid(size, size), recipe.hidden_keys)
    run_backbone = functools.partial(backbone.run, config, mesh, views)
    targets = run_backbone(state["teacher"]["backbone"])

    def loss(student: State) -> tuple[Array, tuple[Array, Array, Array]]:
        seen = run_backbone(student["backbone"], hiding, student["heads"]["mask_token"], recipe.foreign_keys)
        heads = student["heads"], state["teacher"]["heads"]
        cls_loss, patch_loss, fresh = objective.losses(*heads, seen, targets, hiding.patches, state["queue"])
        return cls_loss + recipe.patch_weight * patch_loss, (cls_loss, patch_loss, fresh)

    gradient, (cls_loss, patch_loss, fresh) = jax.grad(loss, has_aux=True)(state["student"])
    updates, moments = optimiser(run).update(gradient, state["optimiser"], state["student"])
    student = optax.apply_updates(state["student"], updates)
    low, high = recipe.teacher
    momentum = high - (high - low) * (1 + jnp.cos(jnp.pi * step / run.steps)) / 2
    teacher = jax.tree.map(lambda t, s: momentum * t + (1 - momentum) * s, state["teacher"], student)
    queue = jnp.concatenate([fresh, state["queue"]])[: recipe.queue]
    report = {"cls_loss": cls_loss, "patch_loss": patch_loss, "gradient_norm": optax.tree.norm(gradient)}
    after = {"step": step + 1, "student": student, "teacher": teacher, "queue": queue, "optimiser": moments}
    return jax.lax.with_sharding_constraint((after, report), NamedSharding(mesh, PartitionSpec()))


def _over(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec("batch"))


def train_step(run: Pretraining, size: int, mesh: Mesh, source: scenes.Material, state: State) -> tuple[State, dict[str, Array]]:
    """One step on views of a given size; compiles once per size. `state` is consumed (its buffers are reused)."""
    # What does not shape the program must not recompile it.
    plain = replace(run, seed=0, out=Path(), start=None, checkpoint_every=0, evaluate_every=0, bank=0, queries=0, bundle=False)
    return _train_step(plain, size, mesh, source, state, run.seed)


def view_size(run: Pretraining, step: int) -> int:
    """Side of the views of a step, in pixels."""
    return 48 if step < run.recipe.small_views * run.steps else scenes.SIZE


def optimiser(run: Pretraining) -> optax.GradientTransformation:
    """Muon for the block matrices, each of a stack by itself, AdamW for everything else."""
    recipe = run.recipe
    shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, min(recipe.warmup, run.steps // 2), run.steps, 0.02)
    per_matrix = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)

    def is_matrix(name: str) -> bool:
        return name.startswith("blocks.") and name.endswith(".kernel")

    def matrices(weights: State) -> State:
        kinds = {name: per_matrix if is_matrix(name) else None for name in weights["backbone"]}
        return {"backbone": kinds, "heads": dict.fromkeys(weights["heads"])}

    return optax.chain(
        optax.clip_by_global_norm(recipe.clip),
        optax.contrib.muon(
            lambda count: recipe.matrix_rate * shape(count),
            adam_learning_rate=lambda count: recipe.rest_rate * shape(count),
            adam_weight_decay=recipe.decay,
            muon_weight_dimension_numbers=matrices,
        ),
    )


def neighbours(config: ViTConfig, mesh: Mesh, leaves: backbone.Leaves, bank: scenes.Scenes, queries: scenes.Scenes) -> float:
    """Share of the queries whose digit the nearest neighbours' similarity-weighted vote names (cosine, CLS token)."""
    known, asked = (
        np.concatenate(
            [_encode(config, mesh, leaves, batch.rows)[batch.valid] for batch in batches(s.images, _QUERY_BATCH * mesh.size, mesh)]
        )
        for s in (bank, queries)
    )
    similarity = asked @ known.T
    nearest = np.argsort(-similarity, axis=1)[:, :_NEIGHBOURS]
    weight = np.exp(np.take_along_axis(similarity, nearest, axis=1) / 0.07)
    votes = (weight[..., None] * np.eye(10)[bank.labels[nearest]]).sum(axis=1)
    return float((votes.argmax(axis=1) == queries.labels).mean())


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(
    config: ViTConfig, mesh: Mesh, leaves: backbone.Leaves, images: Int[Array, "batch height width 3"]
) -> Float[Array, "batch width"]:
    return objective.unit(backbone.run(config, mesh, images, leaves).cls)


def _identity(run: Pretraining) -> dict[str, Any]:
    """Everything that determines the weights."""
    recipe = json.loads(json.dumps(asdict(run.recipe)))
    before = {} if run.start is None else {"start": _identity_of(run.start)}
    return {"name": run.name, "steps": run.steps, "seed": run.seed, "recipe": recipe, **before}


def _identity_of(folder: Path) -> dict[str, Any]:
    """Of the run in a folder.

    Raises:
        ValueError: it holds no finished run.
    """
    if not list(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} holds no finished run to start from; let that one finish first, or drop --start")
    return json.loads((folder / "run.json").read_text())


def _claim(run: Pretraining) -> None:
    """Write the run's identity into its folder, or check that it is the one that is there."""
    path, identity = run.out / "run.json", _identity(run)
    if path.exists() and (found := json.loads(path.read_text())) != identity:
        different = [key for key in identity if found.get(key) != identity[key]]
        raise ValueError(f"{run.out} holds a run with another {', '.join(different)}; choose another --out or remove that folder")
    run.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(identity, indent=1))


def log_lines(folder: Path) -> list[dict[str, Any]]:
    """What a run has logged so far."""
    path = folder / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _cut_log(run: Pretraining, first: int) -> None:
    """Forget what was logged after the checkpoint that the run goes on from: it will come again."""
    kept = [line for line in log_lines(run.out) if line["step"] <= first]
    write_text(run.out / "log.jsonl", "".join(json.dumps(line) + "\n" for line in kept))


def _log(run: Pretraining, progress: Progress, bar: Any, done: int, seconds: float, rate: float, report: dict, accuracy: float) -> None:
    numbers = {name: round(float(value), 4) for name, value in report.items()}
    speed = round(rate * run.recipe.batch, 1)
    knn = None if np.isnan(accuracy) else accuracy
    line = {"step": done, **numbers, "knn": knn, "scenes_per_second": speed, "seconds": round(seconds, 1)}
    with (run.out / "log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    now = f"CLS {numbers['cls_loss']:.3f}  patches {numbers['patch_loss']:.3f}  k-NN {accuracy:.3f}  {speed} scenes/s"
    progress.update(bar, completed=done, now=now)


def _export(run: Pretraining, mesh: Mesh, leaves: backbone.Leaves, accuracy: float, seconds: float) -> Path:
    """Write the backbone in float16, with its config and how it was trained in the header."""
    speed = run.steps * run.recipe.batch / seconds if seconds else 0.0
    device = f"{mesh.size} x {mesh.devices.flat[0].device_kind}"
    measured = {"knn": accuracy, "seconds": round(seconds, 1), "scenes_per_second": round(speed, 1), "device": device}
    training = {**_identity(run), **measured}
    metadata = {"config": json.dumps(asdict(CONFIGS[run.name])), "training": json.dumps(training)}
    path = run.out / f"{run.name}.safetensors"
    save_file({name: np.asarray(leaf, np.float16) for name, leaf in leaves.items()}, path, metadata)
    if run.bundle:
        shutil.copyfile(path, DEMO_FOLDER / path.name)
    return path


def _main(run: Pretraining) -> None:
    program.prepare_devices()
    path, last = train(run), log_lines(run.out)[-1]
    print(f"{path}: {last['step']} steps in {last['seconds'] / 60:.0f} min, k-NN {last['knn']:.3f}, {last['scenes_per_second']} scenes/s")


def main() -> None:
    """Run the command line."""
    program.run(_main, Pretraining, __doc__)


if __name__ == "__main__":
    main()
