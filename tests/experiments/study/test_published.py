"""The table of published numbers: what it holds against the authors' own data, and where these do not agree with each other."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

import pytest

from experiments.features.conditions import conditions
from experiments.rows import make_row
from experiments.study.published import attach_published, published
from jaxvit import MODELS
from tests.conftest import SHARED

MODEL = {"dinov2_no_reg": "dinov2_vits14", "dinov2_reg": "dinov2_vits14_reg", "dinov3_vits16": "dinov3_vits16"}
TASK = {
    "g1": ("linear_probe", "top1", "cls"),
    "g2": ("retrieval", "recall_at_1", "cls"),
    "d1": ("correspondence", "accuracy", "patches"),
    "d2": ("segmentation", "miou", "patches"),
}
REG, V3 = "dinov2_vits14_reg", "dinov3_vits16"
PARODI = ("post, March 2026", "post as revised", "2604.14433", "post or successor")


def value(source: str, model: str, condition: str, task: str, metric: str, feature: str, layer: int = 11) -> float:
    key = (model, condition, task, metric, feature, layer)
    (number,) = [e.value for e in published() if source in e.source and (e.model, e.condition, e.task, e.metric, e.feature, e.layer) == key]
    return number


def test_no_number_of_a_source_stands_twice():
    counts = Counter((e.model, e.condition, e.task, e.metric, e.feature, e.layer, e.source) for e in published())
    assert [key for key, count in counts.items() if count > 1] == []


def test_names_are_those_of_models_conditions_and_layers():
    more = {"zero_r1_to_r2", "zero_r1_to_r3", "zero_single_mean", "fix_reg_mean"}
    for e in published():
        config = MODELS[e.model]
        assert e.condition in set(conditions(config)) | (more if config.registers else set()), e
        assert 0 <= e.layer < config.depth, e
        assert config.registers or "registers" not in e.metric + e.feature, e
        assert e.source, e
        assert e.protocol, e


def reference(name: str) -> dict:
    path = SHARED / "reference" / f"{name}.json"
    if not path.exists():
        pytest.skip(f"needs the authors' data beside the checkout ({path})")
    return json.loads(path.read_text())


def heatmap_data() -> Iterator[tuple]:
    for model, by_condition in reference("heatmap_data")["models"].items():
        for condition, scores in by_condition.items():
            for name, score in scores.items():
                yield MODEL[model], condition, *TASK[name], 11, score, None


def probe_and_pairs(part: dict, condition: str, layer: int, tasks: tuple[str, ...]) -> Iterator[tuple]:
    for model, features in part["g1"]["models"].items():
        for feature, probe in features.items():
            for task in tasks:
                yield MODEL[model], condition, task, "top1", feature, layer, probe["scores"][0], probe["n_val"]
    for model, pairs in part["d1"]["models"].items():
        for metric, name in (("accuracy", "gt_accuracy"), ("cycle_consistency", "cycle_consistency")):
            yield MODEL[model], condition, "correspondence", metric, "patches", layer, pairs[name], pairs["n_pairs"]


def layer_sweep() -> Iterator[tuple]:
    data = reference("layer_sweep")
    for layer in data["layers"]:
        part = {task: data[task][str(layer)] for task in ("g1", "d1")}
        yield from probe_and_pairs(part, "full", layer, ("layer_probe", "linear_probe") if layer == 11 else ("layer_probe",))


def per_register_lesion() -> Iterator[tuple]:
    for by_condition in reference("per_register_lesion")["results"].values():
        for condition, part in by_condition.items():
            yield from probe_and_pairs(part, condition, 11, ("linear_probe",))


def register_layer_probe() -> Iterator[tuple]:
    for model, data in reference("register_layer_probe").items():
        for layer in data["layers"]:
            for i, name in enumerate(data["feature_types"]):
                feature = f"r{i}" if i else "cls"
                for task in ("layer_probe", "linear_probe") if layer == 11 else ("layer_probe",):
                    yield MODEL[model], "full", task, "top1", feature, layer, data["probes"][f"layer_{layer:02}"][name], None


def attention_flow() -> Iterator[tuple]:
    groups = {"cls": "cls", "registers": "regs", "patches": "patches"}
    for model, data in reference("attention_flow").items():
        names = [g for g in groups if g != "registers" or MODELS[MODEL[model]].registers]
        for layer in range(data["num_layers"]):
            flows = data["layers"][f"layer_{layer:02}"]
            for s in names:
                for t in names:
                    flow = flows[f"{groups[s]}_to_{groups[t]}_mean"]
                    yield MODEL[model], "full", "attention_flow", s, t, layer, flow, data["num_images"]


@pytest.mark.parametrize("read", [heatmap_data, layer_sweep, per_register_lesion, register_layer_probe, attention_flow])
def test_entries_are_the_authors_own_data_and_no_others(read):
    """Within the seven digits that the table keeps; the number of examples where the authors give it."""
    theirs = {row[:6]: row[6:] for row in read()}
    ours = {(e.model, e.condition, e.task, e.metric, e.feature, e.layer): e for e in published() if f"/{read.__name__}.json" in e.source}
    assert ours.keys() == theirs.keys()
    for key, (score, n) in theirs.items():
        assert ours[key].value == pytest.approx(score, abs=1e-7), key
        assert n is None or ours[key].n == n


def test_attention_of_every_source_sums_to_one():
    sums: Counter = Counter()
    for e in published():
        if e.task == "attention_flow" and "attention_flow.json" in e.source:
            sums[e.model, e.layer, e.metric] += e.value
    assert len(sums) == 12 * (2 + 3 + 3)
    assert all(total == pytest.approx(1, abs=2e-7) for total in sums.values())


def test_published_drops_are_differences_of_published_values():
    """Single registers against the full condition of the layer sweep, which is 0.05 points off the full condition of the table."""
    for model, drops in ((REG, (0.02, -4.90, -0.18, 0.05)), (V3, (-1.76, -0.45, -2.70, -0.14))):
        full = value("layer_sweep", model, "full", *TASK["g1"])
        ours = [100 * (value("per_register_lesion", model, f"zero_r{i}", *TASK["g1"]) - full) for i in (1, 2, 3, 4)]
        assert ours == pytest.approx(drops, abs=1e-4)
    for model, condition, task, drop in (
        (REG, "zero_registers", "g1", -18.9),
        (V3, "zero_registers", "g1", -36.6),
        (V3, "zero_registers", "d2", -30.9),
        (V3, "zero_registers", "d1", -21.1),
        ("dinov2_vits14", "zero_cls", "d2", -37.1),
        ("dinov2_vits14", "zero_cls", "d1", -15.9),
    ):
        full = value("heatmap_data", model, "full", *TASK[task])
        assert 100 * (value("heatmap_data", model, condition, *TASK[task]) - full) == pytest.approx(drop, abs=0.05 + 1e-6)
    base = {c: value("post or successor", "dinov3_vitb16", c, *TASK["g1"]) for c in ("full", "zero_registers", "random_patches")}
    assert 100 * (base["zero_registers"] - base["full"]) == pytest.approx(-36.5, abs=1e-6)
    assert 100 * (base["random_patches"] - base["full"]) == pytest.approx(-2.28, abs=1e-6)


def test_the_first_point_of_the_cumulative_curve_is_a_mean_over_single_registers():
    for model, off in ((REG, 1.2), (V3, 0.5)):
        point = value("post or successor", model, "zero_single_mean", *TASK["g1"])
        singles = [value("per_register_lesion", model, f"zero_r{i}", *TASK["g1"]) for i in (1, 2, 3, 4)]
        assert point == pytest.approx(sum(singles) / 4, abs=5.1e-4)
        assert abs(point - singles[0]) > off / 100, "and not register 1 alone"


def test_where_published_numbers_do_not_agree_with_each_other():
    """Found in the authors' own numbers, so that nobody takes a difference of this size for one of ours."""
    for model, stated, summed in ((REG, -5.2, -5.01), (V3, -7.0, -5.05)):  # the post's sums of single drops
        full = value("layer_sweep", model, "full", *TASK["g1"])
        singles = [value("per_register_lesion", model, f"zero_r{i}", *TASK["g1"]) for i in (1, 2, 3, 4)]
        total = 100 * (sum(singles) - 4 * full)
        assert total == pytest.approx(summed, abs=1e-3)
        assert total != pytest.approx(stated, abs=0.15)
    for model, points in ((REG, -0.6), (V3, 0.4)):  # the post's text and the post's data, CLS to registers
        text, data = (value(s, model, "full", "attention_flow", "cls", "registers") for s in ("first version", "attention_flow.json"))
        assert 100 * (text - data) == pytest.approx(points, abs=0.05)
    twice = [value(name, V3, "full", "layer_probe", "top1", "cls") for name in ("layer_sweep", "register_layer_probe")]
    assert 100 * (twice[0] - twice[1]) == pytest.approx(0.07, abs=1e-3)
    versions = [value(s, V3, "full", "linear_probe", "top1", "r2") for s in ("first version", "2604.14433")]
    assert 100 * (versions[1] - versions[0]) == pytest.approx(2.7)


def test_numbers_in_the_text_are_the_authors_data_rounded():
    """Every number typed from a text that also stands in their data, but for the flows of the post that disagree."""
    data = {(e.model, e.condition, e.task, e.metric, e.feature, e.layer): e.value for e in published() if "assets/data" in e.source}
    compared = 0
    for e in published():
        theirs = data.get((e.model, e.condition, e.task, e.metric, e.feature, e.layer))
        known = e.note.startswith("the post's own data") or (e.task == "linear_probe" and "2604.14433" in e.source)
        if theirs is not None and any(s in e.source for s in PARODI) and not known:
            assert e.value == pytest.approx(theirs, abs=5.1e-4), e
            compared += 1
    assert compared == 3 + 4, "three register probes of the post, four flows at the last layer"


def row(**changes: object) -> dict:
    new = {"model": V3, "condition": "zero_registers", "task": "retrieval", "metric": "recall_at_1", "feature": "cls", "layer": 11}
    return make_row(**new | {"value": 0.9, "ci_low": 0.85, "ci_high": 0.95, "n": 2000} | changes)


def flow(source: str, target: str, **changes: object) -> dict:
    new = {"condition": "full", "task": "attention_flow", "metric": "attention", "feature": None, "source": source, "target": target}
    return row(**new | changes)


def test_a_measured_number_stands_beside_every_version_of_the_published_one():
    rank = row(condition="full", task="effective_rank", metric="gram_eigenvalues", feature="patches", value=4.5)
    measured, ranked = attach_published([row(), rank])
    (one,) = measured["published"]
    assert measured == row() | {"published": [one]}
    assert list(measured) == list(row()), "in the place of the field"
    assert (one["value"], one["difference"]) == (0.929, pytest.approx(-0.029))
    assert one["in_interval"], "0.929 lies between 0.85 and 0.95"
    assert not attach_published([row(ci_high=0.92)])[0]["published"][0]["in_interval"]
    assert "heatmap_data" in one["source"]
    assert one["protocol"]
    assert [(p["value"], p["difference"]) for p in ranked["published"]] == [(4.2, pytest.approx(0.3)), (4.0, pytest.approx(0.5))]
    assert ["first version" in p["source"] for p in ranked["published"]] == [True, False]


def test_numbers_are_found_at_the_layer_and_by_the_read_out_of_their_row():
    (probe,) = attach_published([row(condition="full", task="layer_probe", metric="top1", readout="refitted", layer=4)])
    expected = [e.value for e in published() if (e.model, e.task, e.feature, e.layer) == (V3, "layer_probe", "cls", 4)]
    assert [p["value"] for p in probe["published"]] == expected
    assert len(expected) == 2
    giant = {
        "model": "dinov2_vitg14_reg",
        "condition": "fix_reg_mean",
        "task": "linear_probe",
        "metric": "top1",
        "feature": "cls+patch_mean",
    }
    refitted, frozen = attach_published([row(**giant, readout=readout, layer=39) for readout in ("refitted", "frozen")])
    assert refitted["published"] is None
    assert [p["value"] for p in frozen["published"]] == [0.87]


def test_flows_and_cosines_are_found_by_their_pair_of_tokens():
    (measured,) = attach_published([flow("patches", "registers", layer=10)])
    assert [p["value"] for p in measured["published"]] == [pytest.approx(0.339, abs=5e-4)]
    assert attach_published([flow("registers", "patches", layer=10)])[0]["published"] != measured["published"]
    pair = {"condition": "full", "task": "register_cosine", "metric": "cosine", "feature": None, "register_b": "r3"}
    measured, swapped = attach_published([row(**pair, register_a="r1"), row(**pair | {"register_b": "r1"}, register_a="r3")])
    expected = [e.value for e in published() if (e.model, e.task, e.metric, e.feature) == (V3, "register_cosine", "r1", "r3")]
    assert [p["value"] for p in measured["published"]] == expected
    assert swapped["published"] is None, "the lower register comes first"


def test_every_entry_is_found_by_the_row_of_a_study_that_measures_it():
    for e in published():
        fields = {"metric": e.metric, "feature": e.feature}
        if e.task == "attention_flow":
            fields = {"metric": "attention", "feature": None, "source": e.metric, "target": e.feature}
        elif e.task == "register_cosine":
            fields = {"metric": "cosine", "feature": None, "register_a": e.metric, "register_b": e.feature}
        elif e.metric.endswith("_frozen"):
            fields |= {"metric": e.metric.removesuffix("_frozen"), "readout": "frozen"}
        (found,) = attach_published([row(model=e.model, condition=e.condition, task=e.task, layer=e.layer, **fields)])
        assert (e.value, e.source) in [(p["value"], p["source"]) for p in found["published"]], e


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "demo_reg"},
        {"condition": "mean_cls"},
        {"metric": "top1"},
        {"feature": "patches"},
        {"layer": 10},
        {"layer": None},
        {"task": "knn"},
        {"readout": "frozen"},
        {"index": 0},
    ],
)
def test_a_row_without_counterpart_stays_as_it_is(changes):
    single = row(**changes)
    assert attach_published([single]) == [row(**changes)]
    assert attach_published([single])[0] is single
    assert single["published"] is None
