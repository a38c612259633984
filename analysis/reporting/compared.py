"""Comparisons and rankings as HTML: the verdict at the page's top, and all of their numbers further down."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from analysis.comparison.layout import Comparison, Difference, Ranking
from analysis.comparison.places import Place
from analysis.render import ARROWS
from analysis.reporting import verdict
from analysis.reporting.behind import Behind
from analysis.reporting.grid import Head, Value, filter_box, grid
from analysis.reporting.html import Child, Markup, join, tag

MOST_OPEN = 6
"""Comparisons that are unfolded when the page opens, if there are no more."""
MOST_WARNINGS = 4
SHORT = ("difference", "95 % interval", "drawn", "p (Holm)", "conclusion")
FULL = ("difference", "95 % interval", "difference by seed", "p", "p (Holm)", "effect", "conclusion")
"""What is shown of a difference at the top, and further down."""
_WIDTH, _HEIGHT, _EDGE = 150, 14, 4  # of a drawn interval, in pixels


class Runs:
    """The cell behind each score of a comparison."""

    def __init__(self, places: Sequence[Place], behind: Behind) -> None:
        self._runs: Mapping[str, Place] = {place.name: place for place in places}
        self._behind = behind

    def number(self, shown: Child, comparison: Comparison, rows: Sequence[str], seeds: Sequence[int]) -> Markup:
        """``shown`` as a button for the runs of ``rows`` with the given seeds."""
        runs = self._runs[comparison.name].runs
        found = {runs[row][seed].id: comparison.values[row][seed] for row in rows for seed in seeds}
        return self._behind.number(shown, list(found), list(found.values()))


def verdicts(comparisons: Sequence[Comparison], rankings: Sequence[Ranking], runs: Runs) -> Markup:
    """For each place what can be said, and its ranking with intervals."""
    blocks, unfolded = [], len(comparisons) <= MOST_OPEN
    for setting in dict.fromkeys(one.setting for one in (*comparisons, *rankings)):
        own = [one for one in comparisons if one.setting == setting]
        blocks += [tag("h3", setting), *_warnings(line for one in own for line in one.warnings)]
        for one in own:
            blocks += [tag("h4", title(one)), tag("p", verdict.verdict(one))]
            if one.differences:
                blocks.append(_folded("The ranking with intervals", _ranking(one, runs), unfolded=unfolded))
        blocks += [tag("p", verdict.ranked(ranking)) for ranking in rankings if ranking.setting == setting]
    return join(blocks)


def comparisons_in_full(comparisons: Sequence[Comparison], runs: Runs) -> Markup:
    """Every seed, difference, p value and effect of every comparison; nothing without any."""
    blocks, unfolded = [], len(comparisons) <= MOST_OPEN
    for one in comparisons:
        parts = [tag("p", one.setting, class_="setting"), *_warnings(one.warnings), _every_number(one, runs)]
        blocks.append(_folded(title(one), [*parts, _notes(one.notes)], unfolded=unfolded))
    return tag("section", filter_box("Filter rows of the comparisons"), blocks) if blocks else join()


def rankings_in_full(rankings: Sequence[Ranking], behind: Behind) -> Markup:
    """The rank of every row in every place; nothing without any."""
    blocks = []
    for one in rankings:
        heads = [Head("Method"), Head("average rank"), *map(Head, one.places)]
        rows = [
            (row, [Value(f"{one.average(row):.2f}", one.average(row)), *(Value(f"{r:g}", r) for r in one.ranks[row])])
            for row in sorted(one.ranks, key=one.average)
        ]
        cells = behind.number(f"{len(one.cells)} cells", one.cells)
        blocks += [tag("p", one.setting, class_="setting"), *_warnings(one.warnings), tag("p", verdict.ranked(one))]
        blocks += [grid(f"Ranks, protocol {one.protocol}", heads, rows), tag("p", "Behind these ranks: ", cells)]
        blocks.append(_notes(one.notes))
    return join(blocks)


def title(comparison: Comparison) -> str:
    """Dataset, test set and metric."""
    return f"{comparison.data}, {comparison.test_set}: {comparison.label}{ARROWS.get(comparison.direction, '')}"


def _ranking(comparison: Comparison, runs: Runs) -> Markup:
    """The rows from the best mean to the worst, with what tells them from the reference."""
    heads = [Head("Method"), _score_head(comparison, f"mean {comparison.label}"), *_heads(comparison, SHORT)]
    rows = []
    for row in verdict.by_mean(comparison):
        told = _told(comparison, row, runs)
        rows.append((row, [_mean(comparison, row, runs, decimals=1), *(told.get(name, Value()) for name in SHORT)]))
    return grid(f"{title(comparison)}, from the best to the worst mean", heads, rows)


def _every_number(comparison: Comparison, runs: Runs) -> Markup:
    seeds = sorted({seed for values in comparison.values.values() for seed in values})
    scores = [_score_head(comparison, name) for name in (*(f"seed\N{NO-BREAK SPACE}{seed}" for seed in seeds), "mean")]
    heads = [Head("Method"), *scores, *(_heads(comparison, FULL) if comparison.differences else [])]
    rows = []
    for row in verdict.by_mean(comparison):
        values, told = comparison.values[row], _told(comparison, row, runs)
        own = [
            Value(runs.number(f"{values[seed]:.2f}", comparison, [row], [seed]), values[seed])
            if seed in values
            else Value()
            for seed in seeds
        ]
        own.append(_mean(comparison, row, runs, decimals=2))
        own += [told.get(name, Value()) for name in FULL] if comparison.differences else []
        rows.append((row, own))
    images = f", {comparison.images} images" if comparison.images else ""
    return grid(f"{title(comparison)}{images}", heads, rows)


def _mean(comparison: Comparison, row: str, runs: Runs, *, decimals: int) -> Value:
    mean = verdict.mean(comparison, row)
    return Value(runs.number(f"{mean:.{decimals}f}", comparison, [row], list(comparison.values[row])), mean)


def _score_head(comparison: Comparison, name: str) -> Head:
    return Head(name, first="ascending" if comparison.direction == "lower" else "descending")


def _heads(comparison: Comparison, names: Iterable[str]) -> list[Head]:
    return [Head(f"difference from {comparison.reference}" if name == "difference" else name) for name in names]


def _told(comparison: Comparison, row: str, runs: Runs) -> dict[str, Value]:
    """What there is to say of a row's difference, by the names in ``FULL`` and ``SHORT``; nothing of the reference."""
    difference = next((one for one in comparison.differences if one.row == row), None)
    if difference is None:
        return {}
    both, effect = [row, comparison.reference], difference.effect
    signed = runs.number(f"{difference.mean:+.2f}", comparison, both, difference.seeds)
    return {
        "difference": Value(signed, difference.mean),
        "95 % interval": Value(f"{difference.low:+.2f} to {difference.high:+.2f}", difference.low),
        "drawn": Value(_drawn(difference, _span(comparison)), difference.mean),
        "difference by seed": Value(", ".join(f"{value:+.2f}" for value in difference.per_seed)),
        "p": Value(verdict.p_value(difference.p), difference.p),
        "p (Holm)": Value(verdict.p_value(difference.p_holm), difference.p_holm),
        "effect": Value("" if effect is None else f"{effect:+.2f}", effect),
        "conclusion": Value(verdict.told_apart(difference)),
    }


def _span(comparison: Comparison) -> tuple[float, float]:
    """What all intervals of a comparison, and zero, lie in."""
    bounds = [bound for one in comparison.differences for bound in (one.low, one.high) if math.isfinite(bound)]
    return min([0.0, *bounds]), max([0.0, *bounds])


def _drawn(difference: Difference, span: tuple[float, float]) -> Child:
    """The interval as a line with a dot at the mean, beside a line at zero; the numbers stand in other columns."""
    low, high = span
    if high <= low or not all(map(math.isfinite, (difference.low, difference.mean, difference.high))):
        return ""

    def at(value: float) -> str:
        return f"{_EDGE + (value - low) / (high - low) * (_WIDTH - 2 * _EDGE):.1f}"

    middle = _HEIGHT / 2
    parts = [
        tag("line", x1=at(0), x2=at(0), y1=0, y2=_HEIGHT, class_="zero"),
        tag("line", x1=at(difference.low), x2=at(difference.high), y1=middle, y2=middle, class_="interval"),
        tag("circle", cx=at(difference.mean), cy=middle, r=3, class_=difference.better or "level"),
    ]
    return tag("svg", parts, width=_WIDTH, height=_HEIGHT, aria_hidden="true", class_="drawn")


def _folded(heading: str, body: Child, *, unfolded: bool) -> Markup:
    return tag("details", tag("summary", heading), body, open=unfolded)


def _warnings(lines: Iterable[str]) -> list[Markup]:
    """Each line once; of many the first, and the others folded."""
    shown = [tag("p", line, class_="warning") for line in dict.fromkeys(lines)]
    more = len(shown) - MOST_WARNINGS
    folded = _folded(f"{more} more warning{'' if more == 1 else 's'}", shown[MOST_WARNINGS:], unfolded=False)
    return [*shown[:MOST_WARNINGS], *([folded] if more > 0 else [])]


def _notes(lines: Iterable[str]) -> list[Markup]:
    return [tag("p", line, class_="note") for line in lines]
