"""What is shown side by side: a test set, and a trained cell of each of some methods in one setting."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.comparison.places import Place, places
from analysis.results import NoResults, Results, next_command, read_json
from analysis.source import Cell

PER_IMAGE = "per_image.parquet"
ADAPTER = ("adapter.json", "adapter.safetensors")
Recorded = Mapping[str, Mapping[int, Mapping[str, np.ndarray]]]
"""Row -> seed -> image -> what :meth:`Subject.confusions` reads."""

_COMMA = re.compile(r",\s*(?![^()]*\))")


@dataclass(frozen=True)
class Subject:
    """A test set in one setting, and the cells behind what is shown of it.

    Attributes:
        place: dataset, test set, setting and protocol, with the cells of the rows that are shown and no others.
        rows: in the order in which they are shown.
        seed: of the cells whose models are opened.
        folder: the results folder.
    """

    place: Place
    rows: tuple[str, ...]
    seed: int
    folder: Path

    @property
    def test_set(self) -> str:
        return self.place.column.test_set

    @property
    def protocol(self) -> str:
        return self.place.source.protocol

    @property
    def shown(self) -> dict[str, Cell]:
        """The cell of each row that is opened."""
        return {row: self.place.runs[row][self.seed] for row in self.rows}

    @cached_property
    def seeds(self) -> list[int]:
        """Those that every row has: over these the rows are compared."""
        return sorted(set.intersection(*(set(self.place.runs[row]) for row in self.rows)))

    @cached_property
    def titles(self) -> dict[str, str]:
        """What the rows are called in a figure: the methods' titles, and parameters that are not the default."""
        named = {}
        for row, cell in self.shown.items():
            method = read_json(self.path(cell) / "result.json")["resolved"]["method"]
            named[row] = row.replace(cell.method, method.get("title", cell.method), 1)
        return named

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """All class names; none for binary masks."""
        first = next(iter(self.shown.values()))
        return tuple(read_json(self.path(first) / "result.json").get("classes", ()))

    def path(self, cell: Cell) -> Path:
        """A cell's folder."""
        return self.folder / "cells" / cell.id

    def recorded(self) -> Recorded:
        """What was counted when the cells were scored, of the seeds that all rows have.

        Raises:
            NoResults: see :meth:`confusions`.
        """
        return {row: {seed: self.confusions(self.place.runs[row][seed]) for seed in self.seeds} for row in self.rows}

    def confusions(self, cell: Cell) -> dict[str, np.ndarray]:
        """What was counted when a cell was scored: image -> (K, K) pixels by truth and prediction, K = 2 if binary.

        Raises:
            NoResults: the file is not there, or lacks what is needed.
        """
        path = self.path(cell) / PER_IMAGE
        command = f"Next: {again(self.path(cell))}"
        try:
            table = pd.read_parquet(path)
            table = table[(table["test_set"] == self.test_set) & (table["protocol"] == self.protocol)]
            if table.empty:
                raise ValueError(f"no image of {self.test_set} under the protocol {self.protocol}")
            names = table["image"].tolist()
            if self.classes:
                side = len(self.classes)
                counts = np.stack(table["confusion"].tolist()).reshape(-1, side, side)
            else:
                counts = table[["tn", "fp", "fn", "tp"]].to_numpy().reshape(-1, 2, 2)
        except FileNotFoundError:
            raise NoResults(f"{path} is missing (a published copy leaves it out). {command}") from None
        except (KeyError, ValueError, OSError) as error:
            raise NoResults(f"{path} cannot be read: {error}. {command}") from None
        return dict(zip(names, counts, strict=True))


def subjects(
    results: Results,
    folder: Path,
    *,
    methods: Sequence[str],
    fewest: int,
    protocol: str,
    seed: int = 0,
    datasets: Sequence[str] = (),
    test_sets: Sequence[str] = (),
) -> tuple[list[Subject], list[str]]:
    """Everything that can be shown, and a line for each test set of which it cannot, or not all of it.

    Args:
        folder: the results folder.
        methods: rows of the tables, in the order in which they are shown; those that were not run are left out.
        fewest: how many of them there have to be.
        seed: of the cells that are shown.
        datasets, test_sets: none means all.

    Raises:
        NoResults: a dataset or a test set that no cell has, or nothing to show.
    """
    every = places(results, protocol=protocol)
    _check("dataset", datasets, {_dataset(place) for place in every})
    _check("test set", test_sets, {place.column.test_set for place in every})
    found, lacking = [], []
    for place in every:
        asked = (datasets, _dataset(place)), (test_sets, place.column.test_set)
        if any(names and name not in names for names, name in asked):
            continue
        rows = tuple(row for row in methods if seed in place.runs.get(row, ()))
        if len(rows) >= fewest:
            found.append(Subject(_of_rows(results, place, rows), rows, seed, folder))
            without = [row for row in methods if row in place.runs and row not in rows]
            of = f"{place.column.data}/{place.column.test_set}"
            lacking += [f"{of}: {row} has no done cell of seed {seed} and is left out" for row in without]
        else:
            lacking.append(_lacking(place, methods, fewest=fewest, seed=seed, folder=folder))
    if not found:
        raise NoResults("; ".join(lacking) or f"no scores under the protocol {protocol}. {next_command(folder)}")
    return found, lacking


def _lacking(place: Place, methods: Sequence[str], *, fewest: int, seed: int, folder: Path) -> str:
    """Why there is nothing to show of a place."""
    of = f"{place.column.data}/{place.column.test_set}"
    there = [row for row in methods if row in place.runs]
    if len(there) >= fewest:
        seeds = sorted({other for row in there for other in place.runs[row]})
        listed = ", ".join(map(str, seeds))
        return f"{of}: {', '.join(there)} have seeds {listed} and not {seed}. Next: --seed-of-cells {seeds[0]}"
    needs = (
        f"{of}: needs {fewest} methods; of those asked for ({', '.join(methods)}) done: {', '.join(there) or 'none'}"
    )
    if len(place.runs) >= fewest:
        others = [row for row in place.runs if row not in there]
        chosen = ",".join([*there, *others][:fewest])
        return f"{needs}; others done: {', '.join(others)}. Next: --methods '{chosen}'"
    return f"{needs}. {next_command(folder)}"


def _of_rows(results: Results, place: Place, rows: Sequence[str]) -> Place:
    """The same place with the cells of these rows alone, so that its warnings are theirs."""
    ids = [cell.id for row in rows for cell in place.runs[row].values()]
    own = replace(results, cells=results.cells[results.cells["id"].isin(ids)])
    same = places(own, protocol=place.source.protocol, metric=place.column.metric)
    return next(other for other in same if other.column.test_set == place.column.test_set)


def rows_named(text: str, results: Results, protocol: str) -> list[str]:
    """The rows of a list with commas; those within the parentheses of a row separate nothing.

    Raises:
        NoResults: a name that no row has, or one that is there twice; the message lists the rows.
    """
    names = [name.strip() for name in _COMMA.split(text)]
    _check("method", names, {row for place in places(results, protocol=protocol) for row in place.runs})
    if len(set(names)) < len(names):
        raise NoResults(f"--methods {text!r} names a method twice; name each once")
    return names


def again(folder: Path) -> str:
    """What makes a cell's files again: its scores, or where its trained parameters are not there, all of them."""
    results = folder.parent.parent
    command, where = (
        f"python -m bench.cell {folder.name}",
        "" if results == Path("results") else f" --results {results}",
    )
    if all((folder / name).is_file() for name in ADAPTER):
        return f"{command} --evaluate{where}"
    return f"name the results folder it was trained in by --results, or {command} --again{where}"


def _dataset(place: Place) -> str:
    return place.cells[0].dataset


def _check(what: str, names: Sequence[str], known: Iterable[str]) -> None:
    known = sorted(known)
    for name in names:
        if name not in known:
            raise NoResults(f"unknown {what} {name!r}. With results here: {', '.join(known) or 'none'}")
