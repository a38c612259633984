"""How often the test errs where the truth is planted: the numbers of docs/statistics.md.

Few repetitions by default; ``BENCH_SIMULATIONS=4000 python -m pytest -s`` on this file prints the document's tables.
"""

from __future__ import annotations

import os
from functools import cache

import numpy as np
import pytest

from analysis.comparison.bootstrap import estimate
from analysis.comparison.inference import ALPHA, POWER, detectable

REPETITIONS = int(os.environ.get("BENCH_SIMULATIONS", "400"))
ROUNDS = 1000
# Standard deviations of the mean difference that seeds (of one of them) and images cause, and of a single image's noise
# in a single training. Skewed: images, and of the last one seeds too, are exponential.
PLANTED = {
    "seeds only": (1.0, 0.0, 0.0, ""),
    "seeds and images alike": (1.0, 0.6, 1.0, ""),
    "images mostly": (0.3, 1.0, 1.0, ""),
    "images mostly, skewed": (0.3, 1.0, 1.0, "images"),
    "noise of single images only": (0.0, 0.0, 5.0, ""),
    "seeds only, skewed": (1.0, 0.0, 0.0, "seeds"),
}


def simulated(name: str, seeds: int, images: int, shift: float, generator: np.random.Generator) -> np.ndarray:
    """Differences (seeds, images) of two methods whose true difference is ``shift``."""
    of_seed, of_image, noise, skewed = PLANTED[name]

    def draw(kind: str, size: int | tuple[int, int]) -> np.ndarray:
        return generator.exponential(size=size) - 1 if kind == skewed else generator.normal(size=size)

    by_image = of_image * np.sqrt(images) * draw("images", images)
    return shift + of_seed * draw("seeds", (seeds, 1)) + by_image + noise * draw("", (seeds, images))


@cache
def rates(name: str, seeds: int, images: int, *, shift: float = 0.0) -> tuple[float, float]:
    """How often "no difference" is rejected by our test, and by resampling seeds as if they were many."""
    generator = np.random.default_rng([seeds, images, sorted(PLANTED).index(name), round(1000 * shift)])
    weights = generator.multinomial(images, np.full(images, 1 / images), size=ROUNDS) / images
    ours = plain = 0
    for repetition in range(REPETITIONS):
        values = simulated(name, seeds, images, shift, generator)
        drawn = values @ weights.T
        ours += estimate(values.mean(1), drawn, seed=repetition, name=name).p < ALPHA
        of_seeds = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=ROUNDS) / seeds
        crossed = (of_seeds * drawn.T).sum(1)
        beyond = min(np.count_nonzero(crossed <= 0), np.count_nonzero(crossed >= 0))
        plain += 2 * (beyond + 1) / (ROUNDS + 1) < ALPHA
    return ours / REPETITIONS, plain / REPETITIONS


def upper(rate: float) -> float:
    """Above what ``REPETITIONS`` trials with this rate come three times in a thousand."""
    return rate + 2.75 * np.sqrt(rate * (1 - rate) / REPETITIONS)


@pytest.mark.parametrize("name", list(PLANTED))
def test_three_seeds_find_nothing_that_is_not_there(name: str) -> None:
    skewed_seeds = "seeds only, skewed"  # three skewed values tell no test that they are
    assert rates(name, 3, 100)[0] < upper(0.12 if name == skewed_seeds else 0.055)


def test_three_seeds_resampled_find_much_that_is_not_there() -> None:
    assert rates("seeds only", 3, 100)[1] > 0.18


@pytest.mark.parametrize(("name", "seeds"), [("seeds only", 3), ("seeds and images alike", 3), ("images mostly", 5)])
def test_a_detectable_difference_is_detected(name: str, seeds: int) -> None:
    found = rates(name, seeds, 100, shift=planted_detectable(name, seeds, 100))[0]
    assert POWER - 0.12 < found < POWER + 0.12


def planted_detectable(name: str, seeds: int, images: int) -> float:
    of_seed, of_image, noise, _ = PLANTED[name]
    return detectable((of_seed**2 + noise**2 / images) / seeds, of_image**2, seeds)


@pytest.mark.skipif("BENCH_SIMULATIONS" not in os.environ, reason="prints tables; set BENCH_SIMULATIONS=4000")
def test_tables_of_the_document() -> None:
    sizes = [(2, 100), (3, 20), (3, 100), (5, 100), (10, 100)]
    print("\nfalse positives, ours / seeds resampled:", *(f"{seeds} x {images}" for seeds, images in sizes), sep=" | ")
    for name in PLANTED:
        print(name, *("{:.3f} / {:.3f}".format(*rates(name, *size)) for size in sizes), sep=" | ")
    print("power at the detectable difference")
    for name in PLANTED:
        found = [rates(name, *size, shift=planted_detectable(name, *size))[0] for size in sizes]
        print(name, *(f"{power:.2f}" for power in found), sep=" | ")
    assert rates("seeds only", 2, 100)[0] < upper(0.055)
