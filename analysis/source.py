"""The accuracy cells of one setting with their scores under one protocol: what a table may draw from.

Imported cells are in every source beside those of its setting, and in one of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from analysis import mixing
from analysis.results import DONE, Metric, Results
from analysis.setting import PAPER_PROTOCOL, Setting, assignments, short_hash

Cell = Any
"""A row of ``Results.cells`` as a named tuple, with ``row`` and ``data`` (method and dataset in words) and
``partial`` (trained on less than the whole training split; few-shot cells are whole)."""

Score = tuple[str, str, float]
"""Test set, metric and fraction."""


@dataclass(frozen=True)
class Source:
    """What a table may draw from.

    ``scores`` maps (test set, metric) to the fraction of each cell that has it, by the cell's id. ``elsewhere`` are the
    done cells that only their data's or checkpoint's copy keeps in another source; ``twins`` are pairs of a cell that
    is used and one that is the same training again, whose scores are not.
    """

    setting: Setting
    protocol: str
    cells: tuple[Cell, ...]
    scores: Mapping[tuple[str, str], Mapping[str, float]]
    metrics: Mapping[str, Metric]
    elsewhere: tuple[Cell, ...] = ()
    twins: tuple[tuple[Cell, Cell], ...] = ()

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
    cells, scores = _cells(results), _scores(results, protocol)
    twins = _without_twins(mixing.twins(cells), scores)
    left_out = {cell.id for _, cell in twins if not scores[cell.id]}
    by_setting: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.id not in left_out:
            by_setting.setdefault(cell.setting, []).append(cell)
    imported = [cell for cell in cells if cell.imported]
    named: dict[str, list[Cell]] = {}
    for text, own in by_setting.items():
        named.setdefault(Setting(text).named, []).extend(cell for cell in own if cell.state == DONE)
    found = []
    for text, own in sorted(by_setting.items()):
        if not any(scores.get(cell.id) for cell in own):
            continue
        setting = Setting(text)
        members = own if setting.is_imported else own + imported
        table: dict[tuple[str, str], dict[str, float]] = {}
        for cell in members:
            for test_set, metric, value in scores.get(cell.id, ()):
                table.setdefault((test_set, metric), {})[cell.id] = value
        elsewhere = tuple(cell for cell in named[setting.named] if cell.setting != text)
        own_twins = tuple(pair for pair in twins if pair[0].setting == text)
        found.append(Source(setting, protocol, tuple(members), table, results.metrics, elsewhere, own_twins))
    return sorted(found, key=lambda source: (source.setting.is_imported, -_done(source)))


def _cells(results: Results) -> list[Cell]:
    """The accuracy cells, each with what a source adds, and in a setting that tells copies of the data apart."""
    cells = results.cells[results.cells["kind"] == "accuracy"].copy()
    cells["row"] = [_row(cell) for cell in cells.itertuples()]
    cells["data"] = [_data(cell) for cell in cells.itertuples()]
    cells["partial"] = (cells["shots"] == "") & (cells["train_images"] < cells["train_images_available"])
    cells["setting"] = mixing.settings(list(cells.itertuples()))
    return list(cells.itertuples())


def _scores(results: Results, protocol: str) -> dict[str, list[Score]]:
    """The scores of each cell, by its id."""
    scores: dict[str, list[Score]] = {}
    scored = results.scores[results.scores["protocol"] == protocol]
    for cell, *score in zip(*(scored[key].tolist() for key in ("id", "test_set", "metric", "value")), strict=True):
        scores.setdefault(cell, []).append(tuple(score))
    return scores


def _without_twins(twins: list[list[Cell]], scores: dict[str, list[Score]]) -> list[tuple[Cell, Cell]]:
    """Takes from ``scores`` what a training has a second time; returns pairs of a cell and a twin that lost some."""
    pairs = []
    for used, *others in twins:
        taken = {score[:2] for score in scores.get(used.id, ())}
        for cell in others:
            own = scores.get(cell.id, [])
            scores[cell.id] = [score for score in own if score[:2] not in taken]
            taken |= {score[:2] for score in own}
            if len(scores[cell.id]) < len(own):
                pairs.append((used, cell))
    return pairs


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
