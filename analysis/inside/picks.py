"""Which images are shown: drawn at random, or those on which two methods differ most.

An image's score is its IoU, which every dataset has and which can be computed from what is drawn: of the foreground,
and with several classes the mean over those that occur in its truth or its prediction.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import NamedTuple

import numpy as np

from analysis.results import NoResults
from datasets.splitting import rank

RULES = ("random", "difference")


class Pick(NamedTuple):
    """An image that is shown.

    Attributes:
        ahead: the row that is ahead there, where that is why it is shown; else empty.
        difference: the last row's score minus that of the row before, means over seeds; NaN where there is one row.
    """

    image: str
    ahead: str
    difference: float


def confusion(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Pixels by truth (row) and prediction, (classes, classes); truths that are no class count nowhere."""
    counts = truth < classes
    codes = truth[counts].astype(np.int64) * classes + predicted[counts]
    return np.bincount(codes, minlength=classes * classes).reshape(classes, classes)


def iou(counts: np.ndarray, *, binary: bool) -> float:
    """The score of an image with this confusion matrix.

    Of the foreground it is 1 where there is none in truth and prediction, as :mod:`bench.metrics.overlap` has it; with
    several classes NaN where no pixel counts.
    """
    right = np.diagonal(counts)
    union = counts.sum(0) + counts.sum(1) - right
    if binary:
        return float(right[1] / union[1]) if union[1] else 1.0
    occurs = union > 0
    return float(np.mean(right[occurs] / union[occurs])) if occurs.any() else math.nan


def means(
    recorded: Mapping[str, Mapping[int, Mapping[str, np.ndarray]]], *, binary: bool
) -> dict[str, dict[str, float]]:
    """Row -> image -> score, the mean over seeds, of the images that all rows and seeds have, in their order.

    Args:
        recorded: row -> seed -> image -> confusion matrix.
    """
    every = [of_seed for row in recorded.values() for of_seed in row.values()]
    images = sorted(set(every[0]).intersection(*every[1:]))
    return {
        row: {image: fmean(iou(one[image], binary=binary) for one in of_row.values()) for image in images}
        for row, of_row in recorded.items()
    }


def differences(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """For each image the last row's score minus that of the row before; NaN where there is one row.

    Args:
        scores: as :func:`means` gives them.
    """
    *before, last = scores.values()
    return {image: last[image] - before[-1][image] if before else math.nan for image in last}


def pick(rule: str, by_image: Mapping[str, float], rows: Sequence[str], *, count: int, seed: int) -> list[Pick]:
    """The images that a rule shows, each once.

    Args:
        rule: "random": drawn by a hash of seed and identifier, so that they depend on nothing else.
            "difference": half of them where the last row is ahead, half where the one before is, the largest difference
            first; images without a difference are not shown.
        by_image: as :func:`differences` gives them.
        rows: the methods.
        count: how many at most.

    Raises:
        NoResults: no image, or only one method to differ from.
    """
    if rule == "random":
        return [Pick(image, "", by_image[image]) for image in sorted(by_image, key=partial(rank, seed=seed))[:count]]
    if len(rows) < 2:
        raise NoResults(f"the rule difference needs two methods; there is {rows[0]} alone. Next: --rule random")
    ahead, behind = (_largest(by_image, sign) for sign in (1, -1))
    shown = [Pick(image, rows[-1], by_image[image]) for image in ahead[: count - count // 2]]
    shown += [Pick(image, rows[-2], by_image[image]) for image in behind[: count // 2]]
    if not shown:
        raise NoResults(f"{rows[-1]} and {rows[-2]} have the same score on every image. Next: --rule random")
    return shown


def _largest(by_image: Mapping[str, float], sign: int) -> list[str]:
    """The images whose difference has this sign, from the largest to the smallest; identifiers break ties."""
    those: Iterable[str] = (image for image, value in by_image.items() if sign * value > 0)
    return sorted(those, key=lambda image: (-sign * by_image[image], image))
