"""Few-shot training sets: k labelled images for every foreground class (the setting of the paper's table 15)."""

from __future__ import annotations

from functools import cache

import numpy as np

from datasets.base import IGNORE, Split
from datasets.splitting import rank


def few_shot(split: Split, shots: int, seed: int, num_classes: int) -> Split:
    """``shots`` images for every foreground class of ``split``, in the order of ``split``.

    The images are tried in an order that only their identifiers and ``seed`` decide. Round by round, each
    class takes the first one left that holds it: so an image counts for one class only, and a smaller set
    lies within every larger one. For a binary dataset these are ``shots`` images that hold foreground.
    Masks are read only until every class has its images.

    Raises:
        ValueError: ``shots`` is not positive, or a class is in too few images.
    """
    if shots < 1:
        raise ValueError(f"shots = {shots}: a few-shot set needs at least 1 image a class")
    order = sorted(range(len(split)), key=lambda index: rank(split.identifiers[index], seed))

    @cache
    def held(index: int) -> frozenset[int]:
        return frozenset(np.unique(split.mask(index)).tolist()) - {0, IGNORE}

    left = dict.fromkeys(order)
    for shot in range(shots):
        for label in range(1, max(2, num_classes)):
            chosen = next((index for index in left if label in held(index)), None)
            if chosen is None:
                raise ValueError(
                    f"{shots} shots asked for, but only {shot} images are left for class {label} "
                    f"among {len(split)}; ask for at most {shot}"
                )
            del left[chosen]
    return split.subset(sorted(set(order) - set(left)))
