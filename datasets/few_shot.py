"""Few-shot training sets: k labelled images for every foreground class (the setting of the paper's table 15)."""

from __future__ import annotations

from functools import cache

from datasets.base import Split
from datasets.splitting import rank


def few_shot(split: Split, shots: int, seed: int, num_classes: int) -> Split:
    """``shots`` images for every foreground class of ``split``, in the order of ``split``.

    The images are tried in an order that only their identifiers and ``seed`` decide. Round by round, each
    class takes the first one left that holds it: so an image counts for one class only, and a smaller set
    lies within every larger one. For a binary dataset these are ``shots`` images that hold foreground.

    Raises:
        ValueError: ``shots`` is not positive, or a class is in too few images.
    """
    if shots < 1:
        raise ValueError(f"shots = {shots}: a few-shot set needs at least 1 image a class")
    # Where no inspection knows them, the classes of an image are those of its mask, which is read once.
    held = cache(split.labels)
    left = dict.fromkeys(sorted(range(len(split)), key=lambda index: rank(split.identifiers[index], seed)))
    for shot in range(shots):
        for label in range(1, max(2, num_classes)):
            chosen = next((index for index in left if label in held(index)), None)
            if chosen is None:
                remedy = f"ask for at most {shot}" if shot else "leave shots out to train on all images"
                raise ValueError(
                    f"{shots} shots asked for, but after {shot} none of the {len(split)} images is left "
                    f"for class {label}; {remedy}"
                )
            del left[chosen]
    return split.subset(index for index in range(len(split)) if index not in left)
