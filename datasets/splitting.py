"""Splits that a dataset draws itself, where no one published them.

Each image gets a rank from its identifier and the dataset's ``split_seed`` alone, through SHA-256: the
same on every machine, Python and file system, whatever order the files are listed in, and for copies whose
names differ in case.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

from datasets.pairing import Pair, folded

Parts = Mapping[str, Sequence[Pair]]
Arrange = Callable[[Parts, int], dict[str, list[Pair]]]
"""From the parts that a layout found and a seed to the splits."""


def rank(identifier: str, seed: int) -> tuple[bytes, str]:
    """Where ``identifier`` stands in the order that ``seed`` means; itself counts where two differ in case alone."""
    words = f"{seed} {folded(identifier)}"
    return hashlib.sha256(words.encode(errors="surrogateescape")).digest(), identifier


def draw(pairs: Sequence[Pair], count: int, seed: int) -> tuple[list[Pair], list[Pair]]:
    """The ``count`` pairs of lowest rank, and the others; both in their old order."""
    chosen = set(sorted((pair.identifier for pair in pairs), key=lambda name: rank(name, seed))[:count])
    return (
        [pair for pair in pairs if pair.identifier in chosen],
        [pair for pair in pairs if pair.identifier not in chosen],
    )


def as_found(parts: Parts, seed: int) -> dict[str, list[Pair]]:
    """The parts are the splits."""
    return {name: list(pairs) for name, pairs in parts.items()}


def hold_out(share: float) -> Arrange:
    """``validation`` is this share of ``train``, to the nearest whole number of images, unless there is one already."""

    def arrange(parts: Parts, seed: int) -> dict[str, list[Pair]]:
        splits = as_found(parts, seed)
        if "validation" not in splits:
            validation, train = draw(splits["train"], round(share * len(splits["train"])), seed)
            splits = {"train": train, "validation": validation} | {k: v for k, v in splits.items() if k != "train"}
        return splits

    return arrange
