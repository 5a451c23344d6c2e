"""The token microscope from the model to the scripts of the page: what a reader of the page decodes is what the model computes."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxvit
from experiments.analyses import token_microscope
from experiments.datasets.base import first_id
from experiments.features.conditions import conditions
from experiments.report import token_data
from experiments.study.cells import Store
from experiments.study.results import StudyResults
from tests.experiments.tiny_study import save_models, targets

NAME = '<b>"mine" & yours'
CONDITIONS = ("zero_registers", "cut_registers", "cut_registers_lost", "random_patches")


class Scripts(HTMLParser):
    """Texts of script elements by their id."""

    def __init__(self, page: str):
        super().__init__()
        self.texts: dict[str, str] = {}
        self.name = ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.name = dict(attributes)["id"]
        self.texts[self.name] = ""

    def handle_data(self, data):
        if self.name:
            self.texts[self.name] += data

    def handle_endtag(self, tag):
        self.name = ""


class Decoded:
    """Token data decoded by the rules that stand in `token_data`."""

    def __init__(self, page: str):
        self.texts = Scripts(page).texts
        entry = json.loads(self.texts["microscope-models"])
        self.models, self.problem, self.missing = entry["models"], entry["problem"], entry["missing"]

    def image(self, model: dict[str, Any], number: int) -> dict[str, np.ndarray]:
        conditions, kept, layers, tokens = len(model["conditions"]), len(model["attention"]), model["layers"], model["tokens"]
        parts = self._take(
            f"d.{model['id']}.{number}",
            {
                "norms": ("<u2", (conditions, layers, tokens)),
                "sums": ("<u2", (kept, layers, tokens)),
                "attention": ("u1", (kept, layers, tokens, tokens)),
                "features": ("i1", (conditions, layers, model["dims"], tokens)),
                "colours": ("u1", (conditions, layers, 3, tokens)),
            },
        )
        low, high = model["normRange"]
        features = parts["features"].astype(float)
        return {
            "norms": np.where(parts["norms"] == 0, 0, low * (high / low) ** ((parts["norms"].astype(float) - 1) / 4094)),
            "attention": self._attention(parts),
            "cosines": np.einsum("cldt,clds->clts", features, features) * model["step"] ** 2,
            "colours": parts["colours"],
        }

    def heads(self, model: dict[str, Any], number: int) -> np.ndarray:
        shape = (len(model["headAttention"]), model["layers"], model["heads"], model["tokens"])
        parts = {"sums": ("<u2", shape), "attention": ("u1", (*shape, model["tokens"]))}
        return self._attention(self._take(f"d.{model['id']}.{number}.h", parts))

    @staticmethod
    def _attention(parts: dict[str, np.ndarray]) -> np.ndarray:
        squares = parts["attention"].astype(float) ** 2
        return squares / np.maximum(squares.sum(axis=-1, keepdims=True), 1) * parts["sums"][..., None] / 65535

    def _take(self, name: str, parts: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, np.ndarray]:
        data, arrays, start = zlib.decompress(base64.b64decode(self.texts[name])), {}, 0
        for part, (kind, shape) in parts.items():
            codes = np.frombuffer(data, kind, int(np.prod(shape)), start).reshape(shape).copy()
            start += codes.nbytes
            codes[1:] += codes[:1]  # modulo the range of the type
            arrays[part] = codes
        assert start == len(data)
        return arrays


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """A tiny model with registers under conditions of every kind, with a name that has to be escaped."""
    (target,) = targets(save_models(tmp_path_factory.mktemp("models"))[:1])
    table = conditions(target.model.config)
    return dataclasses.replace(target, name=NAME, ablations={name: table[name] for name in CONDITIONS})


@pytest.fixture(scope="module")
def results(target, tmp_path_factory) -> StudyResults:
    """A study of this model and of one that was not run."""
    folder = tmp_path_factory.mktemp("study")
    (job,) = token_microscope.jobs(target)
    store = Store(folder / "cells")
    rows, arrays = job.compute(store)
    cell = store.save(job.key, rows, arrays, {})
    return StudyResults([], {"cells": [[cell.hash, job.key["kind"], job.label]]}, folder, [NAME, "absent"])


@pytest.fixture(scope="module")
def decoded(results) -> Decoded:
    return Decoded(token_data.token_scripts(results, 10**8))


@pytest.fixture(scope="module")
def raw(target):
    """What `forward` captures of these images under a condition, by layer first."""

    def run(condition: str) -> dict[str, np.ndarray]:
        images = np.asarray(target.data.analysis_images[:6])
        ids = first_id("test") + np.arange(len(images))
        ablation = target.ablation(condition, target.settings.seed)
        output = jaxvit.forward(target.model, jaxvit.normalise(images, target.model), ablation, ["block_output", "attention"], ids)
        return {name: np.asarray(array) for name, array in output.captured.items()}

    return {condition: run(condition) for condition in target.conditions}


def test_every_condition_of_the_study_is_there(decoded, target):
    (model,) = decoded.models
    assert model["id"] == model["label"] == NAME
    assert model["conditions"] == ["full", *CONDITIONS]
    assert [model["conditions"][i] for i in model["attention"]] == [
        "full",
        "cut_registers",
        "cut_registers_lost",
        "zero_registers",
        "random_patches",
    ], "attention in the order in which it is worth keeping, cuts first"
    assert (model["tokens"], model["prefix"], model["grid"], model["layers"]) == (67, 3, [8, 8], 2)
    assert model["ablated"][1:3] == ["registers", "cls, patches -> registers"]
    assert len(model["images"]) == 6
    assert all(uri.startswith("data:image/png;base64,") for uri in model["images"])
    assert decoded.missing == ["absent"]
    assert not decoded.problem


def test_what_is_decoded_is_what_the_model_computes(decoded, raw):
    (model,) = decoded.models
    for image in (0, 5):
        found = decoded.image(model, image)
        for index, name in enumerate(model["conditions"]):
            tokens = raw[name]["block_output"][:, image]
            norms = np.linalg.norm(tokens, axis=-1)
            np.testing.assert_allclose(found["norms"][index], norms, rtol=1e-3, err_msg=name)
            units = tokens / np.maximum(norms, 1e-9)[..., None]
            errors = np.abs(found["cosines"][index] - units @ units.swapaxes(-1, -2))
            assert errors.mean() < 0.008, name
            assert np.quantile(errors, 0.99) < 0.03, name
            attention = raw[name]["attention"][:, image]
            errors = np.abs(found["attention"][model["attention"].index(index)] - attention.mean(axis=1))
            assert errors.mean() < 5e-4, name
            assert errors.max() < 0.015, name
            if index in model["headAttention"]:
                of_heads = decoded.heads(model, image)[model["headAttention"].index(index)]
                assert np.abs(of_heads - attention).mean() < 5e-4


def test_what_a_cut_keeps_from_being_read_is_exactly_zero_and_lost_weight_is_missing(decoded):
    (model,) = decoded.models
    found = decoded.image(model, 0)["attention"]
    by_name = {model["conditions"][index]: found[i] for i, index in enumerate(model["attention"])}
    readers, registers = [0, *range(3, 67)], slice(1, 3)
    assert (by_name["full"][:, readers, registers] > 0).all()
    for name in ("cut_registers", "cut_registers_lost"):
        assert (by_name[name][:, readers, registers] == 0).all(), name
    sums = {name: attention[0, 0].sum() for name, attention in by_name.items()}
    assert sums["cut_registers"] == pytest.approx(1, abs=1e-4)
    assert sums["cut_registers_lost"] == pytest.approx(1 - by_name["full"][0, 0, registers].sum(), abs=2e-3)


def test_zeroed_tokens_are_zeros_and_black(decoded):
    (model,) = decoded.models
    found = decoded.image(model, 0)
    zeroed = model["conditions"].index("zero_registers")
    assert (found["norms"][zeroed, :, 1:3] == 0).all()
    assert (found["colours"][zeroed, :, :, 1:3] == 0).all()
    assert (found["cosines"][zeroed, :, 1:3] == 0).all()
    assert (found["norms"][0] > 0).all()


def test_a_page_keeps_what_fits_and_says_what_was_left_out(results):
    whole = len(token_data.token_scripts(results, 10**8))
    said, before = {}, whole + 1
    for share in (1.0, 0.75, 0.45, 0.1):
        scripts = token_data.token_scripts(results, int(whole * share))
        assert len(scripts) <= whole * share
        (model,) = Decoded(scripts).models
        said[share] = model["kept"]
        assert before >= len(scripts)
        before = len(scripts)
        for image in range(len(model["images"])):
            Decoded(scripts).image(model, image)
    assert said[1.0].startswith("6 images; mean attention of all 5 conditions; attention of single heads of full, ")
    assert "--page-budget" not in said[1.0]
    assert "(left out: random_patches)" in said[0.45]
    assert "1 of 6 images" in said[0.1]
    assert "--page-budget" in said[0.1]
    nothing = Decoded(token_data.token_scripts(results, 3000))
    assert nothing.models == []
    assert "larger --page-budget" in nothing.problem


def test_names_cannot_end_a_script(results):
    scripts = token_data.token_scripts(results, 10**8)
    assert "<b>" not in scripts
    assert not re.search(r"</(?!script>)", scripts)


def test_a_study_without_token_data_has_no_scripts():
    assert token_data.token_scripts(StudyResults([], {"cells": []}, Path("nowhere"), ["a"]), 10**8) == ""
