"""Critical-difference diagrams (Demšar 2006): average ranks on an axis, a bar over what is not told apart."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis.comparison.inference import ALPHA
from analysis.comparison.layout import Ranking
from analysis.comparison.ranking import rank
from analysis.drawing import style, words
from analysis.drawing.figure import Card, Figure
from analysis.drawing.layout import WIDTH, Look, heading
from analysis.results import Results, next_command

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

KIND = "ranks"
LINE, BAR = 1.0, 0.55
"""Height of a line of names and of a bar, in the diagram's own unit."""


def figures(results: Results, folder: Path, *, protocol: str, tell: words.Tell = lambda line: None) -> list[Figure]:
    """One for each setting with two test sets or more on which two rows or more were scored."""
    rankings = rank(results, protocol=protocol)
    if not rankings:
        shared = f"{KIND}: no two methods below {folder} share a setting and two test sets"
        tell(f"{shared}. {next_command(folder, 'table1')}")
    return [_figure(ranking, folder, protocol) for ranking in rankings]


def alike(averages: Sequence[float], critical_difference: float) -> list[tuple[float, float]]:
    """The longest stretches of average ranks, of two methods or more, that differ by less than ``critical_difference``.

    Args:
        averages: from the smallest.
    """
    found: list[tuple[int, int]] = []
    for start, low in enumerate(averages):
        end = max(place for place, high in enumerate(averages) if high - low < critical_difference or place == start)
        if end > start and (not found or end > found[-1][1]):
            found.append((start, end))
    return [(averages[start], averages[end]) for start, end in found]


def _figure(ranking: Ranking, folder: Path, protocol: str) -> Figure:
    rows = sorted(ranking.ranks, key=lambda row: (ranking.average(row), row))
    averages = [ranking.average(row) for row in rows]
    lines = [
        {"mark": "rank", "row": row, "method": ranking.methods[row], "low": average, "high": average}
        for row, average in zip(rows, averages, strict=True)
    ]
    critical = ranking.critical_difference
    if critical is not None:
        joined = alike(averages, critical) if _rejected(ranking) else [(averages[0], averages[-1])]
        lines += [{"mark": "not told apart", "low": low, "high": high} for low, high in joined]
        lines.append({"mark": "critical difference", "low": 1.0, "high": 1.0 + critical})
    number = len(ranking.places)
    tested = "" if ranking.friedman_p is None else f"Friedman p = {ranking.friedman_p:.2g}, "
    title = f"Average ranks of {len(rows)} methods on {number} test set{'' if number == 1 else 's'}"
    card = Card(
        name=ranking.name if ranking.name.startswith(KIND) else f"{KIND}-{ranking.name}",
        kind=KIND,
        title=title,
        caption=" ".join([*ranking.warnings, _what(ranking), *ranking.notes]),
        command=words.command(KIND, folder, protocol),
        cells=tuple(dict.fromkeys(ranking.cells)),
        about={"setting": ranking.setting, "protocol": ranking.protocol, "places": list(ranking.places)},
    )
    data = pd.DataFrame(lines, columns=["mark", "row", "method", "low", "high"])
    below = f"{ranking.setting}; {tested}protocol {ranking.protocol}"
    return Figure(card, data, partial(_draw, title=title, below=below))


def _rejected(ranking: Ranking) -> bool:
    """Whether Friedman's test lets single pairs be looked at."""
    return ranking.friedman_p is not None and ranking.friedman_p < ALPHA


def _what(ranking: Ranking) -> str:
    where = f"n = {len(ranking.places)}: {', '.join(ranking.places)}; {ranking.setting}; protocol {ranking.protocol}."
    if ranking.critical_difference is None:
        return f"Average ranks, 1 being the best, without a test of their differences; {where}"
    verdict = "" if _rejected(ranking) else ", which does not reject that all are alike, so that none are told apart"
    return (
        "Average ranks, 1 being the best. A bar joins methods whose ranks differ by less than the critical difference "
        f"of Nemenyi's test at {ALPHA}, {ranking.critical_difference:.2f}; Friedman's test has "
        f"p = {ranking.friedman_p:.2g}{verdict}. {where}"
    )


def _draw(data: pd.DataFrame, *, title: str, below: str) -> Drawing:
    from matplotlib import pyplot

    ranks, bars = data[data["mark"] == "rank"], data[data["mark"] == "not told apart"]
    critical = data[data["mark"] == "critical difference"]
    count = len(ranks)
    half = (count + 1) // 2
    top = LINE + BAR * len(bars)
    height = top + LINE * half
    drawn, axes = pyplot.subplots(figsize=(WIDTH, 0.75 + 0.21 * (height + (1.6 if len(critical) else 0.8))))
    axes.set_axis_off()
    axes.plot([1, count], [0, 0], color=style.INK, linewidth=1.2)
    for tick in range(1, count + 1):
        axes.plot([tick, tick], [0, -0.25], color=style.INK, linewidth=1.2)
        axes.text(tick, -0.35, str(tick), ha="center", va="bottom", fontsize=8)
    looks = style.row_points(dict(zip(ranks["row"], ranks["method"], strict=True)))
    for place, line in enumerate(ranks.itertuples()):
        left = place < half
        _name(axes, line, looks[line.row], top + LINE * (place if left else count - 1 - place), left=left, last=count)
    for place, bar in enumerate(bars.itertuples()):
        y, ends = LINE * 0.6 + BAR * place, 0.006 * count
        axes.plot([bar.low - ends, bar.high + ends], [y, y], color=style.INK, linewidth=3, solid_capstyle="butt")
    for line in critical.itertuples():
        axes.plot([line.low, line.high], [-2, -2], "|-", color=style.INK, linewidth=1.2, markeredgewidth=1.2)
        axes.text(line.high, -2, f"  critical difference {line.high - line.low:.2f}", va="center", fontsize=8)
    axes.set_ylim(height, -2.4 if len(critical) else -1.5)
    axes.set_xlim(1 - 0.02 * count, count + 0.02 * count)
    heading(drawn, title, below)
    return drawn


def _name(axes: Axes, line: Any, look: Look, y: float, *, left: bool, last: int) -> None:
    """A row's name beside the diagram, joined to its rank on the axis."""
    margin = 0.03 * last
    edge = 1 - margin if left else last + margin
    axes.plot([line.low, line.low, edge], [0, y, y], color=look["color"], linewidth=1.2, clip_on=False)
    axes.plot(line.low, 0, clip_on=False, **look)
    text = f"{line.row}  {line.low:.2f}" if left else f"{line.low:.2f}  {line.row}"
    across = -0.01 if left else 0.01
    axes.text(
        edge + across * last, y, text, ha="right" if left else "left", va="center", fontsize=8, color=style.INK
    )  # fmt: skip
