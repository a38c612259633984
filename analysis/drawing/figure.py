"""A figure as files: PDF, PNG and SVG, its data as csv, and a card that says what it shows and what it was made from.

The report (:mod:`analysis.report`) shows every figure whose card lies in ``results/figures``, whatever drew it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis.drawing import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

SCHEMA = 1
FORMATS = ("svg", "pdf", "png")
# Without a date and an author the same figure is the same file.
_METADATA = {
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "png": {"Software": None},
}


@dataclass(frozen=True)
class Card:
    """What a figure says about itself.

    Attributes:
        name: of its files, without an ending.
        kind: what it shows, a word all figures of a kind share (the report has a section for each): "runs", "pareto",
            "learning", "differences", "ranks", "attention", "fourier", "experts", "features", "predictions".
        title: a short heading.
        caption: whole sentences, warnings first: n, backbone, size, protocol, what dots and bars are.
        command: what draws it again.
        cells: ids of the cells behind it.
        about: further facts by name (device, commit, images, the paper's figure it corresponds to).
    """

    name: str
    kind: str
    title: str
    caption: str
    command: str
    cells: tuple[str, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Figure:
    """A card, what is drawn as a frame with a line a mark, and how it is drawn (in the style, which is set before)."""

    card: Card
    data: pd.DataFrame
    draw: Callable[[pd.DataFrame], Drawing]


def write(figure: Figure, folder: Path, *, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Draw ``figure`` and write its files into ``folder``; returns them, the card last.

    Raises:
        ValueError: a format that is none of :data:`FORMATS`.
    """
    if unknown := [name for name in formats if name not in FORMATS]:
        raise ValueError(f"unknown format {unknown[0]!r}; allowed: {', '.join(FORMATS)}")
    import matplotlib
    from matplotlib import pyplot

    style.use()
    folder.mkdir(parents=True, exist_ok=True)
    paths = {ending: folder / f"{figure.card.name}.{ending}" for ending in (*formats, "csv", "json")}
    # Names inside an SVG file depend on nothing but the figure.
    with matplotlib.rc_context({"svg.hashsalt": figure.card.name}):
        drawn = figure.draw(figure.data)
        for ending in formats:
            drawn.savefig(paths[ending], format=ending, metadata=_METADATA[ending])
        pyplot.close(drawn)
    figure.data.to_csv(paths["csv"], index=False, lineterminator="\n")
    card = {"schema": SCHEMA, **asdict(figure.card), "formats": list(formats)}
    paths["json"].write_text(json.dumps(card, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return list(paths.values())


def read_cards(folder: Path) -> tuple[list[Card], list[str]]:
    """The cards below ``folder`` whose figures are there, by kind and name; and a line for each that cannot be used."""
    cards, skipped = [], []
    for path in sorted(folder.glob("*.json")):
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            if said.pop("schema") != SCHEMA:
                raise ValueError(f"it does not have the schema {SCHEMA}")
            missing = [name for name in said.pop("formats") if not path.with_suffix(f".{name}").is_file()]
            if missing:
                raise ValueError(f"{path.with_suffix('.' + missing[0]).name} is missing")
            cards.append(Card(**{**said, "cells": tuple(said["cells"])}))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            skipped.append(f"{path}: {error}; the figure is left out")
    return sorted(cards, key=lambda card: (card.kind, card.name)), skipped
