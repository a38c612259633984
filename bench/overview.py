"""What goes on in a results folder, from its files alone: what runs where, how many cells are in each state, errors.

Imports neither torch nor plugins, so that it can be asked every second while cells run.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.store import Attempt, CellFolder, Results, read_json

ERRORS = ("failed", "oom", "timeout")
UNREADABLE = "unreadable"


@dataclass(frozen=True)
class AtWork:
    """A cell that a living process has.

    Attributes:
        id: the cell.
        host, device: where it runs, as people call them.
        pid: its process there.
        attempt: which run of it this is.
        stage: what it does, "training" for example.
        epoch, epochs: how far a training is; 0 before it starts.
        images_per_second: its rate, None while it is unknown.
        seconds_left: of the training, None where it is unknown or over.
        seconds: since it was claimed.
    """

    id: str
    host: str
    device: str
    pid: int
    attempt: int
    stage: str
    epoch: int
    epochs: int
    images_per_second: float | None
    seconds_left: float | None
    seconds: float


@dataclass(frozen=True)
class Failure:
    """A cell that did not end well: its state, why, when, and where to read more."""

    id: str
    state: str
    reason: str
    updated: str
    log: str


@dataclass(frozen=True)
class Overview:
    """A whole results folder at one moment.

    Attributes:
        counts: cells by state; a cell whose process is gone counts as interrupted.
        stale: how many of the done ones are marked as stale.
        at_work: by host and device.
        failures: newest first.
    """

    counts: dict[str, int] = field(default_factory=dict)
    stale: int = 0
    at_work: list[AtWork] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


def overview(results: Results) -> Overview:
    """Look at every cell once: one small file for each, a few more for those that run."""
    counts: Counter[str] = Counter()
    stale, at_work, failures = 0, [], []
    folder = results.path / "cells"
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(".")]
    for name in names:
        status = _status(folder, name)
        if status is None:
            continue
        if status["state"] == "running":
            running, status = _look(CellFolder(folder / name))
            at_work += [running] if running else []
        state = status["state"]
        counts[state] += 1
        stale += bool(status.get("stale"))
        if state in ERRORS:
            log = str(folder / name / "log.txt")
            failures.append(Failure(name, state, status.get("reason") or "", status.get("updated", ""), log))
    at_work.sort(key=lambda one: (one.host, one.device, one.id))
    failures.sort(key=lambda one: (one.updated, one.id), reverse=True)
    return Overview(dict(sorted(counts.items())), stale, at_work, failures)


def _status(folder: Path, name: str) -> dict[str, Any] | None:
    """A cell's ``status.json`` as it stands; None for what is no cell."""
    try:
        with open(f"{folder}/{name}/status.json", "rb") as file:
            status = json.loads(file.read())
        return status if "state" in status else {"state": UNREADABLE}
    except (FileNotFoundError, NotADirectoryError):
        return {"state": "planned"} if os.path.exists(f"{folder}/{name}/cell.json") else None
    except (ValueError, OSError):
        return {"state": UNREADABLE}


def _look(cell: CellFolder) -> tuple[AtWork | None, dict[str, Any]]:
    """What a cell that is said to run does, None if its process is gone, and its status as it is."""
    try:
        status = cell.status()
        return (_at_work(cell.attempts()[-1]) if status["state"] == "running" else None), status
    except (OSError, ValueError):
        return None, {"state": UNREADABLE}


def _at_work(attempt: Attempt) -> AtWork:
    claim, progress = read_json(attempt.path / "claim.json") or {}, read_json(attempt.path / "progress.json") or {}
    now, at = time.time(), progress.get("at")
    left = progress.get("seconds_left") if progress.get("stage") == "training" else None
    return AtWork(
        id=attempt.cell.id,
        host=claim.get("host", "?"),
        device=claim.get("device") or progress.get("device") or "?",
        pid=claim.get("pid", 0),
        attempt=attempt.number,
        stage=progress.get("stage", "starting"),
        epoch=progress.get("epoch") or 0,
        epochs=progress.get("epochs") or 0,
        images_per_second=progress.get("images_per_second"),
        seconds_left=max(0.0, left - (now - at)) if left is not None and at else left,
        seconds=max(0.0, now - attempt.claimed_at()),
    )
