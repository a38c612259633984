"""Figures of how far encoders attend: every head of every layer (figure 5), and the mean of each layer (figure 7)."""

from __future__ import annotations

from functools import partial
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from analysis.drawing.figure import Figure
from analysis.drawing.layout import WIDTH, heading
from analysis.drawing.style import INK, PAPER
from analysis.inside.attention_distance import farthest_distance, uniform_distance
from analysis.inside.session import COLUMNS, TITLE, Seen, Session, lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

KIND = "attention"
BAND = (5, 95)
"""Percentiles over images between which a band lies."""

_DASHES = (0, (2, 1))
_WINDOWED, _WHOLE = "layer that attends in windows", "layer that attends over the whole image"
_MEANING = (
    "Attention distance: the mean over an image's tokens of the distance to the tokens they attend to, weighted by "
    "attention; tokens of the image alone, weights scaled to sum to 1 over them. Shares of the image's width compare "
    "encoders that see images at different sizes."
)


def figures(session: Session) -> list[Figure]:
    """Both figures; values are (images, layers, heads, 3) of :func:`attention_distance.distances`."""
    looks = lines(session.seen)
    heads = session.card(
        KIND,
        "heads",
        title="Mean attention distance of each head",
        paper="5",
        sentences=(
            _MEANING,
            "A dot is a head, its mean over images. Dashed: attention spread evenly over what a layer sees; solid: the "
            "farthest two tokens of a window, which no head of that layer can exceed.",
            *filter(None, map(_elsewhere, session.seen)),
        ),
    )
    means = session.card(
        KIND,
        "layers",
        title="Mean attention distance of each layer",
        paper="7 left",
        sentences=(_MEANING, f"Lines: means over heads and images; bands: {BAND[0]} to {BAND[1]} % of the images."),
    )
    return [
        Figure(heads, pd.concat([heads_of(one) for one in session.seen]), partial(_draw_heads, looks=looks)),
        Figure(means, pd.concat([layers_of(one) for one in session.seen]), partial(_draw_layers, looks=looks)),
    ]


def heads_of(seen: Seen) -> pd.DataFrame:
    """A line a head, distances as shares of the image's width and in pixels of the input."""
    about, rows = seen.about, []
    means, deviations = seen.values.mean(0), seen.values[..., 0].std(0)
    for layer, window in enumerate(about.windows):
        even = uniform_distance(window or about.grid, about.real(layer))
        for head, (distance, padding, loose) in enumerate(means[layer]):
            rows.append({
                "encoder": about.name,
                "image_size": about.image_size,
                "layer": layer + 1,
                "head": head + 1,
                "window": about.effective_windows[layer],
                "share": distance / about.grid,
                "share_sd_over_images": deviations[layer, head] / about.grid,
                "pixels": distance / about.grid * about.image_size,
                "even_share": even / about.grid,
                "farthest_share": farthest_distance(about.effective_windows[layer] or about.grid) / about.grid,
                "weight_on_padding": padding,
                "weight_on_loose_tokens": loose,
            })  # fmt: skip
    return pd.DataFrame(rows)


def layers_of(seen: Seen) -> pd.DataFrame:
    """A line a layer: the mean over heads, over images, and the band between images."""
    about = seen.about
    shares = seen.values[..., 0].mean(2) / about.grid
    low, high = np.percentile(shares, BAND, axis=0)
    return pd.DataFrame({
        "encoder": about.name,
        "image_size": about.image_size,
        "layer": np.arange(len(about.windows)) + 1,
        "window": about.effective_windows,
        "share": shares.mean(0),
        "share_low": low,
        "share_high": high,
        "pixels": shares.mean(0) * about.image_size,
    })  # fmt: skip


def _elsewhere(seen: Seen) -> str:
    """How much weight lay on tokens that are not the image's, where there are any."""
    padding, loose = seen.values[..., 1:].mean((0, 2)).T
    said = []
    if padding.any():
        said.append(f"padding of windows {padding[padding > 0].mean():.1%}, the layers that have it averaged")
    if loose.any():
        said.append(f"tokens without a place {loose.mean():.1%}")
    return f"Left out of {seen.about.name}'s weights: {' and '.join(said)}." if said else ""


def _draw_heads(data: pd.DataFrame, *, looks: dict[str, dict[str, str]]) -> Drawing:
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    names = list(dict.fromkeys(data["encoder"]))
    columns = min(COLUMNS, len(names))
    rows = -(-len(names) // columns)
    drawn, panels = pyplot.subplots(
        rows, columns, figsize=(WIDTH, 0.9 + 2.3 * rows), sharey=True, squeeze=False, layout="constrained"
    )
    heading(drawn, "Mean attention distance of each head")
    top = 1.06 * data.loc[:, ["share", "even_share"]].max(axis=None)
    for axes, name in zip(panels.flat, names, strict=False):
        _panel(axes, data[data["encoder"] == name], looks[name]["color"])
        axes.set_ylim(0, top)
        axes.set_title(fill(name, TITLE), fontsize=8)
    for axes in panels.flat[len(names) :]:
        axes.set_visible(False)
    for line in panels:
        line[0].set_ylabel("share of the image's width")
    marks = [
        Line2D([], [], linestyle="", marker="o", color=INK, label="head of a " + _WHOLE),
        Line2D([], [], linestyle="", marker="o", color=INK, fillstyle="none", markeredgewidth=0.9,
               label="head of a " + _WINDOWED),
        Line2D([], [], linestyle=_DASHES, color=PAPER, label="attention spread evenly"),
        Line2D([], [], color=PAPER, label="farthest within a window"),
    ]  # fmt: skip
    windowed = bool((data["window"] > 0).any())
    shown = marks if windowed else [marks[0], marks[2]]
    drawn.legend(handles=shown, loc="outside lower center", ncols=2)
    return drawn


def _panel(axes: Axes, data: pd.DataFrame, colour: str) -> None:
    whole, windowed = data[data["window"] == 0], data[data["window"] > 0]
    layers = data.drop_duplicates("layer")
    bounds = layers[layers["window"] > 0]
    axes.hlines(bounds["farthest_share"], bounds["layer"] - 0.5, bounds["layer"] + 0.5, color=PAPER, linewidth=1)
    axes.hlines(
        layers["even_share"], layers["layer"] - 0.5, layers["layer"] + 0.5, color=PAPER, linestyle=_DASHES, linewidth=1
    )
    axes.plot(whole["layer"], whole["share"], "o", color=colour, markersize=3.5, alpha=0.8)
    axes.plot(
        windowed["layer"], windowed["share"], "o", color=colour, markersize=3.5, fillstyle="none", markeredgewidth=0.8
    )
    axes.set_xlabel("layer")
    axes.set_xlim(0.2, data["layer"].max() + 0.8)
    axes.xaxis.get_major_locator().set_params(integer=True)
    size = int(data["image_size"].iloc[0])
    pixels = axes.secondary_yaxis("right", functions=(lambda share: share * size, lambda value: value / size))
    pixels.set_ylabel(f"pixels of {size}", fontsize=8)
    pixels.spines["right"].set_visible(True)
    pixels.spines["right"].set_color(PAPER)


def _draw_layers(data: pd.DataFrame, *, looks: dict[str, dict[str, str]]) -> Drawing:
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    drawn, axes = pyplot.subplots(figsize=(WIDTH, 3.8), layout="constrained")
    heading(drawn, "Mean attention distance, averaged over heads")
    for name, look in looks.items():
        own = data[data["encoder"] == name]
        axes.fill_between(
            own["layer"], own["share_low"], own["share_high"], color=look["color"], alpha=0.15, linewidth=0
        )
        axes.plot(own["layer"], own["share"], label=f"{name}, {own['image_size'].iloc[0]} px", **look)
        whole, windowed = own[own["window"] == 0], own[own["window"] > 0]
        axes.plot(whole["layer"], whole["share"], "o", color=look["color"], markersize=4)
        axes.plot(windowed["layer"], windowed["share"], "o", color=look["color"], markersize=4,
                  markerfacecolor="white", markeredgewidth=1)  # fmt: skip
    axes.set_xlabel("layer")
    axes.set_ylabel("share of the image's width")
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    handles, _ = axes.get_legend_handles_labels()
    if (data["window"] > 0).any():
        handles += [
            Line2D([], [], linestyle="", marker="o", color=INK, label=_WHOLE),
            Line2D([], [], linestyle="", marker="o", color=INK, markerfacecolor="white", markeredgewidth=1,
                   label=_WINDOWED),
        ]  # fmt: skip
    drawn.legend(handles=handles, loc="outside lower center", ncols=2)
    return drawn
