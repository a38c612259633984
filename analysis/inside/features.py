"""Feature maps, as in the paper's figure 9: what the encoder hands to the decoder, with one method and with another.

The paper does not say how it made a picture of many channels. Here there are two:

* the distance of each place's feature vector from the mean vector of its map: where something is that stands out. The
  length of the vectors says little, since SAM's neck ends with a layer norm over the channels;
* the first three principal components as red, green and blue. They are computed from all maps that are shown, of all
  methods together, so that one colour means the same everywhere. Before, each method's mean vector is taken from its
  maps: what all places have in common shows nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from analysis.drawing import words
from analysis.drawing.figure import Card, Figure
from analysis.inside import grids, telling
from analysis.inside.command import Shown
from analysis.inside.predictions import legend, painted
from analysis.inside.showing import enlarged
from analysis.results import NoResults

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

KIND = "features"

COLOURS = "cividis"
_ENDS = (1, 99)  # of a scale: percentiles over all places of all maps
Maps = Mapping[str, Mapping[str, np.ndarray]]
"""Row -> image -> features (C, h, w)."""


class Components(NamedTuple):
    """Row -> image -> (h, w, 3) uint8; and the share of the variance that is seen."""

    pictures: dict[str, dict[str, np.ndarray]]
    share: float


def distances(features: np.ndarray) -> np.ndarray:
    """(h, w): Euclidean distances of the vectors of a map (C, h, w) from their mean."""
    return np.linalg.norm(features - features.mean((1, 2), keepdims=True), axis=0)


def components(maps: Maps) -> Components:
    """The first three principal components of all maps as colours.

    The sign of a component is such that its largest weight is positive; each has the same scale in all maps.

    Raises:
        NoResults: the methods' maps have different numbers of channels.
    """
    widths = {row: next(iter(own.values())).shape[0] for row, own in maps.items()}
    if len(set(widths.values())) > 1:
        said = ", ".join(f"{row} {width}" for row, width in widths.items())
        raise NoResults(f"features of different numbers of channels share no components: {said}. Next: other --methods")
    centred = {}
    for row, own in maps.items():
        vectors = {image: one.reshape(len(one), -1).T.astype(np.float64) for image, one in own.items()}
        mean = np.concatenate(list(vectors.values())).mean(0)
        centred |= {(row, image): one - mean for image, one in vectors.items()}
    every = np.concatenate(list(centred.values()))
    variances, axes = np.linalg.eigh(every.T @ every)
    variances, axes = variances[::-1].clip(0), axes[:, ::-1][:, :3]
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), range(axes.shape[1])])
    ends = np.percentile(every @ axes, _ENDS, axis=0)
    pictures: dict[str, dict[str, np.ndarray]] = {row: {} for row in maps}
    for (row, image), vectors in centred.items():
        form = maps[row][image].shape[1:]
        pictures[row][image] = _bytes(vectors @ axes, *ends).reshape(*form, 3)
    return Components(pictures, float(variances[:3].sum() / (variances.sum() or 1.0)))


def figure(shown: Shown) -> Figure:
    """A row an image: image, truth, and both pictures of each method's features."""
    place, rows = shown.subject.place, shown.subject.rows
    images = [pick.image for pick in shown.picks]
    maps = {row: {image: shown.views[image].answers[row].features for image in images} for row in rows}
    found = components(maps)
    apart = {row: {image: distances(one) for image, one in own.items()} for row, own in maps.items()}
    ends = np.percentile(np.concatenate([one.ravel() for own in apart.values() for one in own.values()]), _ENDS)
    data = telling.table(shown)
    pairs = list(zip(data["row"], data["image"], strict=True))
    data["places"] = [apart[row][image].size for row, image in pairs]
    data["mean_distance"] = [float(apart[row][image].mean()) for row, image in pairs]
    data["largest_distance"] = [float(apart[row][image].max()) for row, image in pairs]
    card = Card(
        name=f"{KIND}-{place.name}-{shown.rule}{shown.variant}",
        kind=KIND,
        title=f"{place.column.group}: features for {telling.TITLES[shown.rule]}",
        caption=words.caption([place], telling.choice(shown), _said(apart[rows[0]][images[0]].shape, found.share)),
        command=shown.command,
        cells=words.ids(place.cells),
        about=telling.about(shown, paper="9"),
    )
    return Figure(card, data, partial(_draw, shown=shown, apart=apart, pictures=found.pictures, ends=ends))


def _said(places: tuple[int, int], share: float) -> str:
    """What is seen."""
    return (
        f"What the encoder hands to the decoder, {places[0]} x {places[1]} places. Distance: of a place's feature "
        "vector from the mean of its map. Components: the first three principal components of all maps shown, less "
        f"each method's mean vector, as red, green and blue ({100 * share:.0f} % of the variance). All methods and "
        f"images share the scales, from the {_ENDS[0]}st to the {_ENDS[1]}th percentile. How the maps of the paper's "
        "figure 9 were made is not said there."
    )


def _draw(
    data: pd.DataFrame,
    *,
    shown: Shown,
    apart: Maps,
    pictures: Maps,
    ends: np.ndarray,
) -> Drawing:
    from matplotlib import colormaps

    picks, titles = {pick.image: pick for pick in shown.picks}, shown.subject.titles
    rows = []
    for image in data["image"].unique():
        panels = [shown.views[image].pixels, *painted(shown, image, ())]
        panels += [colormaps[COLOURS](_bytes(own[image], *ends), bytes=True)[..., :3] for own in apart.values()]
        panels += [own[image] for own in pictures.values()]
        rows.append(grids.Row(telling.label(shown, picks[image]), [enlarged(panel) for panel in panels]))
    of_methods = [f"{titles[row]}\n{what}" for what in ("distance", "components") for row in apart]
    scale = grids.Scale("distance from the mean of the map", *ends, COLOURS)
    return grids.draw(grids.Grid(["image", "truth", *of_methods], rows, legend(shown, ()), scale))


def _bytes(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """From ``low`` to ``high`` as 0 to 255, the middle where there is no range."""
    span = high - low
    share = np.where(span > 0, (values - low) / np.where(span > 0, span, 1), 0.5)
    return np.rint(255 * share.clip(0, 1)).astype(np.uint8)
