"""A grid of pictures: a row an image, a column a way to look at it, headings once, what colours mean below."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import TYPE_CHECKING

import numpy as np

from analysis.drawing.layout import WIDTH
from analysis.drawing.style import INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

# Inches.
_LABELS, _GAP, _MARGIN, _LINE, _NOTE, _KEY = 0.98, 0.05, 0.05, 0.14, 0.17, 0.155
_WIDEST = 1.25
_LETTER, _HEADING, _DIGIT = 0.05, 0.065, 0.062  # a letter of the legend, of a heading, of a note

_TALLEST = 1.3  # a panel's height over its width
_LETTERS = 17  # of an identifier that fit beside a row


@dataclass(frozen=True)
class Row:
    """One image.

    Attributes:
        label: lines beside it, the first being its identifier.
        panels: (h, w, 3) uint8, one a column; all are drawn in the form of the first.
        notes: a few letters under each panel; none where no row has any.
    """

    label: Sequence[str]
    panels: Sequence[np.ndarray]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Scale:
    """What the colours of a colour map mean."""

    label: str
    low: float
    high: float
    colours: str


@dataclass(frozen=True)
class Grid:
    """Rows under headings; the legend has words with their colours, None standing for stripes."""

    headings: Sequence[str]
    rows: Sequence[Row]
    legend: Sequence[tuple[str, str | None]] = ()
    scale: Scale | None = None


def draw(grid: Grid) -> Drawing:
    """The grid as wide as a page or narrower, and as high as it has to be."""
    from matplotlib import pyplot

    columns = len(grid.headings)
    wide = min(_WIDEST, (WIDTH - _LABELS - 2 * _MARGIN - (columns - 1) * _GAP) / columns)
    boxes = [_box(row.panels[0], wide) for row in grid.rows]
    note = _NOTE if any(row.notes for row in grid.rows) else 0.0
    headings, size = _headings(grid.headings, wide)
    heading = _LINE * (1.2 + max(text.count("\n") for text in headings))
    keys, lines = _keys(grid, (columns - 1) * (wide + _GAP) + wide)
    bottom = _MARGIN + (lines + (grid.scale is not None)) * _KEY
    width = 2 * _MARGIN + _LABELS + columns * wide + (columns - 1) * _GAP
    steps = [max(tall + note, len(row.label) * _LINE) + _GAP for row, (_, tall) in zip(grid.rows, boxes, strict=True)]
    height = 2 * _MARGIN + heading + sum(steps) + bottom
    drawn = pyplot.figure(figsize=(width, height))
    drawn.set_layout_engine("none")
    lefts = [_MARGIN + _LABELS + column * (wide + _GAP) for column in range(columns)]

    def write(x: float, y: float, text: str, **more: object) -> None:
        drawn.text(x / width, y / height, text, **{"color": INK, "fontsize": 7, "va": "top", "ha": "center", **more})

    for left, text in zip(lefts, headings, strict=True):
        write(left + wide / 2, height - _MARGIN - heading + 0.05, text, va="bottom", fontsize=size)
    top = height - _MARGIN - heading
    for row, (own, tall), step in zip(grid.rows, boxes, steps, strict=True):
        for line, text in enumerate(row.label):
            write(_MARGIN, top - line * _LINE, shortened(text), ha="left")
        for column, panel in enumerate(row.panels):
            left = lefts[column] + (wide - own) / 2
            axes = drawn.add_axes((left / width, (top - tall) / height, own / width, tall / height))
            axes.imshow(panel, aspect="auto", interpolation="none")
            axes.set_axis_off()
        for column, text in enumerate(row.notes):
            write(
                lefts[column] + wide / 2,
                top - tall - 0.03,
                text,
                fontsize=7 * min(1.0, wide / _DIGIT / (len(text) or 1)),
            )
        top -= step
    if keys:
        drawn.legend(**keys, loc="upper left", bbox_to_anchor=(lefts[0] / width, (bottom + _MARGIN / 2) / height))
    if grid.scale:
        axes = drawn.add_axes((lefts[0] / width, 1.6 * _MARGIN / height, wide / width, 0.08 / height))
        axes.imshow(np.linspace(0, 1, 256)[None], aspect="auto", cmap=grid.scale.colours)
        axes.set_axis_off()
        ends = f"{grid.scale.label}: {grid.scale.low:.1f} to {grid.scale.high:.1f}"
        write(lefts[0] + wide + 2 * _GAP, 1.6 * _MARGIN + 0.04, ends, ha="left", va="center")
    return drawn


def shortened(name: str) -> str:
    """A name that fits beside a row: of a long one beginning and end."""
    return name if len(name) <= _LETTERS else f"{name[: _LETTERS // 2 - 1]}…{name[-_LETTERS // 2 :]}"


def _headings(texts: Sequence[str], wide: float) -> tuple[list[str], float]:
    """Headings in lines that fit so many inches, and the size of type in which their longest word does."""
    letters = int(wide / _HEADING)
    lines = [
        [line for part in text.split("\n") for line in wrap(part, letters, break_long_words=False)] for text in texts
    ]
    longest = max(len(line) for own in lines for line in own)
    return ["\n".join(own) for own in lines], 8 * min(1.0, letters / longest)


def _box(panel: np.ndarray, wide: float) -> tuple[float, float]:
    """Width and height of an image's panels in inches: its own form, tall ones narrower."""
    ratio = panel.shape[0] / panel.shape[1]
    tall = min(wide * ratio, wide * _TALLEST)
    return tall / ratio, tall


def _keys(grid: Grid, room: float) -> tuple[dict[str, object], int]:
    """What matplotlib's ``legend`` takes, and how many lines it has in so many inches."""
    from matplotlib.patches import Patch

    striped = {"facecolor": "white", "edgecolor": INK, "hatch": "/" * 7, "linewidth": 0}
    handles = [
        Patch(label=text, **(striped if colour is None else {"facecolor": colour})) for text, colour in grid.legend
    ]
    if not handles:
        return {}, 0
    widest = max(len(text) for text, _ in grid.legend) * _LETTER + 0.3
    columns = max(1, min(len(handles), int(room / widest)))
    form = {"fontsize": 7, "handlelength": 1.3, "columnspacing": 1.2, "labelspacing": 0.4}
    form |= {"borderpad": 0.0, "borderaxespad": 0.0}
    return {"handles": handles, "ncols": columns, **form}, math.ceil(len(handles) / columns)
