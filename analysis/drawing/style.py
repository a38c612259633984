"""How figures look: the style file, and for each method one colour and one marker in every figure.

Colours are those of Paul Tol's scheme "muted" (SRON technical note SRON/EPS/TN/09-002), which stay apart for people
with any of the common kinds of colour blindness; its nine do not suffice for all methods, so a marker tells apart what
shares a colour.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

STYLE = Path(__file__).with_name("sam_peft.mplstyle")
INK, PAPER = "#222222", "#999999"
"""Of means, axes and text in figures; and of the paper's numbers."""

INDIGO, CYAN, TEAL, GREEN, OLIVE = "#332288", "#88CCEE", "#44AA99", "#117733", "#999933"
SAND, ROSE, WINE, PURPLE = "#DDCC77", "#CC6677", "#882255", "#AA4499"
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_METHODS = {
    "conv_lora": ROSE, "lora": INDIGO, "vpt": TEAL, "adapter": OLIVE, "sam_adapter": SAND, "ssf": CYAN,
    "bitfit": PURPLE, "lst": GREEN, "decoder_only": WINE, "scratch": "#777777", "full_finetune": INDIGO,
    "inception": TEAL, "sam_zero_shot": "#777777",
}  # fmt: skip
_OTHERS = (INDIGO, CYAN, TEAL, GREEN, OLIVE, SAND, ROSE, WINE, PURPLE)


def use() -> None:
    """Switch matplotlib to the style; figures are then drawn without a screen."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcdefaults()
    matplotlib.style.use(STYLE)


def colour(method: str) -> str:
    """The colour of a method by its name; one that is not the paper's gets one by its name, always the same."""
    return _METHODS.get(method) or _OTHERS[_place(method) % len(_OTHERS)]


def marker(method: str) -> str:
    """The marker of a method by its name: a circle for the first to have its colour, another for others."""
    if method in _METHODS:
        sharing = [name for name, its in _METHODS.items() if its == _METHODS[method]]
        return _MARKERS[sharing.index(method)]
    return _MARKERS[2 + _place(method) // len(_OTHERS) % (len(_MARKERS) - 2)]


def palette(methods: Iterable[str]) -> dict[str, str]:
    """Method to colour, as seaborn's ``palette`` takes it."""
    return {method: colour(method) for method in methods}


def _place(method: str) -> int:
    return int.from_bytes(hashlib.sha256(method.encode()).digest()[:4], "big")
