"""Every run of every method as a dot, beside the mean and its standard error."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from analysis.comparison.places import Place, places
from analysis.drawing import style, words
from analysis.drawing.figure import Card, Figure
from analysis.drawing.layout import WIDTH, heading
from analysis.render import heading as metric
from analysis.results import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

KIND = "runs"


def figures(results: Results, folder: Path, *, protocol: str, tell: words.Tell = lambda line: None) -> list[Figure]:
    """One for each setting, dataset and test set with two rows or more."""
    found = [place for place in places(results, protocol=protocol) if len(place.runs) > 1]
    if not found:
        tell(words.nothing_to_compare(KIND, folder))
    return [_figure(place, folder, protocol) for place in found]


def _figure(place: Place, folder: Path, protocol: str) -> Figure:
    column, lines = place.column, []
    for row in place.runs:
        of = {"row": row, "method": words.method_of(place, row)}
        lines += [{**of, "mark": "run", "seed": seed, "value": value} for seed, value in place.scores(row).items()]
        whole = words.summary(place, row)
        lines.append({**of, "mark": "mean", "value": whole.mean, "standard_error": whole.standard_error})
    several = any(len(runs) > 1 for runs in place.runs.values())
    bars = "bars: mean ± standard error over seeds (standard deviation with n-1, over √n)" if several else "bars: means"
    label = metric(column)
    card = Card(
        name=f"{KIND}-{place.name}",
        kind=KIND,
        title=f"{column.group}: every run, {column.label}",
        caption=words.caption([place], f"{label}, times {column.scale:g}. Dots: single runs; {bars}."),
        command=words.command(KIND, folder, protocol),
        cells=words.ids(place.cells),
        about=words.about(place),
    )
    columns = ["row", "method", "mark", "seed", "value", "standard_error"]
    data = pd.DataFrame(lines, columns=columns).astype({"seed": "Int64", "standard_error": float})
    return Figure(card, data, partial(_draw, label=label, title=card.title, below=words.below(place)))


def _draw(data: pd.DataFrame, *, label: str, title: str, below: str) -> Drawing:
    from matplotlib import pyplot

    looks = style.row_points(dict(zip(data["row"], data["method"], strict=True)))
    rows = list(looks)[::-1]
    drawn, axes = pyplot.subplots(figsize=(WIDTH, 1.1 + 0.26 * len(rows)))
    for place, row in enumerate(rows):
        own = data[data["row"] == row]
        runs, mean = own[own["mark"] == "run"], own[own["mark"] == "mean"].iloc[0]
        axes.plot(runs["value"], [place] * len(runs), linestyle="", **looks[row])
        error = None if pd.isna(mean["standard_error"]) else mean["standard_error"]
        axes.errorbar(mean["value"], place, xerr=error, color=style.INK, capsize=4, capthick=1, linewidth=1, zorder=3)
        axes.plot(mean["value"], place, "|", color=style.INK, markersize=13, markeredgewidth=1.6, zorder=3)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel(f"{label}   (dots: runs; bars: mean ± standard error)")
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    heading(drawn, title, below)
    return drawn
