"""At which layer is it known: probes of CLS and patch mean, and correspondence of patches, at every layer."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from experiments import dense, register_probes
from experiments.cells import Store
from experiments.data import first_id
from experiments.figures import Finished
from experiments.measures import protocol_id
from experiments.register_probes import lines
from experiments.study import Arrays, Job, Row, Subject, key, plain_rows
from jaxvit import Ablation, metrics
from jaxvit.statistics import ratio_scores

TITLE = "At which layer it is known"
NOTE = (
    "Above, top-1 of linear probes of CLS, patch mean and register mean on block outputs (before the final norm); below, the share of "
    "patches whose nearest patch in the other view is the true one. 95 % intervals over test images, and over pairs."
)
TASK = "layer_correspondence"


def jobs(subject: Subject) -> Iterator[Job]:
    """Probes (the cell of `register_probes`) and correspondence at every layer of a model without ablation."""
    yield from register_probes.jobs(subject)
    if subject.data.views is not None and not subject.baseline and subject.model is not None:
        cell = key(subject, TASK, resamples=subject.settings.resamples)
        images = 2 * len(subject.data.views.warp)
        yield Job(cell, f"{subject.name}: correspondence at every layer", 2, lambda store: _compute(subject, store), images)


def _compute(subject: Subject, store: Store) -> tuple[list[Row], Arrays]:
    """A batch of pairs at a time: the patches of all layers of all pairs are too many."""
    assert subject.model is not None
    assert subject.data.views is not None
    views, parts, tolerance = subject.data.views, subject.data.parts, subject.settings.readouts.tolerance
    step, prefix, counted = subject.settings.batch_size, 1 + subject.model.config.registers, []
    for start in range(0, len(views.warp), step):
        both = [
            subject.runner.extract(parts[p].images[start : start + step], Ablation(), first_id(p) + start, ("block_output",), dense=0)
            for p in ("first", "second")
        ]
        first, second = (f.captured["block_output"][:, :, prefix:] for f in both)
        rows, columns, side = dense.grid_of(first[0], parts["first"].images)
        warp = views.warp[start : start + step]
        found = [metrics.correspondence(a, b, warp, (rows, columns), side, tolerance) for a, b in zip(first, second, strict=True)]
        counted.append([np.stack([np.asarray(part) for part in matches]) for matches in found])
    hits, cycles, points = np.concatenate(counted, axis=2).swapaxes(0, 1)
    told = protocol_id("views", views=subject.data.protocols["views"], match="cosine", tolerance=f"{tolerance:g} patch", norm="none")
    rows_told = [
        (metric, "patches", layer, told, ratio_scores(values[layer], points[layer]))
        for metric, values in (("accuracy", hits), ("cycle_consistency", cycles))
        for layer in range(len(points))
    ]
    return plain_rows(subject, "full", TASK, rows_told), {}


def section(study: Finished) -> str:
    """Lines over blocks, probes above and correspondence below."""
    means = ("cls", "patch_mean", "register_mean")
    return lines(study, register_probes.TASK, "top1", lambda feature: feature in means, "top-1, percent") + lines(
        study, TASK, "accuracy", lambda feature: True, "correspondence, percent"
    )


if __name__ == "__main__":
    from experiments.reproduce import alone

    alone("layer_sweep", __doc__)
