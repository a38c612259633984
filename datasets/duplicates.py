"""Images that a dataset holds twice: as the same file, or as the same picture in another form.

Published test sets share pictures with their training sets: photographs taken twice, frames of one video,
copies in another size, colour or compression. Scores on such images say little about new ones.

Two thumbnails are compared by how brightness changes from each cell to its neighbours, in units of that
image's median change and clipped, so that neither a black frame nor a dark lesion in the middle, which many
images share, makes two of them alike. Chosen by trial on 2450 photographs of ISIC 2017 against matched SIFT
key points: of 36 pairs that show the same spot, often shifted and recoloured, 25 reach :data:`NEAR`, and of
the 3 million others one does. A difference hash of 256 bits found 16 of them at that precision. Plain
correlation found 27, but took most images for one another once a third of each was a black frame. Copies that
are smaller, compressed again, darker or up to a fifth brighter are found in about 95 of 100 cases or more, and so
are 98 of 100 neighbouring frames of CamVid; a crop of 5 %, a turn of 3 degrees or a mirrored copy mostly is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from datasets.inspection import FINGERPRINT

NEAR = 0.85
"""The similarity from which two images are called near duplicates."""

_UNIFORM = 2.0  # the least standard deviation, in grey levels
_CLIP = 2.0
_ROWS = 1024


class Near(NamedTuple):
    """An image that has near duplicates among others.

    Attributes:
        index: of the image.
        nearest: the index of the most similar one.
        similarity: of these two, 1 for the same thumbnail.
        alike: how many reach :data:`NEAR`.
    """

    index: int
    nearest: int
    similarity: float
    alike: int


def same(digests: Sequence[str]) -> list[list[int]]:
    """The indices of equal digests, group by group."""
    groups: dict[str, list[int]] = {}
    for index, digest in enumerate(digests):
        groups.setdefault(digest, []).append(index)
    return [group for group in groups.values() if len(group) > 1]


def changes(fingerprints: Sequence[str]) -> np.ndarray:
    """What :func:`near` compares: a vector of length 1 for each thumbnail; all zero for a uniform image."""
    cells = np.frombuffer(bytes.fromhex("".join(fingerprints)), dtype=np.uint8)
    cells = cells.reshape(-1, FINGERPRINT, FINGERPRINT).astype(np.float32)
    shape = len(cells), FINGERPRINT * (FINGERPRINT - 1)
    vectors = np.concatenate([np.diff(cells, axis=axis).reshape(shape) for axis in (1, 2)], axis=1)
    # Rounding alone would decide what two uniform images have in common.
    vectors[cells.std(axis=(1, 2)) < _UNIFORM] = 0
    for vector in vectors:
        moving = np.abs(vector[vector != 0])
        if moving.size:
            np.clip(vector / np.median(moving), -_CLIP, _CLIP, out=vector)
            vector /= np.linalg.norm(vector)
    return vectors


def near(images: np.ndarray, others: np.ndarray) -> list[Near]:
    """The images that have near duplicates among the others, both as :func:`changes` gives them; most similar first."""
    found = []
    for start in range(0, len(images) if len(others) else 0, _ROWS):
        similarity = images[start : start + _ROWS] @ others.T
        nearest = similarity.argmax(axis=1)
        alike = (similarity >= NEAR).sum(axis=1)
        found += [
            Near(start + int(row), int(nearest[row]), float(similarity[row, nearest[row]]), int(alike[row]))
            for row in np.flatnonzero(alike)
        ]
    return sorted(found, key=lambda pair: -pair.similarity)
