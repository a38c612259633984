"""The figures as cards: what lies in the folder of figures, by kind, and which of the paper's are not made yet."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from analysis.drawing.figure import Card
from analysis.reporting.behind import Behind
from analysis.reporting.html import Markup, join, tag

MOST_VECTOR = 400_000
"""Bytes of an SVG file above which the PNG file is shown."""
MOST_OPEN = 6
"""Figures of a kind that are unfolded when the page opens."""


@dataclass(frozen=True)
class Kind:
    """What figures of a kind show, and the module that makes them; ``paper`` names the paper's figures they follow."""

    title: str
    module: str
    paper: str = ""


KINDS = {
    "runs": Kind("Every run", "figures"),
    "differences": Kind("Differences image by image", "figures"),
    "ranks": Kind("Average ranks over datasets", "figures"),
    "pareto": Kind("Accuracy against parameters, time and memory", "figures"),
    "learning": Kind("Learning curves", "figures"),
    "experts": Kind("Which experts are chosen", "figures", "figure 8"),
    "attention": Kind("Attention distance", "attention", "figures 5 and 7, left"),
    "fourier": Kind("Fourier amplitude", "fourier", "figure 7, right"),
    "features": Kind("Feature maps", "features", "figure 9"),
    "predictions": Kind("Predictions", "predictions", "figures 1 and 10 to 14"),
}


class Gallery:
    """Writes cards into a page that lies in the folder ``page``.

    Args:
        figures: the folder of the cards.
        room: the most characters of the page that pictures may take; those for which there is none are linked.
    """

    def __init__(self, figures: Path, page: Path, cards: Sequence[Card], behind: Behind, *, room: int) -> None:
        self._figures, self._page, self._behind = figures, page, behind
        kinds = dict.fromkeys([*KINDS, *(card.kind for card in cards)])
        self._cards = {kind: own for kind in kinds if (own := [card for card in cards if card.kind == kind])}
        self._pictures = self._fitting(room)

    def shown(self) -> Markup:
        """All cards, kind by kind; kinds that are not in :data:`KINDS` come last."""
        blocks = []
        for kind, cards in self._cards.items():
            first, rest = cards[:MOST_OPEN], cards[MOST_OPEN:]
            blocks += [tag("h3", KINDS[kind].title if kind in KINDS else kind), map(self._card, first)]
            if rest:
                blocks.append(tag("details", tag("summary", f"{len(rest)} more"), map(self._card, rest)))
        return join(blocks)

    def _fitting(self, room: int) -> dict[str, str]:
        """The address of each picture by its card's name, as far as there is room: the first of each kind first."""
        addresses = {}
        for _, card in sorted(((i, card) for own in self._cards.values() for i, card in enumerate(own)), key=_place):
            path = self._picture_of(card)
            address = _inline(path) if path and path.stat().st_size <= room else ""
            if address and len(address) <= room:
                addresses[card.name] = address
                room -= len(address)
        return addresses

    def _card(self, card: Card) -> Markup:
        address = self._pictures.get(card.name)
        linked = tag("p", "There is no room for this picture in the page; its files are linked.", class_="note")
        gone = len(self._behind.unknown(card.cells))
        warning = f"OLD FIGURE: {gone} of its {len(card.cells)} cells are not among these results; draw it again."
        cells = self._behind.number(f"{len(card.cells)} cells", card.cells) if card.cells else None
        facts = [(name.replace("_", " "), _fact(value)) for name, value in card.about.items()]
        told = [
            f"{name}: {fact}. " for name, fact in facts if not all(part in card.caption for part in fact.split(", "))
        ]
        return tag(
            "figure",
            tag("img", src=address, alt=card.title) if address else linked,
            tag(
                "figcaption",
                tag("h4", card.title),
                tag("p", warning, class_="warning") if gone else None,
                tag("p", card.caption),
                tag("p", told, class_="note") if told else None,
                tag("p", tag("code", card.command), cells and [" ", cells], self._links(card)),
            ),
        )

    def _picture_of(self, card: Card) -> Path | None:
        """The SVG file if it is small, else the PNG file, else either."""
        vector, raster = self._file(card, "svg"), self._file(card, "png")
        if vector.is_file() and (vector.stat().st_size <= MOST_VECTOR or not raster.is_file()):
            return vector
        return raster if raster.is_file() else None

    def _file(self, card: Card, ending: str) -> Path:
        """Beside the card, whatever its name claims."""
        return self._figures / Path(f"{card.name}.{ending}").name

    def _links(self, card: Card) -> list[Markup | str]:
        found = [path for ending in ("pdf", "png", "svg", "csv") if (path := self._file(card, ending)).is_file()]
        return [part for path in found for part in (" ", tag("a", path.suffix[1:], href=_relative(path, self._page)))]


def missing(cards: Sequence[Card], not_drawn: Sequence[str], options: str) -> Markup:
    """The kinds of figures that are not there, each with its command, and what kept others from being drawn.

    Args:
        not_drawn: a line each.
        options: what follows the commands, " --results FOLDER" or nothing.
    """
    there = {card.kind for card in cards}
    lines = [
        tag("li", kind.title, f" ({kind.paper} of the paper)" if kind.paper else "", ": ", tag("code", command))
        for name, kind in KINDS.items()
        if name not in there and (command := f"python -m analysis.{kind.module}{options}")
    ]
    made = join(tag("h3", "Not made yet"), tag("ul", lines)) if lines else None
    told = tag("ul", [tag("li", line) for line in not_drawn], class_="note") if not_drawn else None
    return join(made, told and tag("h3", "Not drawn, or not in full"), told)


def _inline(path: Path) -> str:
    """A file as an address that holds it; a picture in an ``img`` element runs no script and loads nothing."""
    content = path.read_bytes()
    if path.suffix == ".svg":
        return f"data:image/svg+xml,{quote(content, safe=' =:;,/()*!@$?+~._-')}"
    return f"data:image/png;base64,{b64encode(content).decode()}"


def _relative(path: Path, page: Path) -> str:
    return quote(Path(os.path.relpath(path, page)).as_posix(), safe="/")


def _place(numbered: tuple[int, Card]) -> tuple[int, int]:
    number, card = numbered
    return number, list(KINDS).index(card.kind) if card.kind in KINDS else len(KINDS)


def _fact(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_fact(inner)}" for key, inner in value.items())
    return ", ".join(map(_fact, value)) if isinstance(value, list | tuple) else str(value)
