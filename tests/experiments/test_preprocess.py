"""A study of models of several families: each sees images as its own implementation prepares them, and the rows say so."""

from __future__ import annotations

import dataclasses
import html
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest

import jaxvit
from convert import convert
from experiments import open_study, planning
from experiments.datasets.folders import Folders
from experiments.datasets.images import PROTOCOLS
from experiments.datasets.preprocess import family_protocol
from experiments.definition import PREPROCESSES
from experiments.reproduce import Options, Study, reproduce
from experiments.rows import select
from experiments.study.cost import estimate
from experiments.tasks.base import Readouts
from jaxvit.sharding import batch_mesh
from tests.convert import sources
from tests.experiments.tiny_folders import SIZE, write_folders
from tests.experiments.tiny_study import CONFIG

transformers = pytest.importorskip("transformers", reason="writes the checkpoints of these tests")

TINY = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 32, "patch_size": 8, "image_size": 16}
FAMILIES = {"dino": "ViT", "dinov2": "Dinov2", "dinov2_reg": "Dinov2WithRegisters", "dinov3": "DINOv3ViT"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints converted from Hugging Face's files, from Meta's, and one that was not converted."""
    root = tmp_path_factory.mktemp("models")
    for name, family in FAMILIES.items():
        model = getattr(transformers, f"{family}Model")(getattr(transformers, f"{family}Config")(**TINY))
        model.save_pretrained(root / "hub" / name)
        convert(root / "hub" / name, root / name)
    meta = sources.write(root / "meta.pth", sources.dinov2())
    convert(meta, root / "meta", heads=sources.HEADS)
    convert(meta, root / "meta_as_hf", heads=sources.HEADS, oracle="hf")
    convert(root / "hub" / "dinov2", root / "hf_as_meta", oracle="meta")
    jaxvit.save(jaxvit.create(CONFIG, 0), root / "saved")
    return {path.parent.name: path.parent for path in root.glob("*/manifest.json")}


@pytest.fixture
def study(models, tmp_path, monkeypatch) -> Study:
    monkeypatch.setenv("JAXVIT_CACHE", str(tmp_path / "cache"))
    return Study(
        "parodi2026",
        models=(str(models["dinov2"]), str(models["dinov3"])),
        data=Folders(write_folders(tmp_path / "data").images),
        sizes=dataclasses.replace(SIZE, segmentation=None, segmentation_test=None, keypoints=None),
        tasks=("knn",),
        conditions=("full",),
        analyses=("ablation_table",),
        readouts=Readouts(features=("cls",), neighbours=(5,)),
        out=tmp_path / "run",
        image_size=16,
        batch_size=4,
        resamples=50,
        seeds=1,
    )


def of(models: dict[str, Path], *names: str) -> tuple[str, ...]:
    return tuple(str(models[name]) for name in names)


def protocols(study: Study) -> dict[str, str]:
    """What protocol ids say of images, by model."""
    rows = select(open_study(study.out).rows, task="knn", metric="top1_k5")
    return {row["model"]: row["protocol"].split("images=")[1].split(",")[0].rstrip(")") for row in rows}


def test_the_manifest_tells_the_protocol(models, monkeypatch):
    expected = {
        **{"dino": "hf_dino", "dinov2": "hf_dinov2", "dinov2_reg": "hf_dinov2", "dinov3": "hf_dinov3", "meta_as_hf": "hf_dinov2"},
        **dict.fromkeys(("meta", "hf_as_meta", "saved"), "torchvision"),
    }
    assert {name: family_protocol(str(path), jaxvit.load(path).config) for name, path in models.items()} == expected
    monkeypatch.setenv("JAXVIT_CACHE", str(models["dinov3"].parent))
    assert family_protocol("dinov3", jaxvit.load("dinov3").config) == "hf_dinov3", "by name in the cache"
    assert family_protocol("demo_reg", jaxvit.load("demo_reg").config) == "torchvision"


def test_each_model_of_a_study_sees_its_own_protocol(study, models, capsys):
    page = reproduce(study).read_text()
    hf2, hf3 = "hf_dinov2 18/16", "hf_dinov3 16"
    assert protocols(study) == open_study(study.out).manifest["prepared"] == {"dinov2": hf2, "dinov3": hf3}
    line = f"Images are prepared as each model's implementation does: {hf2} for dinov2; {hf3} for dinov3."
    assert line in capsys.readouterr().out
    assert line in html.unescape(page)
    rows = select(open_study(study.out).rows, condition="full", metric="top1_k5", feature="cls")
    assert [row["n"] for row in rows] == [6, 6], "the same test images"

    reproduce(dataclasses.replace(study, models=of(models, "meta", "dinov3")))
    assert protocols(study) == {"dinov2": hf2, "dinov3": hf3, "meta": "crop 16"}
    manifest = open_study(study.out).manifest
    assert set(manifest["study"]["data"]) == {"hf_dinov2", "hf_dinov3", "torchvision"}
    assert manifest["prepared"] == protocols(study)
    with pytest.raises(ValueError, match="differs in preprocess"):
        reproduce(dataclasses.replace(study, preprocess="torchvision"))


def test_memory_counts_the_images_of_every_protocol(study, tmp_path, monkeypatch):
    """Without a cache on disk all of them are in memory, whichever model runs."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("JAXVIT_CACHE", str(tmp_path / "file"))
    loaded = planning.load_models(study)

    def memory(chosen: Study) -> int:
        plan = planning.make_plan(chosen, planning.chosen(chosen, loaded), loaded, planning.study_images(chosen, loaded), batch_mesh())
        return estimate(plan.targets, plan.jobs, tmp_path).host_memory

    more = memory(study) - memory(dataclasses.replace(study, preprocess="torchvision"))
    assert more == (12 + 4 + 6) * 16 * 16 * 3, "train, val and test of one more protocol; views are there once"


def test_other_images_are_another_study_under_any_protocol(study, models):
    """Also where no run in the folder had the protocol."""
    reproduce(dataclasses.replace(study, models=of(models, "meta")))
    reproduce(dataclasses.replace(study, dry_run=True))
    changed, other = (next((study.data.images / split).rglob("*.png")) for split in ("val", "train"))
    changed.write_bytes(other.read_bytes() + b"more")
    for name in ("meta", "dinov3"):
        with pytest.raises(ValueError, match="differs in data"):
            reproduce(dataclasses.replace(study, models=of(models, name), dry_run=True))


def test_baselines_see_what_their_models_see(study, models, monkeypatch):
    chosen = dataclasses.replace(study, preset="custom", models=of(models, "dinov3", "dinov2"))
    loaded = planning.load_models(chosen)
    monkeypatch.setattr(jaxvit, "create", lambda config, seed, mesh: next(model for model in loaded.values() if model.config == config))
    plan = planning.make_plan(chosen, planning.chosen(chosen, loaded), loaded, planning.study_images(chosen, loaded), batch_mesh())
    seen = {"dinov3": "hf_dinov3", "dinov2": "hf_dinov2", "dinov3_random": "hf_dinov3", "dinov2_random": "hf_dinov2"}
    assert {target.name: target.data.protocol for target in plan.targets} == {**seen, "raw_pixels": "hf_dinov2"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"preprocess": "hf_dino"}, "hf_dino 16"),
        ({"preprocess": "torchvision"}, "crop 16"),
        ({"random_weights": True}, "crop 16"),
        ({"models": {"mine": jaxvit.create(CONFIG, 0)}}, "crop 16"),
    ],
)
def test_one_protocol_for_all(study, models, change, expected):
    chosen = dataclasses.replace(study, **change)
    loaded = chosen.models if isinstance(chosen.models, dict) else planning.load_models(study)
    data = planning.study_images(chosen, loaded)
    assert {name: entry.protocols["labels"] for name, entry in data.items()} == dict.fromkeys(loaded, expected)


def test_where_no_files_are_decoded_there_is_no_protocol(study, models):
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8)
    arrays = dataclasses.replace(study, data={"train": images[:30], "test": images[30:]})
    data = planning.study_images(arrays, planning.load_models(study))
    assert data["dinov2"] is data["dinov3"]
    identity = arrays.identity(data["dinov2"])
    assert isinstance(identity["data"], str), "as in folders of earlier versions"
    assert "preprocess" not in identity
    for asked, made in ((arrays, "arrays"), (Study(), "scenes of the demo")):
        with pytest.raises(ValueError, match=f"--preprocess hf_dino is for files of images, and the {made} are used as they are"):
            planning.study_data(dataclasses.replace(asked, preprocess="hf_dino"))


def test_protocols_are_named_by_the_command_line():
    assert Options(preset="custom", preprocess="hf_dinov3").study().preprocess == "hf_dinov3"
    with pytest.raises(ValueError, match=f"--preprocess dinov2 is unknown; possible are {', '.join(PREPROCESSES)}"):
        Study(preprocess="dinov2")
    assert get_args(get_type_hints(Options)["preprocess"]) == PREPROCESSES == ("family", *PROTOCOLS)
