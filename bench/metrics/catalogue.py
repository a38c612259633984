"""What is measured: the key, the label and the direction of every metric, and the two protocols."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from bench.registry import UnknownName

PROTOCOLS = ("paper", "literature")

Row = dict[str, float | int | str | list[int] | None]
"""What is kept of one image under one protocol."""


@dataclass(frozen=True)
class Metric:
    """What tables and trainings must know of a metric.

    ``aggregate`` is "mean" where the value of a test set is the mean over its images, "set" where it can
    only be computed from the whole set, and "classes" where the whole set has one value for each class.
    """

    key: str
    label: str
    better: Literal["higher", "lower"]
    aggregate: Literal["mean", "set", "classes"]

    def improves(self, new: float, best: float | None) -> bool:
        """Whether ``new`` is strictly better than ``best`` (None: nothing yet); NaN never is."""
        if best is None:
            return not math.isnan(new)
        return new > best if self.better == "higher" else new < best


def _by_key(*metrics: Metric) -> dict[str, Metric]:
    return {metric.key: metric for metric in metrics}


_BINARY = _by_key(
    Metric("s_measure", "S-measure", "higher", "mean"),
    Metric("e_measure_mean", "mean E-measure", "higher", "mean"),
    Metric("e_measure_max", "max E-measure", "higher", "set"),
    Metric("e_measure_adaptive", "adaptive E-measure", "higher", "mean"),
    Metric("weighted_f_measure_b1", "weighted F-measure (beta squared 1)", "higher", "mean"),
    Metric("weighted_f_measure_b03", "weighted F-measure (beta squared 0.3)", "higher", "mean"),
    Metric("mae", "MAE", "lower", "mean"),
    Metric("ber_image", "BER (mean over images)", "lower", "mean"),
    Metric("ber_pooled", "BER (pooled pixels)", "lower", "set"),
    Metric("iou", "IoU", "higher", "mean"),
    Metric("dice", "Dice", "higher", "mean"),
    Metric("accuracy", "accuracy", "higher", "mean"),
    Metric("t_jaccard", "thresholded Jaccard", "higher", "mean"),
)
_SEVERAL = _by_key(
    Metric("accuracy", "accuracy", "higher", "set"),
    Metric("accuracy_foreground", "accuracy (foreground)", "higher", "set"),
    Metric("miou_all", "mIoU (all classes)", "higher", "set"),
    Metric("miou_foreground", "mIoU (foreground)", "higher", "set"),
    Metric("iou", "IoU", "higher", "classes"),
    Metric("label_mae", "MAE of labels", "lower", "mean"),
    Metric("mber", "mBER", "lower", "set"),
)


def metrics_of(num_classes: int) -> dict[str, Metric]:
    """The metrics of masks of so many classes, the background among them; 1 stands for binary masks.

    Those that both kinds have, ``accuracy`` and ``iou``, have one label and direction.
    """
    return dict(_BINARY if num_classes == 1 else _SEVERAL)


def check_protocol(protocol: str) -> None:
    """Raises UnknownName for what is none of :data:`PROTOCOLS`."""
    if protocol not in PROTOCOLS:
        raise UnknownName("protocol", protocol, PROTOCOLS)
