"""Ours beside the paper's: when a difference is printed, and when ours lies within the paper's spread."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

import datasets
from analysis.agreement import IMAGES, NO_SPREAD, OUTSIDE, WITHIN, verdict
from analysis.latex import latex
from analysis.layout import Entry, Table
from analysis.paper import PaperNumber, read_paper
from analysis.render import long_csv, markdown
from analysis.results import read_results
from analysis.statistics import is_within, summarise
from analysis.tables import make_tables

errors = st.floats(0.001, 10)


def table6(folder, **options) -> Table:
    (table,) = make_tables(read_results(folder.path), wanted=["6"], **options)
    return table


def jaccard(table: Table, row: str) -> Entry:
    return next(entry for (label, column), entry in table.entries.items() if (label, column.metric) == (row, "iou"))


@given(st.floats(-50, 50), errors, st.one_of(st.none(), errors), st.integers(1, 5))
def test_within_is_symmetric_and_nearer_is_never_outside(difference, error, own_error, runs) -> None:
    def within(value: float) -> bool:
        return is_within(value, error=error, runs=runs, own_error=own_error, rounding=0.05)

    assert within(difference) == within(-difference)
    assert within(0) and within(0.05), "what rounding alone may do"
    assert not within(difference) or within(difference / 2)


@given(st.floats(0, 50), errors, errors)
def test_within_does_not_ask_whose_error_is_whose(difference, error, own_error) -> None:
    one, other = (
        is_within(difference, error=a, runs=3, own_error=b, rounding=0)
        for a, b in ((error, own_error), (own_error, error))
    )
    assert one == other == (difference <= 2 * np.sqrt(error**2 + own_error**2) + 1e-9)


@given(st.floats(0, 50), errors)
def test_a_single_run_scatters_like_one_of_theirs(difference, error) -> None:
    """Three runs of standard deviation s have the error s/√3, one has s: together 2 of the printed error."""
    single = is_within(difference, error=error, runs=3, own_error=None, rounding=0)
    assert single == is_within(difference, error=error, runs=3, own_error=error * 3**0.5, rounding=0)


def test_one_in_nine_equal_means_lies_outside() -> None:
    draws = np.random.Generator(np.random.PCG64(0)).normal(size=(2, 20_000, 3))
    means, spread = draws.mean(axis=2), scipy.stats.sem(draws, axis=2)
    outside = [
        not is_within(a - b, error=e, runs=3, own_error=f, rounding=0)
        for a, b, e, f in zip(*means, *spread, strict=True)
    ]
    assert np.mean(outside) == pytest.approx(2 * scipy.stats.t.sf(2, df=4), abs=0.01)
    assert np.mean(outside) == pytest.approx(1 / 9, abs=0.01)


@pytest.mark.parametrize(
    ("ours", "number", "said"),
    [
        ([77.0, 78.0, 79.0], PaperNumber("77.6", "0.57", 3), WITHIN),  # 0.4 of 2 * 0.81
        ([79.0, 80.0, 81.0], PaperNumber("77.6", "0.57", 3), OUTSIDE),  # 2.4
        ([79.2], PaperNumber("77.6", "0.57", 3), WITHIN),  # 1.6 of 4 * 0.57
        ([80.0], PaperNumber("77.6", "0.57", 3), OUTSIDE),  # 2.4
        ([76.12, 76.12, 76.12], PaperNumber("76.0", "0.04", 3), WITHIN),  # 0.08, and 0.05 of rounding
        ([76.14, 76.14, 76.14], PaperNumber("76.0", "0.04", 3), OUTSIDE),
        ([0.0175, 0.0175], PaperNumber("0.017", "0.001", 3), WITHIN),
        ([69.7], PaperNumber("69.7", "", 1), NO_SPREAD),
        ([88.1], PaperNumber("88.0", "0.0", 3), NO_SPREAD),
    ],
)
def test_verdicts(ours: list[float], number: PaperNumber, said: str) -> None:
    summary = summarise(ours)
    assert verdict(summary, number, summary.mean - float(number.value)) == said


def test_no_spread_is_said_where_the_paper_prints_none(folder) -> None:
    for method in ("conv_lora", "decoder_only"):
        folder.add(method=method, scores={"iou": 0.78})
    table = table6(folder)
    assert (jaccard(table, "Conv-LoRA").spread, jaccard(table, "decoder-only").spread) == (WITHIN, NO_SPREAD)
    note = "No spread printed in the paper (0 is none), so neither within nor outside: decoder-only."
    for text in (markdown(table), latex(table)):
        assert note in text and "one in nine of equal means" in text and "a single run of ours" in text
    assert " +8.3 |" in markdown(table) and "69.7 ($+8.3$)" in latex(table)
    lines = csv.DictReader(io.StringIO(long_csv(table)))
    said = {line["row"]: line["spread"] for line in lines if line["metric"] == "iou" and line["mean"]}
    assert said == {"Conv-LoRA": "within", "decoder-only": "no spread printed"}


def test_nothing_is_within_what_may_not_be_compared(folder) -> None:
    folder.add(scores={"iou": 0.776}, image_size=512)
    table = table6(folder)
    assert not any(entry.spread for entry in table.entries.values())
    assert "spread" not in markdown(table).replace("without a spread", "")


@pytest.mark.parametrize(
    ("copy", "said"),
    [
        ({"train_images_available": 1800}, "isic2017/train 1800 images (the paper: 2000)"),
        ({"images": 529}, "isic2017/test 529 images (the paper: 600)"),
    ],
)
def test_no_difference_for_a_copy_with_another_number_of_images(folder, copy, said: str) -> None:
    folder.add(scores={"iou": 0.776}, **copy)
    table = table6(folder)
    assert not table.has_difference and jaccard(table, "Conv-LoRA").spread == ""
    assert f"not printed for another number of images, {said}." in table.caption.text
    assert table.caption.warnings == (), "all that this copy has was used"


def test_the_numbers_of_images_are_those_the_datasets_declare() -> None:
    assert set(IMAGES) == set(read_paper()["our_dataset"]) - {"imagenet_1k"}
    for name, counts in IMAGES.items():
        declared = dict(datasets.registry[name].paper or datasets.registry[name].published)
        del declared["validation"]
        assert counts == declared


def domain(folder, scores: dict[str, float], metric: str = "iou") -> Table:
    """Table 6 with one run of each method."""
    for method, score in scores.items():
        folder.add(method=method, scores={metric: score})
    return table6(folder)


def test_the_papers_systems_are_underlined_where_above_all_that_was_fine_tuned(folder) -> None:
    """By hand from tables 1, 5 and 7; MAE is better when lower."""
    for dataset, test_sets in (("polyps", ("kvasir", "cvc_612")), ("camouflage", ("camo",)), ("isic2017", ("test",))):
        folder.add(dataset=dataset, test_sets=test_sets, scores={"s_measure": 0.9, "mae": 0.02, "iou": 0.7})
    found = {table.subject: table for table in make_tables(read_results(folder.path), wanted=["1", "5", "7"])}
    marked = {
        number: {entry.paper.value for (_, column), entry in table.entries.items() if entry.paper_above}
        for number, table in found.items()
    }
    assert marked == {"1": {"92.6", "95.5", "80.1", "87.5"}, "5": {"92.6", "95.5", "88.7", "1.0"}, "7": set()}
    assert {row for (row, _), entry in found["1"].entries.items() if entry.paper_above} == {"domain-specific"}
    assert "better than all fine-tuned ones" in found["1"].caption.text


def test_ours_likewise_and_without_a_place(folder) -> None:
    table = domain(folder, {"transfuse": 0.81, "lora": 0.75, "conv_lora": 0.80, "decoder_only": 0.70})
    found = {row: jaccard(table, row) for row in ("TransFuse", "LoRA", "Conv-LoRA")}
    assert [(entry.rank, entry.above) for entry in found.values()] == [(0, True), (2, False), (1, False)]
    assert "<u>81.0</u>" in markdown(table)


def test_a_tie_with_the_best_is_not_above_it(folder) -> None:
    table = domain(folder, {"transfuse": 0.8004, "lora": 0.75, "conv_lora": 0.80})
    assert not jaccard(table, "TransFuse").above, "both are printed as 80.0"


def test_alone_it_is_above_nothing(folder) -> None:
    assert not jaccard(domain(folder, {"transfuse": 0.9}), "TransFuse").above


def test_an_error_of_zero_is_no_spread_and_its_column_is_named(folder) -> None:
    folder.add(method="vpt", dataset="polyps", test_sets=("etis",), scores={"s_measure": 0.8, "e_measure_mean": 0.88})
    (table,) = make_tables(read_results(folder.path), wanted=["5"])
    note = next(note for note in table.caption.notes if note.startswith("No spread"))
    assert note.endswith("neither within nor outside: VPT (ETIS Eφ).")
