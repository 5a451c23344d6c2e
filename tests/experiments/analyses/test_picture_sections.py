"""Sections of pictures, from cells made by hand: pixels, numbers and frames are those of the arrays."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from experiments.analyses import feature_maps, nearest_patches
from experiments.plotting.pictures import RAMP
from experiments.study.cells import Store
from experiments.study.results import StudyResults
from tests.experiments.plotting.seen import files, piece, uses

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (3, 32, 48, 3), dtype=np.uint8)
ROWS, COLUMNS = 4, 6
Study = Callable[..., StudyResults]


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Makes a finished study of some models with the cells of those that have arrays."""

    def make(kind: str, version: int, arrays: dict[str, dict[str, np.ndarray]], models: tuple[str, ...] = ()) -> StudyResults:
        store = Store(tmp_path / "cells")
        cells = []
        for model, of_model in arrays.items():
            conditions = list(map(str, of_model.get("conditions", [])))
            key = {"kind": kind, "name": model, "version": version, "conditions": conditions}
            cells.append((store.save(key, [], of_model, {}).hash, kind, model))
        return StudyResults([], {"cells": cells, "columns": []}, tmp_path, list(models or arrays))

    return make


def maps(registers: int, conditions: tuple[str, ...] = ("full", "zero_cls"), depth: int = 2) -> dict[str, np.ndarray]:
    count = len(IMAGES)
    return {
        "images": IMAGES,
        "conditions": np.array(conditions),
        "maps": RANDOM.random((len(conditions), count, ROWS, COLUMNS, 3)),
        "norms": 20 + 30 * RANDOM.random((len(conditions), count, ROWS, COLUMNS)),
        "attention": RANDOM.random((depth, count, 1 + registers, ROWS, COLUMNS)) / 50,
    }


def figures(page: str, views: str) -> dict[str, str]:
    """The panels of a figure with controls, by what they belong to."""
    body = page[page.index(f'id="{views}"') :]
    return dict(re.findall(r'<figure data-view="([^"]*)"[^>]*>(.*?)</figure>', body.partition('<div class="views"')[0], re.DOTALL))


def tiles(figure: str) -> dict[str, list[str]]:
    """The drawings of a panel by the name above them."""
    return {name: re.findall(r"<svg.*?</svg>", body) for name, body in re.findall(r'<div class="tile"><b>(.*?)</b>(.*?)</div>', figure)}


def numbers(drawing: str, page: str) -> np.ndarray:
    """The numbers of a picture, read off its colours."""
    by_colour = {tuple(colour): step for step, colour in enumerate(RAMP)}
    shares = np.apply_along_axis(lambda colour: by_colour[tuple(colour)] / 255, 2, piece(drawing, page))
    fields = dict(re.findall(r'data-(\w+)="([^"]*)"', drawing))
    low, high = float(fields.get("low", 0)), float(fields["high"])
    return low + shares * (high - low)


def test_norms_and_components_of_every_image_and_condition_are_those_of_the_cell(study):
    arrays = maps(2)
    page = feature_maps.section(study("maps", feature_maps.VERSION, {"with": arrays, "without": maps(0)}))
    panels = figures(page, "feature-maps")
    assert list(panels) == [f"m{m} {i}" for m in (0, 1) for i in range(3)]
    for i in range(3):
        shown = tiles(panels[f"m0 {i}"])
        assert list(shown) == [f"image {i + 1}", "full", "zero_cls"]
        for c, condition in enumerate(("full", "zero_cls")):
            components, lengths = shown[condition]
            np.testing.assert_array_equal(piece(components, page), np.round(255 * arrays["maps"][c, i]))
            np.testing.assert_allclose(numbers(lengths, page), arrays["norms"][c, i], atol=30 / 255)
        median = np.median(arrays["norms"][1, i])
        assert f"median {median:.3g}" in panels[f"m0 {i}"]


def test_attention_of_every_block_image_and_source_is_that_of_the_cell_in_percent(study):
    arrays = maps(2)
    page = feature_maps.section(study("maps", feature_maps.VERSION, {"with": arrays}))
    panels = figures(page, "attention-maps")
    assert list(panels) == [f"{i} {layer}" for i in range(3) for layer in (0, 1)]
    sources = {"CLS": [0], "mean register": [1, 2], "r1": [1], "r2": [2]}
    for i in range(3):
        for layer in (0, 1):
            shown = tiles(panels[f"{i} {layer}"])
            assert list(shown) == list(sources)
            for source, tokens in sources.items():
                expected = 100 * arrays["attention"][layer, i, tokens].mean(axis=0)
                (drawing,) = shown[source]
                np.testing.assert_allclose(numbers(drawing, page), expected, atol=expected.max() / 100)
                assert uses(drawing)[0]["href"] == f"#map-photo-{i}"
                assert f"<small>up to {expected.max():.3g} %</small>" in panels[f"{i} {layer}"]


@pytest.mark.parametrize(("depth", "count"), [(1, 1), (6, 6), (12, 12), (13, 7), (24, 12), (40, 10)])
def test_of_deep_models_some_blocks_are_shown_in_equal_steps_the_last_among_them(depth, count):
    blocks = feature_maps.shown_blocks(depth)
    assert len(blocks) == count <= feature_maps.BLOCKS
    assert blocks[-1] == depth - 1
    assert len(set(np.diff(blocks))) <= 1


def test_blocks_that_are_shown_are_those_of_their_number(study):
    arrays = maps(0, depth=24)
    page = feature_maps.section(study("maps", feature_maps.VERSION, {"deep": arrays}))
    assert 'min="1" max="23" step="2" value="23"' in page
    (drawing,) = tiles(figures(page, "attention-maps")["2 17"])["CLS"]
    expected = 100 * arrays["attention"][17, 2, 0]
    np.testing.assert_allclose(numbers(drawing, page), expected, atol=expected.max() / 100)


def test_a_photograph_is_once_on_the_page(study):
    page = feature_maps.section(study("maps", feature_maps.VERSION, {"a": maps(1), "b": maps(1), "c": maps(0)}))
    assert len([name for name in files(page) if "photo" in name]) == 3
    assert len(re.findall(' id="', page)) == len(set(re.findall(' id="([^"]*)"', page)))


def test_models_without_pictures_are_named_and_those_of_an_earlier_version_told_what_to_do(study):
    page = feature_maps.section(study("maps", feature_maps.VERSION, {"a": maps(1)}, ("<b>", "a")))
    assert "Not shown, not computed: &lt;b&gt;." in page
    early = "Not shown, computed by an earlier version (run the study again in its folder): a, b."
    for analysis in (feature_maps, nearest_patches):
        page = analysis.section(study(analysis.KIND, 1, {"a": {}, "b": {}}))
        assert re.sub("<.*?>", "", page) == early


def nearest(registers: int) -> dict[str, np.ndarray]:
    patches = np.array([[0, 5, 18, 23, 9]] * registers)
    return {
        "images": IMAGES,
        "places": np.array([[0, 1, 2, 0, 1]] * registers),
        "numbers": np.array([[7, 30, 41, 7, 30]] * registers),
        "patches": patches,
        "cosines": np.linspace(0.9, 0.5, 5) - 0.01 * np.arange(registers)[:, None],
        "grid": np.array([ROWS, COLUMNS]),
    }


def test_the_frame_is_around_the_patch_and_words_say_its_cosine_and_place(study):
    page = nearest_patches.section(study("nearest_patches", nearest_patches.VERSION, {"a": nearest(2), "b": nearest(1)}))
    panels = figures(page, "nearest-patches")
    assert list(panels) == ["m0 r1", "m0 r2", "m1 r1"]
    drawings = re.findall(r"<svg.*?</svg>", panels["m0 r2"])
    assert len(drawings) == 10
    for k, patch in enumerate((0, 5, 18, 23, 9)):
        whole, near = drawings[2 * k : 2 * k + 2]
        row, column = divmod(patch, COLUMNS)
        for drawing in (whole, near):
            (frame,) = re.findall(r'<rect class="outline" x="([^"]+)" y="([^"]+)" width="([^"]+)" height="([^"]+)"/>', drawing)
            x, y, wide, high = map(float, frame)
            assert (x + wide / 2, y + high / 2) == pytest.approx((column + 0.5, row + 0.5))
            assert 0.8 < wide == high < 1
        left, top, width, height = map(int, re.findall(r'viewBox="(\d+) (\d+) (\d+) (\d+)"', near)[0])
        assert (width, height) == (3, 3)
        assert left <= column < left + width <= COLUMNS
        assert top <= row < top + height <= ROWS
        assert f"<b>{k + 1}: cosine {0.9 - 0.1 * k - 0.01:.3f}</b>" in panels["m0 r2"]
        assert f"image {(8, 31, 42, 8, 31)[k]}, row {row + 1}, column {column + 1}" in panels["m0 r2"]
    assert len(files(page)) == 3, "models and registers have photographs in common"


def test_the_photograph_of_a_patch_is_its_image(study):
    page = nearest_patches.section(study("nearest_patches", nearest_patches.VERSION, {"a": nearest(2)}))
    wholes = re.findall(r"<svg.*?</svg>", figures(page, "nearest-patches")["r1"])[::2]
    for drawing, place in zip(wholes, (0, 1, 2, 0, 1), strict=True):
        seen = files(page)[uses(drawing)[0]["href"].removeprefix("#")].astype(int)
        distances = [np.abs(seen - image).mean() for image in IMAGES]
        assert int(np.argmin(distances)) == place
