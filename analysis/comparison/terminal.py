"""Comparisons and rankings for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from analysis.comparison import render
from analysis.comparison.layout import Comparison, Ranking

_LONGEST_HEADING = 7


def show(comparison: Comparison, console: Console) -> None:
    """Prints ``comparison``: what is concluded, then every seed of every row."""
    _words(console, render.title(comparison), comparison.warnings, render.facts(comparison))
    if comparison.differences:
        drawn = render.numbers(comparison)
        _grid(console, [["Method", *render.NUMBERS], *([row, *texts] for row, texts in drawn.items())])
    _grid(console, render.by_seed(comparison))
    _paragraphs(console, comparison.notes, "")
    console.print()


def show_ranking(ranking: Ranking, console: Console) -> None:
    """Prints ``ranking``."""
    _words(console, render.ranking_title(ranking), ranking.warnings, render.ranking_facts(ranking))
    _grid(console, render.ranking_rows(ranking))
    _paragraphs(console, ranking.notes, "")
    console.print()


def _words(console: Console, title: str, warnings: Sequence[str], facts: Iterable[str]) -> None:
    console.print(Text(title, style="bold"))
    _paragraphs(console, warnings, "bold red")
    _paragraphs(console, facts, "dim")
    console.print()


def _grid(console: Console, rows: Sequence[Sequence[str]]) -> None:
    grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="")
    head, *rest = rows
    for number, text in enumerate(head):
        before, _, last = text.rpartition(" ")
        lines = Text(f"{before}\n{last}" if before and len(text) > _LONGEST_HEADING else text)
        grid.add_column(lines, justify="right" if number else "left", vertical="bottom", no_wrap=number > 0)
    for line in rest:
        grid.add_row(*(Text(text) for text in line))
    console.print(grid)
    console.print()


def _paragraphs(console: Console, texts: Iterable[str], style: str) -> None:
    for text in texts:
        console.print(Padding(Text(text, style=style), (0, 0, 0, 2)))
