"""What a study is: its options, and what makes two runs the same study."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np

import jaxvit
from experiments.analyses.base import Analysis
from experiments.analyses.presets import PRESETS, QUICK, Preset
from experiments.datasets.base import DataSize, StudyData
from experiments.datasets.folders import Folders
from experiments.datasets.images import PROTOCOLS
from experiments.datasets.reading import MAX_PIXELS
from experiments.features.sources import ConditionSource
from experiments.study.cells import cell_hash
from experiments.study.folder import merge_hashes
from experiments.tasks.base import Readouts, Task
from jaxvit.checkpoint import MANIFEST
from jaxvit.files import refuse_remote

PRECISIONS = {
    "float32": "float32, matmul precision highest",
    "bfloat16": "bfloat16 models with float32 norms, softmax and RoPE; all else float32, matmul precision highest",
}
Arrays = Mapping[str, tuple[np.ndarray, np.ndarray | None] | np.ndarray]
"""uint8 images [n, height, width, 3] of the parts train, val and test, each with labels [n] or without."""


FAMILY: Final = "family"
PREPROCESSES = (FAMILY, *PROTOCOLS)


@dataclass(frozen=True)
class Study:
    """A study, or some of its analyses. What is not given is the preset's.

    Attributes:
        preset: which study: a name in `PRESETS`.
        quick: the demo study on few images and two models.
        models: bundled demo models, names in the local cache, checkpoint folders; or models by name.
        data: a folder of images, `Folders`, or arrays by part; by default what the preset reads.
        sizes: numbers of images.
        conditions: names of those that are run besides full; or those themselves by name, and then no others.
        added_conditions: further conditions by name, beside those of the study.
        tasks: names of those that are run; or the tasks themselves by name, and then no others.
        analyses: names of those that are run, or analyses.
        plugins: modules or files with more conditions, tasks and analyses (`experiments.plugins`).
        out: folder of the study.
        dry_run: say what the study costs on this device, and run nothing.
        quiet: print nothing.
        seed, seeds: the first seed, and how many.
        image_size: pixels of a side, for folders of images.
        batch_size: images under way at a time, over all devices; no number depends on it.
        dtype: of the models.
        random_weights: models of these names with random weights.
        shard_weights: split the weights of every model over the devices of a process, not only of large ones; no number depends on it.
        resamples: of bootstrap and permutation tests.
        readouts: how features are read.
        preprocess: how files of images become the squares that models see: a name in `PROTOCOLS`, or "family", the protocol of the
            implementation that each model's weights agree with (`datasets.preprocess`).
        max_pixels: of the largest image file that is read.
        keep_blank: accept images of one colour and masks without a label, which are refused otherwise.
        page_budget: megabytes that the page may weigh (`report.page.write`).
        cluster, cluster_config: where workers come from, and the file that says more (`experiments.cluster.engine`); "" for this process.
    """

    preset: str = "demo"
    quick: bool = False
    models: Sequence[str | Path] | Mapping[str, jaxvit.ViT] = ()
    data: Folders | Arrays | Path | str | None = None
    sizes: DataSize = field(default_factory=DataSize)
    conditions: Sequence[str] | Mapping[str, ConditionSource] = ()
    added_conditions: Mapping[str, ConditionSource] = field(default_factory=dict)
    tasks: Sequence[str] | Mapping[str, Task] = ()
    analyses: Sequence[str | Analysis | ModuleType] = ()
    plugins: Sequence[str] = ()
    out: Path | str | None = None
    dry_run: bool = False
    quiet: bool = False
    seed: int = 0
    seeds: int | None = None
    image_size: int | None = None
    batch_size: int | None = None
    dtype: str = "float32"
    random_weights: bool = False
    shard_weights: bool = False
    resamples: int | None = None
    readouts: Readouts | None = None
    preprocess: str = FAMILY
    max_pixels: int = MAX_PIXELS
    keep_blank: bool = False
    page_budget: float | None = None
    cluster: str = ""
    cluster_config: Path | None = None

    def __post_init__(self) -> None:
        check_names("--preset", [self.preset], PRESETS)
        check_names("--dtype", [self.dtype], PRECISIONS)
        check_names("--preprocess", [self.preprocess], PREPROCESSES)
        if self.quick and self.preset != "demo":
            raise ValueError(
                f"--quick is a look at the demo study; leave out --preset {self.preset}, or add small numbers to it: --data.test 20"
            )
        for name in ("seeds", "resamples", "batch_size", "image_size", "max_pixels"):
            if (number := getattr(self, name)) is not None and number < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {number}; give at least 1")
        if self.seed < 0:
            raise ValueError(f"--seed is {self.seed}; give 0 or more")
        check_page_budget(self.page_budget)
        self._refuse_remote()

    def _refuse_remote(self) -> None:
        """Check that all that is read and written is on this machine."""
        models = () if isinstance(self.models, Mapping) else self.models
        folders = self.data.paths.values() if isinstance(self.data, Folders) else (self.data,)
        for path in (self.out, *models, *folders, *self.plugins):
            if isinstance(path, str | Path):
                refuse_remote(path)

    def for_workers(self) -> Study:
        """The same study for a process in another folder: paths that are here are absolute."""
        models, data = self.models, self.data
        if not isinstance(models, Mapping):
            models = [os.path.abspath(Path(m).expanduser()) if (Path(m).expanduser() / MANIFEST).is_file() else m for m in models]
        if isinstance(data, Folders):
            data = replace(data, **{name: path.absolute() for name, path in data.paths.items()})  # type: ignore[arg-type]
        elif isinstance(data, str | Path):
            data = Path(data).expanduser().absolute()
        plugins = [os.path.abspath(plugin) if plugin.endswith(".py") else plugin for plugin in self.plugins]
        return replace(self, models=models, data=data, plugins=plugins, out=self.folder.absolute(), cluster="", cluster_config=None)

    @property
    def chosen_preset(self) -> Preset:
        return QUICK if self.quick else PRESETS[self.preset]

    @property
    def folder(self) -> Path:
        return Path(self.out or Path("runs") / ("demo-quick" if self.quick else self.preset))

    @property
    def chosen_readouts(self) -> Readouts:
        return self.readouts or self.chosen_preset.readouts

    def identity(self, *data: StudyData) -> dict[str, Any]:
        """What makes two runs the same study: its settings and its data, under every protocol. What is run may differ from run to run."""
        names = ["preset", "quick", "seed", "seeds", "image_size", "dtype", "random_weights", "resamples"]
        names += [] if self.preprocess == FAMILY else ["preprocess"]
        settings = {name: getattr(self, name) for name in names}
        hashes = merge_hashes({}, {entry.protocol: cell_hash(entry.key) for entry in data})
        entries = {**settings, "sizes": asdict(self.sizes), "readouts": asdict(self.chosen_readouts), "data": hashes}
        return json.loads(json.dumps(entries, default=str))


def check_page_budget(megabytes: float | None) -> None:
    """Check a number of megabytes.

    Raises:
        ValueError: it is none.
    """
    if megabytes is not None and not 0 < megabytes < math.inf:
        raise ValueError(f"--page-budget is {megabytes:g}; give megabytes, more than 0")


def check_names(option: str, names: Collection[str], known: Collection[str]) -> None:
    """Check the names that an option was given.

    Raises:
        ValueError: one is unknown.
    """
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"{option} {unknown[0]} is unknown; possible are {', '.join(known)}")
