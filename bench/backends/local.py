"""Lanes on this machine: joblib gives each a thread, which starts its cells as fresh processes.

The threads only wait for their child, so a crash, an out-of-memory kill or a segmentation fault costs one cell; there
is nothing to pickle, and the lane goes on whatever happened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import TypeVar

from joblib import Parallel, delayed

Outcome = TypeVar("Outcome")


def dispatch(lanes: Sequence[Callable[[], None]], told: SimpleQueue[Outcome]) -> Iterator[Outcome]:
    """Run lanes side by side and yield what they tell, until all have ended.

    Args:
        lanes: each is called once.
        told: where they put their outcomes.

    Whoever closes this early has to stop the lanes first: it waits until they have ended.

    Raises:
        BaseException: what a lane raised, when all have ended.
    """
    left = object()

    def run(lane: Callable[[], None]) -> None:
        try:
            lane()
        finally:
            told.put(left)

    # With a single job joblib would run it in this thread, which has outcomes to yield meanwhile.
    pool = Parallel(n_jobs=len(lanes) + 1, backend="threading", return_as="generator_unordered", batch_size=1)
    ended = pool(delayed(run)(lane) for lane in lanes)
    at_work = len(lanes)
    try:
        while at_work:
            outcome = told.get()
            if outcome is left:
                at_work -= 1
            else:
                yield outcome
    finally:
        list(ended)
