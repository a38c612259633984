"""The bootstrap where its answer is known: from scipy, from Student, from planted variances."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from analysis.comparison import bootstrap
from analysis.comparison.bootstrap import Estimate, estimate, resample
from analysis.comparison.statistic import Statistic, statistic


def mean_of(values: np.ndarray) -> Statistic:
    import pandas as pd

    return statistic("iou", pd.DataFrame({"iou": values}), protocol="paper", classes=())


def compared(ours: np.ndarray, others: np.ndarray, *, rounds: int = 4000, seed: int = 0) -> Estimate:
    """The estimate for values (seeds, images) of two methods."""
    runs = {("ours", s): mean_of(row) for s, row in enumerate(ours)}
    runs |= {("others", s): mean_of(row) for s, row in enumerate(others)}
    drawn = resample(runs, rounds=rounds, seed=seed, name="planted")
    full = [runs["ours", s].score() - runs["others", s].score() for s in range(len(ours))]
    both = np.stack([drawn["ours", s] - drawn["others", s] for s in range(len(ours))])
    return estimate(full, both, seed=seed, name="planted")


def test_a_single_seed_gives_the_percentile_interval_of_scipy() -> None:
    generator = np.random.default_rng(5)
    ours, others = generator.exponential(size=(1, 80)), generator.exponential(size=(1, 80))
    found = compared(ours, others, rounds=40_000)
    difference = (ours - others)[0]
    theirs = stats.bootstrap((difference,), np.mean, n_resamples=40_000, method="percentile", rng=1)
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.02 * width)
    assert found.image_variance == pytest.approx(theirs.standard_error**2, rel=0.05)
    assert found.seed_variance is None and found.mean == pytest.approx(difference.mean())


@pytest.mark.parametrize("seeds", [2, 3, 6])
def test_images_that_all_agree_leave_students_t(seeds: int) -> None:
    effects = np.random.default_rng(seeds).normal(0.4, 0.3, size=(seeds, 1))
    found = compared(np.repeat(effects, 30, axis=1), np.zeros((seeds, 30)), rounds=100_000)
    student = stats.ttest_1samp(effects[:, 0], 0)
    low, high = student.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.04 * (high - low))
    assert found.p == pytest.approx(student.pvalue, abs=0.01)
    assert found.image_variance == pytest.approx(0, abs=1e-20)


def test_seeds_that_all_agree_leave_the_bootstrap_over_images() -> None:
    image = np.random.default_rng(3).normal(0.2, 1, size=(1, 60))
    one, three = (compared(np.repeat(image, seeds, axis=0), np.zeros((seeds, 60))) for seeds in (1, 3))
    assert (three.low, three.high, three.p) == pytest.approx((one.low, one.high, one.p))
    assert three.seed_variance == pytest.approx(0, abs=1e-20)


def test_both_parts_of_the_variance_are_found() -> None:
    """Of the model seed + image + both, the parts are those of the formulas in docs/statistics.md."""
    generator, parts = np.random.default_rng(8), []
    seeds, images, of_seed, of_image, of_both = 4, 50, 0.3, 1.5, 2.0
    for repetition in range(300):
        values = of_seed * generator.normal(size=(seeds, 1)) + of_image * generator.normal(size=images)
        values = values + of_both * generator.normal(size=(seeds, images))
        found = compared(values, np.zeros_like(values), rounds=200, seed=repetition)
        parts.append((found.seed_variance, found.image_variance))
    mean = np.mean(parts, axis=0)
    assert mean[0] == pytest.approx(of_seed**2 / seeds + of_both**2 / (seeds * images), rel=0.15)
    assert mean[1] == pytest.approx(of_image**2 / images, rel=0.15)


def test_equal_methods_and_a_planted_effect() -> None:
    values = np.random.default_rng(1).normal(size=(3, 40))
    same = compared(values, values)
    assert (same.mean, same.low, same.high, same.p) == (0, 0, 0, 1)
    shifted = compared(values + 1, values)
    assert shifted.low > 0.99 and shifted.p == pytest.approx(2 / 4001)


def test_the_sign_turns_with_the_order_of_the_methods() -> None:
    ours, others = np.random.default_rng(2).normal(size=(2, 3, 30))
    there, back = compared(ours, others, rounds=40_000), compared(others, ours, rounds=40_000)
    assert there.mean == pytest.approx(-back.mean)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), rel=0.05, abs=0.02)


def test_what_is_drawn_depends_on_seed_and_name_only(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    one, two, three = (mean_of(generator.normal(size=25)) for _ in range(3))
    first = resample({"one": one, "two": two}, rounds=500, seed=3, name="a")
    again = resample({"three": three, "two": two, "one": one}, rounds=500, seed=3, name="a")
    assert all(np.array_equal(first[key], again[key]) for key in first)
    monkeypatch.setattr(bootstrap, "_CHUNK", 25 * 7)
    pieces = resample({"one": one, "two": two}, rounds=500, seed=3, name="a")
    assert all(np.allclose(first[key], pieces[key], rtol=1e-12, atol=1e-15) for key in first)
    for other in ({"seed": 4, "name": "a"}, {"seed": 3, "name": "b"}):
        assert not np.allclose(first["one"], resample({"one": one}, rounds=500, **other)["one"])


def test_rounds_without_a_value_count_nowhere() -> None:
    drawn = np.random.default_rng(0).normal(1, 0.1, size=(1, 1000))
    holed = np.concatenate([drawn, np.full((1, 200), np.nan)], axis=1)
    assert estimate([1.0], holed, seed=0, name="a") == estimate([1.0], drawn, seed=0, name="a")
