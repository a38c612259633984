"""Batches of squashed images: order, flips and prefetching as functions of (seed, epoch).

Workers only read files, so their number changes nothing. What was decoded once stays in memory as uint8
while it fits the budget.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bench.spec import Cell
from datasets import Split, few_shot, squash_image, squash_mask
from methods.randomness import coin

MEMORY_BUDGET = 8 << 30


class Batch(NamedTuple):
    """Images (B, 3, S, S) and masks (B, S, S), both uint8, with their indices in the split."""

    images: Tensor
    masks: Tensor
    indices: list[int]


class SquashedSplit:
    """A split at the cell's image size, decoded at most once per process.

    Args:
        split: where images and masks come from.
        size: side in pixels.
        budget: bytes that may be kept in memory; what is beyond is decoded at every use.
    """

    def __init__(self, split: Split, size: int, *, budget: int = MEMORY_BUDGET) -> None:
        self.split, self.size = split, size
        self._kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._room = budget // (4 * size * size)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (S, S, 3) and mask (S, S), uint8."""
        if index in self._kept:
            return self._kept[index]
        image, mask, _ = self.split[index]
        pair = squash_image(image, self.size), squash_mask(mask, self.size)
        if len(self._kept) < self._room:
            self._kept[index] = pair
        return pair


def open_splits(cell: Cell, root: Path | None, *, allow_broken: bool = False) -> dict[str, Split]:
    """The splits of a cell's dataset, training cut down to its shots where it has any.

    Raises:
        datasets.DatasetMissing, datasets.DatasetBroken: see :meth:`datasets.Dataset.open`.
    """
    dataset, shots = cell.dataset(), cell.spec["dataset"].get("shots")
    splits = dataset.open(root, allow_broken=allow_broken)
    if shots:
        splits["train"] = few_shot(splits["train"], shots, cell.spec["seed"], dataset.num_classes)
    return splits


def shuffled(count: int, seed: int, epoch: int) -> list[int]:
    """The order of one epoch."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch]))).permutation(count).tolist()


def fixed_subset(split: Split, limit: int, seed: int) -> Split:
    """``limit`` items of a split (0: all), the same ones for every cell of a dataset, in their old order."""
    if not 0 < limit < len(split):
        return split
    return split.subset(sorted(shuffled(len(split), seed, 0)[:limit]))


def batches(
    data: SquashedSplit,
    order: Sequence[int],
    batch_size: int,
    *,
    flips: tuple[int, int] | None = None,
    workers: int = 2,
) -> Iterator[Batch]:
    """Batches in ``order``, read ahead by threads (decoding releases the interpreter's lock).

    Args:
        data: the split.
        order: indices to go through.
        batch_size: images a batch; the last may hold fewer.
        flips: (seed, epoch) of random horizontal flips, None for none.
        workers: reading threads.
    """

    def read(index: int) -> tuple[Tensor, Tensor]:
        image, mask = data[index]
        if flips is not None and coin(*flips, index):
            image, mask = image[:, ::-1], mask[:, ::-1]
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))), torch.from_numpy(mask.copy())

    chunks = [list(order[i : i + batch_size]) for i in range(0, len(order), batch_size)]
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque = deque()
        upcoming = iter(chunks)
        try:
            for chunk in chunks:
                while len(waiting) < 4 and (ahead := next(upcoming, None)) is not None:
                    waiting.append([pool.submit(read, index) for index in ahead])
                pairs = [future.result() for future in waiting.popleft()]
                yield Batch(torch.stack([i for i, _ in pairs]), torch.stack([m for _, m in pairs]), chunk)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
