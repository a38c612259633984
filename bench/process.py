"""A cell's process as its lane sees it: started, perhaps held, listened to, ended, and what it left behind."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from bench.cell import CLAIMED, REVOKED
from bench.signs import PARENT_PIPE
from bench.store import CellFolder


class CellProcess:
    """One process; its output is added to a log.

    Args:
        command: its words.
        log: the file.
        environment: all of its variables.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, command: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> None:
        signs, theirs = os.pipe()
        try:
            with log.open("ab") as output:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    env={**environment, PARENT_PIPE: str(theirs)},
                    pass_fds=(theirs,),
                    start_new_session=True,  # a Ctrl-C in the terminal is the scheduler's to hand on
                )
        except OSError:
            os.close(signs)
            raise
        finally:
            os.close(theirs)
        self._signs: int | None = signs
        self._poll = select.poll()
        self._poll.register(signs, select.POLLIN)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def set_free(self) -> None:
        """Let a held process go on."""
        with suppress(OSError):  # it has ended
            self._process.stdin.write(b"go on\n")
            self._process.stdin.flush()

    def listen(self, seconds: float) -> list[str]:
        """What it said; waits for a word or its end, but no longer than ``seconds``."""
        if self._signs is None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
            return []
        if not self._poll.poll(1000 * seconds):
            return []
        said = os.read(self._signs, 4096).decode().split()
        if not said:  # it has closed its end, as all do when they end
            os.close(self._signs)
            self._signs = None
        return said

    def stop(self, *, grace: float) -> None:
        """Ask it to end; ``grace`` seconds later, end it."""
        self._process.terminate()
        try:
            self._process.wait(timeout=grace)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self.close()

    def discard(self) -> None:
        """End it at once: a process that is held has nothing to lose."""
        self._process.kill()
        self.close()

    def close(self) -> None:
        """Wait for its end and give back what it took here."""
        self._process.wait()
        with suppress(OSError):
            self._process.stdin.close()
        if self._signs is not None:
            os.close(self._signs)
            self._signs = None


def settle(folder: CellFolder, pid: int, code: int, *, stopped: bool) -> tuple[str, str]:
    """The state and reason that a process which has ended left, recorded for it where it could not do so itself.

    Args:
        folder: the cell's.
        pid, code: of the process.
        stopped: whether it was asked to end.

    Returns:
        A state of the store, or "elsewhere" where another process has the cell.
    """
    if code in (CLAIMED, REVOKED):
        return "elsewhere", "another process runs it"
    own = next((attempt for attempt in reversed(folder.attempts()) if attempt.claimed_by(pid)), None)
    if own is None:
        return _settle_unclaimed(folder, code, stopped)
    spoke = own.ended()
    if own.settle():
        return "done", ""
    status = folder.status()
    if spoke and status["attempt"] == own.number and status["state"] != "running":
        return status["state"], status["reason"] or ""
    return _record(folder, code, own.number, stopped)


def _settle_unclaimed(folder: CellFolder, code: int, stopped: bool) -> tuple[str, str]:
    """For a process that never had the cell: whoever has it must not be disturbed."""
    status = folder.status()
    if code == 0:
        return status["state"], status["reason"] or ""
    if status["state"] == "running":
        return ("elsewhere", "another process runs it") if stopped else _reason(folder, code, stopped)
    return _record(folder, code, None, stopped)


def _record(folder: CellFolder, code: int, attempt: int | None, stopped: bool) -> tuple[str, str]:
    state, reason = _reason(folder, code, stopped)
    folder.set_state(state, reason=reason, attempt=attempt)
    return state, reason


def _reason(folder: CellFolder, code: int, stopped: bool) -> tuple[str, str]:
    """State and reason for a process that ended with ``code`` without a word."""
    if stopped:
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
