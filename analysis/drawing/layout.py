"""What figures share: headings, places for labels that would overlap, ticks of a short logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from analysis.drawing.style import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

Look = dict[str, Any]
WIDTH = 6.4
_CHARACTERS = 105  # of a line of the smaller heading that fit the width


def heading(drawn: Drawing, title: str, below: str = "") -> None:
    """A title above all panels, with a smaller line below it, both from the left."""
    lines = wrap(below, _CHARACTERS)
    drawn.suptitle("\n".join([title, *lines]), x=0.01, ha="left", fontsize=8, color=INK)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places near the wanted ones, in their order, that are ``gap`` apart and between ``low`` and ``high``.

    Their squared distances from the wanted places are least: neighbours that are too close become a block around its
    mean (pool adjacent violators). Where there is no room for such gaps, they are as wide as the room allows.
    """
    if not wanted:
        return []
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    blocks: list[tuple[float, int]] = []
    for place, index in enumerate(order):
        mean, size = wanted[index] - place * gap, 1
        while blocks and blocks[-1][0] >= mean:
            other, count = blocks.pop()
            mean, size = (other * count + mean * size) / (count + size), count + size
        blocks.append((mean, size))
    shifted = [mean for mean, size in blocks for _ in range(size)]
    top = high - (len(wanted) - 1) * gap
    placed = [min(max(value, low), max(top, low)) + place * gap for place, value in enumerate(shifted)]
    return [place for _, place in sorted(zip(order, placed, strict=True))]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two positive ones for a logarithmic axis: powers of ten where there are three of them.

    A short axis has them closer: 1, 3, 10 or 1, 2, 5, 10, and a very short one as if it were linear.
    """
    from matplotlib.ticker import MaxNLocator

    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5)):
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 3:
            return ticks[:: math.ceil(len(ticks) / 5)]
    return [tick for tick in MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high).tolist() if low <= tick <= high]


def round_log_axis(axes: Axes, low: float, high: float, *, across: bool) -> None:
    """Make an axis logarithmic, a little longer than from ``low`` to ``high``, with round numbers written plainly.

    Args:
        across: the x axis, else the y axis.
    """
    margin = max(1.05, (high / low) ** 0.1)
    low, high = low / margin, high * margin
    axis, ticks = axes.xaxis if across else axes.yaxis, log_ticks(low, high)
    (axes.set_xscale if across else axes.set_yscale)("log")
    (axes.set_xlim if across else axes.set_ylim)(low, high)
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_ticks([], minor=True)


def names_beside(
    axes: Axes, names: Sequence[str], heights: Sequence[float], looks: Sequence[Look], *, size: tuple[float, float]
) -> None:
    """Names with their markers to the right of a panel, each as near to its height as there is room.

    Args:
        heights: in data coordinates; the limits of the axis stay as they are.
        looks: options of ``plot`` for the markers.
        size: of the panel in inches, about.
    """
    low, high = axes.get_ylim()
    width, height = size
    places = spread(heights, 0.16 / height * (high - low), low, high)
    across = axes.get_yaxis_transform()
    for name, wanted, place, look in zip(names, heights, places, looks, strict=True):
        line = [1 + inches / width for inches in (0.02, 0.12)]
        axes.plot(line, [wanted, place], color=look["color"], linewidth=0.7, transform=across, clip_on=False)
        axes.plot([1 + 0.18 / width], [place], **look, transform=across, clip_on=False)
        axes.text(1 + 0.26 / width, place, name, va="center", fontsize=8, color=INK, transform=across)
    axes.set_ylim(low, high)
