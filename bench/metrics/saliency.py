"""Metrics of a grey map: S-measure, E-measure, weighted F-measure and MAE, equal to pysodmetrics' to rounding.

The S-measure is pysodmetrics' own. The E-measure and the weighted F-measure are its formulas with the same
result in about two thirds of the time: counting in place of histograms over explicit edges, squared distances from the
nearest pixels, a separable blur.

All of them see the prediction stretched to [0, 1] by its own minimum and maximum, as MATLAB's mapminmax in
the authors' scorers and as AutoGluon does; a constant map is left alone. The stretch happens here, in
float64, and not in pysodmetrics, whose ``normalize=True`` wants 8-bit masks and silently reads a mask of 0
and 1 as empty. Float probabilities are never quantised, except by the E-measure, which is defined on
floor(255 p).

Empty (E) and full (F) masks, and the perfect prediction:

* S-measure: E 1 - mean(p), F mean(p); perfect 1. An all-zero prediction of a non-empty mask is not 0.
* E-measure, each threshold: E share of background, F share of foreground, both over N - 1. The mean over
  thresholds of a perfect map lies just below 1, since threshold 0 makes everything foreground; on E and F
  the maximum reaches N / (N - 1).
* weighted F-measure: E 0 whatever the prediction; perfect 1.
* MAE: nothing special; perfect 0. A constant 0.5 scores 0.5, a map from 0.4 to 0.6 as if it went from 0 to 1.

Masks of one pixel are finite in all of them. Importing this module costs about 2 s (pysodmetrics pulls
OpenCV and scikit-image): import it where it is used.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from py_sod_metrics import Smeasure
from scipy.ndimage import distance_transform_edt

_EPS = np.spacing(1)
_BLUR = np.exp(-(np.arange(-3, 4) ** 2) / (2 * 5**2))
_BLUR /= _BLUR.sum()


class _QuadrantSafeSmeasure(Smeasure):
    """The S-measure without pysodmetrics' NaN for masks whose centroid lies in the last row or column.

    Their lower or right quadrants have no pixel. A quadrant counts by its area, so an empty one adds nothing.
    """

    def ssim(self, pred: np.ndarray, gt: np.ndarray) -> float:
        return super().ssim(pred, gt) if pred.size else 0.0


def stretch(prediction: np.ndarray) -> np.ndarray:
    """The map all metrics here are computed on: float64, min-max stretched to [0, 1] unless constant.

    Args:
        prediction: (H, W), float32 probabilities in [0, 1] or uint8.
    """
    values = prediction / 255 if prediction.dtype == np.uint8 else prediction.astype(np.float64)
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high != low else values


def s_measure(values: np.ndarray, mask: np.ndarray) -> float:
    """Structure measure with alpha 0.5 (Fan et al., ICCV 2017).

    A quadrant without foreground scores 1 if the map is exactly 0 there and 0 otherwise, so 8-bit and float
    predictions of the same image may differ by 0.25.
    """
    return float(_QuadrantSafeSmeasure().cal_sm(values, mask))


def e_measure(values: np.ndarray, mask: np.ndarray) -> tuple[float, np.ndarray]:
    """Enhanced-alignment measure (Fan et al., IJCAI 2018): the adaptive value and the curve.

    The adaptive threshold is twice the map's mean, at most 1. The curve holds one value for each of the
    thresholds 0, 1, ... 255 on floor(255 p), a pixel being foreground from its threshold on (">=").
    """
    grey = (values * 255).astype(np.uint8)
    predicted, hit = (np.bincount(pixels, minlength=256)[::-1].cumsum()[::-1] for pixels in (grey.ravel(), grey[mask]))
    foreground, size = np.count_nonzero(mask), mask.size
    binary = values >= min(2 * values.mean(), 1)
    adaptive = _alignment(np.count_nonzero(binary), np.count_nonzero(binary & mask), foreground, size)
    return float(adaptive), _alignment(predicted, hit, foreground, size)


def _alignment(predicted: np.ndarray | int, hit: np.ndarray | int, foreground: int, size: int) -> np.ndarray | float:
    """The E-measure from pixel counts: predicted as foreground, those of them that are, foreground, and all."""
    if foreground == 0:
        total = size - predicted
    elif foreground == size:
        total = predicted
    else:
        total = 0
        missed = foreground - hit
        for pixels, is_predicted, is_foreground in (
            (hit, 1, 1), (predicted - hit, 1, 0), (missed, 0, 1), (size - predicted - missed, 0, 0),
        ):  # fmt: skip
            a, b = is_predicted - predicted / size, is_foreground - foreground / size
            total = total + (2 * a * b / (a**2 + b**2 + _EPS) + 1) ** 2 / 4 * pixels
    return total / (size - 1 + _EPS)


def weighted_f_measure(values: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """Weighted F-measure (Margolin et al., CVPR 2014) for beta squared 1 (the literature) and 0.3 (AutoGluon).

    Errors of the background spread from the nearest foreground pixel and weigh more the farther they lie from
    it; errors of the foreground are forgiven where a 7 x 7 Gaussian (sigma 5) of the spread error is smaller.
    """
    if not mask.any():
        return 0.0, 0.0
    rows, columns = distance_transform_edt(~mask, return_distances=False, return_indices=True)
    error = np.abs(values - mask)
    spread = error.ravel().take(rows * mask.shape[1] + columns)
    blurred = cv2.sepFilter2D(spread, cv2.CV_64F, _BLUR, _BLUR, borderType=cv2.BORDER_CONSTANT)
    rows -= np.arange(mask.shape[0], dtype=rows.dtype)[:, None]
    columns -= np.arange(mask.shape[1], dtype=columns.dtype)
    distance = np.sqrt(rows * rows + columns * columns)
    inside = np.minimum(error, blurred)[mask]
    outside = (error * (2 - np.exp(np.log(0.5) / 5 * distance)))[~mask]

    hits = inside.size - inside.sum()
    recall, precision = 1 - inside.mean(), hits / (hits + outside.sum() + _EPS)
    literature, autogluon = (
        float((1 + squared) * recall * precision / (recall + squared * precision + _EPS)) for squared in (1, 0.3)
    )
    return literature, autogluon


def mean_absolute_error(values: np.ndarray, mask: np.ndarray) -> float:
    """Mean absolute difference of map and mask."""
    return float(np.abs(values - mask).mean())


_PER_IMAGE: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "s_measure": s_measure,
    "e_measure_mean": lambda values, mask: float(e_measure(values, mask)[1].mean()),
    "e_measure_adaptive": lambda values, mask: e_measure(values, mask)[0],
    "weighted_f_measure_b1": lambda values, mask: weighted_f_measure(values, mask)[0],
    "weighted_f_measure_b03": lambda values, mask: weighted_f_measure(values, mask)[1],
    "mae": mean_absolute_error,
}


def score(key: str, prediction: np.ndarray, mask: np.ndarray) -> float:
    """One metric of one image; arguments as in :func:`scores`."""
    return _PER_IMAGE[key](stretch(prediction), mask.astype(bool))


def scores(prediction: np.ndarray, mask: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
    """All metrics of one image, and its E-measure curve (256,) by ascending threshold.

    Args:
        prediction: (H, W), float32 probabilities in [0, 1] or uint8.
        mask: (H, W) of 0 and 1.
    """
    values, positive = stretch(prediction), mask.astype(bool)
    adaptive, curve = e_measure(values, positive)
    literature, autogluon = weighted_f_measure(values, positive)
    row = {
        "s_measure": s_measure(values, positive),
        "e_measure_mean": float(curve.mean()),
        "e_measure_adaptive": adaptive,
        "weighted_f_measure_b1": literature,
        "weighted_f_measure_b03": autogluon,
        "mae": mean_absolute_error(values, positive),
    }
    return row, curve
