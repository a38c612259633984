"""Means over seeds, their standard error, and which two of several means are the best.

The paper runs each method three times and reports "the average values and the standard error" (section 4).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Summary:
    """Several runs as one number; a single run has no ``standard_error``."""

    mean: float
    standard_error: float | None
    n: int


def summarise(values: Sequence[float]) -> Summary:
    """The mean and its standard error: the standard deviation with n-1, over the square root of n."""
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Summary(mean, None, 1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return Summary(mean, math.sqrt(variance / n), n)


def two_best(values: Mapping[Key, float], *, better: str) -> dict[Key, int]:
    """1 for the best of ``values`` and 2 for the second best; equal values share their place.

    Where all values are equal, or there is but one, nothing is better than anything and there are no places;
    neither are there without a direction.

    Args:
        better: "higher" or "lower".
    """
    places = sorted(set(values.values()), reverse=better == "higher")[:2]
    if len(places) < 2 or better not in ("higher", "lower"):
        return {}
    return {key: places.index(value) + 1 for key, value in values.items() if value in places}
