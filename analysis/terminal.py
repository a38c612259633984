"""Tables for a terminal of 80 columns and more: what was run, with the paper's numbers below ours."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

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
)

_GAP = 2
_LONGEST_NAME = 32
_LINES = {"paper": "  paper", "difference": "  difference"}
_SIZE = SIZE_HEADING.replace(" ", "\n", 1)


def show(table: Table, console: Console) -> None:
    """Prints ``table``; groups of columns of which nothing was run are only named."""
    console.print(Text(table.title, style="bold"))
    _paragraphs(console, table.caption.warnings, "bold red")
    _paragraphs(console, [table.caption.text], "dim")
    run = [group for group in table.groups().values() if any(table.was_run(row.label, group) for row in table.rows)]
    for number, columns in enumerate(_parts(table, run, console.width)):
        console.print()
        with_size = table.has_sizes and number == 0
        if len(table.groups()) > 1:
            console.print(_group_names(table, columns, with_size=with_size))
        console.print(_grid(table, columns, with_size=with_size))
    console.print()
    absent = [name for name, group in table.groups().items() if group not in run]
    notes = [f"Not run here, in the files only: {', '.join(absent)}."] if absent else []
    _paragraphs(console, [*notes, *table.caption.notes], "")
    if notes or table.caption.notes:
        console.print()


def _paragraphs(console: Console, texts: Iterable[str], style: str) -> None:
    for text in texts:
        console.print(Padding(Text(text, style=style), (0, 0, 0, 2)))


def _parts(table: Table, groups: Sequence[list[Column]], width: int) -> list[list[Column]]:
    """The columns cut into parts that fit side by side: as few as possible, and of about the same width.

    A group is only cut where it is too wide on its own.
    """
    size = _GAP + _size_width(table) if table.has_sizes else 0
    room = max(0, width - _name_width(table))
    widths = {column: _GAP + len(_aligned(table, column)[0][0]) for group in groups for column in group}
    units = []
    for group in groups:
        fits = size + sum(widths[column] for column in group) <= room
        units += [group] if fits else [[column] for column in group]

    def pack(limit: int) -> list[list[Column]]:
        parts: list[list[Column]] = [[]]
        used = size
        for unit in units:
            needed = sum(widths[column] for column in unit)
            if parts[-1] and used + needed > limit:
                parts.append([])
                used = 0
            parts[-1] += unit
            used += needed
        return parts

    fewest = len(pack(room))
    return next(parts for limit in range(room + 1) if len(parts := pack(limit)) <= fewest)


def _name_width(table: Table) -> int:
    return min(_LONGEST_NAME, max(len(name) for name in [*_LINES.values(), *(row.label for row in table.rows)]))


def _size_width(table: Table) -> int:
    sizes = [text for row in table.rows for text in (row.size, row.paper_size)]
    return max(len(text) for text in [*_SIZE.split("\n"), *sizes])


def _group_names(table: Table, columns: list[Column], *, with_size: bool) -> Text:
    """The name of each group over all of its columns."""
    blocks = [[" " * (_name_width(table) + _GAP + with_size * (_size_width(table) + _GAP))]]
    for name, own in groupby(columns, lambda column: column.group):
        width = sum(_GAP + len(_aligned(table, column)[0][0]) for column in own)
        blocks.append([f"{line:<{width}}" for line in textwrap.wrap(name, width - _GAP)])
    height = max(map(len, blocks))
    padded = [[" " * len(block[0])] * (height - len(block)) + block for block in blocks]
    return Text("\n".join("".join(line).rstrip() for line in zip(*padded, strict=True)), no_wrap=True)


def _grid(table: Table, columns: list[Column], *, with_size: bool) -> Grid:
    grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0), header_style="")
    grid.add_column("Method", width=_name_width(table), vertical="bottom")
    if with_size:
        grid.add_column(_SIZE, no_wrap=True, vertical="bottom", justify="right")
    aligned = {column: _aligned(table, column) for column in columns}
    for column in columns:
        grid.add_column(Text("\n".join(aligned[column][0])), no_wrap=True, vertical="bottom")
    for row in table.rows_of(columns):
        for name, size, kind, style in _lines(table, row, columns):
            cells = [_styled(aligned[c][1][row.label, kind], table.entries[row.label, c], kind) for c in columns]
            grid.add_row(Text(name), *([Text(size)] if with_size else []), *cells, style=style)
    return grid


def _lines(table: Table, row: Row, columns: list[Column]) -> Iterator[tuple[str, str, str, str]]:
    """The lines of a row as name, size, kind and style: ours, the paper's, the difference."""
    yield row.label, row.size, "ours", "" if table.was_run(row.label, columns) else "dim"
    if any(table.entries[row.label, column].paper for column in columns):
        yield _LINES["paper"], row.paper_size, "paper", "dim"
    if any(table.entries[row.label, column].difference is not None for column in columns):
        yield _LINES["difference"], "", "difference", "dim"


def _pieces(table: Table, column: Column) -> dict[tuple[str, str], tuple[str, str, str]]:
    """The texts of a column by row and kind, in three pieces: number, error, remarks."""
    parts = {}
    for row in table.rows:
        entry = table.entries[row.label, column]
        parts[row.label, "ours"] = pieces(entry, column)
        parts[row.label, "paper"] = (*paper_pieces(entry), "")
        parts[row.label, "difference"] = (difference(entry, column), f" {spread(entry)}".rstrip(), "")
    return parts


def _aligned(table: Table, column: Column) -> tuple[list[str], dict[tuple[str, str], str]]:
    """A column's heading, in lines, and its texts, padded so that points and signs stand below each other."""
    parts = _pieces(table, column)
    numbers = [part for part in parts.values() if part[0] != NOT_RUN]
    first, second, third = (max((len(part[i]) for part in numbers), default=0) for i in range(3))
    words = heading(column).replace(" ↑", "\N{NO-BREAK SPACE}↑").replace(" ↓", "\N{NO-BREAK SPACE}↓").split(" ")
    width = max(first + second, *map(len, words), *(len(part[0]) for part in parts.values()))
    lines = [f"{line:>{width}}{'':<{third}}" for line in textwrap.wrap(" ".join(words), width)]
    texts = {key: f"{a:>{width - second}}{b:<{second}}{c:<{third}}" for key, (a, b, c) in parts.items()}
    return lines, texts | {key: f"{a:>{width}}{c:<{third}}" for key, (a, _, c) in parts.items() if a == NOT_RUN}


def _styled(text: str, entry: Entry, kind: str) -> Text:
    """Marks the number of the best and the second best, not the blanks around it."""
    styled = Text(text)
    style = {"ours": emphasis, "paper": paper_emphasis}.get(kind, lambda entry: "")(entry)
    styled.stylize(style, len(text) - len(text.lstrip()), len(text.rstrip()))
    return styled
