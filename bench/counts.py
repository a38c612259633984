"""How much of each of the paper's tables a plan holds: what a dry run ends with.

A table needs the cells of its matrix, ``matrices/table<N>.toml``, with the same changes from the command line as the
plan; a cell that several tables print counts in each of them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from bench import matrix as matrices
from bench import speed_part
from bench.matrix import Entered, Matrix
from bench.spec import SPEED
from bench.timing import cells


def by_table(states: Mapping[str, str], settings: Mapping[str, Any], **conditions: str) -> Iterator[str]:
    """A line for each table of which the plan holds at least one cell.

    Args:
        states: the plan's cells, of both kinds, by id.
        settings: changes from the command line.
        conditions: ``precision``, and the model of ``device`` for measurements of speed.
    """
    numbers = sorted(int(found[1]) for name in matrices.names() if (found := re.fullmatch(r"table(\d+)", name)))
    for number in numbers:
        ids = [item.cell.id for item in _cells(matrices.read(f"table{number}"), settings, **conditions)]
        here = Counter(states[cell] for cell in ids if cell in states)
        if here:
            counted = ", ".join(f"{count} {state}" for state, count in sorted(here.items()))
            yield f"table {number}: {here.total()} of {len(ids)} cells ({counted})"


def _cells(matrix: Matrix, settings: Mapping[str, Any], *, precision: str, device: str) -> list[Entered]:
    """The cells of a matrix, of both kinds; a table's methods are its own, whatever the plan puts in their place."""
    kinds = {block.kind for block in matrix.cells}
    settings = {key: value for key, value in settings.items() if key != "methods"}
    trained = matrices.expand(matrices.override(matrix, settings), precision=precision) if kinds - {SPEED} else []
    measured = speed_part.changed(matrix, settings)
    return trained + (cells.expand(measured, precision=precision, device=device) if SPEED in kinds else [])
