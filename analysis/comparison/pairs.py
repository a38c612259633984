"""Each row of a place beside a reference, on the seeds and images that both have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.comparison.bootstrap import Estimate, estimate, resample
from analysis.comparison.inference import detectable
from analysis.comparison.reading import PerImage


@dataclass(frozen=True)
class Pair:
    """A row minus the reference; ``effect`` is as in :class:`analysis.comparison.layout.Difference`."""

    row: str
    seeds: tuple[int, ...]
    estimate: Estimate
    effect: float | None


def pair_with(
    data: PerImage, reference: str, rows: Sequence[str], *, scale: float, rounds: int, seed: int, name: str
) -> list[Pair]:
    """A pair for each of ``rows`` that has a seed of the reference's.

    Args:
        scale: what scores are multiplied by.
        rounds, seed, name: of the bootstrap, as in :func:`analysis.comparison.bootstrap.resample`.
    """
    common = {row: sorted(set(data.seeds(row)) & set(data.seeds(reference))) for row in rows if row != reference}
    common = {row: seeds for row, seeds in common.items() if seeds}
    if not common:
        return []
    runs = {(row, one): run for row in [*common, reference] for one, run in data.runs[row].items()}
    resampled = resample(runs, rounds=rounds, seed=seed, name=name)
    pairs = []
    for row, seeds in common.items():
        full = [scale * (runs[row, one].score() - runs[reference, one].score()) for one in seeds]
        drawn = np.stack([scale * (resampled[row, one] - resampled[reference, one]) for one in seeds])
        found = estimate(full, drawn, seed=seed, name=name)
        pairs.append(Pair(row, tuple(seeds), found, _effect(data, row, reference, seeds)))
    return pairs


def detectable_difference(pairs: Sequence[Pair]) -> float | None:
    """The smallest true difference that is found with the usual power, by the mean variances of the pairs.

    Pairs with fewer seeds than others do not count. None with a single seed.
    """
    seeds = max((len(pair.seeds) for pair in pairs), default=1)
    if seeds == 1:
        return None
    full = [pair.estimate for pair in pairs if len(pair.seeds) == seeds]
    of_seeds, of_images = (
        float(np.mean([getattr(found, part) for found in full])) for part in ("seed_variance", "image_variance")
    )
    return detectable(of_seeds, of_images, seeds)


def _effect(data: PerImage, row: str, reference: str, seeds: Sequence[int]) -> float | None:
    """The mean difference over its standard deviation between images, each image averaged over seeds."""
    if not data.runs[row][seeds[0]].is_mean:
        return None
    ours, others = (np.mean([data.runs[of][one].per_image() for one in seeds], axis=0) for of in (row, reference))
    differences = (ours - others)[np.isfinite(ours - others)]
    spread = differences.std(ddof=1) if len(differences) > 1 else 0.0
    # Rounding alone makes equal differences differ.
    return float(differences.mean() / spread) if spread > 1e-12 else None
