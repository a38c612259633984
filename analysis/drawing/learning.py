"""Learning curves: the validation metric and the loss of every run over its steps, and their means over seeds."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis.comparison.places import Place, places
from analysis.drawing import style, words
from analysis.drawing.figure import Card, Figure
from analysis.drawing.layout import WIDTH, Look, heading, names_beside, round_log_axis
from analysis.drawing.records import HISTORY, history_of, read_each, result_of
from analysis.results import Metric, Results
from analysis.source import Cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing
    from matplotlib.gridspec import GridSpec

KIND = "learning"
COLUMNS = ["row", "method", "mark", "seed", "epoch", "step", "validation", "loss"]
SCALE = 100
TOGETHER, PANELS = 6, 4
"""Up to how many rows share a panel; and how many panels stand side by side where each row has its own."""


def figures(results: Results, folder: Path, *, protocol: str, tell: words.Tell = lambda line: None) -> list[Figure]:
    """One for each setting and dataset of which some training was recorded."""
    made = [_figure(place, folder, protocol, tell) for place in words.each_dataset(places(results, protocol=protocol))]
    return [figure for figure in made if figure]


def means(runs: pd.DataFrame) -> pd.DataFrame:
    """The mean of a row's runs in each epoch that all of them have; a value that one of them lacks is missing.

    Args:
        runs: ``seed``, ``epoch``, ``step``, ``validation``, ``loss``.
    """
    by_epoch = runs.groupby("epoch")
    whole = by_epoch["seed"].nunique() == runs["seed"].nunique()
    averaged = by_epoch[["step", "validation", "loss"]].agg(lambda values: values.mean(skipna=False))
    return averaged[whole].reset_index()


def _figure(place: Place, folder: Path, protocol: str, tell: words.Tell) -> Figure | None:
    name = f"{KIND}-{words.name_of_dataset(place)}"
    made = read_each(place.cells, partial(_epochs, folder), folder, HISTORY, what=name, tell=tell)
    made = {cell: epochs for cell, epochs in made.items() if epochs[1]}
    shown = words.kept(place, made)
    frames, metrics = [], {metric for metric, _ in made.values() if metric}
    for row in shown.runs:
        lines = [{"seed": seed, **line} for seed, cell in shown.runs[row].items() for line in made[cell.id][1]]
        runs = pd.DataFrame(lines, columns=COLUMNS[2:])
        mean = means(runs[runs["mark"] == "epoch"]).assign(mark="mean")
        frames.append(pd.concat([runs, mean]).assign(row=row, method=words.method_of(place, row)))
    if not frames:
        return None
    data = pd.concat(frames, ignore_index=True)[COLUMNS].astype({"seed": "Int64", "epoch": int})
    metric = " / ".join(sorted(metrics))
    label = place.source.metrics.get(metric, Metric(metric, "")).label
    title = f"{words.title_of(place, test_set=False)}: validation {label} and loss over training"
    card = Card(
        name=name,
        kind=KIND,
        title=title,
        caption=words.caption([shown], _what(label, data), images=False),
        command=words.command(KIND, folder, protocol),
        cells=words.ids(shown.cells),
        about=words.about(place, metric=metric, test_set="validation"),
    )
    return Figure(card, data, partial(_draw, label=label, title=title, below=words.below(place)))


def _epochs(folder: Path, cell: Cell) -> tuple[str, list[dict[str, Any]]]:
    """The name of the validation metric and a line an epoch; that of the epoch that was kept comes twice."""
    best = result_of(folder, cell)["training"].get("best_epoch", 0)
    metric, lines = "", []
    for line in history_of(folder, cell):
        metric, value = next(iter(line.get("validation", {}).items()), ("", None))
        scores = {"validation": math.nan if value is None else value * SCALE, "loss": _number(line.get("loss"))}
        epoch = {"epoch": line["epoch"], "step": line["step"], **scores}
        lines += [{"mark": mark, **epoch} for mark in ["epoch", *(["best"] if line["epoch"] == best else [])]]
    return metric, lines


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _what(label: str, data: pd.DataFrame) -> str:
    per_run = data[data["mark"] == "epoch"].groupby(["row", "seed"])["validation"]
    undefined = per_run.apply(lambda values: int(values.isna().sum())).sum()
    apart = (
        " Each method has a panel, with the means of the others in grey, and the axis is cut below what is reached in "
        "the second half of training."
    )
    lacking = f" Epochs without a finite validation score: {undefined}." if undefined else ""
    return (
        f"Above {label} of the validation split, times {SCALE}; below the training loss, which includes what a method "
        "adds to it, such as the balance of experts, so that it compares runs of one method only. Thin: every seed; "
        "thick: the mean over seeds, as far as all of them were trained; rings: the epoch that was kept."
        + (apart if data["row"].nunique() > TOGETHER else "")
        + lacking
    )


def _draw(data: pd.DataFrame, *, label: str, title: str, below: str) -> Drawing:
    from matplotlib import pyplot

    rows = dict(zip(data["row"], data["method"], strict=True))
    looks, variants = style.row_points(rows), style.variants(rows)
    bands = math.ceil(len(rows) / PANELS) if len(rows) > TOGETHER else 0
    heights = [1.05] * bands or [2.3]
    drawn = pyplot.figure(figsize=(WIDTH, sum(heights) + 2.3))
    grid = drawn.add_gridspec(len(heights) + 1, PANELS if bands else 1, height_ratios=[*heights, 1.5])
    under = drawn.add_subplot(grid[-1, :])
    if bands:
        first = _apart(drawn, grid, data, looks)
    else:
        first = drawn.add_subplot(grid[0, 0], sharex=under)
        _together(first, data, looks, variants)
    first.set_ylabel(f"validation {label}", y=0 if bands else 0.5)
    for row in rows:
        _curves(under, data[data["row"] == row], "loss", looks[row], style.DASHES[variants[row] % len(style.DASHES)])
    losses = data["loss"].dropna()
    if len(losses) and (losses > 0).all():
        round_log_axis(under, losses.min(), losses.max(), across=False)
    under.set_ylabel("training loss")
    under.set_xlabel("optimiser steps")
    heading(drawn, title, below)
    return drawn


def _together(axes: Axes, data: pd.DataFrame, looks: dict[str, Look], variants: dict[str, int]) -> None:
    """All rows in one panel, their names where they end."""
    for row, look in looks.items():
        _curves(axes, data[data["row"] == row], "validation", look, style.DASHES[variants[row] % len(style.DASHES)])
    axes.tick_params(labelbottom=False)
    ends = _ends(data)
    order = sorted(ends, key=lambda row: -ends[row])
    names_beside(axes, order, [ends[row] for row in order], [looks[row] for row in order], size=(4.2, 2.3))


def _apart(drawn: Drawing, grid: GridSpec, data: pd.DataFrame, looks: dict[str, Look]) -> Axes:
    """A panel a row, on the means of all others in grey; the axis is cut to the second half of training."""
    half = data[data["step"] >= data["step"].max() / 2]["validation"]
    first, averaged = None, data[data["mark"] == "mean"]
    for place, (row, look) in enumerate(looks.items()):
        axes = drawn.add_subplot(grid[place // PANELS, place % PANELS], sharex=first, sharey=first)
        first = first or axes
        for other, mean in averaged.groupby("row"):
            if other != row:
                axes.plot(mean["step"], mean["validation"], color="#cccccc", linewidth=0.7)
        _curves(axes, data[data["row"] == row], "validation", look, "-")
        axes.set_title(row, fontsize=8)
        axes.tick_params(labelbottom=place + PANELS >= len(looks), labelleft=place % PANELS == 0)
    if half.notna().any():
        low, high = half.min(), data["validation"].max()
        margin = 0.08 * max(high - low, 1)
        first.set_ylim(low - margin, high + margin)
    return first


def _curves(axes: Axes, data: pd.DataFrame, values: str, look: Look, dashes: str) -> None:
    """The runs of one row, thin, and their mean with markers at about eight epochs."""
    colour = look["color"]
    for _, run in data[data["mark"] == "epoch"].groupby("seed"):
        axes.plot(run["step"], run[values], color=colour, linewidth=0.6, alpha=0.45)
    mean = data[data["mark"] == "mean"]
    axes.plot(mean["step"], mean[values], dashes, **look, markevery=math.ceil(max(1, len(mean)) / 8), markersize=4)
    best = data[data["mark"] == "best"]
    ring = {"marker": "o", "linestyle": "", "markersize": 5, "markerfacecolor": "none", "markeredgewidth": 0.8}
    axes.plot(best["step"], best[values], **ring, markeredgecolor=colour)


def _ends(data: pd.DataFrame) -> dict[str, float]:
    """Where each row's mean curve ends; a row without one has the mean of its runs' last values."""
    ends = {}
    for row, own in data.dropna(subset=["validation"]).groupby("row", sort=False):
        mean = own[own["mark"] == "mean"]
        last = mean.tail(1) if len(mean) else own[own["mark"] == "epoch"].groupby("seed").tail(1)
        ends[row] = last["validation"].mean()
    return ends
