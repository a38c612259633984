"""How the choice of experts is drawn: bars of totals, maps of layers, areas over training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from analysis.drawing import style
from analysis.drawing.choices import ONCE
from analysis.drawing.layout import WIDTH, heading

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

MANY_LAYERS = 16


def totals(data: pd.DataFrame, *, method: str, title: str, below: str) -> Drawing:
    """A column of panels a dataset, a row for each kind of layers."""
    from matplotlib import pyplot

    datasets, kinds = list(data["dataset"].unique()), list(data["layers"].unique())
    size = (WIDTH, 0.9 + 1.6 * len(kinds))
    drawn, panels = pyplot.subplots(len(kinds), len(datasets), squeeze=False, sharex="col", figsize=size)
    for column, dataset in enumerate(datasets):
        for kind, axes in zip(kinds, panels[:, column], strict=True):
            own = data[(data["dataset"] == dataset) & (data["layers"] == kind)]
            if own.empty:
                axes.set_axis_off()
                continue
            _bars(axes, own, style.colour(method))
            axes.set_title(dataset if len(kinds) == 1 else f"{dataset}\n{kind}", fontsize=8)
        panels[-1, column].set_xlabel("scale of the expert", fontsize=8)
    for axes in panels[:, 0]:
        axes.set_ylabel("times chosen")
    heading(drawn, title, below)
    return drawn


def _bars(axes: Axes, data: pd.DataFrame, colour: str) -> None:
    mean, seeds = data[data["mark"] == "mean"], data[data["mark"] == "seed"]
    places = {scale: place for place, scale in enumerate(mean["scale"])}
    axes.bar(list(places.values()), mean["count"], width=0.75, color=colour)
    for place, (_, own) in enumerate(seeds.groupby("seed")):
        shift = (place - (seeds["seed"].nunique() - 1) / 2) * 0.5 / max(1, seeds["seed"].nunique())
        at = [places[scale] + shift for scale in own["scale"]]
        axes.plot(at, own["count"], "o", color=style.INK, markersize=2.5)
    axes.axhline(mean["count"].mean(), color=style.INK, linewidth=0.8, linestyle="--")
    axes.set_xticks(list(places.values()), list(map(str, places)))
    axes.ticklabel_format(axis="y", scilimits=(-3, 5))
    axes.grid(axis="x", visible=False)


def layers(data: pd.DataFrame, *, method: str, title: str, below: str, most_seeds: int) -> Drawing:
    """A map of the mean over seeds, one of each seed, and the entropy of each layer."""
    from matplotlib import pyplot
    from matplotlib.colors import ListedColormap

    seeds = sorted(data["seed"].dropna().unique())
    maps = {"mean": data[data["mark"] == "mean share"]} if len(seeds) > 1 else {}
    each = data[data["mark"] == "share"]
    maps |= {f"seed {seed}": each[each["seed"] == seed] for seed in seeds[:most_seeds]}
    once = data.drop_duplicates("layer").sort_values("layer")["decides"].eq(ONCE).to_numpy()
    size = (WIDTH, max(2.8, 1.2 + (0.17 if len(once) <= MANY_LAYERS else 0.1) * len(once)))
    widths = [1] * len(maps) + [1.3]
    drawn, panels = pyplot.subplots(1, len(widths), sharey=True, figsize=size, width_ratios=widths)
    # From a blue that is not mistaken for the white of what was never chosen.
    blues = pyplot.get_cmap("Blues")(np.linspace(0.15, 1, 256))
    shades = ListedColormap(blues).with_extremes(bad="white")
    for axes, (name, own) in zip(panels, maps.items(), strict=False):
        table = own.pivot(index="layer", columns="scale", values="share")
        shown = np.ma.masked_equal(table.to_numpy(dtype=float), 0)
        image = axes.imshow(shown, cmap=shades, vmin=0, vmax=1, aspect="auto")
        step = math.ceil(table.shape[1] / 8)
        axes.set_xticks(range(0, table.shape[1], step), list(map(str, table.columns[::step])))
        axes.set_title(name, fontsize=8)
        axes.set_xlabel("scale", fontsize=8)
        axes.grid(visible=False)
        axes.spines[["top", "right"]].set_visible(True)
    _layer_names(panels[0], once)
    _entropy_of_layers(panels[-1], data[data["mark"] == "entropy"], style.colour(method), once, _highest(data))
    bar = drawn.colorbar(image, ax=panels[: len(maps)], location="bottom", fraction=0.05, aspect=40)
    bar.set_label("share of a layer's decisions", fontsize=8)
    heading(drawn, title, below)
    return drawn


def _layer_names(axes: Axes, once: np.ndarray) -> None:
    """Numbers of layers; where some decide once per image these are bold, and the only ones of many layers."""
    mixed = 0 < once.sum() < len(once)
    number = [
        layer for layer in range(len(once)) if len(once) <= MANY_LAYERS or (once[layer] if mixed else layer % 4 == 3)
    ]
    axes.set_yticks(number, list(map(str, number)))
    for layer, label in zip(number, axes.get_yticklabels(), strict=True):
        label.set_fontweight("bold" if mixed and once[layer] else "normal")
    axes.set_ylabel(f"layer{' (bold: decides once an image)' if mixed else ''}")


def _entropy_of_layers(axes: Axes, data: pd.DataFrame, colour: str, once: np.ndarray, highest: float) -> None:
    mean = data.groupby("layer")["entropy"].mean()
    axes.plot(mean, mean.index, color=colour)
    open_where = data["layer"].map(dict(enumerate(once & (0 < once.sum() < len(once)))))
    for chosen, face in ((~open_where, colour), (open_where, "white")):
        axes.plot(
            data[chosen]["entropy"], data[chosen]["layer"], "o", color=colour, markerfacecolor=face,
            markeredgecolor=colour, markeredgewidth=0.8, markersize=4,
        )  # fmt: skip
    axes.set_xlim(-0.04 * highest, 1.04 * highest)
    axes.set_xlabel(f"bits, at most {highest:.3g}", fontsize=8)
    axes.xaxis.get_major_locator().set_params(nbins=4, integer=highest > 2)
    axes.set_title("entropy", fontsize=8)


def training(data: pd.DataFrame, *, method: str, title: str, below: str, most_seeds: int) -> Drawing:
    """For each kind of layers a row: areas of each seed, and the entropy of all."""
    from matplotlib import pyplot

    seeds, kinds = sorted(data["seed"].unique()), sorted(data["decides"].unique())
    shown = seeds[:most_seeds]
    drawn, panels = pyplot.subplots(
        len(kinds), len(shown) + 1, squeeze=False, sharex=True, figsize=(WIDTH, 1.2 + 1.7 * len(kinds)),
        width_ratios=[1] * len(shown) + [1.2],
    )  # fmt: skip
    for kind, line in zip(kinds, panels, strict=True):
        own = data[data["decides"] == kind]
        areas, entropy = own[own["mark"] == "share"], own[own["mark"] == "entropy"]
        for place, (axes, seed) in enumerate(zip(line, shown, strict=False)):
            handles = _areas(axes, areas[areas["seed"] == seed])
            axes.set_title(f"seed {seed}" + (f", {kind}" if len(kinds) > 1 else ""), fontsize=8)
            axes.tick_params(labelleft=place == 0)
        line[0].set_ylabel("share of decisions")
        _entropy_of_epochs(line[-1], entropy, style.colour(method), _highest(data))
    for axes in panels[-1]:
        axes.set_xlabel("steps", fontsize=8)
        axes.tick_params(axis="x", labelsize=7)
    drawn.legend(*handles, loc="outside lower center", ncols=8, title="scale of the expert", handlelength=1)
    heading(drawn, title, below)
    return drawn


def _areas(axes: Axes, data: pd.DataFrame) -> tuple[list, list[str]]:
    """Shares on top of each other, dark for large scales; a single epoch is drawn as a bar would be."""
    from matplotlib import pyplot

    table = data.pivot(index="step", columns="scale", values="share").astype(float)
    steps = table.index.to_numpy(dtype=float)
    if len(steps) == 1:
        table, steps = pd.concat([table, table]), np.array([0, steps[0]])
    colours = pyplot.get_cmap("cividis_r")(np.linspace(0, 1, table.shape[1]))
    stack = axes.stackplot(steps, table.to_numpy().T, colors=colours, linewidth=0)
    axes.set(xlim=(steps[0], steps[-1]), ylim=(0, 1))
    axes.locator_params(axis="x", nbins=2)
    return stack, list(map(str, table.columns))


def _entropy_of_epochs(axes: Axes, data: pd.DataFrame, colour: str, highest: float) -> None:
    for dashes, (seed, own) in zip(style.DASHES * len(data), data.groupby("seed"), strict=False):
        axes.plot(own["step"], own["entropy"], dashes, color=colour, label=f"seed {seed}")
    axes.set_ylim(0, 1.04 * highest)
    axes.locator_params(axis="x", nbins=2)
    axes.set_title(f"entropy (bits, at most {highest:.3g})", fontsize=8)
    axes.legend(fontsize=7, handlelength=1.8)


def _highest(data: pd.DataFrame) -> float:
    """The entropy of an even choice, in bits."""
    return math.log2(data["scale"].nunique())
