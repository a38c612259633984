"""Dispatch on this machine: joblib hands cells to slots, each cell is a fresh process.

joblib's threads only wait for their child, so a crash, an out-of-memory kill or a segmentation fault costs
one cell; there is nothing to pickle, and the slot comes back whatever happened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import TypeVar

from joblib import Parallel, delayed

from bench.devices import Slot

Task = TypeVar("Task")
Outcome = TypeVar("Outcome")


def dispatch(
    tasks: Sequence[Task], slots: Sequence[Slot], run_one: Callable[[Task, Slot], Outcome]
) -> Iterator[Outcome]:
    """Run every task on some slot and yield outcomes as they come.

    Args:
        tasks: in the order they should start.
        slots: each holds one task at a time.
        run_one: runs a task to its end and reports failures in its outcome, never by an exception.
    """
    free: SimpleQueue[Slot] = SimpleQueue()
    for slot in slots:
        free.put(slot)

    def on_a_slot(task: Task) -> Outcome:
        slot = free.get()
        try:
            return run_one(task, slot)
        finally:
            free.put(slot)

    pool = Parallel(
        n_jobs=len(slots), backend="threading", return_as="generator_unordered", pre_dispatch=len(slots), batch_size=1
    )
    yield from pool(delayed(on_a_slot)(task) for task in tasks)
