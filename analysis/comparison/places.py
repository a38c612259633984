"""Where methods meet: one metric on one test set of one dataset, in one setting, under one protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from analysis import caption, paper
from analysis.comparison.statistic import NOT_KEPT
from analysis.layout import Column, Entry
from analysis.results import DONE, Metric, NoResults, Results
from analysis.source import Cell, Source, file_part, sources
from analysis.statistics import summarise


@dataclass(frozen=True)
class Place:
    """The done cells that can be compared with each other, by row and seed.

    Attributes:
        runs: row -> seed -> cell; rows in the order of the paper's table 1, others after them. Imported scores, of
            whose training nothing is known, are not among them.
        warnings, notes: as in the caption of a table of these cells.
    """

    source: Source
    column: Column
    runs: Mapping[str, Mapping[int, Cell]]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    @cached_property
    def name(self) -> str:
        """Of files, without an ending."""
        first = self.cells[0]
        what = self.source.table_name(file_part(self.column.data, first.dataset))
        return f"{what}-{self.column.test_set}-{self.column.metric}".replace(":", "-").replace("/", "-")

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        return tuple(cell for runs in self.runs.values() for cell in runs.values())

    @cached_property
    def setting(self) -> str:
        """In words."""
        return self.source.setting.in_full()

    def scores(self, row: str) -> dict[int, float]:
        """The row's score by seed, as ``result.json`` has it, in the printed scale."""
        known = self.source.scores[self.column.test_set, self.column.metric]
        return {seed: known[cell.id] * self.column.scale for seed, cell in self.runs[row].items()}

    def mean(self, row: str) -> float:
        """The mean of :meth:`scores`."""
        return summarise(list(self.scores(row).values())).mean


def places(
    results: Results, *, protocol: str = "paper", dataset: str | None = None, metric: str | None = None
) -> list[Place]:
    """A place for each setting, dataset and test set with scores, in the order of the tables.

    Args:
        metric: by default the leading one of each dataset.

    Raises:
        NoResults: an unknown dataset or metric; the message lists those there are.
    """
    _check("dataset", dataset, sorted(set(results.cells["dataset"])))
    kept = results.scores.loc[results.scores["protocol"] == protocol, "metric"]
    _check("metric", metric, sorted(set(kept) - NOT_KEPT.keys()), why=NOT_KEPT.get(metric or "", ""))
    found = []
    for source in sources(results, protocol):
        by_data: dict[str, list[Cell]] = {}
        for cell in source.cells:
            if not cell.imported and dataset in (None, cell.dataset):
                by_data.setdefault(cell.data, []).append(cell)
        for data, cells in sorted(by_data.items()):
            done = [cell for cell in cells if cell.state == DONE]
            for test_set in dict.fromkeys(name for cell in done for name in cell.images):
                place = _place(source, data, test_set, metric or done[0].dataset_metrics[0], cells)
                found += [place] if place else []
    return found


def _place(source: Source, data: str, test_set: str, metric: str, cells: Sequence[Cell]) -> Place | None:
    """The place of the cells with a score, or None where none has one."""
    scores = source.scores.get((test_set, metric), {})
    order = paper.method_order()
    scored = [cell for cell in cells if cell.id in scores]
    if not scored:
        return None
    scored.sort(key=lambda cell: (order.get(cell.method, len(order)), cell.row, cell.seed, cell.id))
    runs: dict[str, dict[int, Cell]] = {}
    for cell in scored:
        runs.setdefault(cell.row, {}).setdefault(cell.seed, cell)
    test_sets = {name for cell in scored for name in cell.images}
    title = scored[0].title + data.removeprefix(scored[0].dataset)
    known = source.metrics.get(metric, Metric(metric, ""))
    group = title if len(test_sets) == 1 else f"{title}: {test_set}"
    column = Column(group, data, test_set, metric, known.label, known.better)
    entries = {
        (row, column): Entry(
            ours=summarise([scores[cell.id] * column.scale for cell in own.values()]),
            cells=tuple(cell.id for cell in own.values()),
            seeds=tuple(own),
            stale=any(cell.stale for cell in own.values()),
        )
        for row, own in runs.items()
    }
    said = caption.write(source, entries, {row: [cell for cell in cells if cell.row == row] for row in runs})
    notes = tuple(note for note in said.notes if not note.startswith(caption.DAGGER))
    return Place(source, column, runs, (*said.warnings, *_stale(runs)), notes)


def _stale(runs: Mapping[str, Mapping[int, Cell]]) -> Iterator[str]:
    """Which cells take part though they are stale: loudly, for what differs may be the code."""
    stale = {row: [seed for seed, cell in own.items() if cell.stale] for row, own in runs.items()}
    named = [f"{row} seed {', '.join(map(str, seeds))}" for row, seeds in stale.items() if seeds]
    if named:
        changed = sorted({name for own in runs.values() for cell in own.values() for name in cell.stale})
        yield (
            f"STALE, made before a change of {', '.join(changed)}, which may be all that differs: {'; '.join(named)}. "
            "To run them again: python -m bench.run with --rerun stale."
        )


def _check(what: str, name: str | None, known: Sequence[str], *, why: str = "") -> None:
    if name is not None and name not in known:
        reason = f"{name} cannot be compared: {why}" if why else f"unknown {what} {name!r}"
        usual = f" Next: python -m analysis.compare --{what} {known[0]}" if known else ""
        raise NoResults(f"{reason}. Known: {', '.join(known) or 'none'}.{usual}")
