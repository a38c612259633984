"""The report's sentences: nothing is claimed that the comparison behind it does not say."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.comparison.layout import Comparison, Difference, Ranking
from analysis.reporting.verdict import LEVEL, by_mean, p_value, ranked, told_apart, verdict

ROWS = ("lora", "vpt", "ssf", "lst")


def difference(row: str, mean: float = -1.0, *, p_holm: float = 0.5, seeds: tuple[int, ...] = (0, 1, 2)) -> Difference:
    better = "" if p_holm >= LEVEL else "better" if mean > 0 else "worse"
    return Difference(row, row, seeds, (mean,) * len(seeds), mean, mean - 2, mean + 2, p_holm, p_holm, -0.1, better)


def comparison(*differences: Difference, **changes: object) -> Comparison:
    """conv_lora at 75 beside methods that differ from it as told."""
    values = {"conv_lora": {0: 74.0, 1: 75.0, 2: 76.0}}
    values |= {one.row: {seed: 75.0 + one.mean for seed in one.seeds} for one in differences}
    made = Comparison(
        name="one", setting="vit_h", protocol="paper", data="isic2017", test_set="test", metric="iou", label="IoU",
        direction="higher", reference="conv_lora", values=values, images=600, differences=differences, detectable=1.25,
        warnings=(), notes=(), cells=(),
    )  # fmt: skip
    return replace(made, **changes)


def ranking(*, friedman_p: float | None, critical: float | None = 1.0) -> Ranking:
    ranks = {"lora": (1.0, 1.0), "vpt": (2.0, 1.5), "ssf": (3.0, 3.0)}
    places = ("isic2017/test: IoU", "sbu/test: BER")
    return Ranking("r", "vit_h", "paper", places, ranks, {}, friedman_p, critical, (), (), ())


def test_what_is_told_apart_and_what_is_not() -> None:
    said = verdict(comparison(difference("lora"), difference("vpt", -3, p_holm=0.0004), difference("lst", p_holm=0.03)))
    assert said.startswith("The best mean IoU is that of conv_lora, 75.0 (3 seeds).")
    assert (
        "2 of 3 are worse than conv_lora by more than luck (p = 0.030 or less after Holm's correction): vpt, lst."
        in said
    )
    assert "Cannot be told apart from conv_lora: lora." in said
    assert "a true difference of 1.2 is found four times out of five" in said


def test_nothing_told_apart() -> None:
    assert "None of the 2 others can be told apart from conv_lora: lora, vpt." in verdict(
        comparison(difference("lora"), difference("vpt"))
    )
    assert "The other cannot be told apart from conv_lora: lora." in verdict(comparison(difference("lora")))


def test_an_interval_without_zero_is_explained_where_p_does_not_follow() -> None:
    assert "does not suffice" not in verdict(comparison(difference("lora", -1)))
    assert "does not suffice" in verdict(comparison(difference("lora", -3), difference("vpt")))
    assert "does not suffice" not in verdict(comparison(difference("lora", -3, p_holm=0.01)))


def test_a_single_seed_is_no_ranking_of_methods() -> None:
    said = verdict(comparison(difference("lora", p_holm=0.01, seeds=(0,)), detectable=None))
    assert "by more than the luck of these images" in said and "by more than luck" not in said
    assert "All of it rests on a single seed" in said
    mixed = verdict(comparison(difference("lora", seeds=(0,)), difference("vpt")))
    assert "What is said of lora rests on a single seed" in mixed


def test_a_reference_that_is_not_the_best_is_named() -> None:
    said = verdict(comparison(difference("lora", 2.0, p_holm=0.002)))
    assert said.startswith("The best mean IoU is that of lora, 77.0 (3 seeds). All are compared with conv_lora, 75.0")
    assert "1 of 1 is better than conv_lora" in said


def test_means_that_are_printed_alike_share_the_lead() -> None:
    assert "to one decimal also that of lora" in verdict(comparison(difference("lora", -0.01)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"values": {"conv_lora": {0: 75.0}}}, "only method"),
        ({"values": {"conv_lora": {0: 75.0}, "lora": {0: 74.0}}, "direction": ""}, "nothing is ranked"),
        ({"values": {"conv_lora": {0: 75.0}, "lora": {0: 74.0}}}, "is not known"),
    ],
)
def test_what_cannot_be_compared_is_not_ranked(changes: dict, words: str) -> None:
    said = verdict(comparison(**changes))
    assert words in said and "better than" not in said and "worse than" not in said


def test_rows_without_a_difference_are_named() -> None:
    made = comparison(difference("lora"))
    made = replace(made, values=made.values | {"scratch": {5: 70.0}})
    assert "Not compared, for the reasons below: scratch." in verdict(made)


def test_lower_is_better_and_no_number_is_last() -> None:
    values = {"a": {0: 3.0}, "b": {0: 1.0}, "c": {0: math.nan}, "d": {}, "e": {0: 2.0}}
    assert by_mean(comparison(values=values, direction="lower")) == ["b", "e", "a", "c", "d"]
    assert by_mean(comparison(values=values))[:3] == ["a", "e", "b"]


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(1e-6, 1)), min_size=1, max_size=4))
def test_a_method_is_called_worse_or_better_by_its_corrected_p_alone(told: list[tuple[float, float]]) -> None:
    made = [difference(row, mean or 1.0, p_holm=p) for row, (mean, p) in zip(ROWS, told, strict=False)]
    said = verdict(comparison(*made))
    claimed = {
        row: word
        for word, rows in re.findall(r"(?:is|are) (better|worse) than conv_lora by [^:]*: ([^.]*)\.", said)
        for row in rows.split(", ")
    }
    assert claimed == {one.row: one.better for one in made if one.better}
    for one in made:
        assert told_apart(one) == (one.better or "cannot be told apart")


@pytest.mark.parametrize(("p", "text"), [(1e-9, "< 0.001"), (0.0009, "< 0.001"), (0.001, "0.001"), (1.0, "1.000")])
def test_p_is_never_printed_as_zero(p: float, text: str) -> None:
    assert p_value(p) == text


def test_ranks() -> None:
    said = ranked(ranking(friedman_p=0.01))
    assert "over 2 test sets, 1 being the best: lora 1.00, vpt 1.75, ssf 3.00." in said
    assert "p = 0.010" in said and "vpt cannot be told apart from lora" in said
    assert "lora is told apart from all" in ranked(ranking(friedman_p=0.01, critical=0.75)), "as much is apart"
    assert "no two of them are told apart" in ranked(ranking(friedman_p=0.4))
    assert "No test" in ranked(ranking(friedman_p=None, critical=None))
