"""What accuracy costs: the leading metric against trained parameters, training time and memory, with the Pareto front.

Times and memory are only compared on one device; parameters are the same on all.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from analysis.comparison.places import Place, places
from analysis.drawing import style, words
from analysis.drawing.figure import Card, Figure
from analysis.drawing.layout import WIDTH, Look, heading, names_beside, round_log_axis
from analysis.drawing.records import read_each, result_of
from analysis.render import heading as metric
from analysis.results import Results
from analysis.source import Cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

KIND = "pareto"
COSTS = {
    "parameters": "trained parameters (M)",
    "time": "training (ms an image)",
    "memory": "peak memory (GiB)",
}
"""What is on the axes, by the name it has in the data."""


def front(costs: Sequence[float], gains: Sequence[float]) -> list[bool]:
    """Which points no other one dominates: none has at most their cost and at least their gain, and one of both better.

    Points without a cost (NaN) are on no front.
    """
    on = [False] * len(costs)
    known = [(c, -g, place) for place, (c, g) in enumerate(zip(costs, gains, strict=True)) if not math.isnan(c)]
    best = (math.inf, math.inf)
    for cost, loss, place in sorted(known):
        if loss < best[1] or (cost, loss) == best:
            best, on[place] = (cost, loss), True
    return on


def figures(results: Results, folder: Path, *, protocol: str, tell: words.Tell = lambda line: None) -> list[Figure]:
    """One for each setting, dataset and test set with two rows or more."""
    found = [place for place in places(results, protocol=protocol) if len(place.runs) > 1]
    if not found:
        tell(words.nothing_to_compare(KIND, folder))
    return [_figure(place, folder, protocol, tell) for place in found]


def _figure(place: Place, folder: Path, protocol: str, tell: words.Tell) -> Figure:
    name, column = f"{KIND}-{place.name}", place.column
    made = read_each(place.cells, partial(_costs, folder), folder, "result.json", what=name, tell=tell)
    machines = Counter(machine for machine, _ in made.values())
    machine = max(machines, key=lambda name: (machines[name], name), default="")
    lines = []
    for row in words.best_first(place):
        own = [made[cell.id][1] for cell in place.runs[row].values() if made.get(cell.id, ("",))[0] == machine]
        whole = words.summary(place, row)
        lines.append({
            "row": row,
            "method": words.method_of(place, row),
            "score": whole.mean,
            "standard_error": whole.standard_error,
            "parameters": _mean([cell.trainable / 1e6 for cell in place.runs[row].values()]),
            **{cost: _mean([of[cost] for of in own if of[cost] > 0]) for cost in ("time", "memory")},
        })  # fmt: skip
    data = pd.DataFrame(lines).astype({"standard_error": float})
    sign = -1 if column.better == "lower" else 1
    for cost in COSTS:
        data[f"{cost}_front"] = front(list(data[cost]), list(sign * data["score"]))
    label = metric(column)
    card = Card(
        name=name,
        kind=KIND,
        title=f"{column.group}: {column.label} against what it costs",
        caption=words.caption([place], _what(label, place), _where(machine, machines)),
        command=words.command(KIND, folder, protocol),
        cells=words.ids(place.cells),
        about=words.about(place, device=machine),
    )
    below = f"{words.below(place)}; time and memory: {machine}"
    return Figure(card, data, partial(_draw, label=label, title=card.title, below=below))


def _costs(folder: Path, cell: Cell) -> tuple[str, dict[str, float]]:
    """On what a cell was trained, and its time and memory there; NaN where nothing was trained."""
    result = result_of(folder, cell)
    training, environment = result["training"], result["environment"]
    speed, threads = training.get("images_per_second", 0), environment.get("threads")
    on = environment["device"] + (f", {threads} thread{'' if threads == 1 else 's'}" if threads else "")
    memory = training.get("peak_memory_bytes", 0) / 2**30
    return on, {"time": 1000 / speed if speed else math.nan, "memory": memory or math.nan}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _what(label: str, place: Place) -> str:
    several = any(len(runs) > 1 for runs in place.runs.values())
    bars = ", bars: standard error over seeds" if several else ", of one run each"
    return (
        f"{label}, times {place.column.scale:g}, against trained parameters (the mask decoder's among them), time of "
        f"training and peak memory. Points: means over seeds{bars}; the line is the Pareto front, the best that is "
        "reached at a cost."
    )


def _where(machine: str, machines: Counter[str]) -> str:
    others = sum(machines.values()) - machines[machine]
    left_out = f" Runs on other devices or with other threads are left out of both: {others}." if others else ""
    return (
        f"Time (of the last epoch) and memory (on a CPU, of the whole process) as recorded on {machine}, "
        f"which other work may have shared.{left_out}"
    )


def _draw(data: pd.DataFrame, *, label: str, title: str, below: str) -> Drawing:
    from matplotlib import pyplot

    shown = [cost for cost in COSTS if data[cost].notna().any()]
    size = (WIDTH, max(3.2, 1.3 + 0.17 * len(data)))
    drawn, panels = pyplot.subplots(1, len(shown), sharey=True, squeeze=False, figsize=size)
    looks = style.row_points(dict(zip(data["row"], data["method"], strict=True)))
    for cost, axes in zip(shown, panels[0], strict=True):
        _panel(axes, data, cost, looks)
        axes.set_xlabel(COSTS[cost], fontsize=8)
    panels[0, 0].set_ylabel(label)
    names_beside(panels[0, -1], list(data["row"]), list(data["score"]), list(looks.values()), size=(1.5, size[1] - 1.1))
    heading(drawn, title, below)
    return drawn


def _panel(axes: Axes, data: pd.DataFrame, cost: str, looks: dict[str, Look]) -> None:
    ahead = data[data[f"{cost}_front"]].sort_values([cost, "score"])
    axes.plot(ahead[cost], ahead["score"], color="#c4c4c4", linewidth=2.5, drawstyle="steps-post", zorder=1)
    for line in data.itertuples():
        error = None if math.isnan(line.standard_error) else line.standard_error
        x = getattr(line, cost)
        axes.errorbar(x, line.score, yerr=error, color=style.colour(line.method), linewidth=1)
        axes.plot(x, line.score, **looks[line.row], markersize=6)
    known = data[cost].dropna()
    if cost == "parameters" and (known > 0).any():
        _parameters(axes, known)
    else:
        axes.margins(x=0.15)
        axes.locator_params(axis="x", nbins=4)


def _parameters(axes: Axes, known: pd.Series) -> None:
    """A logarithmic axis, with a place for 0 where something trains nothing."""
    low, high = known[known > 0].min(), known.max()
    round_log_axis(axes, low, high, across=True)
    if (known == 0).any():
        ticks = [0, *axes.get_xticks().tolist()]
        axes.set_xscale("symlog", linthresh=low / 2)
        axes.set_xlim(-low / 8, high * 1.4)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xticks([], minor=True)
