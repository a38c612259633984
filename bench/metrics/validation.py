"""The one number by which a training's epochs are compared: of the paper protocol, and nothing else computed."""

from __future__ import annotations

import math

import numpy as np

from bench.metrics.binary import measure
from bench.metrics.catalogue import metrics_of
from bench.metrics.classes import ClassScores
from bench.registry import UnknownName


class BinaryValidation:
    """The mean over images of a metric of binary masks."""

    def __init__(self, key: str) -> None:
        self.key = key
        self._values: list[float] = []

    def add(self, prediction: np.ndarray, mask: np.ndarray) -> None:
        """Score one image; arguments and errors as in :func:`bench.metrics.score_image`."""
        self._values.append(measure(self.key, prediction, mask))

    def value(self) -> float:
        """The mean so far; NaN of no images."""
        return sum(self._values) / len(self._values) if self._values else math.nan


class ClassValidation:
    """A metric of several classes, of all images together."""

    def __init__(self, key: str, num_classes: int) -> None:
        self.key = key
        self._scores = ClassScores("paper", num_classes)

    def add(self, prediction: np.ndarray, mask: np.ndarray) -> None:
        """Score one image; arguments and errors as in :func:`bench.metrics.score_classes`."""
        self._scores.add(str(len(self._scores.rows)), prediction, mask)

    def value(self) -> float:
        """The metric of all images so far; NaN where none has a pixel that counts."""
        value = self._scores.mean()[self.key] if self._scores.rows else None
        return math.nan if value is None else value


def validation_of(key: str, num_classes: int) -> BinaryValidation | ClassValidation:
    """An empty validation by one metric.

    Args:
        key: of binary masks a metric of single images; of several classes any that is one number.
        num_classes: K, the background among them; 1 for binary masks.

    Raises:
        ValueError: ``key`` is no such metric, or there are more classes than a byte can hold.
    """
    if num_classes == 1:
        _check(key, 1, kind="binary masks", refused="set", why="needs the whole test set; per image")
        return BinaryValidation(key)
    why = "is a value for each class; as one number"
    _check(key, num_classes, kind="several classes", refused="classes", why=why)
    return ClassValidation(key, num_classes)


def _check(key: str, num_classes: int, *, kind: str, refused: str, why: str) -> None:
    metrics = metrics_of(num_classes)
    allowed = [name for name, metric in metrics.items() if metric.aggregate != refused]
    if key not in metrics:
        raise UnknownName(f"metric of {kind}", key, allowed)
    if key not in allowed:
        raise ValueError(f"{key!r} {why} there are: {', '.join(allowed)}")
