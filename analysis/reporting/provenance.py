"""How each cell came about: state, attempt, device, commit, data; read again from its files, beside its numbers.

:func:`analysis.results.read_results` keeps what tables need; this is what a reader asks of a single number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from analysis.probe import Probe
from analysis.results import DONE, read_json

DIGITS = 8  # of a digest or commit
CHANGED = ", changed"


@dataclass(frozen=True)
class Origin:
    """Where and of what a cell was made; empty where its files do not say.

    Attributes:
        commit: shortened, with "changed" where files differed from it.
        data: a shortened digest of each split.
    """

    device: str = ""
    threads: str = ""
    torch: str = ""
    commit: str = ""
    data: str = ""

    @property
    def is_dirty(self) -> bool:
        return self.commit.endswith(CHANGED)


@dataclass(frozen=True)
class Made:
    """One cell, or probe, as the report shows it; ``date`` is when training began, else when its state was written."""

    id: str
    kind: str
    state: str
    reason: str = ""
    seed: int | None = None
    attempt: int | None = None
    date: str = ""
    stale: tuple[str, ...] = ()
    origin: Origin = Origin()


def read_made(folder: Path, probes: Iterable[Probe] = ()) -> dict[str, Made]:
    """All cells, whatever their kind and state, and probes, by id.

    What cannot be read is left out: :mod:`analysis.results` and :mod:`analysis.speed` say so.

    Args:
        folder: the results folder.
    """
    made: dict[str, Made] = {}
    cells = folder / "cells"
    for path in sorted(cells.iterdir()) if cells.is_dir() else []:
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            made[path.name] = _cell(path)
    return made | {probe.name: _probe(probe) for probe in probes}


def _cell(path: Path) -> Made:
    card, status = read_json(path / "cell.json"), read_json(path / "status.json")
    result = read_json(path / "result.json") if status["state"] == DONE else {}
    return Made(
        id=path.name,
        kind="imported" if card["spec"].get("imported") else card["spec"]["kind"],
        state=status["state"],
        reason=status.get("reason") or "",
        seed=card["spec"].get("seed"),
        attempt=status.get("attempt"),
        date=began(result) or _date(result.get("measured") or status.get("updated")),
        stale=tuple(status.get("stale") or ()),
        origin=_origin(result.get("environment") or {}, (card.get("evidence") or {}).get("data") or {}),
    )


def _probe(probe: Probe) -> Made:
    record = probe.record
    return Made(
        id=probe.name, kind="probe", state=DONE, date=_date(record.get("date")),
        origin=_origin(record.get("environment") or {}, {}),
    )  # fmt: skip


def _origin(environment: Mapping[str, Any], data: Mapping[str, str]) -> Origin:
    commit = environment.get("commit")
    return Origin(
        device=str(environment.get("device") or ""),
        threads=str(environment.get("threads") or ""),
        torch=str(environment.get("torch") or ""),
        commit=f"{commit[:DIGITS]}{CHANGED if environment.get('dirty') else ''}" if commit else "",
        data=", ".join(f"{split} {digest[:DIGITS]}" for split, digest in data.items()),
    )


def began(result: Mapping[str, Any]) -> str:
    """When the first step of a training was made; a mark on a state later is no date of the result."""
    seconds = (result.get("training") or {}).get("first_step_at")
    return _date(datetime.fromtimestamp(seconds, UTC).isoformat()) if seconds else ""


def _date(moment: str | None) -> str:
    """A moment of ISO 8601 to the minute."""
    return (moment or "")[:16].replace("T", " ")
