"""Somebody who kills the processes of a run at the moments that hurt, and fills its disk.

A process is stopped before it is killed: while it stands still its files say where it is, so that a kill is counted
where it fell.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from resource import RLIMIT_FSIZE

import psutil

from bench.store import Attempt, CellFolder, Results

AT_A_CELL = ("start", "training", "saving", "scoring", "commit", "moving", "ahead")
OF_THE_RUN = ("scheduler", "everything")
LEISURE, HASTE = 0.01, {"commit": 0.3, "moving": 0.3, "saving": 0.1}
"""How likely an occasion is taken at a look, of which there are some hundred a second; some are short or rare. In each
scheduler's run it is likelier than in the one before: on a fast machine all occasions are short."""
GONE = (psutil.NoSuchProcess, FileNotFoundError)
NOT_SAVED = "is not saved"
NEARLY_FULL, FULL = 2**20, 0
"""Largest files there can be: no saved state and no adapter; none at all."""


def moment(folder: CellFolder, pid: int, *, held: bool, epochs: int) -> str:
    """What the process ``pid`` of a cell is doing, as the files say.

    Args:
        folder: the cell's.
        pid: of the process.
        held: whether it was started ahead.
        epochs: that the cell is trained for.

    Returns:
        One of ``AT_A_CELL``, or "over". Until its end is written a commit can be revoked; after that its files are
        moved.
    """
    attempt = next((one for one in reversed(folder.attempts()) if one.claimed_by(pid)), None)
    if attempt is None:
        return "ahead" if held else "start"
    if (attempt.path / "commit.json").exists() and not attempt.ended():
        return "commit"
    if attempt.ended():
        return "moving" if (attempt.path / "result.json").exists() else "over"
    if _writes_a_state(attempt):
        return "saving"
    history = attempt.path / "history.jsonl"
    if not history.exists():
        return "start"
    return "training" if history.read_text().count("\n") < epochs else "scoring"


def _writes_a_state(attempt: Attempt) -> bool:
    """Not counting the half state that an attempt before has left."""
    return any(path.stat().st_mtime > attempt.claimed_at() for path in attempt.cell.checkpoints.glob(".epoch-*"))


@dataclass
class Evil:
    """What is still to be done to a run, and what was done.

    Attributes:
        results: the results folder.
        epochs: of every cell.
        chance: decides when and whom.
        aims: how many kills of each kind are left: a moment of a cell, "scheduler", or "everything": all processes.
        full: how often the disk is still to be full, for nearly all files and for all in turn.
        struck: where each kill fell, with the cell if it was one.
        seen: every process of the run, with its command line.
    """

    results: Results
    epochs: int
    chance: random.Random
    aims: Counter[str]
    full: int
    struck: list[tuple[str, str]] = field(default_factory=list)
    seen: dict[psutil.Process, list[str]] = field(default_factory=dict)
    _before: int = 0
    _runs: int = 0

    @property
    def satisfied(self) -> bool:
        return not (self.full or self.aims.total())

    def haunt(self, scheduler: psutil.Popen) -> None:
        """Do harm until the scheduler has ended, by itself or not."""
        self._before = len(self.struck)
        self._runs += 1
        while scheduler.poll() is None:
            with suppress(*GONE):  # it has ended in the middle of the look
                self._look(scheduler)
            time.sleep(0.005)

    def noticed(self) -> int:
        """How often a training said that it could not save its state."""
        return sum(
            path.read_text(errors="replace").count(NOT_SAVED) for path in self.results.path.glob("cells/*/log.txt")
        )

    def _look(self, scheduler: psutil.Popen) -> None:
        """Do the harm that is possible now, or wait for a better moment."""
        at_work = {process: self._moment(process) for process in self._cells(scheduler)}
        harms = [(where, partial(self._strike, process, where)) for process, where in at_work.items()]
        # A scheduler that has cells to run again would have to be started once more anyway.
        if at_work and (len(self.struck) > self._before or not any(self.aims[where] for where in AT_A_CELL)):
            harms += [(whom, partial(self._strike_down, whom, scheduler)) for whom in OF_THE_RUN]
        if self.full and "training" in at_work.values():
            harms += [("full", partial(self._fill_the_disk, scheduler))]
        self.chance.shuffle(harms)
        for what, harm in harms:
            if (self.aims[what] or what == "full") and self.chance.random() < min(self._runs, 8) * HASTE.get(
                what, LEISURE
            ):
                harm()
                return

    def _cells(self, scheduler: psutil.Popen) -> Iterator[psutil.Process]:
        """The processes of cells."""
        for process in scheduler.children(recursive=True):
            words = self.seen.get(process, ["bench.run"])
            if "bench.run" in words:  # as its parent is called, until it is another program
                words = self.seen[process] = process.cmdline()
            if "bench.cell" in words:
                yield process

    def _folder(self, process: psutil.Process) -> CellFolder:
        words = self.seen[process]
        return self.results.cell(words[words.index("bench.cell") + 1])

    def _moment(self, process: psutil.Process) -> str:
        held = "--hold" in self.seen[process]
        return moment(self._folder(process), process.pid, held=held, epochs=self.epochs)

    def _strike(self, process: psutil.Process, where: str) -> None:
        """Kill a cell's process, if it still is where it was seen."""
        process.suspend()
        try:
            while process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
                time.sleep(0.001)
            if self._moment(process) == where and process.status() == psutil.STATUS_STOPPED:
                process.kill()
                self._count(where, self._folder(process).id)
        finally:
            process.resume()

    def _strike_down(self, whom: str, scheduler: psutil.Popen) -> None:
        """Kill the scheduler, alone or with all that it has started."""
        others = scheduler.children(recursive=True) if whom == "everything" else []
        scheduler.kill()
        for process in others:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._count(whom, "")

    def _count(self, where: str, cell: str) -> None:
        self.aims[where] -= 1
        self.struck.append((where, cell))

    def _fill_the_disk(self, scheduler: psutil.Popen) -> None:
        """No file can grow beyond a limit, until a training has noticed or for a while; if none has, once more."""
        size = NEARLY_FULL if self.full % 2 else FULL
        before, until = self.noticed(), time.monotonic() + (20 if size == NEARLY_FULL else 1.5)
        self._limit(scheduler, size)
        while time.monotonic() < until and self.noticed() == before and scheduler.poll() is None:
            time.sleep(0.02)
        self._limit(scheduler, None)
        self.full -= size == FULL or self.noticed() > before
        self.struck.append(("disk nearly full" if size else "disk full", ""))

    def _limit(self, scheduler: psutil.Popen, size: int | None) -> None:
        """Of the scheduler first: what it starts has the same; None for as much as before."""
        for process in (scheduler, *scheduler.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                _, hard = process.rlimit(RLIMIT_FSIZE)
                process.rlimit(RLIMIT_FSIZE, (hard if size is None else size, hard))
