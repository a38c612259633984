"""What checks are made of: the paper's lines as numbers, and what a check found."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal

import pandas as pd

from analysis import paper

DEFAULTS = {("lora", "rank=3"): ""}
"""Parameters that the paper names in one table and leaves out in another."""
WITHIN = "within"


@dataclass(frozen=True)
class Line:
    """One printed number, where it stands and what it is of; ``value`` and ``error`` have the printed digits.

    ``place`` is data and metric in words; ``count`` and ``ratio`` are the row's printed size, in
    millions and in percent.
    """

    table: int
    row: str
    method: str
    parameters: str
    dataset: str
    shots: str
    test_set: str
    metric: str
    place: str
    better: str
    value: Decimal
    error: Decimal | None
    scale: int
    count: str
    ratio: str

    @property
    def key(self) -> tuple[str, ...]:
        """What was trained and scored, whatever table prints it."""
        return (self.method, self.parameters, self.dataset, self.shots, self.test_set, self.metric)

    @property
    def what(self) -> str:
        """Method, data and metric in words."""
        return f"{self.row}, {self.place}"

    @property
    def printed(self) -> str:
        """The number as the table has it, with its error."""
        return str(self.value) if self.error is None else f"{self.value} ± {self.error}"

    @property
    def half(self) -> Decimal:
        """Half a unit of the last printed digit: how far the number that was rounded may lie from the printed one."""
        return Decimal((0, (5,), self.value.as_tuple().exponent - 1))


@dataclass(frozen=True)
class Finding:
    """What one check found; ``rows`` are the numbers that do not fit, none where all do.

    ``checked`` says what was compared, and how much of it; ``meaning`` what the rows mean for a reader.
    """

    title: str
    checked: str
    headings: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    meaning: str = ""


Check = Callable[[Sequence[Line]], Iterable[Finding]]


def lines_of(frame: pd.DataFrame) -> list[Line]:
    """The lines of ``paper.csv``."""
    return [_line(line) for line in frame.itertuples()]


def _line(line: object) -> Line:
    group, label, better = paper.heading(line)
    return Line(
        table=int(line.table),
        row=line.method,
        method=line.our_method,
        parameters=DEFAULTS.get((line.our_method, line.our_parameters), line.our_parameters),
        dataset=line.our_dataset,
        shots=line.shots,
        test_set=line.test_set,
        metric=line.our_metric,
        place=f"{group} {label}",
        better=better,
        value=Decimal(line.value),
        error=Decimal(line.standard_error) if line.standard_error else None,
        scale=int(line.scale),
        count=line.trainable_params_m,
        ratio=line.ratio_percent,
    )


def signed(difference: Decimal) -> str:
    """A difference with its sign."""
    return f"{difference:+}" if difference else "0"


def in_errors(difference: Decimal, *errors: Decimal | None) -> str:
    """A difference beside the printed standard errors, which are taken as independent."""
    total = math.hypot(*(float(error) for error in errors if error is not None))
    if all(error is None for error in errors):
        return "none printed"
    if abs(difference) <= total:
        return WITHIN
    return f"{abs(float(difference)) / total:.1f} times" if total else "error is 0"


def counted(number: int, noun: str) -> str:
    """A number of things in words."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
