"""Numbers as buttons that show the cells behind them, and the list of cells these buttons point into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from analysis.reporting.html import Child, Markup, data, join, tag
from analysis.reporting.provenance import Made
from analysis.results import Results

COLUMNS = ("cell", "seed", "trained", "attempt", "stale")
"""What the page's script is told of each cell."""
SHARED = ("commit", "data", "device", "threads", "torch", "state", "kind")
"""What many cells have in common, and is written once for them."""
DIGITS = 3  # of a run's score, after the point


@dataclass(frozen=True)
class Behind:
    """What the numbers of a page were made from.

    Attributes:
        made: every cell, by id.
        scores: (cell, test set, metric) -> fraction, under the report's protocol.
    """

    made: Mapping[str, Made]
    scores: Mapping[tuple[str, str, str], float]

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.made)}

    def number(self, shown: Child, cells: Sequence[str], values: Sequence[float | None] = ()) -> Markup:
        """``shown`` as a button, or as it is where no cell is behind it.

        Args:
            cells: ids.
            values: what each of them contributes, in the printed scale; None where that is not known.
        """
        pairs = zip(cells, values or [None] * len(cells), strict=True)
        known = [(self._places[cell], value) for cell, value in pairs if cell in self._places]
        if not known:
            return join(shown)
        scores = ["" if value is None else f"{value:.{DIGITS}f}" for _, value in known]
        return tag(
            "button", shown,
            data_cells=" ".join(str(place) for place, _ in known),
            data_scores=",".join(scores) if any(scores) else None,
        )  # fmt: skip

    def unknown(self, cells: Sequence[str]) -> list[str]:
        """Those of ``cells`` that are not here."""
        return [cell for cell in cells if cell not in self.made]

    def values(self, cells: Sequence[str], test_set: str, metric: str, scale: float) -> list[float | None]:
        """The scores of ``cells`` in the printed scale."""
        found = [self.scores.get((cell, test_set, metric)) for cell in cells]
        return [None if value is None else value * scale for value in found]

    def listed(self) -> Markup:
        """The cells as the page's script reads them: values of ``COLUMNS``, and the place of those of ``SHARED``."""
        shared: dict[tuple[str, ...], int] = {}
        rows = []
        for one in self.made.values():
            origin = one.origin
            told = (origin.commit, origin.data, origin.device, origin.threads, origin.torch, one.state, one.kind)
            place = shared.setdefault(told, len(shared))
            rows.append([one.id, one.seed, one.date, one.attempt, ", ".join(one.stale), place])
        return data("list", {"columns": [*COLUMNS, *SHARED], "cells": rows, "shared": list(shared)})


def behind(made: Mapping[str, Made], results: Results, protocol: str) -> Behind:
    """The numbers' cells, with their scores under ``protocol``."""
    scored = results.scores[results.scores["protocol"] == protocol]
    keys = ("id", "test_set", "metric", "value")
    rows = zip(*(scored[key].tolist() for key in keys), strict=True)
    return Behind(made, {(cell, test_set, metric): value for cell, test_set, metric, value in rows})
