"""What figures read of a cell beside its scores: the record of its training, its epochs, the experts it chose.

A published copy of a results folder lacks the large files, so each of them may be missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from analysis.drawing.words import Tell
from analysis.results import read_json
from analysis.source import Cell

HISTORY, EXPERTS, PER_IMAGE = "history.jsonl", "experts.parquet", "per_image.parquet"
Read = TypeVar("Read")


def folder_of(folder: Path, cell: Cell) -> Path:
    """Where a cell's files lie in a results folder."""
    return folder / "cells" / cell.id


def result_of(folder: Path, cell: Cell) -> dict[str, Any]:
    """``result.json`` of a done cell.

    Raises:
        ValueError: it cannot be read.
    """
    return read_json(folder_of(folder, cell) / "result.json")


def history_of(folder: Path, cell: Cell) -> list[dict[str, Any]]:
    """A line an epoch, in their order; an epoch that was trained twice after an interruption counts once.

    Raises:
        FileNotFoundError: the cell's folder lacks the file.
        ValueError: a line is no JSON, or no epoch.
    """
    epochs = {}
    for number, text in enumerate((folder_of(folder, cell) / HISTORY).read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
            epochs[line["epoch"]] = line
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"line {number} of {HISTORY} is no epoch ({error})") from None
    return [epochs[epoch] for epoch in sorted(epochs)]


def experts_of(folder: Path, cell: Cell) -> pd.DataFrame:
    """``test_set``, ``layer``, ``expert``, ``count``: how often each expert of each layer was chosen.

    Raises:
        FileNotFoundError: the cell's folder lacks the file; cells without a router have none.
        ValueError: it cannot be read.
    """
    try:
        return pd.read_parquet(folder_of(folder, cell) / EXPERTS)[["test_set", "layer", "expert", "count"]]
    except KeyError as error:
        raise ValueError(f"{EXPERTS} has other columns ({error})") from None


def read_each(
    cells: Iterable[Cell], read: Callable[[Cell], Read], folder: Path, name: str, *, what: str, tell: Tell
) -> dict[str, Read]:
    """What ``read`` gives for each cell that has the file ``name``, by the cell's id; a line is told for the others.

    Args:
        what: the figure that wants them, which begins the line.
    """
    found: dict[str, Read] = {}
    failed: dict[str, list[Cell]] = {}
    for cell in cells:
        try:
            found[cell.id] = read(cell)
        except FileNotFoundError:
            failed.setdefault(f"lack {name}, which published copies leave out", []).append(cell)
        except KeyError as error:
            failed.setdefault(f"are left out, their files lack the key {error}", []).append(cell)
        except (OSError, ValueError) as error:
            failed.setdefault(f"are left out, by {name}: {error}", []).append(cell)
    total = len(found) + sum(map(len, failed.values()))
    for reason, own in failed.items():
        tell(f"{what}: {len(own)} of {total} cells {reason}. {_make(folder, own[0], name)}")
    return found


def _make(folder: Path, cell: Cell, name: str) -> str:
    """The command that writes a cell's file again: the trained parameters suffice for all but the history."""
    scored = name != HISTORY and (folder_of(folder, cell) / "adapter.json").is_file()
    results = "" if folder == Path("results") else f" --results {folder}"
    return f"Next: python -m bench.cell {cell.id} {'--evaluate' if scored else '--again'}{results}"
