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

from bench.metrics.binary import Scores, score_image
from bench.metrics.catalogue import PROTOCOLS, Metric, Row, metrics_of
from bench.metrics.classes import ClassScores, score_classes
from bench.metrics.validation import validation_of

__all__ = [
    "PROTOCOLS",
    "ClassScores",
    "Metric",
    "Row",
    "Scores",
    "metrics_of",
    "score_classes",
    "score_image",
    "scores_of",
    "validation_of",
]


def scores_of(protocol: str, num_classes: int) -> Scores | ClassScores:
    """Empty scores of a test set for masks of so many classes; 1 stands for binary masks.

    Raises:
        ValueError: an unknown protocol, or more classes than a byte can hold.
    """
    return Scores(protocol) if num_classes == 1 else ClassScores(protocol, num_classes)
