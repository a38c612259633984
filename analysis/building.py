"""Makes tables from results: the paper's, and plain ones for what the paper has no row or column for."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from analysis import agreement, caption, paper
from analysis.exceptions import NOT_RUN
from analysis.layout import Column, Entry, Row, Table
from analysis.paper import PaperNumber
from analysis.results import DONE, Metric
from analysis.source import Cell, Source, file_part, in_words, shots_in_words
from analysis.statistics import above_all, summarise, two_best

Picks = Mapping[tuple[str, Column], Sequence[Cell]]
"""The cells, done or not, that belong where a row meets a column."""


def paper_table(number: int, source: Source) -> Table | None:
    """A table of the paper, or None where nothing of it was run in this setting."""
    if source.setting.is_imported:
        return None
    columns, rows = _layout(number)
    picks, numbers, sizes, excused, complete = {}, {}, {}, {}, set()
    for (row, dataset), lines in rows.items():
        line, _ = lines[0]
        cells = paper.cells_of(line, source.by_identity.get((line.our_method, line.our_dataset, line.shots), ()))
        # Runs have all metrics of a dataset, also where the paper leaves a place blank.
        picks |= {(row, column): cells for column in columns[dataset]}
        sizes[row] = paper.size(line)
        complete |= {row} if line.ratio_percent == paper.COMPLETE else set()
        for line, column in lines:
            numbers[row, column] = PaperNumber(line.value, line.standard_error, int(line.paper_runs))
            excused[row, column] = NOT_RUN.get(line.our_method, "")
    title = f"Table {number} of Convolution Meets LoRA: {paper.TITLES[number]}"
    note = paper.NOTES.get(number, "")
    return _assemble(
        source, str(number), f"table{number}", title, picks,
        numbers=numbers, paper_sizes=sizes, excused=excused, complete=complete, note=note,
    )  # fmt: skip


@cache
def _layout(number: int) -> tuple[dict[str, list[Column]], dict[tuple[str, str], list[tuple[Any, Column]]]]:
    """A table's columns by the paper's dataset, and its lines, each with its column, by row and dataset."""
    grouped: dict[tuple[str, str], list[Any]] = {}
    for line in paper.scored_lines(number).itertuples():
        grouped.setdefault((line.dataset, line.our_metric), []).append(line)
    columns: dict[str, list[Column]] = {}
    rows: dict[tuple[str, str], list[tuple[Any, Column]]] = {}
    made = {key: _paper_column(lines) for key, lines in grouped.items()}
    for (dataset, _), column in made.items():
        columns.setdefault(dataset, []).append(column)
    for line in paper.scored_lines(number).itertuples():
        rows.setdefault((line.method, line.dataset), []).append((line, made[line.dataset, line.our_metric]))
    return columns, rows


def plain_tables(source: Source, *, without: Iterable[Table] = (), only: str | None = None) -> list[Table]:
    """A table for each dataset with everything that was run on it.

    Args:
        without: leave out the datasets whose results all stand in these tables already.
        only: make the tables of this dataset and of no other.
    """
    entries = [item for table in without for item in table.entries.items()]
    shown = {(cell, column.test_set) for (_, column), entry in entries for cell in entry.cells}
    by_data: dict[str, list[Cell]] = {}
    for cell in source.cells:
        by_data.setdefault(cell.data, []).append(cell)
    tables = []
    for data, cells in sorted(by_data.items(), key=lambda item: _by_number(item[0])):
        ids = {cell.id for cell in cells}
        own = {(cell, test_set) for (test_set, _), scores in source.scores.items() for cell in ids & scores.keys()}
        wanted = bool(own - shown) if only is None else only == cells[0].dataset
        table = _plain_table(source, data, cells) if own and wanted else None
        tables += [table] if table else []
    return tables


def _paper_column(lines: Sequence[Any]) -> Column:
    first = lines[0]
    group, label, better = paper.heading(first)
    decimals = _decimals(line.value for line in lines)
    return Column(
        group=group,
        data=in_words(first.our_dataset, shots_in_words(first.shots)),
        test_set=first.test_set,
        metric=first.our_metric,
        label=label,
        better=better,
        scale=float(first.scale),
        decimals=decimals,
        error_decimals=_decimals(line.standard_error for line in lines) or max(2, decimals),
    )


def _decimals(numbers: Iterable[str]) -> int:
    """The most decimals that any of some printed numbers has."""
    return max(len(number.partition(".")[2]) for number in numbers)


def _plain_table(source: Source, data: str, cells: Sequence[Cell]) -> Table | None:
    done = [cell for cell in cells if cell.state == DONE]
    done = [cell for cell in done if not cell.imported] or done
    dataset = done[0].dataset
    title = done[0].title + data.removeprefix(dataset)
    columns = _plain_columns(source, data, title, done)
    by_row: dict[str, list[Cell]] = {}
    for cell in sorted(cells, key=_place):
        by_row.setdefault(cell.row, []).append(cell)
    picks = {(row, column): own for row, own in by_row.items() for column in columns}
    return _assemble(source, dataset, file_part(data, dataset), f"Results on {title}", picks)


def _plain_columns(source: Source, data: str, title: str, done: Sequence[Cell]) -> list[Column]:
    """The dataset's own metrics on each of its test sets, where any cell has them."""
    metrics = dict.fromkeys(metric for cell in done for metric in cell.dataset_metrics)
    test_sets = dict.fromkeys(test_set for cell in done for test_set in cell.images)
    ids = {cell.id for cell in done}
    columns = []
    for test_set in test_sets:
        group = title if len(test_sets) == 1 else f"{title}: {test_set}"
        for metric in metrics:
            if ids & source.scores.get((test_set, metric), {}).keys():
                known = source.metrics.get(metric, Metric(metric, ""))
                columns.append(Column(group, data, test_set, metric, known.label, known.better))
    return columns


def _place(cell: Cell) -> tuple[Any, ...]:
    """Sorts cells by the paper's order of methods; those it does not know come last, by name."""
    order = paper.method_order()
    return order.get(cell.method, len(order)), cell.method, _by_number(cell.row)


def _by_number(text: str) -> list[str | int]:
    """Sorts texts that differ in a number by that number: rank 6 before rank 12."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", text)]


def _assemble(
    source: Source,
    subject: str,
    file_name: str,
    title: str,
    picks: Picks,
    *,
    numbers: Mapping[tuple[str, Column], PaperNumber] | None = None,
    paper_sizes: Mapping[str, str] | None = None,
    excused: Mapping[tuple[str, Column], str] | None = None,
    complete: Collection[str] = (),
    note: str = "",
) -> Table | None:
    """The table of ``picks``, or None where none of its cells has a score, or only imported ones beside a setting's.

    Args:
        excused: why there is no number of ours where there is none.
        complete: the rows of models that were trained whole, which stand outside the ranking of what was fine-tuned.
    """
    numbers, paper_sizes, excused = numbers or {}, paper_sizes or {}, excused or {}
    by_column: dict[Column, dict[str, Sequence[Cell]]] = {}
    for (row, column), cells in picks.items():
        by_column.setdefault(column, {})[row] = cells
    rows = dict.fromkeys(row for row, _ in picks)
    entries = {(row, column): Entry() for row in rows for column in by_column}
    for column, own in by_column.items():
        planned = len({cell.seed for cells in own.values() for cell in cells if not cell.imported})
        made = {row: _entry(source, column, cells, planned, numbers.get((row, column))) for row, cells in own.items()}
        fresh = any(c.state == DONE and not (c.stale or c.imported) for cells in own.values() for c in cells)
        for row, entry in _placed(made, column, complete, fresh=fresh).items():
            entries[row, column] = entry if entry.ours else replace(entry, not_run=excused.get((row, column), ""))
    if not any(entry.ours if source.setting.is_imported else _ranked(entry) for entry in entries.values()):
        return None
    cells_of: dict[str, dict[str, Cell]] = {}
    for (row, _), cells in picks.items():
        cells_of.setdefault(row, {}).update({cell.id: cell for cell in cells})
    return Table(
        name=source.table_name(file_name),
        subject=subject,
        title=title,
        setting=source.setting.in_full(),
        protocol=source.protocol,
        columns=tuple(by_column),
        rows=tuple(Row(row, _size(cells.values()), paper_sizes.get(row, "")) for row, cells in cells_of.items()),
        entries=entries,
        caption=caption.write(source, entries, {row: list(of.values()) for row, of in cells_of.items()}, note=note),
    )


def _placed(made: Mapping[str, Entry], column: Column, complete: Collection[str], *, fresh: bool) -> dict[str, Entry]:
    """The entries of a column with their places.

    A complete model's number has no place, but is marked where it is better than those of all fine-tuned ones: the
    paper's own way with its domain-specific systems, table 1.

    Args:
        fresh: some cells of the column are not stale; what holds stale ones then has no place beside them, nor a
            difference to the paper.
    """
    refused = {row for row, entry in made.items() if entry.stale and fresh}
    ours = {row: round(e.ours.mean, column.decimals) for row, e in made.items() if _ranked(e) and row not in refused}
    papers = {row: float(entry.paper.value) for row, entry in made.items() if entry.paper}
    ranks = two_best({row: value for row, value in ours.items() if row not in complete}, better=column.better)
    above, paper_above = (above_all(values, complete, better=column.better) for values in (ours, papers))
    placed = {}
    for row, entry in made.items():
        places = {"rank": ranks.get(row, 0), "above": row in above, "paper_above": row in paper_above}
        placed[row] = replace(entry, **places, **({"difference": None, "spread": ""} if row in refused else {}))
    return placed


def _ranked(entry: Entry) -> bool:
    return entry.ours is not None and not entry.imported


def _entry(source: Source, column: Column, cells: Sequence[Cell], planned: int, number: PaperNumber | None) -> Entry:
    """Our runs as one entry, or imported scores where there are none; ``planned``: the most seeds any row has."""
    scores = source.scores.get((column.test_set, column.metric), {})
    used = sorted((cell for cell in cells if cell.id in scores), key=lambda cell: (cell.seed, cell.id))
    used = [cell for cell in used if not cell.imported] or used
    if not used:
        return Entry(paper=number)
    imported = used[0].imported
    ours = summarise([scores[cell.id] * column.scale for cell in used])
    apart = imported or any(cell.partial for cell in used) or agreement.other_data(used, column.test_set)
    comparable = number and not (apart or source.setting.departures(source.protocol))
    difference = ours.mean - float(number.value) if comparable else None
    return Entry(
        ours=ours,
        cells=tuple(cell.id for cell in used),
        seeds=tuple(cell.seed for cell in used),
        below_plan=not imported and ours.n < max(planned, number.runs if number else 0),
        stale=any(cell.stale for cell in used),
        imported=imported,
        paper=number,
        difference=difference,
        spread=agreement.verdict(ours, number, difference) if comparable else "",
    )


def _size(cells: Iterable[Cell]) -> str:
    """Trainable parameters in millions and their share of the model; a range where the cells differ."""
    done = [cell for cell in cells if cell.state == DONE and not cell.imported]
    if not done:
        return ""
    millions = _range(cell.trainable / 1e6 for cell in done)
    return f"{millions} / {_range(100 * cell.trainable / cell.total for cell in done)}"


def _range(values: Iterable[float]) -> str:
    values = sorted(values)
    return "-".join(dict.fromkeys(f"{value:.2f}" for value in (values[0], values[-1])))
