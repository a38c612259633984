"""Figures of the frequencies in feature maps: of every layer, and averaged over layers (figure 7)."""

from __future__ import annotations

from functools import partial
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from analysis.drawing.figure import Figure
from analysis.drawing.layout import WIDTH, heading
from analysis.inside.fourier import frequencies
from analysis.inside.session import COLUMNS, TITLE, Seen, Session, lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

KIND = "fourier"
BAND = (5, 95)
_MEANING = (
    "Relative log amplitude (Park & Kim 2022): the natural logarithm of the absolute value of the Fourier transform of "
    "a block's output over its tokens, mean over channels and images, along the diagonal, minus that of frequency 0. "
    "Higher means more of the high frequencies. π is a change of sign from token to token, however large a token is in "
    "the image."
)


def figures(session: Session) -> list[Figure]:
    """Both figures; values are (images, layers, frequencies) of :func:`analysis.inside.fourier.amplitudes`."""
    layers = session.card(
        KIND,
        "layers",
        title="Relative log amplitudes of each layer's feature map",
        paper="7 right",
        sentences=(_MEANING, "A line is a layer, from the first (dark) to the last (light)."),
    )
    means = session.card(
        KIND,
        "mean",
        title="Relative log amplitudes of feature maps, averaged over layers",
        paper="7 right",
        sentences=(_MEANING, f"Lines: means over layers and images; bands: {BAND[0]} to {BAND[1]} % of the images."),
    )
    return [
        Figure(
            means, pd.concat([mean_of(one) for one in session.seen]), partial(_draw_mean, looks=lines(session.seen))
        ),
        Figure(layers, pd.concat([layers_of(one) for one in session.seen]), _draw_layers),
    ]


def layers_of(seen: Seen) -> pd.DataFrame:
    """A line for each layer and frequency (in units of pi), averaged over images."""
    about, means = seen.about, seen.values.mean(0)
    return pd.DataFrame([
        {"encoder": about.name, "layer": layer + 1, "frequency": frequency, "log_amplitude": value}
        for layer, values in enumerate(means)
        for frequency, value in zip(frequencies(about.grid), values, strict=True)
    ])  # fmt: skip


def mean_of(seen: Seen) -> pd.DataFrame:
    """A line a frequency: the mean over layers, over images, and the band between images."""
    values = seen.values.mean(1)
    low, high = np.percentile(values, BAND, axis=0)
    return pd.DataFrame({
        "encoder": seen.about.name,
        "image_size": seen.about.image_size,
        "frequency": frequencies(seen.about.grid),
        "log_amplitude": values.mean(0),
        "low": low,
        "high": high,
    })  # fmt: skip


def _draw_mean(data: pd.DataFrame, *, looks: dict[str, dict[str, str]]) -> Drawing:
    from matplotlib import pyplot

    drawn, axes = pyplot.subplots(figsize=(WIDTH, 3.6), layout="constrained")
    heading(drawn, "Relative log amplitudes of feature maps, averaged over layers")
    for name, look in looks.items():
        own = data[data["encoder"] == name]
        axes.fill_between(own["frequency"], own["low"], own["high"], color=look["color"], alpha=0.15, linewidth=0)
        axes.plot(own["frequency"], own["log_amplitude"], marker=".", label=f"{name}, {own['image_size'].iloc[0]} px",
                  **look)  # fmt: skip
    _label(axes)
    axes.set_ylabel("log amplitude, relative to frequency 0")
    drawn.legend(loc="outside lower center", ncols=2)
    return drawn


def _draw_layers(data: pd.DataFrame) -> Drawing:
    from matplotlib import pyplot
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap

    names = list(dict.fromkeys(data["encoder"]))
    columns = min(COLUMNS, len(names))
    rows = -(-len(names) // columns)
    drawn, panels = pyplot.subplots(
        rows, columns, figsize=(WIDTH, 0.5 + 2.4 * rows), sharey=True, squeeze=False, layout="constrained"
    )
    heading(drawn, "Relative log amplitudes of each layer's feature map")
    depth = int(data["layer"].max())
    # The map's light end is too pale for lines on white.
    colours = pyplot.get_cmap("cividis")(np.linspace(0, 0.9, depth))
    for axes, name in zip(panels.flat, names, strict=False):
        for layer, own in data[data["encoder"] == name].groupby("layer"):
            axes.plot(own["frequency"], own["log_amplitude"], color=colours[int(layer) - 1], linewidth=1)
        axes.set_title(fill(name, TITLE), fontsize=8)
        _label(axes)
    for axes in panels.flat[len(names) :]:
        axes.set_visible(False)
    for line in panels:
        line[0].set_ylabel("relative log amplitude")
    shades = ScalarMappable(BoundaryNorm(np.arange(depth + 1) + 0.5, depth), ListedColormap(colours))
    bar = drawn.colorbar(shades, ax=panels, label="layer", ticks=[1, (depth + 1) // 2, depth])
    bar.ax.minorticks_off()
    return drawn


def _label(axes: Axes) -> None:
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "π/2", "", "π"])
    axes.set_xlabel("frequency")
