"""Which cell starts next on which device: the only place where that is decided.

No process is started here and no file read: what the disk and the cards say is asked of an :class:`Outside`.
"""

from __future__ import annotations

import threading
import time
from bisect import insort
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bench.durations import duration
from bench.occupancy import Occupancy
from bench.plan import TERMINAL, Planned
from bench.store import now
from bench.tasks import Outcome, Outside, Task, dealt, may_retry, order, smaller_batch

if TYPE_CHECKING:
    from bench.devices import Device
    from bench.estimates import Estimates

WATCH_SECONDS = 5.0  # between two looks at cells that others run, and at a card that others fill
PATIENCE = 8  # times that smaller cells overtake one that lacks memory, before a card is kept for it
DEPTH = 256  # cells that may not start yet and are passed over in search of one that may


class WorkQueue:
    """The cells of a run, handed out one by one; safe for the threads of its lanes.

    A lane calls :meth:`take`, runs the cell, calls :meth:`give_back`, and so on until it gets None.

    Args:
        cells: to be executed, in any order.
        estimates: what cells need; None where nothing is to be known.
        outside: the disk and the cards.
        devices: those among which cells are spread, the emptiest first.
        watched: cells that other processes run; what they leave unfinished is executed here.
        budget: seconds from now after which nothing runs; a cell that would not end in time is not started.
        micro_batch: of the run's options, from which it is halved; 0 for the whole batch.
        share: which of how many runs that share the cells.
        clock: seconds.
    """

    def __init__(
        self,
        cells: Sequence[Planned],
        estimates: Estimates | None = None,
        outside: Outside | None = None,
        *,
        devices: Sequence[Device] = (),
        watched: Sequence[Planned] = (),
        budget: float | None = None,
        micro_batch: int = 0,
        share: tuple[int, int] = (0, 1),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._estimates, self._outside, self._clock = estimates, outside or Outside(), clock
        self._budget, self._began, self._since = budget, clock(), now()
        self._micro_batch = micro_batch
        self._changed = threading.Condition()
        tasks = [Task(planned, rank) for rank, planned in enumerate(dealt(order([*cells, *watched], estimates), share))]
        others = {planned.id for planned in watched}
        self._waiting = [task for task in tasks if task.id not in others]
        self._watched = [task for task in tasks if task.id in others]
        self._reserved: list[Task] = []  # each for its own device
        self._promised: list[Task] = []
        self._running = Occupancy(devices, self._outside.free_memory)
        self._unsettled: dict[str, tuple[str, int | None]] = {}  # died of memory: model of the card, what it needed
        self._late: list[Outcome] = []
        self._looked_at, self._knowledge = -float("inf"), 0
        self._closed, self._said = False, set()

    def take(self, device: Device, *, promised: Task | None = None) -> Task | None:
        """The next cell for a lane of ``device``; blocks while none may start there now and one may later.

        Args:
            device: the lane's.
            promised: what :meth:`promise` gave this lane. It comes back if it may start still; if something else
                does, it is anyone's again.

        Returns:
            The cell to run, to be given back; None if this lane may end.
        """
        with self._changed:
            if promised is not None:
                self.put_back(promised)
            while not self._closed:
                self._look_at_watched()
                task = self._choose(device, promised)
                if task is not None:
                    self._running.begin(task, device)
                    return task
                own = any(task.device == device.label for task in self._reserved)
                if not (self._waiting or self._promised or self._watched or own):
                    break
                self._say_what_is_awaited(device)
                if not self._closed:
                    # Cards and other processes do not tell when something has changed.
                    self._changed.wait(WATCH_SECONDS if self._watched or device.memory is not None else None)
            self._running.leave(device)
            self._changed.notify_all()
            return None

    def promise(self, device: Device, ending: Task) -> Task | None:
        """The cell that this lane would take if ``ending`` had ended, kept for it so that it can be prepared."""
        with self._changed:
            if self._closed:
                return None
            with self._running.without(ending):
                task = self._choose(device, ahead=True)
            if task is not None:
                self._promised.append(task)
            return task

    def put_back(self, promised: Task) -> None:
        """Free a promised cell for others."""
        with self._changed:
            self._promised.remove(promised)
            self._put(promised)
            self._changed.notify_all()

    def give_back(self, task: Task, outcome: Outcome) -> Outcome | None:
        """Say how a taken cell ended; None if that is not the last word: it is run once more, or watched elsewhere."""
        with self._changed:
            device = self._running.end(task)
            self._changed.notify_all()
            if outcome.state == "elsewhere":
                self._watched.append(task)
                return None
            if outcome.state == "oom" and (reason := self._once_more(task, device)):
                self._outside.once_more(task, reason)
                self._reserved.append(task)
                return None
            self._unsettled.pop(task.id, None)
            self._learn(outcome)
            return outcome

    def at_work(self) -> int:
        """How many cells have been taken and not given back."""
        return len(self._running)

    def close(self) -> None:
        """Hand out nothing more; may be called from a signal handler."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def rest(self) -> list[Outcome]:
        """When all lanes have ended: the cells that nobody brought to an end, and why."""
        waiting = [*self._waiting, *self._promised, *self._reserved]
        return [
            *self._late,
            *(Outcome(task.id, "not started", "the run was stopped", 0.0, "") for task in waiting),
            *(Outcome(task.id, "elsewhere", "another process runs it", 0.0, "") for task in self._watched),
        ]

    def _choose(self, device: Device, preferred: Task | None = None, *, ahead: bool = False) -> Task | None:
        """Take the first cell out of the queue that may start on the device; ``ahead``: as far as is known now."""
        for task in [task for task in self._reserved if self._too_late(task)]:
            self._drop(task)
        kept = {task.device for task in self._reserved}
        own = [task for task in self._reserved if task.device == device.label][:1]
        first = [preferred] if preferred in self._waiting else []
        passed, crowded = 0, None
        for task in own or first + [task for task in self._waiting if task is not preferred]:
            if passed == DEPTH:
                break
            self._ask(task)
            if self._too_late(task):
                self._drop(task)
            elif self._held_back(task, device):
                passed += 1
            elif not self._running.has_room(task, device, ahead=ahead):
                passed, crowded = passed + 1, crowded or task
            elif not own and not ahead and self._running.emptier(task, device, kept):
                self._changed.notify_all()
                return None
            else:
                self._remove(task)
                if not self._is_elsewhere(task):
                    self._overtake(crowded, device)
                    return task
        return None

    def _ask(self, task: Task) -> None:
        """Ask what the cell needs, unless nothing was learned since that could change it."""
        if self._estimates and task.asked != self._knowledge:
            planned, micro_batch = task.planned, task.micro_batch or self._micro_batch
            images = (planned.evidence or {}).get("images")
            demand = self._estimates.of(planned.entered.cell, micro_batch=micro_batch, images=images)
            task.memory, task.seconds, task.asked = demand.memory, demand.seconds, self._knowledge

    def _time_left(self) -> float:
        return self._budget - (self._clock() - self._began)

    def _too_late(self, task: Task) -> bool:
        """Whether the cell would not end within the budget."""
        return self._budget is not None and (self._time_left() <= 0 or self._time_left() < (task.seconds or 0))

    def _drop(self, task: Task) -> None:
        """Leave a cell to another run."""
        needs = f"it takes about {duration(task.seconds)}" if task.seconds else "how long it takes is unknown"
        left = f"{duration(max(0.0, self._time_left()))} of the budget of {duration(self._budget)} were left"
        self._late.append(Outcome(task.id, "not started", f"{needs}, {left}", 0.0, ""))
        self._remove(task)
        self._unsettled.pop(task.id, None)

    def _remove(self, task: Task) -> None:
        (self._waiting if task.device is None else self._reserved).remove(task)

    def _put(self, task: Task) -> None:
        insort(self._waiting if task.device is None else self._reserved, task, key=lambda one: one.rank)

    def _held_back(self, task: Task, device: Device) -> bool:
        """Whether a cell that needs no more has died of memory on such a card and is not settled yet."""
        dead = [memory for model, memory in self._unsettled.values() if model == device.model and memory is not None]
        return bool(dead) and task.id not in self._unsettled and task.memory is not None and task.memory >= min(dead)

    def _overtake(self, crowded: Task | None, device: Device) -> None:
        """Note that a cell without room was overtaken; after some times the card starts nothing else before it."""
        if crowded is not None and self._running.on(device):
            crowded.overtaken += 1
            if crowded.overtaken == PATIENCE:
                self._remove(crowded)
                crowded.device = device.label
                self._put(crowded)

    def _once_more(self, task: Task, device: Device) -> str | None:
        """What is tried with a cell that ran out of memory: alone, then with half the micro-batch; None: no more."""
        if not may_retry(task):
            return None
        what = f"out of memory; once more, alone on {device.label}"
        if task.alone:
            task.micro_batch = smaller_batch(task, self._micro_batch)
            what += f", micro-batch {task.micro_batch}"
            if not task.micro_batch:
                return None
        self._unsettled.setdefault(task.id, (device.model, task.memory))
        task.alone, task.device, task.rank = True, device.label, -1
        task.retries, task.asked = task.retries + 1, -1
        return what

    def _learn(self, outcome: Outcome) -> None:
        if self._estimates and outcome.state == "done":
            self._estimates.learn(outcome.id)
            self._knowledge += 1

    def _is_elsewhere(self, task: Task) -> bool:
        """Whether another process has the cell, or brought it to its end since the run was planned."""
        status = self._outside.status(task.id)
        if status["state"] == "running":
            self._watched.append(task)
            return True
        # A cell that is run again has an end already; only a newer one is another process's.
        again = task.planned.state in TERMINAL | {"stale"} and status.get("updated", "") <= self._since
        if status["state"] not in TERMINAL or again or task.retries:
            return False
        self._ended_elsewhere(task, status)
        return True

    def _look_at_watched(self) -> None:
        """See what has become of cells that others run: those left unfinished are to be run here."""
        if not self._watched or self._clock() < self._looked_at + WATCH_SECONDS:
            return
        self._looked_at = self._clock()
        for task in list(self._watched):
            status = self._outside.status(task.id)
            if status["state"] == "running":
                continue
            self._watched.remove(task)
            if status["state"] in TERMINAL:
                self._ended_elsewhere(task, status)
            else:
                self._put(task)

    def _ended_elsewhere(self, task: Task, status: Mapping[str, Any]) -> None:
        outcome = Outcome(task.id, status["state"], status.get("reason") or "", 0.0, "")
        self._unsettled.pop(task.id, None)
        self._learn(outcome)
        self._outside.ended_elsewhere(outcome)

    def _say_what_is_awaited(self, device: Device) -> None:
        """Once each: nothing is left but what others run; a card of which others leave too little."""
        count, foreign = len(self._watched), self._running.foreign.get(device.label)
        if self._waiting and foreign and not self._running.on(device):
            held = f"others hold {foreign / 2**30:.1f} of {device.memory / 2**30:.1f} GiB"
            self._say(device.label, f"{device.label}: {held}; waiting until the next cell has room")
        elif count and not (self._waiting or self._promised or self._reserved or self._running):
            cells = "cell that another process runs" if count == 1 else "cells that other processes run"
            self._say("elsewhere", f"waiting for {count} {cells}; Ctrl-C leaves what runs elsewhere alone")

    def _say(self, subject: str, line: str) -> None:
        if subject not in self._said:
            self._said.add(subject)
            self._outside.remark(line)
