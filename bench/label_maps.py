"""Prediction maps of several classes in a folder, scored against masks in another.

Both sides hold a class index in each pixel, in palette or grey PNG; what colours a palette shows does not
matter. Everything else is as for binary masks in :mod:`bench.maps`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from bench.maps import MapScores, check_sizes, pair_folders, read, score_pairs
from bench.metrics import ClassScores, Row, score_classes
from datasets import squash_mask
from datasets.encoding import Encoding, indexed
from datasets.pairing import Pair

SUFFIXES = (".png",)


def score_folders(
    predictions: Path,
    masks: Path,
    *,
    num_classes: int,
    ignore: Sequence[int] = (),
    protocol: str = "paper",
    size: int | None = None,
    workers: int | None = None,
) -> MapScores:
    """Score every map of a folder that has a mask of its name.

    Args:
        predictions: holds maps of the classes 0 to ``num_classes`` - 1, and of no other value.
        masks: holds masks of the same classes and of the values in ``ignore``.
        num_classes: K, 2 to 255, the background among them.
        ignore: values in masks, 0 to 255, whose pixels do not count whatever is predicted there.
        protocol: says how a class counts that is nowhere (:mod:`bench.metrics.classes`).
        size: squash both sides to this many pixels, to the nearest pixel.
        workers: processes; None for one a core.

    Raises:
        FileNotFoundError, NotADirectoryError: a folder is not there.
        BadMaps: nothing to pair, or files that cannot be scored.
        ValueError: a number of classes that is not possible.
    """
    scores = ClassScores(protocol, num_classes)
    pairs, unpaired = pair_folders(predictions, masks, SUFFIXES, SUFFIXES)
    score = partial(_score, num_classes=num_classes, ignore=tuple(ignore), protocol=protocol, size=size)
    for pair, row in zip(pairs, score_pairs(pairs, score, workers), strict=True):
        scores.enter(pair.identifier, row)
    return MapScores(
        protocol=protocol,
        size=size,
        pairs=tuple(pairs),
        unpaired=unpaired,
        mean=scores.mean(),
        rows=scores.rows,
        num_classes=num_classes,
        ignored=tuple(sorted(set(ignore))),
    )


def _score(pair: Pair, *, num_classes: int, ignore: tuple[int, ...], protocol: str, size: int | None) -> Row:
    of_masks = indexed(num_classes, ignore=ignore)
    of_masks = replace(of_masks, rule=f"{of_masks.rule}; --ignore VALUE leaves pixels out")
    prediction = read(pair.image, partial(_labels, encoding=indexed(num_classes, ignore=())))
    mask = read(pair.mask, partial(_labels, encoding=of_masks))
    if size is not None:
        prediction, mask = squash_mask(prediction, size), squash_mask(mask, size)
    check_sizes(pair, prediction, mask)
    return score_classes(prediction, mask, protocol, num_classes)


def _labels(path: Path, encoding: Encoding) -> np.ndarray:
    with Image.open(path) as picture:
        return encoding.decode(picture)
