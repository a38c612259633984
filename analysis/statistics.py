"""Means over seeds, their standard error, and which two of several means are the best.

The paper runs each method three times and reports "the average values and the standard error" (section 4).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
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


def above_all(values: Mapping[Key, float], apart: Collection[Key], *, better: str) -> set[Key]:
    """Those of ``apart`` whose value is better than every value of the others; none where there is no other.

    Args:
        better: "higher" or "lower".
    """
    others = [value for key, value in values.items() if key not in apart]
    if not others or better not in ("higher", "lower"):
        return set()
    sign = 1 if better == "higher" else -1
    best = max(sign * value for value in others)
    return {key for key, value in values.items() if key in apart and sign * value > best}


def is_within(difference: float, *, error: float, runs: int, own_error: float | None, rounding: float) -> bool:
    """Whether a mean of ours lies within the spread of a printed one: at most two standard errors of their difference.

    With three runs each, of which all scatter alike, one equal pair in nine lies outside: the difference over its error
    follows Student's t with four degrees of freedom.

    Args:
        difference: ours minus the printed mean.
        error: the printed standard error, of the mean of ``runs`` runs.
        own_error: ours; None for a single run, which is taken to scatter like a single one of theirs.
        rounding: how much the printed mean may have been rounded by, which is allowed for.
    """
    own = error * math.sqrt(runs) if own_error is None else own_error
    return abs(difference) <= 2 * math.hypot(error, own) + rounding + 1e-9
