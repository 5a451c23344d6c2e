"""The token microscope from the model to the scripts of the page: what a reader of the page decodes is what the model computes."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import zlib
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import jaxvit
from experiments.analyses import token_microscope
from experiments.datasets.base import DataSize, Part, StudyData, first_id
from experiments.features.conditions import conditions
from experiments.features.recipes import made_up_moments
from experiments.planning import Study, settings
from experiments.report import token_data
from experiments.study.cells import Store
from experiments.study.results import StudyResults
from experiments.study.target import Target
from jaxvit.sharding import batch_mesh
from tests.experiments.report.made_tokens import made_token_cells

NAME = '<b>"mine" & yours'
CONDITIONS = ("zero_registers", "cut_registers_lost", "zero_r1")


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
        self.models, self.problem, self.missing, self.pictures = (entry[n] for n in ("models", "problem", "missing", "pictures"))

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
def target() -> Target:
    """A tiny model with registers under conditions that zero and that cut, with a name that has to be escaped."""
    config = jaxvit.ViTConfig(8, 24, 2, 3, 48, registers=2, image_size=32)
    images = np.random.default_rng(0).integers(0, 256, (7, 32, 24, 3), np.uint8)
    parts = {name: Part(images, 0) for name in ("train", "test")}
    data = StudyData("noise", parts, {}, (), None, None, None, DataSize(calibration=4, analysis_images=7), {}, {})
    table = conditions(config)
    target = Target(NAME, jaxvit.create(config, 1), batch_mesh(), data, settings(Study()), {name: table[name] for name in CONDITIONS})
    target.statistics = made_up_moments(config, (32, 24))  # no condition here needs real ones
    return target


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

    return {condition: run(condition) for condition in ("full", "zero_registers", "cut_registers_lost")}


def test_every_condition_of_the_study_is_there(decoded, target):
    (model,) = decoded.models
    assert model["id"] == model["label"] == NAME
    assert model["conditions"] == ["full", *CONDITIONS]
    assert [model["conditions"][i] for i in model["attention"]] == [
        "full",
        "cut_registers_lost",
        "zero_registers",
        "zero_r1",
    ], "attention in the order in which it is worth keeping, cuts first"
    assert (model["tokens"], model["prefix"], model["grid"], model["layers"]) == (15, 3, [4, 3], 2)
    assert model["ablated"][1:3] == ["registers", "cls, patches -> registers"]
    assert model["images"] == [0, 1, 2, 3, 4, 5]
    shown = [Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))) for uri in decoded.pictures]
    np.testing.assert_array_equal(np.stack([np.asarray(image) for image in shown]), target.data.analysis_images[:6])
    assert decoded.missing == ["absent"]
    assert not decoded.problem


def test_what_is_decoded_is_what_the_model_computes(decoded, raw):
    (model,) = decoded.models
    for image in (0, 5):
        found = decoded.image(model, image)
        for name in raw:
            index = model["conditions"].index(name)
            tokens = raw[name]["block_output"][:, image]
            norms = np.linalg.norm(tokens, axis=-1)
            np.testing.assert_allclose(found["norms"][index], norms, rtol=1e-3, err_msg=name)
            units = tokens / np.maximum(norms, 1e-9)[..., None]
            errors = np.abs(found["cosines"][index] - units @ units.swapaxes(-1, -2))
            assert errors.mean() < 0.008, name
            assert np.quantile(errors, 0.99) < 0.03, name
            attention = raw[name]["attention"][:, image]
            errors = np.abs(found["attention"][model["attention"].index(index)] - attention.mean(axis=1))
            assert errors.mean() < 0.01 * attention.mean(), name
            assert errors.max() < 0.015, name
            if index in model["headAttention"]:
                of_heads = decoded.heads(model, image)[model["headAttention"].index(index)]
                assert np.abs(of_heads - attention).mean() < 0.01 * attention.mean()


def test_what_a_cut_keeps_from_being_read_is_exactly_zero_and_lost_weight_is_missing(decoded):
    (model,) = decoded.models
    found = decoded.image(model, 0)["attention"]
    by_name = {model["conditions"][index]: found[i] for i, index in enumerate(model["attention"])}
    readers, registers = [0, *range(3, 15)], slice(1, 3)
    assert (by_name["full"][:, readers, registers] > 0).all()
    assert (by_name["cut_registers_lost"][:, readers, registers] == 0).all()
    sums = {name: attention[0, 0].sum() for name, attention in by_name.items()}
    assert sums["full"] == pytest.approx(1, abs=1e-4)
    assert sums["cut_registers_lost"] == pytest.approx(1 - by_name["full"][0, 0, registers].sum(), abs=2e-3)


def test_zeroed_tokens_are_zeros_and_black(decoded):
    (model,) = decoded.models
    found = decoded.image(model, 0)
    zeroed = model["conditions"].index("zero_registers")
    assert (found["norms"][zeroed, :, 1:3] == 0).all()
    assert (found["colours"][zeroed, :, :, 1:3] == 0).all()
    assert (found["cosines"][zeroed, :, 1:3] == 0).all()
    assert (found["norms"][0] > 0).all()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> StudyResults:
    folder = tmp_path_factory.mktemp("made")
    return StudyResults([], {"cells": made_token_cells(folder, "a", "b")}, folder, ["a", "b"])


def test_a_page_keeps_what_fits_and_says_what_was_left_out(made):
    whole = len(token_data.token_scripts(made, 10**8))
    said = []
    for room in range(whole, whole // 10, -whole // 25):
        scripts = token_data.token_scripts(made, room)
        assert len(scripts) <= room
        decoded = Decoded(scripts)
        assert len(decoded.pictures) <= 1, "all images are equal, and one of them is there"
        for model in decoded.models:
            for image in range(len(model["images"])):
                decoded.image(model, image)
        said += [decoded.models[0]["kept"]] if decoded.models else []
    steps = list(dict.fromkeys(said))
    assert len(steps) > 6
    assert "--page-budget" not in steps[0]
    assert all("--page-budget" in step for step in steps[1:])
    assert "3 images; mean attention of all 6 conditions; attention of single heads of full, c0, c1, c2 (left out: c3, c4)" in steps[0]
    assert any("mean attention of full, c0, c1, c2 (left out: c3, c4); attention of single heads of no condition" in step for step in steps)
    assert any("1 of 3 images" in step for step in steps)
    nothing = Decoded(token_data.token_scripts(made, 3000))
    assert nothing.models == []
    assert "larger --page-budget" in nothing.problem


READ = """
globalThis.window = {};
const texts = JSON.parse(require("fs").readFileSync(0, "utf8"));
globalThis.document = { getElementById: (id) => id in texts ? { textContent: texts[id], remove() { delete texts[id]; } } : null };
(0, eval)(require("fs").readFileSync(process.argv[1], "utf8"));
(async () => {
  const model = JSON.parse(texts["microscope-models"]).models[0];
  const codes = await window.jaxvitTokens.image(model, 2);
  const heads = await window.jaxvitTokens.heads(model, 2);
  const numbers = (values) => Array.from(values, (value) => (Number.isFinite(value) ? value : null));
  const [condition, layer, token] = [2, 1, 4];
  console.log(JSON.stringify({
    norms: numbers(window.jaxvitTokens.norms(model, codes, condition, layer)),
    attention: numbers(window.jaxvitTokens.attention(model, codes, condition, layer, null, token)),
    head: numbers(window.jaxvitTokens.attention(model, heads, condition, layer, 2, token)),
    cosines: numbers(window.jaxvitTokens.cosines(model, codes, condition, layer, token)),
    colours: numbers(window.jaxvitTokens.colours(model, codes, condition, layer)),
    none: window.jaxvitTokens.attention(model, null, condition, layer, 0, token),
  }));
})();
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_pages_script_decodes_what_python_decodes(decoded):
    script = str(files("experiments.report") / "microscope_data.js")
    done = subprocess.run(["node", "-e", READ, script], input=json.dumps(decoded.texts), capture_output=True, text=True, check=True)
    (model,) = decoded.models
    found, expected, heads = json.loads(done.stdout), decoded.image(model, 2), decoded.heads(model, 2)
    condition, layer, token = 2, 1, 4
    cosines = np.clip(expected["cosines"][condition, layer, token], -1, 1)
    cosines[token] = 1
    np.testing.assert_allclose(found["norms"], expected["norms"][condition, layer], rtol=1e-6)
    np.testing.assert_allclose(found["attention"], expected["attention"][model["attention"].index(condition), layer, token], rtol=1e-6)
    np.testing.assert_allclose(found["head"], heads[model["headAttention"].index(condition), layer, 2, token], rtol=1e-6)
    np.testing.assert_allclose(found["cosines"], cosines, atol=1e-6)
    np.testing.assert_array_equal(np.reshape(found["colours"], (-1, 3)).T, expected["colours"][condition, layer])
    assert found["none"] is None


def test_names_cannot_end_a_script(results):
    scripts = token_data.token_scripts(results, 10**8)
    assert "<b>" not in scripts
    assert not re.search(r"</(?!script>)", scripts)


def test_a_study_without_token_data_has_no_scripts():
    assert token_data.token_scripts(StudyResults([], {"cells": []}, Path("nowhere"), ["a"]), 10**8) == ""
