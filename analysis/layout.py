"""What a table is made of, before any format: columns, rows, entries, and the words around them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from analysis.paper import PaperNumber
from analysis.statistics import Summary


@dataclass(frozen=True)
class Column:
    """One metric on one test set of the dataset ``data``; neighbours of one ``group`` share a heading.

    Args:
        better: "higher", "lower", or empty where neither can be said.
        scale: what a fraction is multiplied by to be printed.
    """

    group: str
    data: str
    test_set: str
    metric: str
    label: str
    better: str
    scale: float = 100
    decimals: int = 1
    error_decimals: int = 2


@dataclass(frozen=True)
class Entry:
    """What stands where a row meets a column; numbers are in the printed scale.

    Args:
        ours: None for what was not run.
        cells: the ids of the cells behind ``ours``, and ``seeds`` their seeds, in the same order.
        below_plan: fewer runs are done than were planned or stand behind the paper's number.
        imported: the number is of maps made elsewhere: never ranked, and never compared with the paper's.
        rank: 1 for the best and 2 for the second best of our column, else 0.
        above: ours is of a complete model, and better than every fine-tuned one of ours; ``paper_above`` likewise.
        difference: ours minus the paper's; None where the two may not be compared.
        spread: "within" or "outside" that of the paper's number, or "no spread printed"; empty without a difference.
        not_run: why there is no number of ours and will be none; empty where one is there or to come.
    """

    ours: Summary | None = None
    cells: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    below_plan: bool = False
    stale: bool = False
    imported: bool = False
    rank: int = 0
    above: bool = False
    paper: PaperNumber | None = None
    paper_above: bool = False
    difference: float | None = None
    spread: str = ""
    not_run: str = ""


@dataclass(frozen=True)
class Row:
    """A row's name and size: "trainable parameters in millions / their share in percent"."""

    label: str
    size: str = ""
    paper_size: str = ""


@dataclass(frozen=True)
class Caption:
    """The words around a table: ``warnings`` come first and loud, ``notes`` stand below it."""

    warnings: tuple[str, ...]
    text: str
    notes: tuple[str, ...]


def cut(columns: Sequence[Column], most: int) -> list[Sequence[Column]]:
    """As few pieces of at most ``most`` columns as there can be, of about the same length."""
    pieces = math.ceil(len(columns) / most)
    ends = [len(columns) * piece // pieces for piece in range(pieces + 1)]
    return [columns[start:end] for start, end in pairwise(ends)]


@dataclass(frozen=True)
class Table:
    """A finished table; ``entries`` is keyed by a row's label and a column, ``setting`` is in words.

    ``name`` is that of its files; ``subject`` is the number of the paper's table, or a dataset.
    """

    name: str
    subject: str
    title: str
    setting: str
    protocol: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    entries: Mapping[tuple[str, Column], Entry]
    caption: Caption

    @cached_property
    def has_paper(self) -> bool:
        return any(entry.paper for entry in self.entries.values())

    @cached_property
    def has_difference(self) -> bool:
        return any(entry.difference is not None for entry in self.entries.values())

    @cached_property
    def has_sizes(self) -> bool:
        return any(row.size or row.paper_size for row in self.rows)

    def groups(self) -> dict[str, list[Column]]:
        """The columns by heading, in order."""
        groups: dict[str, list[Column]] = {}
        for column in self.columns:
            groups.setdefault(column.group, []).append(column)
        return groups

    def rows_of(self, columns: Sequence[Column]) -> list[Row]:
        """The rows; in a table of the paper only those with a number in ``columns``, the paper's or ours."""
        entries = {row: [self.entries[row.label, column] for column in columns] for row in self.rows}
        return [row for row, own in entries.items() if not self.has_paper or any(e.ours or e.paper for e in own)]

    def was_run(self, label: str, columns: list[Column] | None = None) -> bool:
        """Whether a row has a number of ours in any of ``columns`` (default: all)."""
        return any(self.entries[label, column].ours for column in columns or self.columns)
