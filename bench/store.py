"""The results folder: a cell's files, its states, and who may write them.

``results/cells/<id>/`` holds the committed files; ``attempts/<n>/`` the files of one run of the cell. An
attempt is claimed by creating its folder, which exactly one process can do. It ends once: whoever creates
its ``end`` file first decides whether it was committed or revoked, so no result is committed twice. A
commit moves files one by one, ``result.json`` last, and can be finished by anyone if its process dies.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.spec import Cell

SCHEMA = 1  # of the files
STATES = ("planned", "running", "done", "failed", "oom", "timeout", "interrupted", "skipped")
HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
LEFT = "its process ended without a word"


class AlreadyRunning(RuntimeError):
    """Another live process has claimed the cell."""


class Revoked(RuntimeError):
    """This attempt was given up for dead by another process and may not commit."""


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` by ``value`` as JSON in one step: readers see the old or the new file, never half of one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=1)
            file.write("\n")
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_json(path: Path) -> Any | None:
    """The JSON in ``path``; None where there is no such file."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None


def _create(path: Path, text: str) -> bool:
    """Create ``path`` with ``text``, whole or not at all; False if it exists already."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.chmod(file.name, 0o644)
        try:
            os.link(file.name, path)
        except FileExistsError:
            return False
    return True


@dataclass(frozen=True)
class Attempt:
    """One run of a cell, in a folder of its own."""

    cell: CellFolder
    number: int

    @property
    def path(self) -> Path:
        return self.cell.path / "attempts" / str(self.number)

    def beat(self, progress: dict[str, Any]) -> None:
        """Show that the attempt lives, and how far it is."""
        write_json(self.path / "progress.json", progress)

    def claimed_by(self, pid: int) -> bool:
        """Whether the process ``pid`` of this machine made the claim."""
        claim = read_json(self.path / "claim.json")
        return bool(claim) and claim["host"] == socket.gethostname() and claim["pid"] == pid

    def claimed_at(self) -> float:
        """When it was claimed, in seconds, by the clock that files are dated by."""
        claim = self.path / "claim.json"
        return (claim if claim.exists() else self.path).stat().st_mtime

    def ended(self) -> str | None:
        """How it ended, "committed" or "revoked"; None while it goes on."""
        path = self.path / "end"
        return path.read_text(encoding="utf-8") if path.exists() else None

    def alive(self) -> bool:
        """Whether its process may still be at work: not ended, with a recent sign of life."""
        if self.ended():
            return False
        claim = read_json(self.path / "claim.json")
        if claim and claim["host"] == socket.gethostname() and not _process_lives(claim["pid"], claim["started"]):
            return False
        signs = [self.path / name for name in ("progress.json", "claim.json", ".")]
        newest = max((p.stat().st_mtime for p in signs if p.exists()), default=0.0)
        return time.time() - newest < STALE_SECONDS

    def commit(
        self,
        files: list[str],
        result: dict[str, Any],
        *,
        evidence: dict[str, Any] | None = None,
        stale: Sequence[str] = (),
    ) -> None:
        """Publish ``files`` and ``result`` as the cell's own.

        Args:
            files: names in the attempt's folder.
            result: what becomes ``result.json``.
            evidence: what the result was made from, where it replaces what was planned.
            stale: evidence that still differs: of a training that was only scored again.

        Raises:
            Revoked: another process has ended this attempt.
        """
        files = [*files, "result.json"]
        if evidence is not None:
            write_json(self.path / "cell.json", {**self.cell.read(), "evidence": evidence})
            files = ["cell.json", *files]
        write_json(self.path / "result.json", result)
        write_json(self.path / "commit.json", {"files": files, "stale": list(stale)})
        if not _create(self.path / "end", "committed"):
            raise Revoked(f"attempt {self.number} of {self.cell.id} was revoked by another process")
        self.cell.finish_commit(self)

    def settle(self) -> bool:
        """End an attempt whose process is gone: finish its commit if it had begun one; returns whether it had."""
        if self.revoke() or self.ended() != "committed":
            return False
        self.cell.finish_commit(self)
        return True

    def revoke(self) -> bool:
        """End an attempt that is not committed; False if it was ended before."""
        return _create(self.path / "end", "revoked")


def _process_lives(pid: int, started: float) -> bool:
    """Whether the process that made a claim is still there; a reused pid started at another time."""
    import psutil

    try:
        process = psutil.Process(pid)
        # Orphans that nobody collects stay in the table as zombies.
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - started) < 2
    except psutil.NoSuchProcess:
        return False


@dataclass(frozen=True)
class CellFolder:
    """The folder of one cell."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        """Where a training that is not done has its saved states, see :mod:`bench.saved`."""
        return self.path / "checkpoints"

    def create(self, cell: Cell, evidence: dict[str, Any]) -> None:
        """Write ``cell.json``, and the state "planned" if the cell has none."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / "cell.json", {"schema": SCHEMA, "id": self.id, "spec": cell.spec, "evidence": evidence})
        if not (self.path / "status.json").exists():
            self.set_state("planned")

    def read(self) -> dict[str, Any]:
        """``cell.json``.

        Raises:
            FileNotFoundError: the cell was never planned.
        """
        card = read_json(self.path / "cell.json")
        if card is None:
            raise FileNotFoundError(
                f"no cell {self.id!r} in {self.path.parent}; `python -m bench.run --matrix NAME` plans and runs cells, "
                "with --dry-run it lists them"
            )
        return card

    def set_state(self, state: str, *, reason: str | None = None, attempt: int | None = None, **more: Any) -> None:
        """Write ``status.json``."""
        if state not in STATES:
            raise ValueError(f"unknown state {state!r}; allowed: {', '.join(STATES)}")
        status = {"schema": SCHEMA, "state": state, "reason": reason, "attempt": attempt, "updated": now(), **more}
        write_json(self.path / "status.json", status)

    def status(self) -> dict[str, Any]:
        """``status.json`` as it stands; a running cell whose process is gone reads "interrupted"."""
        status = self._said()
        if status["state"] != "running":
            return status
        last = self.attempts()[-1:]
        if last and last[0].alive():
            return status
        if last and (self.result() or {}).get("attempt") == last[0].number:
            return {**status, "state": "done"}
        return {**status, "state": "interrupted", "reason": LEFT}

    def recover(self) -> None:
        """Settle what a process that is gone has left: finish its commit, or record that it was interrupted."""
        status, last = self._said(), self.attempts()[-1:]
        # Only what was seen dead is settled: another process may make a claim of its own meanwhile.
        if status["state"] == "running" and last and not last[0].alive() and not last[0].settle():
            self.set_state("interrupted", reason=LEFT, attempt=last[0].number)

    def _tidy(self) -> None:
        """Delete what processes have left that were killed while they wrote a file."""
        for path in [*self.path.glob(".*"), *self.path.glob("attempts/*/.*")]:
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > STALE_SECONDS:  # else its writer may be at work
                    path.unlink()

    def _said(self) -> dict[str, Any]:
        """``status.json``; where a crash has cut it short, that the cell runs, so that its attempts are asked."""
        try:
            return read_json(self.path / "status.json") or {"state": "planned", "reason": None, "attempt": None}
        except ValueError:
            return {"state": "running", "reason": None, "attempt": None}

    def result(self) -> dict[str, Any] | None:
        """``result.json``, None before the cell is done."""
        return read_json(self.path / "result.json")

    def attempts(self) -> list[Attempt]:
        """All attempts, oldest first."""
        folder = self.path / "attempts"
        numbers = sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []
        return [Attempt(self, number) for number in numbers]

    def claim(self, *, device: str = "") -> Attempt:
        """Take the cell for this process; ``device`` is where it will run, as people call it.

        Raises:
            AlreadyRunning: a live process has it.
        """
        import psutil

        attempts = self.attempts()
        if attempts:
            last = attempts[-1]
            if last.alive():
                raise AlreadyRunning(f"{self.id} is running: {read_json(last.path / 'claim.json')}")
            last.settle()
        attempt = Attempt(self, attempts[-1].number + 1 if attempts else 1)
        try:
            attempt.path.mkdir(parents=True)
        except FileExistsError:
            raise AlreadyRunning(f"{self.id} was claimed by another process just now") from None
        claim = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": psutil.Process().create_time(),
            "at": now(),
            "device": device,
        }
        write_json(attempt.path / "claim.json", claim)
        return attempt

    def finish_commit(self, attempt: Attempt) -> None:
        """Move a committed attempt's files to the cell; safe to repeat, and for several processes at once."""
        commit = read_json(attempt.path / "commit.json")
        for name in commit["files"]:
            with suppress(FileNotFoundError):  # moved already
                os.replace(attempt.path / name, self.path / name)
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        self._tidy()
        self.set_state("done", attempt=attempt.number, **({"stale": commit["stale"]} if commit["stale"] else {}))


class Results:
    """A results folder."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def cell(self, identifier: str) -> CellFolder:
        return CellFolder(self.path / "cells" / identifier)

    def cells(self) -> Iterator[CellFolder]:
        """All cells that were ever planned here, by name."""
        folder = self.path / "cells"
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if (path / "cell.json").exists():
                yield CellFolder(path)
