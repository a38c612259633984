"""Timing something that is done again and again: warm-up, then stretches of equal length, each with a rate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

WARM_UP = 3  # calls at least: the first ones allocate memory, choose kernels and compile


@dataclass(frozen=True)
class Pace:
    """How long something is timed.

    Attributes:
        repeats: stretches, each of which gives a rate.
        seconds: of a stretch, about, and of the warm-up.
    """

    repeats: int = 5
    seconds: float = 1.0


def rates(
    call: Callable[[], object],
    pace: Pace,
    *,
    synchronise: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Calls per second in each stretch.

    All stretches have as many calls as the last call of the warm-up says, one at least. The device is waited for at the
    ends of a stretch only, so that the calls queue up behind each other as in a training.

    Args:
        call: what is timed.
        pace: how long.
        synchronise: waits for the device.
        clock: in seconds.
    """
    began, calls, last = clock(), 0, 0.0
    while calls < WARM_UP or clock() - began < pace.seconds:
        synchronise()
        start = clock()
        call()
        synchronise()
        last, calls = clock() - start, calls + 1
    count = max(1, math.ceil(pace.seconds / last)) if last > 0 else 1
    found = []
    for _ in range(pace.repeats):
        start = clock()
        for _ in range(count):
            call()
        synchronise()
        found.append(count / (clock() - start))
    return found
