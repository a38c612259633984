"""What MLflow shows of one cell, read from the cell's folder.

Pure functions from files to a :class:`RunRecord`: no MLflow here, so that what is logged can be read, tested and
compared without a database.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from bench.store import CellFolder

# Only these states are shown: a planned or running cell has nothing final to say, a skipped one never ran.
MLFLOW_STATUS = {
    "done": "FINISHED", "failed": "FAILED", "oom": "FAILED", "timeout": "FAILED", "interrupted": "KILLED",
}  # fmt: skip
EPOCH_METRICS = ("loss", "aux", "validation", "lr", "images_per_second")
FINAL_METRICS = ("parameters", "training", "images", "constants", "speed")
CARDS = ("cell.json", "status.json")
PRODUCTS = ("result.json", "history.jsonl", "log.txt", "adapter.json", "adapter.safetensors")
LARGEST_ARTIFACT = 64 * 2**20  # bytes
LONGEST_VALUE = 6000  # characters: MLflow's limit for a parameter; a tag may have 8,000
LONGEST_NAME = 250


class Point(NamedTuple):
    """One value of one metric; the time is in milliseconds since 1970."""

    key: str
    value: float
    timestamp: int
    step: int


@dataclass(frozen=True)
class RunRecord:
    """One MLflow run.

    Attributes:
        cell: the cell's id, the name of the run.
        digest: changes exactly when the cell has to be logged anew.
        status: MLflow's word for the cell's state.
        start: milliseconds since 1970, as is ``end``.
        metrics: the curves and the final values.
        artifacts: files that exist.
    """

    cell: str
    digest: str
    status: str
    start: int
    end: int
    tags: dict[str, str]
    params: dict[str, str]
    metrics: list[Point]
    artifacts: list[Path]


def settled_digest(cell: CellFolder) -> str | None:
    """The digest of what a cell came to, or None while it has come to nothing that MLflow shows.

    It covers state, reason, attempt and result, not the time of writing: a status written again logs nothing again.

    Raises:
        OSError: the cell is "done" and has no result.json.
        ValueError, KeyError: status.json is not what the cells write.
    """
    status = cell.status()
    if status["state"] not in MLFLOW_STATUS:
        return None
    content = json.dumps([status["state"], status["reason"], status["attempt"]]).encode()
    if status["state"] == "done":
        content += (cell.path / "result.json").read_bytes()
    return hashlib.sha256(content).hexdigest()[:16]


def read_record(cell: CellFolder, digest: str) -> RunRecord:
    """The run of a settled cell. A cell that failed is described by its spec, as it has no resolved values.

    Raises:
        OSError, ValueError, KeyError, TypeError, AttributeError: a file is missing or not what the cells write.
    """
    status = cell.status()
    done = status["state"] == "done"
    # The cell's own folder holds what was committed: nothing there is the work of an attempt that failed.
    folder = cell.path if done else cell.path / "attempts" / str(status["attempt"])
    result = (cell.result() or {}) if done else {}
    described = result["resolved"] if done else cell.read()["spec"]
    epochs = _read_history(folder / "history.jsonl")
    seconds = result.get("training", {}).get("seconds") or sum(epoch.get("seconds", 0.0) for epoch in epochs)
    end = round(datetime.fromisoformat(status["updated"]).timestamp() * 1000)
    start = end - round(seconds * 1000)
    files = [*(cell.path / name for name in CARDS), *(folder / name for name in PRODUCTS)]
    return RunRecord(
        cell=cell.id,
        digest=digest,
        status=MLFLOW_STATUS[status["state"]],
        start=start,
        end=end,
        tags={"cell": cell.id, "digest": digest, **_tags(status, result, described)},
        params={_key(path, "."): _text(value) for path, value in _leaves(described)},
        metrics=[*_curves(epochs, start), *_finals(result, end)],
        artifacts=[file for file in files if file.is_file() and file.stat().st_size < LARGEST_ARTIFACT],
    )


def _read_history(path: Path) -> list[dict[str, Any]]:
    """One entry an epoch, in order. A resumed cell may have written an epoch twice: the later line counts.

    A line torn by a kill is left out; a cell that resumes writes that epoch again.
    """
    if not path.exists():
        return []
    epochs: dict[int, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            epoch = json.loads(line)
        except ValueError:
            continue
        epochs[epoch["epoch"]] = epoch
    return [epochs[number] for number in sorted(epochs)]


def _tags(status: dict[str, Any], result: dict[str, Any], described: dict[str, Any]) -> dict[str, str]:
    environment = result.get("environment", {})
    commit = environment.get("commit")
    tags = {
        "state": status["state"],
        "reason": status["reason"],
        "attempt": status["attempt"],
        "method": described["method"]["name"],
        "dataset": described.get("dataset", {}).get("name"),  # measurements of speed have none
        "backbone": described.get("backbone"),  # imported scores have none
        "imported": described.get("imported"),
        "commit": f"{commit}-dirty" if commit and environment.get("dirty") else commit,
        "random_backbone": result.get("random_backbone"),
    }
    return {key: _text(value) for key, value in tags.items() if value is not None}


def _curves(epochs: list[dict[str, Any]], start: int) -> Iterator[Point]:
    """The training curves: step = epoch, time = when the epoch ended."""
    seconds = 0.0
    for epoch in epochs:
        seconds += epoch.get("seconds", 0.0)
        for path, value in _numbers({name: epoch.get(name) for name in EPOCH_METRICS}):
            yield Point(_key(path, "."), value, start + round(seconds * 1000), epoch["epoch"])


def _finals(result: dict[str, Any], end: int) -> Iterator[Point]:
    """The scores as ``test_set/protocol/metric`` or ``.../iou/shelf``, the other numbers as ``training.seconds``."""
    for path, value in _numbers(result.get("scores", {}), entries=result.get("classes", ())):
        yield Point(_key(path, "/"), value, end, 0)
    for path, value in _numbers({name: result.get(name) for name in FINAL_METRICS}):
        yield Point(_key(path, "."), value, end, 0)


def _leaves(
    tree: Any, path: tuple[str, ...] = (), *, entries: Sequence[str] | None = None
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The leaves of nested dictionaries with their paths.

    Args:
        entries: the names of a list's entries, which are leaves then; where there are none, their indices.
    """
    if isinstance(tree, dict):
        branches = tree.items()
    elif entries is not None and isinstance(tree, list):
        branches = zip(entries or map(str, range(len(tree))), tree, strict=True)
    else:
        yield path, tree
        return
    for name, branch in branches:
        yield from _leaves(branch, (*path, str(name)), entries=entries)


def _numbers(tree: dict[str, Any], *, entries: Sequence[str] = ()) -> Iterator[tuple[tuple[str, ...], float]]:
    for path, value in _leaves(tree, entries=entries):
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield path, float(value)


def _key(path: tuple[str, ...], separator: str) -> str:
    """A name MLflow takes: letters, digits, ``_ - .``, spaces and, between the parts, the separator.

    MLflow reads names as paths and refuses any that has a shorter form: a part must not be "", "." or "..".
    """
    parts = (re.sub(r"[^\w\-. ]", "_", part) for part in path)
    return separator.join(part if part.strip(".") else "_" for part in parts)[:LONGEST_NAME]


def _text(value: Any) -> str:
    return (value if isinstance(value, str) else json.dumps(value))[:LONGEST_VALUE]
