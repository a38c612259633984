"""Scores of segmentation: what is measured, under which protocol, and how images become a test set.

Two protocols, never mixed:

* ``paper``: at the network's size, as AutoGluon scores; of binary masks float32 probabilities;
* ``literature``: at the mask's own size, as the authors of the data sets score; of binary masks 8-bit maps.

Both give every metric; they differ in what the caller hands in, and in how a class counts that occurs
nowhere. Every value is a fraction, tables multiply. :mod:`bench.metrics.overlap` and
:mod:`bench.metrics.saliency` define the metrics of binary masks, with their rules for empty, full and
one-pixel masks, and :mod:`bench.metrics.classes` those of several classes.
"""

from __future__ import annotations

import math

import numpy as np

from bench.metrics.binary import Scores, measure, score_image
from bench.metrics.catalogue import METRICS, PROTOCOLS, Metric, Row, metrics_of
from bench.metrics.classes import ClassScores, score_classes
from bench.registry import UnknownName

__all__ = [
    "METRICS",
    "PROTOCOLS",
    "ClassScores",
    "Metric",
    "Row",
    "Scores",
    "Validation",
    "improves",
    "metrics_of",
    "score_classes",
    "score_image",
    "scores_of",
]


def scores_of(protocol: str, num_classes: int) -> Scores | ClassScores:
    """Empty scores of a test set for masks of so many classes; 1 stands for binary masks.

    Raises:
        ValueError: an unknown protocol, or more classes than a byte can hold.
    """
    return Scores(protocol) if num_classes == 1 else ClassScores(protocol, num_classes)


class Validation:
    """One metric of the paper protocol, and for binary masks nothing else computed: after each epoch.

    Args:
        key: of binary masks a metric of single images, of which the mean is taken; of several classes any that
            is one number.
        num_classes: K, the background among them; 1 for binary masks.

    Raises:
        ValueError: ``key`` is no such metric.
    """

    def __init__(self, key: str, num_classes: int = 1) -> None:
        kind, refused, why = (
            ("binary masks", "set", "needs the whole test set; per image")
            if num_classes == 1
            else ("several classes", "classes", "is a value for each class; as one number")
        )
        metrics = metrics_of(num_classes)
        allowed = [name for name, metric in metrics.items() if metric.aggregate != refused]
        if key not in metrics:
            raise UnknownName(f"metric of {kind}", key, allowed)
        if key not in allowed:
            raise ValueError(f"{key!r} {why} there are: {', '.join(allowed)}")
        self.key = key
        self._scores = None if num_classes == 1 else ClassScores("paper", num_classes)
        self._values: list[float] = []

    def add(self, prediction: np.ndarray, mask: np.ndarray) -> None:
        """Score one image; arguments and errors as in :func:`score_image` and :func:`score_classes`."""
        if self._scores is None:
            self._values.append(measure(self.key, prediction, mask))
        else:
            self._scores.add(str(len(self._scores.rows)), prediction, mask)

    def value(self) -> float:
        """The metric of all images so far; NaN where none has a pixel that counts."""
        if self._scores is None:
            return sum(self._values) / len(self._values) if self._values else math.nan
        value = self._scores.mean()[self.key] if self._scores.rows else None
        return math.nan if value is None else value


def improves(key: str, new: float, best: float | None) -> bool:
    """Whether ``new`` is strictly better than ``best`` (None: nothing yet); NaN never is."""
    if key not in METRICS:
        raise UnknownName("metric", key, METRICS)
    if best is None:
        return not math.isnan(new)
    return new > best if METRICS[key].better == "higher" else new < best
