"""Constructed models score as the demo does, and get the words that they were made for."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

import jaxvit
from experiments.datasets.scenes import scenes
from experiments.definition import Study
from experiments.planning import load_models
from experiments.sinks.__main__ import ALL, PAGE, RESULTS, Options, as_expected, evidence_in, page_table, rows_of
from experiments.sinks.constructed import CONSTRUCTED, constructed
from experiments.sinks.rules import decide
from experiments.sinks.verdicts import all_verdicts


def test_the_base_computes_what_the_demo_computes():
    demo, wide = jaxvit.load("demo"), constructed("constructed_not_read")
    images = jaxvit.normalise(scenes("test", 4).images, demo.config)
    plain, same = jaxvit.forward(demo, images), jaxvit.forward(wide, images, capture="attention_flow")
    assert np.abs(np.asarray(same.tokens)[..., 96:]).max() == 0
    for ours, theirs in ((same.cls, plain.cls), (same.patches, plain.patches)):
        assert np.abs(np.asarray(ours)[..., :96] - np.asarray(theirs)).max() < 0.03 * np.abs(np.asarray(theirs)).max()
    to_registers = np.asarray(same.captured["attention_flow"])[..., [0, -1], 1:5]
    assert to_registers.max() < 1e-6


def test_a_constructed_model_is_named_as_any_other():
    models = load_models(Study(models=("constructed_sink",)))
    assert models["constructed_sink"].config == constructed("constructed_not_read").config
    with pytest.raises(ValueError, match='no constructed model "constructed_x"; possible are constructed_not_read'):
        constructed("constructed_x")


STORED = json.loads(RESULTS.read_text())["models"]


@pytest.mark.parametrize("entry", STORED, ids=lambda entry: entry["model"])
def test_todays_rules_give_every_model_its_words_from_the_stored_evidence(entry):
    verdicts = {target: decide(evidence_in(entry, target)) for target in entry["evidence"]}
    assert as_expected(ALL[entry["model"]], verdicts), {target: str(verdict) for target, verdict in verdicts.items()}
    assert {target: [list(verdict.words), list(verdict.notes)] for target, verdict in verdicts.items()} == {
        target: [entry["words"][target], entry["notes"][target]] for target in verdicts
    }


def test_the_table_of_the_docs_is_that_of_all_stored_models():
    assert [entry["model"] for entry in STORED] == list(ALL)
    assert page_table(STORED) in PAGE.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", CONSTRUCTED)
def test_all_models_get_their_words(name):
    rows = rows_of(name, Options(train=128, test=1000))
    construction = CONSTRUCTED[name]
    verdicts = all_verdicts(rows)[name][construction.group]
    assert as_expected(construction, verdicts), {target: str(verdict) for target, verdict in verdicts.items()}
    jax.clear_caches()
