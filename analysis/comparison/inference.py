"""What is concluded from several comparisons: Holm's correction, and how small a difference could have been found."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ALPHA = 0.05
POWER = 0.8


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p values (Holm 1979).

    Rejecting where they are below ``ALPHA`` keeps the probability of any false rejection among all below ``ALPHA``.
    """
    order = np.argsort(p, kind="stable")
    steps = np.asarray(p, np.float64)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted.tolist()


def detectable(seed_variance: float, image_variance: float, seeds: int) -> float:
    """The true difference that a single test at ``ALPHA`` finds with the probability ``POWER``.

    Args:
        seed_variance, image_variance: the two parts of the variance of a difference's mean.
        seeds: at least two.
    """
    from scipy.stats import norm

    of_images = norm.ppf(1 - ALPHA / 2) + norm.ppf(POWER)
    return float(np.hypot(_shift(seeds - 1) * np.sqrt(seed_variance), of_images * np.sqrt(image_variance)))


def _shift(degrees: int) -> float:
    """The shift, in standard errors, with which a t test has the power ``POWER``."""
    from scipy.optimize import brentq
    from scipy.stats import nct, t

    critical = t.ppf(1 - ALPHA / 2, degrees)
    return brentq(lambda shift: nct.sf(critical, degrees, shift) - POWER, 0.1, 3 * critical)
