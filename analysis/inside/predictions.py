"""Prediction grids, as in the paper's figures 1 and 10 to 14: image, truth, and what each method makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from analysis.drawing import words
from analysis.drawing.figure import Card, Figure
from analysis.inside import colouring, grids, telling
from analysis.inside.command import Shown
from datasets import IGNORE

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

KIND = "predictions"

_BINARY = (
    ("truth; true positive", colouring.FOREGROUND),
    ("false positive", colouring.FALSE_POSITIVE),
    ("false negative", colouring.FALSE_NEGATIVE),
)


def figure(shown: Shown) -> Figure:
    """A row an image, a column a method, beside image and truth."""
    place = shown.subject.place
    card = Card(
        name=f"{KIND}-{place.name}-{shown.rule}{shown.variant}",
        kind=KIND,
        title=f"{place.column.group}: predictions for {telling.TITLES[shown.rule]}",
        caption=words.caption([place], telling.choice(shown), _colours(shown), telling.numbers(shown)),
        command=shown.command,
        cells=words.ids(place.cells),
        about=telling.about(shown, paper="1, 10 to 14"),
    )
    return Figure(card, telling.table(shown), partial(_draw, shown=shown))


def _colours(shown: Shown) -> str:
    if shown.subject.classes:
        return "Predicted classes in colours, striped where they are wrong."
    return "Masks over the image in grey, predictions with what is too much and what is missing of the foreground."


def _draw(data: pd.DataFrame, *, shown: Shown) -> Drawing:
    picks = {pick.image: pick for pick in shown.picks}
    rows = [
        grids.Row(
            telling.label(shown, picks[image]),
            [shown.views[image].pixels, *painted(shown, image, shown.subject.rows)],
            ["", "", *telling.notes(shown, picks[image])],
        )
        for image in data["image"].unique()
    ]
    headings = ["image", "truth", *(shown.subject.titles[row] for row in shown.subject.rows)]
    return grids.draw(grids.Grid(headings, rows, legend(shown, shown.subject.rows)))


def painted(shown: Shown, image: str, rows: Sequence[str]) -> list[np.ndarray]:
    """The truth of an image and the answers of these rows, in colours."""
    view, classes = shown.views[image], shown.subject.classes
    if classes:
        colours = colouring.class_colours(len(classes))
        return [colouring.classes(labels, view.truth, colours) for labels in view.labels(rows)]
    return [colouring.errors(view.pixels, labels, view.truth) for labels in view.labels(rows)]


def legend(shown: Shown, rows: Sequence[str]) -> list[tuple[str, str | None]]:
    """What the colours of :func:`painted` mean, of those that occur."""
    classes = shown.subject.classes
    if not classes:
        return list(_BINARY) if rows else [("truth", colouring.FOREGROUND)]
    labels = [one for pick in shown.picks for one in shown.views[pick.image].labels(rows)]
    seen = {label for one in labels for label in np.unique(one).tolist()}
    named = [*zip(classes, colouring.class_colours(len(classes)), strict=True)]
    found: list[tuple[str, str | None]] = [pair for label, pair in enumerate(named) if label in seen]
    found += [("does not count", colouring.UNCOUNTED)] if IGNORE in seen else []
    return [*found, ("wrong", None)] if rows else found
