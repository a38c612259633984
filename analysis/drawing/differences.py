"""On which images two methods differ: each image's difference, averaged over the seeds that both have."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from analysis.comparison.places import Place, places
from analysis.comparison.reading import read_per_image
from analysis.drawing import style, words
from analysis.drawing.figure import Card, Figure
from analysis.drawing.layout import WIDTH, heading
from analysis.results import NoResults, Results
from analysis.source import file_part

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

KIND = "differences"
EXTREME = 3
"""How many images at either end the caption names; the csv has all of them in order."""

Pair = tuple[str, str]


def figures(
    results: Results,
    folder: Path,
    *,
    protocol: str,
    pair: Pair | None = None,
    tell: words.Tell = lambda line: None,
) -> list[Figure]:
    """One for each setting, dataset and test set with two rows or more.

    Args:
        pair: the two rows; by default the two best of each test set by its leading metric.

    Raises:
        NoResults: a row of ``pair`` is nowhere; the message lists those there are.
    """
    found = places(results, protocol=protocol)
    _check(pair, found)
    found = [place for place in found if len(place.runs) > 1 and (pair is None or set(pair) <= place.runs.keys())]
    if not found:
        tell(words.nothing_to_compare(KIND, folder))
    return [figure for place in found if (figure := _figure(results, place, folder, protocol, pair, tell))]


def _check(pair: Pair | None, found: list[Place]) -> None:
    rows = sorted({row for place in found for row in place.runs})
    usual = f" Next: python -m analysis.figures --pair '{rows[0]}' '{rows[1]}'" if len(rows) > 1 else ""
    for row in pair or ():
        if row not in rows:
            raise NoResults(f"unknown row {row!r}. Known: {', '.join(rows) or 'none'}.{usual}")
    if pair and pair[0] == pair[1]:
        raise NoResults(f"{pair[0]!r} does not differ from itself. Known: {', '.join(rows)}.{usual}")


def _figure(
    results: Results, whole: Place, folder: Path, protocol: str, pair: Pair | None, tell: words.Tell
) -> Figure | None:
    first, second = pair or words.best_first(whole)[:2]
    methods = {row: words.method_of(whole, row) for row in (first, second)}
    of_methods = words.narrowed(results, methods.values())
    narrowed = places(of_methods, protocol=protocol, dataset=whole.cells[0].dataset, metric=whole.column.metric)
    place = next(other for other in narrowed if other.name == whole.name)
    place = words.kept(place, {cell.id for row in (first, second) for cell in place.runs[row].values()})
    parts = "-".join(file_part(row, methods[row]) for row in (first, second))
    name, column = f"{KIND}-{parts}-{place.name}", place.column
    read = read_per_image(folder, place)
    for reason in dict.fromkeys(read.refused.values()):
        cells = [cell for cell, why in read.refused.items() if why == reason]
        tell(
            f"{name}: {len(cells)} of {len(place.cells)} cells are left out: {reason}. Next: {read.remedies[cells[0]]}"
        )
    seeds = [seed for seed in read.runs.get(first, {}) if seed in read.runs.get(second, {})]
    if not seeds:
        if not read.refused:
            tell(f"{name}: the two share no seed. Next: python -m analysis.figures --pair ROW ROW, with two that do")
        return None
    place = words.kept(place, {place.runs[row][seed].id for row in (first, second) for seed in seeds})
    means = {row: read.values(row)[[read.seeds(row).index(s) for s in seeds]].mean(0) * column.scale for row in methods}
    data = pd.DataFrame({"image": read.images, **means, "difference": means[first] - means[second]})
    defined = data.dropna()
    if defined.empty:
        tell(f"{name}: {column.label} is defined on no image. Next: python -m analysis.compare --help")
        return None
    sign = -1 if column.better == "lower" else 1
    defined = defined.sort_values(["difference", "image"], ascending=[sign > 0, True], ignore_index=True)
    title = f"{column.group}: {first} and {second} image by image, {column.label}"
    said = [_what(place, first, second, defined, chosen=bool(pair))]
    if not read.runs[first][seeds[0]].is_mean:
        said.append("The metric is pooled over images; here it is that of each image alone.")
    if undefined := len(data) - len(defined):
        said.append(f"Undefined for, and left out: {undefined} images.")
    options = ["--pair", *pair] if pair else []
    card = Card(
        name=name,
        kind=KIND,
        title=title,
        caption=words.caption([place], *said),
        command=words.command(KIND, folder, protocol, *options),
        cells=words.ids(place.cells),
        about=words.about(place, first=first, second=second),
    )
    draw = partial(
        _draw, rows=(first, second), methods=(methods[first], methods[second]), label=column.label, sign=sign,
        title=title, below=words.below(place),
    )  # fmt: skip
    return Figure(card, defined, draw)


def _what(place: Place, first: str, second: str, data: pd.DataFrame, *, chosen: bool) -> str:
    column, sign = place.column, -1 if place.column.better == "lower" else 1
    gain = sign * data["difference"]
    why = "" if chosen else ", the two best by their means,"
    ends = [", ".join(data["image"].astype(str).iloc[part]) for part in (slice(-1, -EXTREME - 1, -1), slice(EXTREME))]
    return (
        f"{column.label} of each image, times {column.scale:g} and averaged over the seeds both have, of {first} and "
        f"{second}{why} and their difference. "
        f"{first} is better on {int((gain > 0).sum())}, worse on {int((gain < 0).sum())}, equal on "
        f"{int((gain == 0).sum())} images; median difference {data['difference'].median():+.2f}, mean "
        f"{data['difference'].mean():+.2f}. Furthest ahead (dots): {first} on {ends[0]}; {second} on {ends[1]}."
    )


def _draw(data: pd.DataFrame, *, rows: Pair, methods: Pair, label: str, sign: int, title: str, below: str) -> Drawing:
    from matplotlib import pyplot

    first, second = (style.colour(method) for method in methods)
    second = style.PAPER if first == second else second
    drawn, (left, right) = pyplot.subplots(1, 2, figsize=(WIDTH, 3.4), width_ratios=[1, 1.2])
    gain = sign * data["difference"]
    ahead = {first: gain > 0, second: gain < 0, style.INK: gain == 0}
    both = data[list(rows)].to_numpy()
    margin = 0.04 * max(both.max() - both.min(), 1)
    limits = (both.min() - margin, both.max() + margin)
    left.plot(limits, limits, color=style.INK, linewidth=0.8)
    size = min(5.0, max(2.0, 60 / len(data) ** 0.5))
    for colour, where in ahead.items():
        left.plot(data[rows[1]][where], data[rows[0]][where], "o", color=colour, markersize=size, alpha=0.7)
    left.set(xlim=limits, ylim=limits, aspect="equal", xlabel=f"{rows[1]}: {label}", ylabel=f"{rows[0]}: {label}")
    edges = [place - 0.5 for place in range(len(data) + 1)]
    for colour, row in ((first, rows[0]), (second, rows[1])):
        own = data["difference"].where(ahead[colour], 0)
        counted = f"{row} better: {int(ahead[colour].sum())} images"
        right.stairs(own, edges, fill=True, color=colour, linewidth=0.4, label=counted)
    ends = [*data.index[:EXTREME], *data.index[-EXTREME:]]
    right.plot(ends, data["difference"][ends], "o", color=style.INK, markersize=2)
    right.axhline(0, color=style.INK, linewidth=0.8)
    right.axhline(data["difference"].mean(), color=style.INK, linewidth=0.8, linestyle="--", label="mean")
    right.set(xlabel="images, sorted", ylabel=f"{rows[0]} minus {rows[1]}", xlim=(edges[0], edges[-1]))
    right.xaxis.get_major_locator().set_params(integer=True)
    right.legend(loc="upper left" if sign > 0 else "lower left")
    heading(drawn, title, below)
    return drawn
