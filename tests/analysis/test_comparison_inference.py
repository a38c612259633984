"""Holm's correction and the detectable difference against statsmodels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from analysis.comparison.inference import detectable, holm


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_that_of_statsmodels(p: list[float]) -> None:
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1].tolist(), abs=1e-12)


def test_holm_of_ties_and_of_nothing() -> None:
    assert holm([]) == []
    assert holm([0.01, 0.01, 0.01]) == pytest.approx([0.03] * 3)
    assert holm([0.9, 0.01, 0.8]) == pytest.approx([1.0, 0.03, 1.0])


@pytest.mark.parametrize("seeds", [3, 5, 20])
def test_detectable_difference_of_seeds_alone_is_that_of_a_t_test(seeds: int) -> None:
    spread = 1.7
    shift = TTestPower().solve_power(nobs=seeds, alpha=0.05, power=0.8)
    assert detectable(spread**2 / seeds, 0.0, seeds) == pytest.approx(shift * spread, rel=1e-4)


def test_detectable_difference_of_images_alone_does_not_depend_on_the_seeds() -> None:
    found = [detectable(0.0, 4.0, seeds) for seeds in (2, 3, 30)]
    assert found == pytest.approx([2 * (1.959964 + 0.841621)] * 3, rel=1e-6)


def test_more_of_either_variance_takes_a_larger_difference() -> None:
    grid = np.array([[detectable(a, b, 3) for b in (0.0, 1.0, 2.0)] for a in (0.1, 1.0, 2.0)])
    assert (np.diff(grid, axis=0) > 0).all() and (np.diff(grid, axis=1) > 0).all()
