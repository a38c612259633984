"""Run planned cells on slots: start their processes, watch them, and leave no orphan and no silent failure."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.backends import local
from bench.cell import CLAIMED, PARENT_PIPE, REVOKED
from bench.devices import Slot
from bench.guard import PROJECT
from bench.plan import Planned
from bench.store import CellFolder, Results, read_json

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


@dataclass(frozen=True)
class Outcome:
    """How a cell ended.

    Attributes:
        id: the cell.
        state: a state of the store, "elsewhere" if another scheduler has it, "not started" after a stop.
        reason: one line, empty for done cells.
        seconds: wall-clock time.
        slot: label of the device.
    """

    id: str
    state: str
    reason: str
    seconds: float
    slot: str


@dataclass
class Running:
    """A cell's process at work."""

    planned: Planned
    slot: Slot
    process: subprocess.Popen
    started: float = field(default_factory=time.monotonic)


class Scheduler:
    """Executes cells; :meth:`stop` may be called from a signal handler.

    Args:
        results: the results folder.
        slots: where cells can run.
        options: passed on to the cells.
        on_start: called when a cell's process has been started.
    """

    def __init__(
        self,
        results: Results,
        slots: Sequence[Slot],
        options: CellOptions,
        *,
        on_start: Callable[[Running], None] = lambda running: None,
    ) -> None:
        self._results, self._slots, self._options, self._on_start = results, slots, options, on_start
        self._running: dict[str, Running] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def run(self, cells: Sequence[Planned]) -> Iterator[Outcome]:
        """Execute the cells; yields how each ended, as it ends."""
        return local.dispatch(cells, self._slots, self._run_one)

    def stop(self) -> None:
        """Interrupt what runs and start nothing more."""
        self._stopped.set()

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()

    def running(self) -> list[tuple[Running, dict[str, Any]]]:
        """The cells at work, each with the progress it last reported."""
        with self._lock:
            running = list(self._running.values())
        return [(one, self._progress(one)) for one in running]

    def _progress(self, running: Running) -> dict[str, Any]:
        attempts = self._results.cell(running.planned.id).attempts()
        return (read_json(attempts[-1].path / "progress.json") if attempts else None) or {}

    def _run_one(self, planned: Planned, slot: Slot) -> Outcome:
        if self.stopped:
            return Outcome(planned.id, "not started", "the run was stopped", 0.0, slot.label)
        started = time.monotonic()
        folder = self._results.cell(planned.id)
        try:
            with (folder.path / "log.txt").open("ab") as log:
                process = subprocess.Popen(
                    self._command(planned, slot),
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env=self._environment(slot),
                    start_new_session=True,  # a Ctrl-C in the terminal is the scheduler's to hand on
                )
        except OSError as error:
            folder.set_state("failed", reason=f"its process could not be started: {error}")
            return Outcome(planned.id, "failed", str(error), 0.0, slot.label)
        running = Running(planned, slot, process)
        with self._lock:
            self._running[planned.id] = running
        try:
            self._on_start(running)
            code = self._wait(process)
        finally:
            with self._lock:
                del self._running[planned.id]
        state, reason = self._settle(planned, process.pid, code)
        return Outcome(planned.id, state, reason, time.monotonic() - started, slot.label)

    def _command(self, planned: Planned, slot: Slot) -> list[str]:
        words = [sys.executable, "-m", "bench.cell", planned.id, "--results", str(self._results.path.resolve())]
        words += ["--device", slot.device, "--threads", str(slot.threads), *self._options.words()]
        if planned.entered.checkpoint:
            words += ["--checkpoint", planned.entered.checkpoint]
        return words + (["--again"] if planned.state in ("done", "stale") else [])

    def _environment(self, slot: Slot) -> dict[str, str]:
        path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
        # Without the safe path the current folder would come before the project, and with it whatever lies there.
        own = {PARENT_PIPE: "1", "PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
        return {**os.environ, **slot.environment, **own}

    def _wait(self, process: subprocess.Popen) -> int:
        """Wait for a process; on :meth:`stop` ask it to end, then end it."""
        while True:
            try:
                return process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                if self.stopped:
                    break
        process.terminate()
        try:
            return process.wait(timeout=GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def _settle(self, planned: Planned, pid: int, code: int) -> tuple[str, str]:
        """The state a finished process left, recorded for it where it could not do so itself."""
        folder = self._results.cell(planned.id)
        if code in (CLAIMED, REVOKED):
            return "elsewhere", "another process runs it"
        own = next((attempt for attempt in reversed(folder.attempts()) if attempt.claimed_by(pid)), None)
        if own is None:
            return self._settle_unclaimed(folder, code)
        spoke = own.ended()
        if own.settle():
            return "done", ""
        status = folder.status()
        if spoke and status["attempt"] == own.number and status["state"] != "running":
            return status["state"], status["reason"] or ""
        return self._record(folder, code, own.number)

    def _settle_unclaimed(self, folder: CellFolder, code: int) -> tuple[str, str]:
        """For a process that never had the cell: whoever has it must not be disturbed."""
        status = folder.status()
        if code == 0:
            return status["state"], status["reason"] or ""
        if status["state"] == "running":
            return ("elsewhere", "another process runs it") if self.stopped else self._reason(folder, code)
        return self._record(folder, code, None)

    def _record(self, folder: CellFolder, code: int, attempt: int | None) -> tuple[str, str]:
        state, reason = self._reason(folder, code)
        folder.set_state(state, reason=reason, attempt=attempt)
        return state, reason

    def _reason(self, folder: CellFolder, code: int) -> tuple[str, str]:
        """State and reason for a process that ended with ``code`` without a word."""
        if self.stopped:
            return "interrupted", "the run was stopped"
        if code < 0:
            hint = "; the system may have been out of memory" if code == -signal.SIGKILL else ""
            return "failed", f"killed by {_signal_name(-code)}{hint}"
        return "failed", f"exit code {code}: {_last_line(folder.path / 'log.txt')}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else "nothing in its log"
