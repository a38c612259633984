"""A test set's metric as a function of sums over its images, so that it can be computed of any resample of them.

Each image gives a few terms, a formula makes the metric of their sums: of a mean the value and a one, of a pooled
metric the counts of pixels. The formulas are those of ``bench.metrics``, which is not imported; tests hold the two
together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

Formula = Callable[[np.ndarray], np.ndarray]
"""(..., terms) -> (...); NaN where the metric is undefined."""

NOT_KEPT = {"e_measure_max": "it is the maximum of a curve of the whole test set, which no file keeps image by image"}
"""Metrics that cannot be computed again, and why."""
_IOU_OF_ABSENT = {"paper": 0.0, "literature": np.nan}


@dataclass(frozen=True)
class Statistic:
    """The metric of one cell on one test set.

    Attributes:
        terms: (images, terms).
        formula: of their sum over any multiset of images.
        alone: of the terms of single images; as ``formula``, but classes that an image does not hold are left out.
        is_mean: whether the metric is the mean of a value of each image.
    """

    terms: np.ndarray
    formula: Formula
    alone: Formula
    is_mean: bool

    def score(self) -> float:
        """Of the whole test set."""
        return float(self.formula(self.terms.sum(0, dtype=np.float64)))

    def per_image(self) -> np.ndarray:
        """(images,): of each image alone."""
        return self.alone(self.terms.astype(np.float64))

    def resampled(self, weights: np.ndarray) -> np.ndarray:
        """(rounds,): of the multisets in which image i occurs ``weights[round, i]`` times."""
        return self.formula(weights @ self.terms.astype(weights.dtype))


def statistic(metric: str, images: pd.DataFrame, *, protocol: str, classes: Sequence[str]) -> Statistic:
    """The statistic of a metric.

    Args:
        images: rows of ``per_image.parquet`` of one test set and protocol.
        classes: names of the classes; empty for binary masks.

    Raises:
        KeyError: the file lacks a column that the metric needs.
    """
    if "confusion" not in images:
        if metric == "ber_pooled":
            terms = images[["ber_tp", "ber_fp", "ber_fn", "ber_tn"]].to_numpy(np.float64)
            return Statistic(terms, _ber, _ber, is_mean=False)
        return _mean_of(images[metric].to_numpy(np.float64))
    if metric == "label_mae":
        return _mean_of(images[metric].to_numpy(np.float64))
    confusion = _confusion(images)
    if metric == "mber":
        errors = _balanced_errors(confusion)
        terms = np.concatenate([np.nan_to_num(errors), np.isfinite(errors)], axis=1)
        return Statistic(terms, _mean_of_class_means, _mean_of_class_means, is_mean=False)
    name, _, of_class = metric.partition(":")
    counted = {
        "accuracy": lambda matrix, absent: _ratio(_diagonal(matrix).sum(-1), matrix.sum((-2, -1))),
        "accuracy_foreground": lambda matrix, absent: _ratio(
            _diagonal(matrix)[..., 1:].sum(-1), matrix[..., 1:, :].sum((-2, -1))
        ),
        "miou_all": lambda matrix, absent: _mean(_iou(matrix, absent)),
        "miou_foreground": lambda matrix, absent: _mean(_iou(matrix, absent)[..., 1:]),
        "iou": lambda matrix, absent: _iou(matrix, absent)[..., list(classes).index(of_class)],
    }[name]
    size = confusion.shape[-1]

    def formula(absent: float) -> Formula:
        return lambda terms: counted(terms.reshape(*terms.shape[:-1], size, size), absent)

    terms = confusion.reshape(len(confusion), -1)
    return Statistic(terms, formula(_IOU_OF_ABSENT[protocol]), formula(np.nan), is_mean=False)


def truth(images: pd.DataFrame) -> np.ndarray:
    """(images, classes): the pixels of each class in each mask, the same for all methods."""
    if "confusion" in images:
        return _confusion(images).sum(2)
    return np.stack([images["tp"] + images["fn"], images["fp"] + images["tn"]], axis=1)


def _confusion(images: pd.DataFrame) -> np.ndarray:
    """(images, K, K), a row a true class."""
    flat = np.stack(images["confusion"].to_numpy()).astype(np.int32)
    size = round(flat.shape[1] ** 0.5)
    return flat.reshape(len(flat), size, size)


def _mean_of(values: np.ndarray) -> Statistic:
    """The mean over the images that have a value."""
    terms = np.stack([np.nan_to_num(values), np.isfinite(values)], axis=1)
    return Statistic(terms, _quotient, _quotient, is_mean=True)


def _quotient(terms: np.ndarray) -> np.ndarray:
    return _ratio(terms[..., 0], terms[..., 1])


def _mean_of_class_means(terms: np.ndarray) -> np.ndarray:
    """Terms are the errors of each class, then whether the image holds it."""
    errors, held = np.split(terms, 2, axis=-1)
    return _mean(_ratio(errors, held))


def _ber(counts: np.ndarray) -> np.ndarray:
    """Balanced error rate of (..., tp fp fn tn), over the classes in the masks or in the predictions."""
    tp, fp, fn, tn = np.moveaxis(counts, -1, 0)
    right, held = np.stack([tp, tn], -1), np.stack([tp + fn, tn + fp], -1)
    recall = np.where(held > 0, _ratio(right, held), 0.0)
    return 1 - _mean(np.where(right + (fp + fn)[..., None] > 0, recall, np.nan))


def _balanced_errors(matrix: np.ndarray) -> np.ndarray:
    """TransLab's balanced errors (..., K - 1) of the classes from 1 on; NaN for those that the mask lacks."""
    right, held = _diagonal(matrix), matrix.sum(-1)
    all_right, all_held = right.sum(-1, keepdims=True), held.sum(-1, keepdims=True)
    recall, others = _ratio(right, held), _ratio(all_right - right, all_held - held)
    errors = 1 - _mean(np.stack([recall, others], -1))
    return np.where(held > 0, errors, np.nan)[..., 1:]


def _iou(matrix: np.ndarray, absent: float) -> np.ndarray:
    """Intersection over union (..., K); ``absent`` for classes in neither truth nor prediction."""
    hit = _diagonal(matrix)
    union = matrix.sum(-1) + matrix.sum(-2) - hit
    iou = np.where(union > 0, _ratio(hit, union), absent)
    return np.where(matrix.sum((-2, -1))[..., None] > 0, iou, np.nan)


def _diagonal(matrix: np.ndarray) -> np.ndarray:
    return np.diagonal(matrix, axis1=-2, axis2=-1)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """The quotient; NaN where the whole is nothing."""
    return np.divide(part, whole, out=np.full(np.broadcast(part, whole).shape, np.nan), where=whole != 0)


def _mean(values: np.ndarray) -> np.ndarray:
    """Over the last axis, of those that are there; NaN where none is."""
    there = np.isfinite(values)
    return _ratio(np.where(there, values, 0.0).sum(-1), there.sum(-1))
