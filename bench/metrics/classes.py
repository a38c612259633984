"""Scores of several classes: everything follows from the confusion matrix of each image.

A matrix counts pixels by truth (row) and prediction (column). Pixels whose truth is :data:`IGNORED` are in
no matrix, whatever is predicted there. Over a test set matrices are summed as 64-bit integers, so no count
is rounded. Class 0 is the background. Of the metrics in :func:`bench.metrics.metrics_of`

* ``accuracy``, ``accuracy_foreground`` (pixels of true classes 1 to K-1 only: TransLab's), ``iou`` and its
  means ``miou_all`` and ``miou_foreground`` come from the summed matrix: large images weigh more;
* ``label_mae``, the mean difference between predicted and true index, and ``mber`` are means over images.
  Both are TransLab's (Trans10K-v1). The first depends on the order of the classes.

What cannot be computed:

* a class that is neither in the set's masks nor in its predictions has IoU 0 under ``paper``, as TransLab,
  Trans2Seg and AutoGluon count it, and under ``literature`` None, left out of means;
* an image without a pixel that counts has the accuracy None and a matrix of zeros, and enters nothing;
* a metric to which no pixel or image contributes is None. Of a set without a pixel that counts, all are.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean

import numpy as np

from bench.metrics.catalogue import Row, check_protocol

# The value of datasets.IGNORE. The metrics need nothing of `datasets`, which bench.guard has to look at first.
IGNORED = 255
_IOU_OF_ABSENT = {"paper": 0.0, "literature": None}


def confusion_matrix(prediction: np.ndarray, mask: np.ndarray, num_classes: int) -> np.ndarray:
    """Pixels by truth and prediction.

    Args:
        prediction: (H, W), uint8 class indices.
        mask: (H, W), uint8 class indices, :data:`IGNORED` where a pixel does not count.
        num_classes: K, 2 to 255.

    Returns:
        (K, K), int64; row: truth, column: prediction.

    Raises:
        ValueError: a wrong type or shape, or a value that is no class.
    """
    for name, array in (("prediction", prediction), ("mask", mask)):
        if array.dtype != np.uint8:
            raise ValueError(f"{name} is {array.dtype}; it must be uint8 of class indices 0 to {num_classes - 1}")
    if prediction.shape != mask.shape or mask.ndim != 2:
        raise ValueError(f"prediction is {prediction.shape} and mask {mask.shape}; both must be the same (H, W)")
    # 255 wraps to 0: ignored pixels get the first row, which is dropped. A boolean index takes twice as long.
    rows = mask + np.uint8(1)
    if prediction.max(initial=0) >= num_classes:
        raise ValueError(f"prediction holds {prediction.max()}; its classes are 0 to {num_classes - 1}")
    if rows.max(initial=0) > num_classes:
        raise ValueError(
            f"mask holds {rows.max() - 1}; its classes are 0 to {num_classes - 1}, and {IGNORED} does not count"
        )
    bins = (num_classes + 1) * num_classes
    codes = rows.astype(np.uint8 if bins <= 256 else np.uint16, copy=False)
    codes *= codes.dtype.type(num_classes)
    codes += prediction
    return np.bincount(codes.ravel(), minlength=bins).reshape(num_classes + 1, num_classes)[1:]


def score_classes(prediction: np.ndarray, mask: np.ndarray, protocol: str, num_classes: int) -> Row:
    """One image's row: protocol, ``accuracy``, ``label_mae`` and its ``confusion`` matrix, row by row.

    Arguments and errors as in :func:`confusion_matrix`; UnknownName for the protocol.
    """
    check_protocol(protocol)
    matrix = confusion_matrix(prediction, mask, num_classes)
    label = np.arange(num_classes)
    distance = np.abs(label[:, None] - label)
    return {
        "protocol": protocol,
        "accuracy": _share(matrix.trace(), matrix.sum()),
        "label_mae": _share((matrix * distance).sum(), matrix.sum()),
        "confusion": matrix.ravel().tolist(),
    }


def class_iou(matrix: np.ndarray, absent: float | None) -> list[float | None]:
    """Intersection over union of every class; ``absent`` for those in neither truth nor prediction."""
    if not matrix.any():
        return [None] * len(matrix)
    union = matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
    return [
        hit / pixels if pixels else absent
        for hit, pixels in zip(matrix.diagonal().tolist(), union.tolist(), strict=True)
    ]


def balanced_errors(matrix: np.ndarray) -> list[float | None]:
    """TransLab's balanced error rate of the classes 1 to K-1 in one image, None for those that its mask lacks.

    Half the recall of the class and half the share of right pixels among all others. Right is a pixel with
    exactly its label: "some other class than this one" is not enough. Where the mask holds nothing else, only
    the recall counts.
    """
    right, held = matrix.diagonal().tolist(), matrix.sum(1).tolist()
    errors: list[float | None] = []
    for hit, pixels in zip(right[1:], held[1:], strict=True):
        shares = [_share(hit, pixels), _share(sum(right) - hit, sum(held) - pixels)]
        errors.append(1 - _mean(shares) if pixels else None)
    return errors


class ClassScores:
    """The scores of one test set of several classes under one protocol, image by image.

    Args:
        protocol: one of :data:`bench.metrics.PROTOCOLS`.
        num_classes: K, 2 to 255, the background among them.

    Attributes:
        rows: one an image, in the order added: what ``per_image.parquet`` is written from.
        confusion: the matrix of all images together, (K, K), int64.
    """

    def __init__(self, protocol: str, num_classes: int) -> None:
        check_protocol(protocol)
        if not 2 <= num_classes <= IGNORED:
            raise ValueError(f"num_classes is {num_classes}; class indices of one byte allow 2 to {IGNORED} classes")
        self.protocol, self.num_classes = protocol, num_classes
        self.rows: list[Row] = []
        self.confusion = np.zeros((num_classes, num_classes), np.int64)
        self._errors: list[list[float | None]] = []

    def add(self, identifier: str, prediction: np.ndarray, mask: np.ndarray) -> Row:
        """Score one image and return its row; arguments and errors as in :func:`confusion_matrix`."""
        try:
            measured = score_classes(prediction, mask, self.protocol, self.num_classes)
        except ValueError as error:
            raise ValueError(f"image {identifier}: {error}") from error
        return self.enter(identifier, measured)

    def enter(self, identifier: str, measured: Row) -> Row:
        """Take over what :func:`score_classes` gave for an image, in this process or another; returns its row."""
        row = {"image": identifier, **measured}
        matrix = np.array(row["confusion"], np.int64).reshape(self.confusion.shape)
        self.rows.append(row)
        self.confusion += matrix
        self._errors.append(balanced_errors(matrix))
        return row

    def mean(self) -> dict[str, float | list[float | None] | None]:
        """The test set's value of every metric; ``iou`` is a list in the order of the classes.

        Raises:
            ValueError: no image was added.
        """
        if not self.rows:
            raise ValueError("no scores: add() at least one image before mean()")
        total, foreground = self.confusion, self.confusion[1:]
        iou = self._iou(total)
        return {
            "accuracy": _share(total.trace(), total.sum()),
            "accuracy_foreground": _share(foreground.trace(offset=1), foreground.sum()),
            "miou_all": _mean(iou),
            "miou_foreground": _mean(iou[1:]),
            "iou": iou,
            "label_mae": _mean(row["label_mae"] for row in self.rows),
            "mber": _mean(_mean(of_class) for of_class in zip(*self._errors, strict=True)),
        }

    def best_constant(self) -> tuple[int, float]:
        """The class that would score best if it were predicted everywhere, and its ``miou_all``.

        Raises:
            ValueError: no pixel counts.
        """
        truth = self.confusion.sum(1)
        if not truth.any():
            raise ValueError("no pixel counts: there is no best constant prediction")
        label = int(truth.argmax())
        matrix = np.zeros_like(self.confusion)
        matrix[:, label] = truth
        return label, _mean(self._iou(matrix))

    def _iou(self, matrix: np.ndarray) -> list[float | None]:
        return class_iou(matrix, _IOU_OF_ABSENT[self.protocol])


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean of those that are there, rounded once: their order does not matter."""
    there = [value for value in values if value is not None]
    return fmean(there) if there else None
