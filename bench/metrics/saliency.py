"""Metrics of a grey map: S-measure, E-measure, weighted F-measure and MAE, computed by pysodmetrics.

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

import numpy as np
from py_sod_metrics import MAE, Emeasure, Smeasure, WeightedFmeasure


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
    metric = _QuadrantSafeSmeasure()
    metric.step(values, mask, normalize=False)
    return float(metric.sms[0])


def e_measure(values: np.ndarray, mask: np.ndarray) -> tuple[float, np.ndarray]:
    """Enhanced-alignment measure (Fan et al., IJCAI 2018): the adaptive value and the curve.

    The adaptive threshold is twice the map's mean, at most 1. The curve holds one value for each of the
    thresholds 0, 1, ... 255 on floor(255 p), a pixel being foreground from its threshold on (">=").
    """
    metric = Emeasure()
    metric.step(values, mask, normalize=False)
    return float(metric.adaptive_ems[0]), metric.changeable_ems[0][::-1]


def weighted_f_measure(values: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """Weighted F-measure (Margolin et al., CVPR 2014) for beta squared 1 (the literature) and 0.3 (AutoGluon)."""
    # What pysodmetrics calls beta is its square. It enters only the last formula, so an array of two
    # gives both values from one distance transform, which is half the cost.
    metric = WeightedFmeasure(beta=np.array([1.0, 0.3]))
    metric.step(values, mask, normalize=False)
    literature, autogluon = np.broadcast_to(metric.weighted_fms[0], 2)
    return float(literature), float(autogluon)


def mean_absolute_error(values: np.ndarray, mask: np.ndarray) -> float:
    """Mean absolute difference of map and mask."""
    metric = MAE()
    metric.step(values, mask, normalize=False)
    return float(metric.maes[0])


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
