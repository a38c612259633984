"""The accuracy cells of one setting with their scores under one protocol: what a table may draw from.

Imported cells are in every source beside those of its setting, and in one of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from analysis.results import DONE, Metric, Results
from analysis.setting import PAPER_PROTOCOL, Setting, assignments, short_hash

Cell = Any
"""A row of ``Results.cells`` as a named tuple, with ``row`` and ``data`` (method and dataset in words) and
``partial`` (trained on less than the whole training split; few-shot cells are whole)."""


@dataclass(frozen=True)
class Source:
    """``scores`` maps (test set, metric) to the fraction of each cell that has it, by the cell's id."""

    setting: Setting
    protocol: str
    cells: tuple[Cell, ...]
    scores: Mapping[tuple[str, str], Mapping[str, float]]
    metrics: Mapping[str, Metric]

    @cached_property
    def by_identity(self) -> Mapping[tuple[str, str, str], list[Cell]]:
        """The cells of each method, dataset and number of shots."""
        found: dict[tuple[str, str, str], list[Cell]] = {}
        for cell in self.cells:
            found.setdefault((cell.method, cell.dataset, cell.shots), []).append(cell)
        return found

    def table_name(self, what: str) -> str:
        """A file name without its ending, different for each setting and protocol."""
        protocol = () if self.protocol == PAPER_PROTOCOL else (self.protocol,)
        return "-".join((what, self.setting.slug(), *protocol))


def sources(results: Results, protocol: str) -> list[Source]:
    """A source for each setting that has scores under ``protocol``; most done cells first, imported ones last."""
    cells = results.cells[results.cells["kind"] == "accuracy"].copy()
    cells["row"] = [_row(cell) for cell in cells.itertuples()]
    cells["data"] = [_data(cell) for cell in cells.itertuples()]
    cells["partial"] = (cells["shots"] == "") & (cells["train_images"] < cells["train_images_available"])
    imported = cells[cells["imported"].astype(bool)]
    scores: dict[str, list[tuple[str, str, float]]] = {}
    scored = results.scores[results.scores["protocol"] == protocol]
    for cell, *score in zip(*(scored[key].tolist() for key in ("id", "test_set", "metric", "value")), strict=True):
        scores.setdefault(cell, []).append(tuple(score))
    found = []
    for text, own in cells.groupby("setting", sort=True):
        setting = Setting(text)
        members = own if setting.is_imported else pd.concat([own, imported])
        table: dict[tuple[str, str], dict[str, float]] = {}
        for cell in members["id"]:
            for test_set, metric, value in scores.get(cell, ()):
                table.setdefault((test_set, metric), {})[cell] = value
        if own["id"].isin(scores.keys()).any():
            found.append(Source(setting, protocol, tuple(members.itertuples()), table, results.metrics))
    return sorted(found, key=lambda source: (source.setting.is_imported, -_done(source)))


def _done(source: Source) -> int:
    return sum(cell.state == DONE for cell in source.cells)


def in_words(name: str, *parts: str) -> str:
    """``name`` with those of ``parts`` that are not empty."""
    said = [part for part in parts if part]
    return f"{name} ({', '.join(said)})" if said else name


def shots_in_words(shots: str) -> str:
    """A number of shots, which may be blank."""
    return shots and f"{shots} shot{'' if shots == '1' else 's'}"


def file_part(label: str, name: str) -> str:
    """``name``, and a hash of ``label`` where that says more than the name."""
    return name if label == name else f"{name}-{short_hash(label)}"


def _row(cell: Cell) -> str:
    version = [_version(cell.method_version)] if cell.old_method else []
    imported = ["imported"] if cell.imported else []
    return in_words(cell.method, *assignments(cell.parameters), *version, *imported)


def _version(version: tuple[int, ...]) -> str:
    return f"version {'+'.join(map(str, version))}"


def _data(cell: Cell) -> str:
    version = [_version(cell.dataset_version)] if cell.old_dataset else []
    return in_words(cell.dataset, *assignments(cell.dataset_parameters), shots_in_words(cell.shots), *version)
