"""Looks at images through trained cells, and checks that they answer as they did when they were scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from analysis.inside.picks import confusion, iou
from analysis.inside.subjects import Recorded, Subject, again
from analysis.inside.trained import Trained, another_copy
from analysis.results import NoResults
from analysis.source import Cell
from datasets import Split, squash_mask

PANEL = 200
"""Pixels of a panel's longer side; larger images are shrunk for the page after they were counted."""

ROUNDING = 0.01
"""The share of pixels that may be decided otherwise on another device; beyond, something is not what it was."""


@dataclass(frozen=True)
class Answer:
    """What a method makes of an image.

    Attributes:
        labels: uint8 class indices, fitted to a panel.
        features: (C, h, w), what the encoder hands to the decoder.
        score: the IoU of the labels at full size.
        scored: that of ``per_image.parquet``.
        differing: the share of pixels by which the two differ at least.
    """

    labels: np.ndarray
    features: np.ndarray
    score: float
    scored: float
    differing: float


@dataclass(frozen=True)
class View:
    """An image fitted to a panel: (h, w, 3), its truth (h, w), and the answer of each row."""

    pixels: np.ndarray
    truth: np.ndarray
    answers: dict[str, Answer] = field(default_factory=dict)

    def labels(self, rows: Sequence[str]) -> list[np.ndarray]:
        """The truth and the answers of these rows."""
        return [self.truth, *(self.answers[row].labels for row in rows)]


def look(
    subject: Subject,
    images: Sequence[str],
    split: Split,
    recorded: Recorded,
    *,
    device: str = "cpu",
) -> dict[str, View]:
    """What the shown cell of each row makes of each image.

    Args:
        recorded: what was counted when the cells were scored.

    Raises:
        NoResults: an image is not there, or a cell does not answer as it did.
    """
    indices = _indices(subject, images, split)
    classes = len(subject.classes) or 2
    views: dict[str, View] = {}
    for row, cell in subject.shown.items():
        trained = Trained(subject.path(cell), device=device)
        for image, index in indices.items():
            squashed, mask = split.squashed(index, trained.size)
            truth = squash_mask(mask, trained.size) if subject.protocol == "paper" else mask
            if image not in views:
                pixels = squashed if subject.protocol == "paper" else split.image(index)
                views[image] = View(_fitted(pixels, Image.Resampling.LANCZOS), _fitted(truth))
            predicted = trained.predict(squashed, mask)
            labels = predicted.labels[subject.protocol]
            counts, before = confusion(truth, labels, classes), recorded[row][subject.seed][image]
            differing = max(np.abs(counts - before).sum() / 2, abs(counts.sum() - before.sum())) / truth.size
            if differing > ROUNDING:
                raise NoResults(_other(subject, cell, image, split, differing))
            score, scored = (iou(one, binary=not subject.classes) for one in (counts, before))
            views[image].answers[row] = Answer(_fitted(labels), predicted.features, score, scored, differing)
    return views


def _indices(subject: Subject, images: Sequence[str], split: Split) -> dict[str, int]:
    place = {identifier: index for index, identifier in enumerate(split.identifiers)}
    for image in images:
        if image not in place:
            raise NoResults(
                f"{subject.place.column.data}/{subject.test_set}: the images found here lack {image!r}, which was "
                f"scored; name the copy it was scored on: --data-root DIR"
            )
    return {image: place[image] for image in images}


def _other(subject: Subject, cell: Cell, image: str, split: Split, differing: float) -> str:
    """Why a cell's answer is not what was scored."""
    folder = subject.path(cell)
    if another_copy(folder, subject.test_set, split):
        why = "the images found here are another copy than those it was scored on; name that one: --data-root DIR"
    else:
        why = f"on the same images, so parameters, code or device (--device) are others. Next: {again(folder)}"
    return f"{cell.id} decides {differing:.1%} of the pixels of {image} otherwise than when it was scored: {why}"


def _fitted(array: np.ndarray, filter_: Image.Resampling = Image.Resampling.NEAREST) -> np.ndarray:
    """An image or labels, shrunk so that the longer side fits a panel; small ones are enlarged by whole pixels."""
    height, width = array.shape[:2]
    if max(height, width) <= PANEL:
        return enlarged(array)
    size = (max(1, round(side * PANEL / max(height, width))) for side in (width, height))
    return np.asarray(Image.fromarray(array).resize(tuple(size), filter_))


def enlarged(array: np.ndarray) -> np.ndarray:
    """Each pixel as a square of as many as fit a panel, so that no viewer smooths it."""
    times = max(1, PANEL // max(array.shape[:2]))
    return array.repeat(times, 0).repeat(times, 1)
