"""Rows of read-outs: logistic probes along a path of C, nearest neighbours, effective rank."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.opponents import cores, device, difference, optional
from experiments.bench.rows import BenchRow, Case, Goal, Size
from jaxvit import geometry
from jaxvit.neighbours import nearest
from jaxvit.probes import logistic
from jaxvit.sharding import batch_mesh

PROBES, CLASSES = 84, 20
LOOPED = 6
"""Of the probes, evenly spread, scikit-learn's loop fits so many beside a GPU; its time is scaled to all."""
CS = tuple(10.0**e for e in range(-6, 3))


def rows() -> list[BenchRow]:
    """The rows of this module."""
    probe_work = f"{PROBES} logistic probes, path of {len(CS)} C, 2,000 x 384, {CLASSES} classes"
    some = f"scikit-learn, a loop (CPU) over {LOOPED} of them, time scaled"
    search = functools.partial(neighbours, 5_000, 5_000, 50_000)
    large = functools.partial(neighbours, 10_000, 50_000, 1_000_000)
    large_work = "20 nearest, 50,000 x 1,000,000 x 384 (10,000 queries run, times scaled)"
    rank = "effective rank of 5,000 images of 256 patches x 384"
    return [
        BenchRow("probes", probe_work, "scikit-learn, a loop", "float32", (Goal("ratio", 1.5),), functools.partial(probes, PROBES)),
        BenchRow("probes_gpu", probe_work, some, "float32", (Goal("ratio", 20),), functools.partial(probes, LOOPED), platform="gpu"),
        BenchRow("knn", "20 nearest, 5,000 x 50,000 x 384", "torch, matmul and topk", "float32", (Goal("ratio", 1),), search, memory=True),
        BenchRow("knn_gpu", large_work, "torch, matmul and topk", "float32", (Goal("ratio", 1),), large, "gpu"),
        BenchRow("effective_rank", rank, "numpy, a loop over singular values", "float32", (Goal("ratio", 10),), effective_rank, "any"),
    ]


def _clusters(rows: int, width: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random features [rows, width] around class centres, overlapping as those of real classes do, and their labels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, rows)
    centres = np.random.default_rng(0).normal(size=(classes, width)) * 0.25
    spread = np.geomspace(2, 0.1, width)
    return ((centres[labels] + generator.normal(size=(rows, width))) * spread).astype(np.float32), labels.astype(np.int32)


def probes(looped: int, size: Size) -> Case:
    """Logistic probes fitted along the path of C, C chosen on validation, scored on test: all of them at once, and `looped` of them, evenly
    spread, by a loop whose time is scaled to all."""
    problems = size.pick(PROBES, 2)
    every = max(1, problems // looped)
    count, width, classes = size.pick((2_000, 384, CLASSES), (120, 8, 4))
    sets = [[_clusters(n, width, classes, 3 * p + i) for i, n in enumerate((count, count // 4, count // 4))] for p in range(problems)]
    stacked = [jnp.asarray(np.stack([problem[part][leaf] for problem in sets])) for part in range(3) for leaf in range(2)]
    options: dict[str, Any] = {"classes": classes, "cs": CS, "mesh": batch_mesh()}

    def run(arrays: list[Any]) -> Any:
        return logistic.probe_many(*arrays, **options).correct.mean(axis=1)

    linear, scale, limits = optional("sklearn.linear_model"), optional("sklearn.preprocessing"), optional("threadpoolctl")

    def loop() -> Any:
        scores = []
        with limits.threadpool_limits(cores()):
            for (x, y), (vx, vy), (tx, ty) in sets[::every]:
                scaler = scale.StandardScaler().fit(x)
                x, vx, tx = (scaler.transform(part) for part in (x, vx, tx))
                model = linear.LogisticRegression(max_iter=200, warm_start=True)
                best = (-1.0, 0.0)
                for c in CS:
                    model.set_params(C=c).fit(x, y)
                    best = max(best, (model.score(vx, vy), model.score(tx, ty)), key=lambda scores: scores[0])
                scores.append(best[1])
        return np.array(scores)

    return Case(
        lambda: run(stacked),
        loop,
        (1, problems / len(sets[::every])),
        {"rows": count, "probes_run": [problems, len(sets[::every])]},
        check=lambda a, b: {
            "max_difference_accuracy": difference(a[::every], b),
            "mean_difference_accuracy": abs(float(np.mean(a[::every]) - np.mean(b))),
        },
    )


def neighbours(run: int, queries: int, bank: int, size: Size) -> Case:
    """Cosine similarity and index of the nearest rows of a bank, in chunks on both sides, so that memory is bounded; both search for `run`
    of the queries, and their times are scaled to all."""
    torch = optional("torch")
    torch.set_num_threads(cores())
    k, chunk = 20, size.pick(1_000, 100)
    run, queries, bank = size.pick((run, queries, bank), (200, 200, 1_000))
    ours = [jax.random.normal(jax.random.key(i), (n, 384)) for i, n in enumerate((run, bank))]  # a GPU draws faster than numpy
    theirs = [torch.from_numpy(np.array(a)).to(device()) for a in ours]

    def search() -> Any:
        a, b = (torch.nn.functional.normalize(part, dim=1) for part in theirs)
        tops = [(part @ b.T).topk(k, dim=1) for part in a.split(chunk)]
        return torch.cat([top.values for top in tops]).cpu(), torch.cat([top.indices for top in tops]).cpu()

    return Case(
        lambda: nearest(ours[0], ours[1], k),
        search,
        (queries / run, queries / run),
        {"queries": queries, "queries_run": run, "bank": bank, "k": k},
        check=lambda a, b: {
            "max_difference_similarity": difference(a[0], b[0]),
            "same_index": float((np.asarray(a[1]) == b[1].numpy()).mean()),
        },
    )


def effective_rank(size: Size) -> Case:
    """exp of the entropy of the normalised squared singular values of every image; a part of the images is run and the time scaled."""
    ours_run, theirs_run = size.pick((200, 20), (8, 4))
    total = size.pick(5_000, ours_run)
    features = np.random.default_rng(0).normal(size=(ours_run, *size.pick((256, 384), (16, 24)))).astype(np.float32)
    features *= np.geomspace(1, 0.01, features.shape[-1]).astype(np.float32)
    images = jnp.asarray(features)
    limits = optional("threadpoolctl")

    def loop() -> Any:
        ranks = []
        with limits.threadpool_limits(1):  # faster than more threads for matrices of this size
            for image in features[:theirs_run]:
                share = np.linalg.svd(image, compute_uv=False).astype(np.float64) ** 2
                share /= share.sum()
                ranks.append(np.exp(-(share * np.log(share)).sum()))
        return np.array(ranks)

    return Case(
        lambda: geometry.effective_rank(images),
        loop,
        (total / ours_run, size.pick(5_000, ours_run) / theirs_run),
        {"images_run": [ours_run, theirs_run]},
        check=lambda a, b: {"max_difference": difference(a[:theirs_run], b)},
    )
