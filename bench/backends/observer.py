"""What becomes of cells that other processes run, seen from their files alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bench.devices import Slot
from bench.plan import TERMINAL, Planned
from bench.store import Attempt, Results, read_json

FINAL = TERMINAL - {"oom"}  # who runs a cell may try one that ran out of memory again in another way


@dataclass(frozen=True)
class Seen:
    """A cell at work somewhere, as a display wants to know it; the label of ``slot`` names host and device."""

    planned: Planned
    slot: Slot


class Observer:
    """Follows cells until they have ended.

    Args:
        results: the results folder.
        cells: in the state they were planned in.
    """

    def __init__(self, results: Results, cells: Sequence[Planned]) -> None:
        self._results = results
        self._open = {cell.id: cell for cell in cells}
        self._running: dict[str, Seen] = {}
        self.before = {cell.id: results.cell(cell.id).status() for cell in cells}

    @property
    def open(self) -> list[Planned]:
        """The cells that have not ended, in the order they were given."""
        return list(self._open.values())

    def look(self) -> Iterator[tuple[Planned, Seen | None, Mapping[str, Any]]]:
        """The cells that began (with what is seen of them) or ended (None) since the last look, and their status.

        Reads a file for every open cell; the caller decides how often that is worth it.
        """
        for planned in self.open:
            status = self._results.cell(planned.id).status()
            if status["state"] == "running":
                if planned.id not in self._running:
                    attempt = self._last_attempt(planned)
                    claim = read_json(attempt.path / "claim.json") if attempt else None
                    self._running[planned.id] = Seen(planned, Slot(_place(claim or {}), "", 0))
                    yield planned, self._running[planned.id], status
                continue
            self._running.pop(planned.id, None)
            if status["state"] in FINAL and ended_anew(planned, status, self.before[planned.id]):
                del self._open[planned.id]
                yield planned, None, status

    def running(self) -> list[tuple[Seen, dict[str, Any]]]:
        """The cells at work at the last look, each with the progress it last reported."""
        found = []
        for seen in list(self._running.values()):
            attempt = self._last_attempt(seen.planned)
            found.append((seen, (read_json(attempt.path / "progress.json") if attempt else None) or {}))
        return found

    def ran(self, planned: Planned, status: Mapping[str, Any]) -> tuple[float, str]:
        """How long the attempt took that a status is about, and where; 0 and nothing where nobody knows."""
        path = self._results.cell(planned.id).path / "attempts" / str(status["attempt"])
        claim = read_json(path / "claim.json")
        if not claim or "updated" not in status:
            return 0.0, ""
        took = datetime.fromisoformat(status["updated"]) - datetime.fromisoformat(claim["at"])
        return took.total_seconds(), _place(claim)

    def _last_attempt(self, planned: Planned) -> Attempt | None:
        return next(reversed(self._results.cell(planned.id).attempts()), None)


def _place(claim: Mapping[str, Any]) -> str:
    """Host and device of an attempt, as people read it."""
    return " ".join(filter(None, [claim.get("host"), claim.get("device")]))


def ended_anew(planned: Planned, status: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    """Whether a cell that is not running has ended since it was planned, also where it had ended before that.

    Args:
        planned: the cell.
        status: as it is now.
        before: as it was when the run began; another run may have changed it after the plan was made.
    """
    if status["state"] not in TERMINAL:
        return False
    return status != before or planned.state not in (status["state"], "stale")
