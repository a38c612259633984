"""The tables of :mod:`analysis.tables` as HTML: the paper's numbers beside ours, and the cells behind each of ours."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from analysis.layout import Column, Entry, Row, Table
from analysis.render import (
    NOT_RUN,
    SIZE_HEADING,
    difference,
    emphasis,
    heading,
    paper_emphasis,
    paper_pieces,
    pieces,
    spread,
)  # fmt: skip
from analysis.reporting.behind import Behind
from analysis.reporting.grid import Head, Value, filter_box, grid
from analysis.reporting.html import Child, Markup, join, tag

MOST_OPEN = 6
"""Tables that are unfolded when the page opens."""
MOST_NUMBERS = 20_000
"""Of ours in one page; tables beyond them are named with their command."""


def score_tables(tables: Sequence[Table], behind: Behind, options: str) -> Markup:
    """All tables, the first unfolded; what is too much for one page is named.

    Args:
        options: what follows a command, " --results FOLDER" or nothing.
    """
    blocks, numbers, left_out = [], 0, []
    for table in tables:
        numbers += sum(entry.ours is not None for entry in table.entries.values())
        if blocks and numbers > MOST_NUMBERS:
            left_out.append(table)
            continue
        summary = tag("summary", table.title, tag("span", f" {table.setting}", class_="setting"))
        blocks.append(
            tag("details", summary, _table(table, behind), open=len(blocks) < MOST_OPEN, id=f"table-{table.name}")
        )
    if left_out:
        command = f"python -m analysis.tables{options}"
        told = f"{len(left_out)} of {len(tables)} tables would make this page too large to use. They are printed by "
        names = tag("ul", [tag("li", f"{table.title}; {table.setting}") for table in left_out])
        blocks += [tag("p", told, tag("code", command), ".", class_="warning")]
        blocks += [tag("details", tag("summary", "The tables left out"), names)]
    return join(blocks)


def _table(table: Table, behind: Behind) -> Markup:
    run, absent = _grids(table, behind)
    said = table.caption
    parts = [tag("p", line, class_="warning") for line in said.warnings]
    parts += [tag("p", said.text, class_="caption"), filter_box(f"Filter rows of {table.title}"), run]
    if absent:
        names = ", ".join(name for name in table.groups() if not _was_run(table, name))
        parts.append(tag("details", tag("summary", f"Not run here, the paper's numbers alone: {names}"), absent))
    parts += [tag("p", note, class_="note") for note in said.notes]
    return tag("section", parts)


def _grids(table: Table, behind: Behind) -> tuple[list[Markup], list[Markup]]:
    """A grid for each group of columns: those with a number of ours, and those with the paper's alone."""
    run, absent = [], []
    for name, columns in table.groups().items():
        rows = table.rows_of(columns)
        made = grid(name, _heads(table, columns), [(row.label, _values(table, row, columns, behind)) for row in rows])
        (run if _was_run(table, name) else absent).append(made)
    return run, absent


def _was_run(table: Table, group: str) -> bool:
    columns = table.groups()[group]
    return any(table.was_run(row.label, columns) for row in table.rows)


def _heads(table: Table, columns: Sequence[Column]) -> Iterator[Head]:
    yield Head("Method")
    if table.has_sizes:
        yield Head(SIZE_HEADING)
        if table.has_paper:
            yield Head("paper", f"{SIZE_HEADING}, paper")
    for column in columns:
        first = "ascending" if column.better == "lower" else "descending"
        yield Head(heading(column), first=first)
        if table.has_paper:
            yield Head("paper", f"{column.label}, paper", first)
        if table.has_difference:
            yield Head("difference", f"{column.label}, difference", first)


def _values(table: Table, row: Row, columns: Sequence[Column], behind: Behind) -> Iterator[Value]:
    if table.has_sizes:
        yield Value(row.size, _leading_number(row.size))
        if table.has_paper:
            yield Value(row.paper_size, _leading_number(row.paper_size))
    for column in columns:
        entry = table.entries[row.label, column]
        yield _ours(entry, column, behind)
        if table.has_paper:
            yield _paper(entry)
        if table.has_difference:
            yield Value([difference(entry, column), _aside(spread(entry) and f" {spread(entry)}")], entry.difference)


def _ours(entry: Entry, column: Column, behind: Behind) -> Value:
    mean, error, remarks = pieces(entry, column)
    if entry.ours is None:
        return Value(tag("span", mean, class_="absent") if mean == NOT_RUN else mean)
    shown = [_emphasised(mean, emphasis(entry)), _aside(error + remarks)]
    runs = behind.values(entry.cells, column.test_set, column.metric, column.scale)
    return Value(behind.number(shown, entry.cells, runs), entry.ours.mean)


def _paper(entry: Entry) -> Value:
    value, error = paper_pieces(entry)
    shown = [_emphasised(value, paper_emphasis(entry)), _aside(error)]
    return Value(tag("span", shown, class_="paper") if value else "", _leading_number(value))


def _emphasised(text: str, how: str) -> Child:
    return {"bold": tag("strong", text), "underline": tag("u", text)}.get(how, text)


def _aside(text: str) -> Markup | None:
    return tag("span", text, class_="error") if text else None


def _leading_number(text: str) -> float | None:
    """The number a text begins with: of a size or a range the first."""
    found = re.match(r"[-+]?\d+(\.\d+)?", text)
    return float(found[0]) if found else None
