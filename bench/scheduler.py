"""Run planned cells on devices: lanes that start their processes, watch them, and leave no orphan."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from bench.backends import local
from bench.busy import Busy
from bench.cell import DEVICE_LABEL
from bench.devices import Device, Slot, cores
from bench.durations import duration
from bench.guard import PROJECT
from bench.lane import Lane, Running
from bench.plan import Planned
from bench.process import CellProcess, settle
from bench.queueing import WorkQueue
from bench.store import Results, now, read_json
from bench.tasks import Outcome, Outside, Task

if TYPE_CHECKING:
    from bench.estimates import Estimates

GRACE_SECONDS = 15.0  # for a cell to record that it was interrupted


@dataclass(frozen=True)
class CellOptions:
    """What is passed on to every cell's process and changes no result; ``more`` are further words.

    What is None or empty is left to ``python -m bench.cell``.
    """

    data_root: Path | None = None
    micro_batch: int = 0
    allow_broken: bool = False
    more: tuple[str, ...] = ()
    attention: str | None = None
    checkpointing: str | None = None
    compile: bool = False

    def words(self) -> list[str]:
        """As command-line words of ``python -m bench.cell``."""
        words = [*self.more, *(["--allow-broken"] if self.allow_broken else [])]
        if self.data_root:
            words += ["--data-root", str(self.data_root)]
        given = {"micro-batch": self.micro_batch, "attention": self.attention, "checkpointing": self.checkpointing}
        for name, value in given.items():
            words += [f"--{name}", str(value)] if value else []
        return words + (["--compile"] if self.compile else [])


class Scheduler:
    """Executes cells; :meth:`stop` may be called from a signal handler.

    Args:
        results: the results folder.
        devices: where cells can run.
        options: passed on to the cells.
        estimates: what cells need.
        timeout: seconds after which a cell is ended.
        budget: seconds; no cell is started that would not end in time.
        share: which of how many schedulers that share the cells; it begins with its own.
        on_start: called when a cell's process goes to work.
        on_remark: called with what whoever waits should know.
    """

    def __init__(
        self,
        results: Results,
        devices: Sequence[Device],
        options: CellOptions,
        *,
        estimates: Estimates | None = None,
        timeout: float | None = None,
        budget: float | None = None,
        share: tuple[int, int] = (0, 1),
        on_start: Callable[[Running], None] = lambda running: None,
        on_remark: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.results, self._devices, self._options = results, devices, options
        self._estimates, self._budget, self.timeout = estimates, budget, timeout
        self._on_start, self._on_remark, self._share = on_start, on_remark, share
        self._running: dict[str, Running] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._queue: WorkQueue | None = None
        self.busy: list[Busy] = []

    def run(self, cells: Sequence[Planned], watched: Sequence[Planned] = ()) -> Iterator[Outcome]:
        """Execute the cells; yields how each ended, as it ends.

        Args:
            cells: in any order.
            watched: cells that other processes run; those they leave unfinished are executed too.
        """
        told: SimpleQueue[Outcome] = SimpleQueue()
        self._queue = queue = WorkQueue(
            cells,
            self._estimates,
            _Disk(self.results, told.put, self._on_remark),
            devices=self._devices,
            watched=watched,
            budget=self._budget,
            micro_batch=self._options.micro_batch,
            share=self._share,
        )
        if self.stopped:
            queue.close()
        began = time.monotonic()
        self.busy = [Busy(device.label, began) for device in self._devices]
        most = max(len(device.slots) for device in self._devices)
        lanes = [
            Lane(self, queue, device, slot, busy, told.put)
            for place in range(most)  # every device has its first cell before any has a second
            for device, busy in zip(self._devices, self.busy, strict=True)
            for slot in device.slots[place : place + 1]
        ]
        outcomes = local.dispatch(lanes, told)
        try:
            # Not `yield from`, which would wait for the lanes before they are stopped.
            for outcome in outcomes:  # noqa: UP028
                yield outcome
        except BaseException:
            self.stop()
            raise
        finally:
            outcomes.close()
        yield from queue.rest()

    def stop(self) -> None:
        """Interrupt what runs and start nothing more."""
        self._stopped.set()
        if self._queue:
            self._queue.close()

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()

    def running(self) -> list[tuple[Running, dict[str, Any]]]:
        """The cells at work, each with the progress it last reported."""
        with self._lock:
            running = list(self._running.values())
        return [(one, self._progress(one)) for one in running]

    def _progress(self, running: Running) -> dict[str, Any]:
        attempts = self.results.cell(running.planned.id).attempts()
        return (read_json(attempts[-1].path / "progress.json") if attempts else None) or {}

    @contextmanager
    def at_work(self, running: Running) -> Iterator[None]:
        """Show a cell as running."""
        with self._lock:
            self._running[running.planned.id] = running
        try:
            self._on_start(running)
            yield
        finally:
            with self._lock:
                del self._running[running.planned.id]

    def start(self, task: Task, slot: Slot, *, hold: bool = False) -> Running:
        """Start a cell's process; ``hold``: in place of the one that ends, when it is set free.

        Raises:
            OSError: it cannot be started.
        """
        if (count := self._queue.at_work()) > 1:
            slot = slot.with_threads(min(slot.threads, max(1, cores() // count)))
        command = [*self._command(task, slot), *(["--hold"] if hold else [])]
        log = self.results.cell(task.id).path / "log.txt"
        return Running(task, slot, CellProcess(command, log=log, environment=self._environment(slot)))

    def _command(self, task: Task, slot: Slot) -> list[str]:
        words = [sys.executable, "-m", "bench.cell", task.id, "--results", str(self.results.path.resolve())]
        options = replace(self._options, micro_batch=task.micro_batch or self._options.micro_batch)
        words += ["--device", slot.device, "--threads", str(slot.threads), *options.words()]
        if task.planned.entered.checkpoint:
            words += ["--checkpoint", task.planned.entered.checkpoint]
        if task.retries:
            words += ["--oom-retries", str(task.retries)]
        return words + (["--again"] if task.planned.state in ("done", "stale") else [])

    def _environment(self, slot: Slot) -> dict[str, str]:
        path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
        # Without the safe path the current folder would come before the project, and with it whatever lies there.
        own = {DEVICE_LABEL: slot.label, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
        return {**os.environ, **slot.environment, **own}

    def end(self, running: Running) -> None:
        """Ask a cell's process to end, and see to it."""
        running.process.stop(grace=GRACE_SECONDS)

    def settle(self, running: Running, *, timed_out: bool) -> tuple[str, str]:
        """State and reason of a cell whose process has ended, on disk too."""
        folder = self.results.cell(running.planned.id)
        process = running.process
        state, reason = settle(folder, process.pid, process.code, stopped=self.stopped or timed_out)
        if timed_out and state == "interrupted":
            state, reason = "timeout", f"took longer than {duration(self.timeout)} (--timeout)"
            folder.set_state(state, reason=reason, attempt=folder.status()["attempt"])
        return state, reason


class _Disk(Outside):
    """The results folder, the cards and whoever watches, as a queue sees them."""

    def __init__(self, results: Results, tell: Callable[[Outcome], None], remark: Callable[[str], None]) -> None:
        self._results, self._tell, self._remark = results, tell, remark

    def status(self, cell_id: str) -> Mapping[str, Any]:
        return self._results.cell(cell_id).status()

    def free_memory(self, device: Device) -> int | None:
        return device.free_memory()

    def ended_elsewhere(self, outcome: Outcome) -> None:
        self._tell(outcome)

    def once_more(self, task: Task, reason: str) -> None:
        folder = self._results.cell(task.id)
        folder.set_state("interrupted", reason=reason, attempt=folder.status()["attempt"])
        with (folder.path / "log.txt").open("a", encoding="utf-8") as log:
            log.write(f"{now()} {reason}\n")
        self._remark(f"{task.id}: {reason}")

    def remark(self, line: str) -> None:
        self._remark(line)
