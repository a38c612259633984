"""How figures look: the style file, and for each method one colour and one marker in every figure.

Colours are those of Paul Tol's scheme "muted" (SRON technical note SRON/EPS/TN/09-002), which stay apart for people
with any of the common kinds of colour blindness; its nine do not suffice for all methods, so the marker, different for
each of the paper's methods, tells apart what shares a colour, and what is printed in grey.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

STYLE = Path(__file__).with_name("sam_peft.mplstyle")
INK, PAPER = "#222222", "#999999"
"""Of means, axes and text in figures; and of the paper's numbers."""

INDIGO, CYAN, TEAL, GREEN, OLIVE = "#332288", "#88CCEE", "#44AA99", "#117733", "#999933"
SAND, ROSE, WINE, PURPLE = "#DDCC77", "#CC6677", "#882255", "#AA4499"
GREY = "#333333"
_METHODS = {
    "conv_lora": (ROSE, "o"), "lora": (INDIGO, "s"), "vpt": (TEAL, "^"), "adapter": (OLIVE, "D"),
    "sam_adapter": (SAND, "v"), "ssf": (CYAN, "P"), "bitfit": (PURPLE, "X"), "lst": (GREEN, "<"),
    "decoder_only": (WINE, ">"), "scratch": (GREY, "p"), "full_finetune": (INDIGO, "h"), "inception": (TEAL, "d"),
    "sam_zero_shot": (GREY, "*"),
}  # fmt: skip
_COLOURS = (INDIGO, CYAN, TEAL, GREEN, OLIVE, SAND, ROSE, WINE, PURPLE)
_MARKERS = tuple(marker for _, marker in _METHODS.values())
FILLS = ("full", "none", "left", "bottom", "right", "top")
DASHES = ("-", "--", ":", "-.")
"""How the first row of a method is drawn, and how those of its variants (:func:`variants`)."""


def use() -> None:
    """Switch matplotlib to the style; figures are then drawn without a screen."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcdefaults()
    matplotlib.style.use(STYLE)


def colour(method: str) -> str:
    """The colour of a method by its name; one that is not the paper's gets one by its name, always the same."""
    return _METHODS[method][0] if method in _METHODS else _COLOURS[_place(method) % len(_COLOURS)]


def marker(method: str) -> str:
    """The marker of a method by its name; as for colours, any name has one."""
    return _METHODS[method][1] if method in _METHODS else _MARKERS[_place(method) // len(_COLOURS) % len(_MARKERS)]


def palette(methods: Iterable[str]) -> dict[str, str]:
    """Method to colour, as seaborn's ``palette`` takes it."""
    return {method: colour(method) for method in methods}


def points(method: str, variant: int = 0) -> dict[str, Any]:
    """How a method's points are drawn, as options of matplotlib's ``plot``: an edge parts them where they overlap.

    Args:
        variant: which of a method's rows it is, see :func:`variants`.
    """
    its = colour(method)
    look = {"marker": marker(method), "color": its, "fillstyle": FILLS[variant % len(FILLS)]}
    if variant % len(FILLS):
        return look | {"markerfacecoloralt": "white", "markeredgecolor": its, "markeredgewidth": 1}
    return look | {"markeredgecolor": INK, "markeredgewidth": 0.4}


def variants(methods: Mapping[str, str]) -> dict[str, int]:
    """Which of its method's rows each row of a figure is, by the rows' names, whatever their order in the figure."""
    of_method: dict[str, list[str]] = {}
    for row in sorted(methods):
        of_method.setdefault(methods[row], []).append(row)
    return {row: of_method[method].index(row) for row, method in methods.items()}


def row_points(methods: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """How the points of each row of a figure are drawn, by the rows' methods."""
    return {row: points(methods[row], variant) for row, variant in variants(methods).items()}


def _place(method: str) -> int:
    return int.from_bytes(hashlib.sha256(method.encode()).digest()[:4], "big")
