"""Pixels of panels: masks, classes and errors in colours that people with any kind of colour blindness tell apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.drawing import style
from datasets import IGNORE

FOREGROUND, FALSE_POSITIVE, FALSE_NEGATIVE = style.TEAL, style.ROSE, style.INDIGO
UNCOUNTED = "#DDDDDD"
_CLASSES = (
    "#99DDFF", "#EE8866", "#EEDD88", "#77AADD", "#FFAABB", "#44BB99", "#AAAA00", "#BBCC33",
    style.INDIGO, style.WINE, style.GREEN, style.PURPLE,
)  # fmt: skip
"""The fills of Paul Tol's scheme "light", then the dark ones of "muted"; its pale grey is for what does not count."""

_SHARE = 0.85  # of a colour that is laid over a photograph
_STRIPES = 6  # from one stripe to the next, in pixels
_LUMINANCE = np.array([0.299, 0.587, 0.114])


def rgb(colour: str) -> np.ndarray:
    """``#RRGGBB`` as (3,) uint8."""
    return np.frombuffer(bytes.fromhex(colour[1:]), np.uint8)


def class_colours(count: int) -> list[str]:
    """A colour for each class; after twelve they come again, darker each time."""
    shades = [0.65 ** (index // len(_CLASSES)) for index in range(count)]
    mixed = [rgb(_CLASSES[index % len(_CLASSES)]) * shade for index, shade in enumerate(shades)]
    return [f"#{bytes(np.rint(colour).astype(np.uint8)).hex().upper()}" for colour in mixed]


def classes(labels: np.ndarray, truth: np.ndarray, colours: Sequence[str]) -> np.ndarray:
    """Class indices (h, w) in their colours, striped where they are wrong; grey where nothing counts."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(colours)] = [rgb(colour) for colour in colours]
    painted = table[labels]
    wrong = (labels != truth) & _stripes(*labels.shape)
    painted[wrong] = np.where(painted[wrong] @ _LUMINANCE < 128, 255, 0)[:, None]
    painted[truth == IGNORE] = rgb(UNCOUNTED)
    return painted


def errors(pixels: np.ndarray, labels: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Binary labels over the image in pale grey: true positives, false positives and false negatives in colours."""
    grey = np.rint(pixels @ _LUMINANCE / 8) * 4  # few levels, which a file holds in a third of the space
    under = np.repeat((120 + grey)[..., None], 3, 2)
    predicted, real = labels == 1, truth == 1
    for where, colour in (
        (predicted & real, FOREGROUND),
        (predicted & ~real, FALSE_POSITIVE),
        (~predicted & real, FALSE_NEGATIVE),
    ):
        under[where] = (1 - _SHARE) * under[where] + _SHARE * rgb(colour)
    return np.rint(under).clip(0, 255).astype(np.uint8)


def _stripes(height: int, width: int) -> np.ndarray:
    """(height, width): thin diagonal lines."""
    return np.add.outer(np.arange(height), np.arange(width)) % _STRIPES < 2
