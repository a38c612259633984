"""Scores of binary segmentation, image by image and for a test set.

Metrics take float32 probabilities under ``paper`` and 8-bit maps under ``literature``. Those of
:mod:`bench.metrics.saliency` are imported only when one of them is computed, since the libraries under them
are slow to load.
"""

from __future__ import annotations

from statistics import fmean

import numpy as np

from bench.metrics import overlap
from bench.metrics.catalogue import Row, check_protocol, metrics_of

_DTYPES = {"paper": np.dtype(np.float32), "literature": np.dtype(np.uint8)}


def score_image(prediction: np.ndarray, mask: np.ndarray, protocol: str) -> tuple[Row, np.ndarray]:
    """Every per-image metric of one image, with its pixel counts; a pure function.

    Args:
        prediction: (H, W); float32 probabilities in [0, 1] for ``paper``, uint8 for ``literature``.
        mask: (H, W), uint8 of 0 and 1, of the prediction's shape.
        protocol: one of :data:`PROTOCOLS`.

    Returns:
        The row (protocol, metrics, ``tp fp fn tn`` at p > 0.5, ``ber_tp ber_fp ber_fn ber_tn`` at BER's
        threshold), and the E-measure curve (256,), of which the set's maximum is taken after averaging.

    Raises:
        ValueError: a wrong type, shape or range, NaN, or an unknown protocol.
    """
    from bench.metrics import saliency

    _check(prediction, mask, protocol)
    measured, curve = saliency.scores(prediction, mask)
    return {"protocol": protocol, **measured, **overlap.scores(prediction, mask)}, curve


def measure(key: str, prediction: np.ndarray, mask: np.ndarray) -> float:
    """One per-image metric of the paper protocol, and nothing else computed; errors as in :func:`score_image`."""
    _check(prediction, mask, "paper")
    if key in overlap.PER_IMAGE:
        return overlap.score(key, prediction, mask)
    from bench.metrics import saliency

    return saliency.score(key, prediction, mask)


class Scores:
    """The scores of one test set under one protocol, image by image.

    ``rows`` holds one row an image, in the order added: what ``per_image.parquet`` is written from.
    """

    def __init__(self, protocol: str) -> None:
        check_protocol(protocol)
        self.protocol = protocol
        self.rows: list[Row] = []
        self._curve_sum = np.zeros(256)

    def add(self, identifier: str, prediction: np.ndarray, mask: np.ndarray) -> Row:
        """Score one image and return its row; arguments and errors as in :func:`score_image`."""
        try:
            measured, curve = score_image(prediction, mask, self.protocol)
        except ValueError as error:
            raise ValueError(f"image {identifier}: {error}") from error
        return self.enter(identifier, measured, curve)

    def enter(self, identifier: str, measured: Row, curve: np.ndarray) -> Row:
        """Take over what :func:`score_image` gave for an image, in this process or another; returns its row."""
        row = {"image": identifier, **measured}
        self.rows.append(row)
        self._curve_sum += curve
        return row

    def mean(self) -> dict[str, float]:
        """The test set's value of every metric.

        The maximum E-measure is that of the image-averaged curve; the pooled BER is that of the summed counts.

        Raises:
            ValueError: no image was added.
        """
        if not self.rows:
            raise ValueError("no scores: add() at least one image before mean()")
        pooled = overlap.Counts(*(sum(row[f"ber_{name}"] for row in self.rows) for name in overlap.Counts._fields))
        of_the_set = {
            "e_measure_max": float(self._curve_sum.max() / len(self.rows)),
            "ber_pooled": overlap.ber(pooled),
        }
        return {
            key: of_the_set[key] if key in of_the_set else fmean(row[key] for row in self.rows) for key in metrics_of(1)
        }


def _check(prediction: np.ndarray, mask: np.ndarray, protocol: str) -> None:
    """Refuse what a metric would silently misread: 0/255 masks, logits, 8-bit maps given as floats."""
    check_protocol(protocol)
    if prediction.dtype != _DTYPES[protocol]:
        raise ValueError(f"prediction is {prediction.dtype}; protocol {protocol!r} takes {_DTYPES[protocol]}")
    if mask.dtype != np.uint8:
        raise ValueError(f"mask is {mask.dtype}; it must be uint8 of 0 and 1: mask.astype(np.uint8)")
    if prediction.shape != mask.shape or mask.ndim != 2:
        raise ValueError(f"prediction is {prediction.shape} and mask {mask.shape}; both must be the same (H, W)")
    if mask.size < 2:
        raise ValueError(f"mask is {mask.shape}; the E-measure needs at least two pixels")
    if mask.max() > 1:
        raise ValueError(f"mask holds {mask.max()}; it must hold 0 and 1 only: (mask > 127).astype(np.uint8)")
    low, high = prediction.min(), prediction.max()
    if np.isnan(low):
        raise ValueError("prediction holds NaN")
    if protocol == "paper" and not (low >= 0 and high <= 1):
        raise ValueError(f"prediction spans {low} to {high}; it must hold probabilities in [0, 1]: take the sigmoid")
