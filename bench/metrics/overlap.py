"""Metrics of a binarised prediction: IoU, Dice, accuracy, T-Jaccard and BER, all from four pixel counts.

Thresholds are strict and in units of 8-bit grey levels, so that one number serves float probabilities and
8-bit maps alike: 127.5 is "p > 0.5", and 125, by which the shadow literature and AutoGluon binarise for
BER, is "p > 125/255". Predictions are binarised as they are, without the min-max stretch of the saliency
metrics.

Where a ratio is undefined:

* IoU, Dice and T-Jaccard of an empty mask and an empty prediction are 1, as in the official ISIC scorer:
  the prediction is perfect. (AutoGluon, through torchmetrics, gives 0, so that a method is punished for
  images it solves.) An empty mask with any false positive gives 0.
* BER takes the mean recall over the classes that occur in the mask or in the prediction; a class that is
  only predicted has recall 0. This is torchmetrics' macro accuracy, with which AutoGluon scores; a perfect
  empty or full prediction has BER 0. Shadow masks normally hold both classes.

Masks of one pixel need no rule of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

HALF = 127.5
BER_LEVEL = 125.0
T_JACCARD_FLOOR = 0.65


class Counts(NamedTuple):
    """Pixels of one image, or of a whole set, by truth and prediction."""

    tp: int
    fp: int
    fn: int
    tn: int


def count(prediction: np.ndarray, mask: np.ndarray, level: float) -> Counts:
    """Counts of ``prediction`` binarised above a grey level.

    Args:
        prediction: (H, W), float32 probabilities in [0, 1] or uint8.
        mask: (H, W) of 0 and 1.
        level: the threshold, in grey levels of 0..255 for either kind of prediction.
    """
    positive = mask.astype(bool)
    # float32 as in AutoGluon's ``prob * 255 > 125``: k/255 lands on exactly k, on the same side as an 8-bit k.
    predicted = (prediction if prediction.dtype == np.uint8 else prediction * np.float32(255)) > level
    tp = int(np.count_nonzero(predicted & positive))
    fp = int(np.count_nonzero(predicted)) - tp
    fn = int(np.count_nonzero(positive)) - tp
    return Counts(tp, fp, fn, mask.size - tp - fp - fn)


def iou(counts: Counts) -> float:
    """Intersection over union of the foreground (the Jaccard index)."""
    union = counts.tp + counts.fp + counts.fn
    return counts.tp / union if union else 1.0


def dice(counts: Counts) -> float:
    """Dice coefficient of the foreground; 2 IoU / (1 + IoU) on one image, but not between means over images."""
    total = 2 * counts.tp + counts.fp + counts.fn
    return 2 * counts.tp / total if total else 1.0


def accuracy(counts: Counts) -> float:
    """Share of pixels classified right, background included."""
    return (counts.tp + counts.tn) / sum(counts)


def t_jaccard(counts: Counts) -> float:
    """IoU, or 0 where it is below 0.65: the ranking metric of ISIC 2018, which counts a poor outline as a failure."""
    value = iou(counts)
    return value if value >= T_JACCARD_FLOOR else 0.0


def ber(counts: Counts) -> float:
    """Balanced error rate: 1 minus the mean of the recalls of foreground and background, as a fraction.

    Of one image's counts this is the paper's BER (AutoGluon, averaged over images afterwards); of counts
    summed over a test set it is the BER of the shadow literature.
    """
    wrong = counts.fp + counts.fn
    recalls = [
        right / (right + missed) if right + missed else 0.0
        for right, missed in ((counts.tp, counts.fn), (counts.tn, counts.fp))
        if right + wrong
    ]
    return 1.0 - sum(recalls) / len(recalls)


PER_IMAGE: dict[str, tuple[float, Callable[[Counts], float]]] = {
    "ber_image": (BER_LEVEL, ber),
    "iou": (HALF, iou),
    "dice": (HALF, dice),
    "accuracy": (HALF, accuracy),
    "t_jaccard": (HALF, t_jaccard),
}
"""Metric key -> the grey level it binarises at and its formula."""


def score(key: str, prediction: np.ndarray, mask: np.ndarray) -> float:
    """One metric of one image; arguments as in :func:`count`."""
    level, formula = PER_IMAGE[key]
    return formula(count(prediction, mask, level))


def scores(prediction: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """All metrics of one image, the counts at 0.5 (``tp`` ...) and those at BER's threshold (``ber_tp`` ...)."""
    counts = {level: count(prediction, mask, level) for level in (HALF, BER_LEVEL)}
    return (
        {key: formula(counts[level]) for key, (level, formula) in PER_IMAGE.items()}
        | counts[HALF]._asdict()
        | {f"ber_{name}": value for name, value in counts[BER_LEVEL]._asdict().items()}
    )
