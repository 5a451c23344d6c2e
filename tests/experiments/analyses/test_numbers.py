"""Sections of numbers: what they show is what the rows say, and what is not there is named."""

from __future__ import annotations

import html
import re

import pytest

from experiments.analyses import (
    ablation_table,
    instrument_check,
    model_differences,
    off_manifold,
    random_patch_control,
    register_lesions,
    replacement_controls,
    scale_comparison,
)
from experiments.features.conditions import REPLACEMENTS
from experiments.rows import Row
from tests.experiments.analyses.test_section import results
from tests.experiments.plotting.drawings import panels
from tests.experiments.plotting.made_rows import PLAIN, made_row

ALONE = {"delta": None, "delta_ci_low": None, "delta_ci_high": None, "p_value": None, "p_holm": None}


def cells(page: str) -> dict[tuple[str, str], dict[str, str]]:
    """Of every table of a page that stands below a heading: its cells' texts by (model, condition) and column."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for model, table in re.findall(r"<h3>([^<]*)</h3><div class=\"scroll\".*?(<table>.*?</table>)", page, re.DOTALL):
        heads = re.findall(r'<th scope="col">(.*?)</th>', table)[1:]
        for name, line in re.findall(r'<tr><th scope="row"[^>]*>(.*?)</th>(.*?)</tr>', table, re.DOTALL):
            texts = [re.sub("<[^>]*>", " ", cell).split() for cell in re.findall(r"<td.*?</td>", line, re.DOTALL)]
            found[model, name.replace("<wbr>", "")] = dict(zip(heads, map(" ".join, texts), strict=True))
    return found


def test_the_table_shows_values_and_differences_in_their_units_and_names_what_is_missing():
    length = {"task": "mine", "metric": "length", "readout": None, **PLAIN}
    rows = [
        made_row(condition="full", **ALONE),
        made_row(condition="full", value=4.0, **length, **ALONE),
        made_row(value=0.125, delta=-0.375, by_construction=True, note="constant by construction"),
        made_row(value=2.0, delta=-2.0, **length),
        made_row(readout="frozen", value=0.25, delta=-0.25),
        made_row(model="other", condition="full", **ALONE),
    ]
    page = ablation_table.section(results(rows, "model", "other"))
    probe, frozen, mine = "linear probe<br>CLS", "frozen probe<br>CLS", "how long<br>CLS is"
    assert cells(page)["model", "full"] == {probe: "50.0", frozen: "as refitted", mine: "4.000"}
    assert cells(page)["model", "zero_cls"] == {probe: "12.5† −37.5†", frozen: "25.0 −25.0", mine: "2.000 −2.000"}
    assert cells(page)["other", "full"] == {probe: "50.0"}
    assert "Not run for this model: frozen probe CLS, how long CLS is." in page
    assert f'<th scope="col">{probe}</th><th scope="col">{mine}</th>' in page, "the table without ablation is of refitted read-outs"
    missing = ablation_table.section(results([*rows, made_row(condition="b", **length)]))
    assert cells(missing)["model", "b"][probe] == "not run"


def test_a_switch_shows_one_of_value_and_change_and_both_stand_in_every_cell():
    page = ablation_table.section(results([made_row()]))
    assert re.findall(r'<input type="radio" name="[\w-]+" value="(\w+)"', page) == ["delta", "raw"]
    assert page.count('<span class="raw">') == page.count('<span class="delta">') == 1


def test_published_numbers_stand_beside_measured_ones():
    published = [
        {"value": 0.75, "difference": -0.25, "in_interval": False, "source": "a <paper>", "protocol": "?"},
        {"value": 0.45, "difference": 0.05, "in_interval": True, "source": "another", "protocol": "?"},
    ]
    page = ablation_table.section(results([made_row(published=published)]))
    assert "holds 1 of 2 published numbers" in page
    assert "<summary>model: 1 of 2</summary>" in page
    shown = page[page.index("Published beside measured") :]
    lines = [re.sub("<[^>]*>", " ", line).split() for line in re.findall("<tr>(.*?)</tr>", shown)[1:]]
    assert lines[0][-9:] == ["50.0", "40.0", "–", "60.0", "75.0", "−25.0", "no", "a", "&lt;paper&gt;"]
    assert lines[1][-4:] == ["45.0", "+5.0", "yes", "another"]
    assert "Published" not in ablation_table.section(results([made_row()]))


def test_every_replacement_is_a_line_with_a_name_of_its_own():
    rows = [made_row(condition=name) for name in REPLACEMENTS]
    (lines,) = panels(replacement_controls.section(results(rows))).values()
    assert [line.name for line in lines] == ["zero", "mean", "noise", "shuffle", "shuffle whole", "optimal"]


def test_lesions_of_the_model_with_the_most_registers_are_shown_in_their_order_with_their_sum():
    names = [*(f"zero_r{i}" for i in range(1, 13)), *(f"zero_r1_to_r{n}" for n in range(2, 12)), "zero_registers"]
    rows = [made_row(condition=name, delta=-0.01) for name in sorted(names)]
    (lines,) = panels(register_lesions.section(results(rows))).values()
    assert [line.name for line in lines] == [
        *(f"r{i}" for i in range(1, 13)),
        *(f"r1 to r{n}" for n in range(2, 12)),
        "all registers",
        "sum of single",
    ]
    assert lines[-1].numbers == pytest.approx([-12], abs=0.5), "twelve of a point, without an interval"
    assert lines[-1].kind == "sum"
    assert "add up to −12.0" in lines[-1].says


def test_a_sum_is_left_out_where_a_single_lesion_is_missing():
    rows = [made_row(condition=name) for name in ("zero_r1", "zero_r3", "zero_registers")]
    (lines,) = panels(register_lesions.section(results(rows))).values()
    assert [line.name for line in lines] == ["r1", "r3", "all registers"]


def off_rows(*conditions: str) -> list[Row]:
    return [
        made_row(task="off_manifold", condition=condition, metric=metric, layer=layer, value=layer + 0.125, readout=None, **PLAIN | ALONE)
        for condition in conditions
        for metric in off_manifold.METRICS
        for layer in (0, 1)
    ]


def test_the_last_block_of_every_condition_has_a_dot_and_stands_in_the_table():
    page = off_manifold.section(results(off_rows("zero_cls", "zero_registers")))
    drawn = panels(page)
    assert len(drawn) == len(off_manifold.METRICS)
    for lines in drawn.values():
        assert [line.name for line in lines] == ["zero_cls", "zero_registers"]
        assert lines[0].numbers == pytest.approx([1.125, 1.025, 1.225], abs=0.01)
    assert re.findall(r'<th scope="row">model · (\w+)</th>', page.replace("<wbr>", "")) == ["zero_cls", "zero_registers"]
    assert page.count("<td>1.125<small>") == 2 * len(off_manifold.METRICS)
    rows = [row for row in off_rows("zero_cls", "b") if (row["condition"], row["metric"]) != ("b", "patch_cosine")]
    page = off_manifold.section(results(rows))
    assert [line.words for line in panels(page)["model: cosine of patches with the clean run"]] == [["1.125"], ["not run"]]
    assert page.count('<td class="none">not run</td>') == 1


def test_what_has_no_number_under_any_condition_is_a_sentence_and_no_empty_panel():
    rows = [made_row(by_construction=True), made_row(task="knn", metric="top1_k20")]
    page = random_patch_control.section(results([row | {"condition": "zero_registers"} for row in rows]))
    assert [title for title in panels(page)] == ["model: k-NN (k 20) CLS"]
    assert "Without a number here, by construction: linear probe CLS." in page


SIZES = ("dinov2_vitb14", "dinov2_vits14", "dinov3_vits16")


def test_models_are_compared_with_others_of_their_family_alone_small_ones_first():
    rows = [made_row(model=model, delta=delta) for model, delta in zip(SIZES, (-0.25, -0.2, -0.1), strict=True)]
    rows += [made_row(model=model, condition="zero_registers") for model in (SIZES[2], "other")]
    page = scale_comparison.section(results(rows, *SIZES))
    (lines,) = panels(page).values()
    assert [line.name for line in lines] == ["S: dinov2_vits14", "B: dinov2_vitb14", "B − S"]
    assert (lines[2].words, lines[2].kind) == (["−5.0"], "sum"), "not tested here"
    assert "dinov3_vits16" not in page
    assert "zero_registers" not in page, "no size of the family ran it"


def test_the_difference_of_two_sizes_is_the_tested_one_where_there_is_one():
    rows = [made_row(model=model) for model in SIZES[:2]]
    reference = {"model": SIZES[0], "condition": "zero_cls", "value": -0.25}
    interval = {"delta": 0.03, "delta_ci_low": 0.01, "delta_ci_high": 0.05}
    rows.append(made_row(model=SIZES[1], metric="top1_change", analysis="model_differences", reference=reference, **interval))
    (lines,) = panels(scale_comparison.section(results(rows, *SIZES[:2]))).values()
    assert (lines[2].name, lines[2].kind) == ("S − B", "gains")
    assert lines[2].numbers == pytest.approx([3, 1, 5], abs=0.3)


def test_a_change_of_another_token_is_shown_exactly_and_said():
    rows = [
        made_row(task="instrument_check", condition="zero_cls_last", metric="largest_change", readout=None, value=2e-7, **PLAIN | ALONE)
    ]
    page = instrument_check.section(results(rows))
    assert re.search(r'<th scope="row">model</th><td title="[^"]*">2e-07</td>', page)
    assert "Failed: other tokens changed in model · zero_cls_last (2e-07)" in page
    rows[0]["value"] = 0.0
    assert "Passed: in 1 of 1 runs no other token changed" in instrument_check.section(results(rows))


def test_differences_between_models_stand_in_a_table_for_each_pair():
    common = {"metric": "top1_change", "analysis": "model_differences", "primary": False}
    rows = [
        made_row(**common, model=model, condition=condition, p_holm=p, reference={"model": other, "condition": condition, "value": 0.0})
        for model, other in (("a", "b"), ("a", "c"))
        for condition, p in (("zero_cls", 0.01), ("random_patches", 0.2))
    ]
    page = model_differences.section(results(rows, "a", "b", "c")).replace("<wbr>", "")
    assert page.count("<table>") == 2
    assert '<th scope="col">a − b</th>' in page
    assert re.search(r'<th scope="row">zero_cls</th><td [^>]*><span class="delta"><b>−25.0</b></span></td>', page)
    assert re.search(r'<th scope="row">random_patches</th><td [^>]*><span class="delta">−25.0</span></td>', page)
    assert "change of linear probe CLS: 50.0 points [40.0, 60.0], −25.0 points [−37.5, −12.5] against b" in html.unescape(page)


def test_one_model_without_labels_and_registers_has_its_numbers_and_no_blanks():
    """A study of matching alone, of one model."""
    match = {"task": "correspondence", "metric": "accuracy", "feature": "patches", "readout": None}
    rows = [made_row(condition="full", **match, **ALONE), made_row(**match), made_row(condition="random_patches", **match)]
    shown = cells(ablation_table.section(results(rows)))
    assert list(shown) == [("Without ablation", "model"), *(("model", name) for name in ("full", "zero_cls", "random_patches"))]
    assert all(len(line) == 1 for line in shown.values())
    assert register_lesions.section(results(rows)) == replacement_controls.section(results(rows)) == ""
    assert scale_comparison.section(results(rows)) == model_differences.section(results(rows)) == ""
