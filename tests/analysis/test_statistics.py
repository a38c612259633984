"""Means, standard errors and places."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from analysis.statistics import summarise, two_best


@given(st.lists(st.floats(0, 100), min_size=2, max_size=30))
def test_summary_agrees_with_numpy_and_scipy(values: list[float]) -> None:
    summary = summarise(values)
    assert summary.n == len(values)
    assert summary.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert summary.standard_error == pytest.approx(scipy.stats.sem(values), abs=1e-9)


def test_one_run_has_no_standard_error() -> None:
    assert summarise([77.5]).standard_error is None


def test_order_of_runs_does_not_matter() -> None:
    values = [0.1, 0.7, 0.3, 1e-9]
    assert summarise(values) == summarise(values[::-1])


@pytest.mark.parametrize(
    ("values", "better", "places"),
    [
        ({"a": 1.0, "b": 3.0, "c": 2.0}, "higher", {"b": 1, "c": 2}),
        ({"a": 1.0, "b": 3.0, "c": 2.0}, "lower", {"a": 1, "c": 2}),
        ({"a": 3.0, "b": 3.0, "c": 2.0, "d": 2.0, "e": 1.0}, "higher", {"a": 1, "b": 1, "c": 2, "d": 2}),
        ({"a": 1.0}, "higher", {}),
        ({"a": 1.0, "b": 1.0}, "higher", {}),
        ({"a": 1.0, "b": 2.0}, "", {}),
        ({}, "higher", {}),
    ],
)
def test_two_best(values: dict[str, float], better: str, places: dict[str, int]) -> None:
    assert two_best(values, better=better) == places
