"""The summary's first sentence and its caution, on rows in which every part of them is said, and on the published numbers."""

from __future__ import annotations

from experiments.report.headline import headline, untrained_scores
from experiments.report.summary import changes_of
from experiments.rows import Row
from tests.experiments.plotting.made_rows import made_row
from tests.experiments.report.test_summary import KEYS, V2, V2_REG, V3, changed, published_rows, results


def said(rows: list[Row], *models: str) -> str:
    models = models or ("model",)
    return headline(changes_of(results(rows, models), models), models)


def test_the_published_numbers_are_said_in_one_sentence():
    sentence = said(published_rows(a=V2, b=V2_REG, c=V3), V2, V2_REG, V3)
    registers, cls = sentence.split("; ")
    assert registers == (
        f"Zeroing all registers lowers 3 of 4 main scores by up to 18.9 points in {V2_REG} and 4 of 4 main scores by up to 36.6 points in "
        f"{V3}"
    )
    assert cls == (
        f"zeroing CLS, where CLS itself is not read, lowers 2 of 2 main scores by up to 37.1 points in {V2}, lowers no main score by more "
        f"than 1.8 points in {V2_REG} and {V3}."
    )


def test_every_outcome_has_its_words_and_what_was_not_measured_has_none():
    rows = [changed("mIoU", -9, model="a"), changed("mIoU", 0, p=1.0, model="b"), changed("mIoU", -2, half=4, p=1.0, model="c")]
    rows += [
        changed("mIoU", -9, model="b", condition="noise_registers"),
        changed("probe", 0, p=1.0, model="b", condition="noise_registers"),
    ]
    assert said(rows, "a", "b", "c") == (
        "Zeroing all registers lowers 1 of 1 main scores by up to 9.0 points in a, lowers no main score by more than 1.0 points in b, "
        "leaves open whether it costs 2 points or more in c; noise in their place costs up to 9.0 points in b, where zeros do not."
    )
    assert said([changed("probe", -80, condition="zero_cls", by_construction=True)]) == ""
    assert said([]) == ""


def test_scores_that_need_no_training_are_named_with_the_baseline_that_reaches_them():
    def full(model: str, score: str, value: float) -> Row:
        return made_row(model=model, condition="full", delta=None, value=value, primary=True, **KEYS[score])

    rows = [full("a", "correspondence", 0.33), full("b", "correspondence", 0.5), full("raw_pixels", "correspondence", 0.47)]
    rows += [full("a_random", "correspondence", 0.4), full("a", "probe", 0.9), full("raw_pixels", "probe", 0.7)]
    finding = untrained_scores(results(rows, ("a", "b")), ("a", "b"))
    assert finding is not None
    assert finding.lines == (("correspondence all patches", "raw_pixels 47.0, a 33.0"),)
    assert untrained_scores(results(rows[:2], ("a", "b")), ("a", "b")) is None, "no baseline was run"
