"""One of the loops that feed a device with cells."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bench.busy import Busy
from bench.devices import Device, Slot
from bench.plan import Planned
from bench.process import CellProcess
from bench.queueing import WorkQueue
from bench.signs import ENDING, WORKED, WORKING
from bench.tasks import Outcome, Task

if TYPE_CHECKING:
    from bench.scheduler import Scheduler

LISTEN_SECONDS = 0.2  # between looks at the clock and at a stop; words and ends of processes are heard at once


@dataclass
class Running:
    """A cell's process, at work or held; its work begins when it says so."""

    task: Task
    slot: Slot
    process: CellProcess
    started: float = field(default_factory=time.monotonic)
    working: float | None = None
    worked: float | None = None

    @property
    def planned(self) -> Planned:
        return self.task.planned


class Lane:
    """Feeds one lane of a device: takes a cell, attends to its process, and has the next one prepared meanwhile."""

    def __init__(
        self,
        scheduler: Scheduler,
        queue: WorkQueue,
        device: Device,
        slot: Slot,
        busy: Busy,
        tell: Callable[[Outcome], None],
    ) -> None:
        self._scheduler, self._queue, self._device, self._slot = scheduler, queue, device, slot
        self._busy, self._tell = busy, tell
        self._ahead: Running | None = None

    def __call__(self) -> None:
        """Run cells until the queue has no more for this lane."""
        try:
            while task := self._queue.take(self._device, promised=self._ahead and self._ahead.task):
                settled = self._queue.give_back(task, self._run(task))
                if settled:
                    self._tell(settled)
        except BaseException:
            self._scheduler.stop()  # what it held would be waited for in vain
            raise
        finally:
            self._discard_ahead()

    def _run(self, task: Task) -> Outcome:
        began = time.monotonic()
        try:
            running = self._begin(task)
        except OSError as error:
            self._scheduler.results.cell(task.id).set_state(
                "failed", reason=f"its process could not be started: {error}"
            )
            return Outcome(task.id, "failed", str(error), 0.0, self._slot.label)
        with self._scheduler.at_work(running):
            timed_out = self._attend(running)
        running.process.close()
        ended = time.monotonic()
        state, reason = self._scheduler.settle(running, timed_out=timed_out)
        if state != "elsewhere":
            self._busy.add(running.working or began, running.worked or ended)
        return Outcome(task.id, state, reason, ended - began, self._slot.label)

    def _begin(self, task: Task) -> Running:
        """Set the process free that was prepared for the cell, or start one."""
        ahead = self._ahead
        if ahead is None or ahead.task is not task or ahead.process.code is not None:
            self._discard_ahead()
            return self._scheduler.start(task, self._slot)
        self._ahead, ahead.started = None, time.monotonic()
        ahead.process.set_free()
        return ahead

    def _attend(self, running: Running) -> bool:
        """Listen to a process until it ends or is to end; returns whether it took too long."""
        process, limit = running.process, self._scheduler.timeout
        while (said := process.listen(LISTEN_SECONDS)) or process.code is None:
            for sign in said:
                self._hear(sign, running)
            if self._scheduler.stopped:
                self._discard_ahead()
                self._scheduler.end(running)
            elif limit is not None and time.monotonic() - running.started > limit:
                self._scheduler.end(running)
                return True
        return False

    def _hear(self, sign: str, running: Running) -> None:
        if sign == WORKING:
            running.working = running.started = time.monotonic()
        elif sign == WORKED:
            running.worked = time.monotonic()
        elif sign == ENDING and self._ahead is None:
            task = self._queue.promise(self._device, running.task)
            if task is None:
                return
            try:
                self._ahead = self._scheduler.start(task, self._slot, hold=True)
            except OSError:
                self._queue.put_back(task)  # its own turn will show what is wrong

    def _discard_ahead(self) -> None:
        """End a process that is held for nothing."""
        if self._ahead:
            self._ahead.process.discard()
            self._ahead = None
