"""Batches of squashed images: order, flips and prefetching as functions of (seed, epoch).

Workers only read files, so their number changes nothing. Samples that ``python -m datasets prepare`` has
squashed come from its cache; what else was decoded once stays in memory as uint8 while it fits the budget.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from bench.spec import Cell
from datasets import IGNORE, Split, few_shot, squash_mask
from datasets.cache import Cache
from methods.randomness import coin

log = logging.getLogger(__name__)
MEMORY_BUDGET = 8 << 30
READERS = 2
T = TypeVar("T")

Find = Callable[[Tensor], Tensor | None]
"""Looks up what is already known of an image (3, S, S): see :meth:`bench.embeddings.Encoder.find`."""


class Batch(NamedTuple):
    """Images (B, 3, S, S) and masks (B, S, S), both uint8, with their indices in the split.

    ``found`` holds what is known of each image, None where nothing is.
    """

    images: Tensor
    masks: Tensor
    indices: list[int]
    found: list[Tensor | None]


class SquashedSplit:
    """A split at the cell's image size, decoded at most once per process.

    Args:
        split: where images and masks come from.
        size: side in pixels.
        cache: prepared samples of this size, which are not decoded at all and need no second copy in memory.
        num_classes: as in ``methods.Context``: which values a mask may hold.
        budget: bytes that may be kept in memory; what is beyond is decoded at every use.
    """

    def __init__(
        self,
        split: Split,
        size: int,
        *,
        cache: Cache | None = None,
        num_classes: int = 1,
        budget: int = MEMORY_BUDGET,
    ) -> None:
        self.split, self.size, self.cache, self.num_classes = split, size, cache, num_classes
        self._kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._room = budget // (4 * size * size)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (S, S, 3) and mask (S, S), uint8."""
        if index in self._kept:
            return self._kept[index]
        pair = self._prepared(index)
        if pair is None:
            image, mask = self.split.squashed(index, self.size)
            self._check(index, mask)
            pair = image, squash_mask(mask, self.size)
            if len(self._kept) < self._room:
                self._kept[index] = pair
        return pair

    def with_native_mask(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Image and mask as by indexing, and the mask at its own size. For a single pass: nothing is kept."""
        pair = self._prepared(index)
        if pair is not None:
            return *pair, self.split.mask(index)
        image, mask = self.split.squashed(index, self.size)
        self._check(index, mask)
        return image, squash_mask(mask, self.size), mask

    def _check(self, index: int, mask: np.ndarray) -> None:
        """Raises ValueError for a value that is no class; datasets of files say so earlier, for all files at once."""
        allowed = {0, 1} if self.num_classes == 1 else {*range(self.num_classes), IGNORE}
        if mask.max(initial=0) >= max(2, self.num_classes) and (odd := {*np.unique(mask).tolist()} - allowed):
            name = self.split.identifiers[index]
            raise ValueError(f"the mask of {name} holds {sorted(odd)}; its dataset's classes are {sorted(allowed)}")

    def _prepared(self, index: int) -> tuple[np.ndarray, np.ndarray] | None:
        return None if self.cache is None else self.cache.get(self.split.digest(index))


def open_splits(cell: Cell, root: Path | None, *, allow_broken: bool = False) -> dict[str, Split]:
    """The splits of a cell's dataset, training cut down to its shots where it has any.

    Raises:
        datasets.DatasetMissing, datasets.DatasetBroken: see :meth:`datasets.Dataset.open`.
    """
    return with_shots(cell, cell.dataset().open(root, allow_broken=allow_broken))


def with_shots(cell: Cell, splits: Mapping[str, Split]) -> dict[str, Split]:
    """The splits with training cut down to the cell's shots where it has any.

    Raises:
        ValueError: there are too few images for so many shots.
    """
    shots = cell.spec["dataset"].get("shots")
    if not shots:
        return dict(splits)
    return {**splits, "train": few_shot(splits["train"], shots, cell.spec["seed"], cell.dataset().num_classes)}


def open_cache(cell: Cell, splits: Mapping[str, Split]) -> Cache | None:
    """The prepared samples of a cell's dataset at its image size; the log says how many of ``splits`` there are.

    None where nothing was prepared, or nothing needs to be.
    """
    dataset, size = cell.dataset(), cell.spec["image_size"]
    cache = Cache.of(dataset, size)
    if cache is None:
        return None
    digests = [split.digest(index) for split in splits.values() for index in range(len(split))]
    found = sum(digest in cache for digest in digests)
    if found:
        log.info("reads %s of %s images from the cache %s", f"{found:,}", f"{len(digests):,}", cache.folder)
        return cache
    log.info(
        "decodes %s images; once for all cells: python -m datasets prepare %s --image-size %s%s",
        f"{len(digests):,}",
        dataset.name,
        size,
        "".join(f" --set {key}=..." for key in dataset.model_dump(exclude_defaults=True)),
    )
    return None


def shuffled(count: int, seed: int, epoch: int) -> list[int]:
    """The order of one epoch."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch]))).permutation(count).tolist()


def fixed_subset(split: Split, limit: int, seed: int) -> Split:
    """``limit`` items of a split (0: all), the same ones for every cell of a dataset, in their old order."""
    if not 0 < limit < len(split):
        return split
    return split.subset(sorted(shuffled(len(split), seed, 0)[:limit]))


def as_tensor(image: np.ndarray) -> Tensor:
    """An image (S, S, 3) as (3, S, S), contiguous wherever it comes from, as layouts in memory differ in rounding."""
    return torch.from_numpy(image.transpose(2, 0, 1).copy())


def nothing(image: Tensor) -> None:
    """A :data:`Find` that knows no image."""


def batches(
    data: SquashedSplit,
    order: Sequence[int],
    batch_size: int,
    *,
    flips: tuple[int, int] | None = None,
    find: Find = nothing,
    workers: int = READERS,
) -> Iterator[Batch]:
    """Batches in ``order``, read ahead by threads (decoding releases the interpreter's lock).

    Args:
        data: the split.
        order: indices to go through.
        batch_size: images a batch; the last may hold fewer.
        flips: (seed, epoch) of random horizontal flips, None for none.
        find: asked about each image, as it is after the flip.
        workers: reading threads.
    """

    def read(index: int) -> tuple[Tensor, Tensor, Tensor | None]:
        image, mask = data[index]
        if flips is not None and coin(*flips, index):
            image, mask = image[:, ::-1], mask[:, ::-1]
        pixels = as_tensor(image)
        return pixels, torch.from_numpy(mask.copy()), find(pixels)

    for indices, samples in _read_ahead(read, order, batch_size, workers):
        images, masks, found = zip(*samples, strict=True)
        yield Batch(torch.stack(images), torch.stack(masks), indices, list(found))


def batches_to_score(
    data: SquashedSplit, batch_size: int, *, find: Find = nothing, workers: int = READERS
) -> Iterator[tuple[Batch, list[np.ndarray]]]:
    """The split once, in its own order, each batch with its masks at their own size; arguments as for :func:`batches`.

    Nothing is kept in memory.
    """

    def read(index: int) -> tuple[Tensor, Tensor, Tensor | None, np.ndarray]:
        image, mask, native = data.with_native_mask(index)
        pixels = as_tensor(image)
        return pixels, torch.from_numpy(mask.copy()), find(pixels), native

    for indices, samples in _read_ahead(read, range(len(data)), batch_size, workers):
        images, masks, found, natives = zip(*samples, strict=True)
        yield Batch(torch.stack(images), torch.stack(masks), indices, list(found)), list(natives)


def _read_ahead(
    read: Callable[[int], T], order: Sequence[int], batch_size: int, workers: int
) -> Iterator[tuple[list[int], list[T]]]:
    """The indices of each batch and what ``read`` gives for them, four batches ahead at most."""
    chunks = [list(order[i : i + batch_size]) for i in range(0, len(order), batch_size)]
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque = deque()
        upcoming = iter(chunks)
        try:
            for chunk in chunks:
                while len(waiting) < 4 and (ahead := next(upcoming, None)) is not None:
                    waiting.append([pool.submit(read, index) for index in ahead])
                yield chunk, [future.result() for future in waiting.popleft()]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
