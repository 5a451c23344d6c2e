"""Train one of the tiny demo models on digit scenes, without labels: `python -m experiments.pretrain --help`.

A run that was killed and started again ends with exactly the weights of an uninterrupted one. The finished model is the backbone of
the EMA teacher.
"""

from __future__ import annotations

from experiments import program
from experiments.pretrain.recipe import Pretraining
from experiments.pretrain.training import log_lines, train


def main() -> None:
    """Run the command line."""
    program.run(_main, Pretraining, __doc__)


def _main(run: Pretraining) -> None:
    program.prepare_devices()
    path, last = train(run), log_lines(run.out)[-1]
    print(f"{path}: {last['step']} steps in {last['seconds'] / 60:.0f} min, k-NN {last['knn']:.3f}, {last['scenes_per_second']} scenes/s")


if __name__ == "__main__":
    main()
