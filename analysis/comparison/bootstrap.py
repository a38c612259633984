"""How far a difference of two methods may be from the true one: over new trainings and new images at once.

Images are resampled, the same ones for all methods and seeds. Seeds are too few to be resampled: three of them give ten
different means, and intervals that miss the truth in one case of four. Their part of each round is drawn from Student's
t distribution instead. ``docs/statistics.md`` has the formulas and what was measured of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from analysis.comparison.statistic import Statistic

Key = TypeVar("Key")
_CHUNK = 4_000_000
"""Weights that are held at once: 32 MB."""


@dataclass(frozen=True)
class Estimate:
    """A difference with its uncertainty; all in the unit of the scores.

    Attributes:
        mean: of the differences ``per_seed``.
        low, high: 95 % interval.
        p: two-sided, of the hypothesis that there is no difference.
        seed_variance, image_variance: the parts of the variance of ``mean`` that the choice of seeds and that of images
            cause; the first is None for a single seed.
    """

    per_seed: tuple[float, ...]
    mean: float
    low: float
    high: float
    p: float
    seed_variance: float | None
    image_variance: float


def resample(runs: Mapping[Key, Statistic], *, rounds: int, seed: int, name: str) -> dict[Key, np.ndarray]:
    """(rounds,) of each run: its score on resampled images, in each round the same ones for all runs.

    Args:
        runs: over the same images, in the same order.
        seed, name: what the draws depend on, beside ``rounds`` and the number of images; not the runs.
    """
    count = len(next(iter(runs.values())).terms)
    generator = _generator(seed, name, "images")
    step = max(1, _CHUNK // count)
    parts: dict[Key, list[np.ndarray]] = {key: [] for key in runs}
    for start in range(0, rounds, step):
        size = min(step, rounds - start)
        drawn = generator.integers(0, count, (size, count)) + np.arange(size)[:, None] * count
        weights = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count).astype(np.float64)
        for key, run in runs.items():
            parts[key].append(run.resampled(weights))
    return {key: np.concatenate(of) for key, of in parts.items()}


def estimate(differences: Sequence[float], resampled: np.ndarray, *, seed: int, name: str) -> Estimate:
    """What the differences between two methods say.

    Args:
        differences: (seeds,), of the whole test set.
        resampled: (seeds, rounds), of the resampled images; rounds where one is NaN count nowhere.
        seed, name: as in :func:`resample`.
    """
    full = np.asarray(differences, np.float64)
    resampled = resampled[:, np.isfinite(resampled).all(0)]
    count, rounds = resampled.shape
    mean = full.mean()
    of_images = resampled.mean(0)
    if count == 1:
        seed_variance, image_variance = None, of_images.var()
        values = of_images
    else:
        # Between two seeds only the images are common, so the covariance holds no chance of a single training.
        covariance = np.cov(resampled, ddof=0)
        shared = (covariance.sum() - covariance.trace()) / (count * (count - 1))
        seed_variance, image_variance = full.var(ddof=1) / count, max(0.0, shared)
        of_both = covariance.mean()
        shrink = np.sqrt(image_variance / of_both) if of_both > 0 else 0.0
        of_seeds = _generator(seed, name, f"{count} seeds").standard_t(count - 1, rounds)
        values = mean + shrink * (of_images - mean) + np.sqrt(seed_variance) * of_seeds
    low, high = np.quantile(values, (0.025, 0.975))
    beyond = min(np.count_nonzero(values <= 0), np.count_nonzero(values >= 0))
    p = min(1.0, 2 * (beyond + 1) / (rounds + 1))
    variance = None if seed_variance is None else float(seed_variance)
    return Estimate(tuple(full.tolist()), float(mean), float(low), float(high), p, variance, float(image_variance))


def _generator(seed: int, *names: str) -> np.random.Generator:
    digest = hashlib.sha256("\0".join(names).encode()).digest()
    return np.random.default_rng(np.random.SeedSequence([seed, int.from_bytes(digest[:8], "big")]))
