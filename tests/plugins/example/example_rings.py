"""Rings on noise: a dataset that is drawn, so that it needs no files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import Field

from datasets import Dataset, Split


class Rings(Dataset):
    """Binary masks: the ring is foreground, the disc in it is not."""

    title = "Rings"
    split_seed = 8
    metrics = ("iou", "dice")

    train_images: int = Field(12, ge=1)
    size: int = Field(64, ge=32)

    def open(self, root: Path | None = None, *, allow_broken: bool = False) -> dict[str, Split]:
        counts = {"train": self.train_images, "validation": 4, "test": 4}
        return {
            name: RingSplit(name, count, key=(self.split_seed, place), size=self.size)
            for place, (name, count) in enumerate(counts.items())
        }


class RingSplit(Split):
    """Rings that are functions of ``key`` and their number."""

    def __init__(self, name: str, count: int, *, key: tuple[int, ...], size: int) -> None:
        self.identifiers = tuple(f"{name}-{number:03d}" for number in range(count))
        self._key, self._size = key, size

    def mask(self, index: int) -> np.ndarray:
        draws = np.random.default_rng([*self._key, index, 0])
        row, column = draws.uniform(0.3, 0.7, 2) * self._size
        rows, columns = np.mgrid[: self._size, : self._size]
        radius = np.hypot(rows - row, columns - column) / self._size
        return ((radius > 0.12) & (radius < draws.uniform(0.2, 0.3))).astype(np.uint8)

    def image(self, index: int) -> np.ndarray:
        noise = np.random.default_rng([*self._key, index, 1]).integers(0, 120, (self._size, self._size, 3))
        return (noise + 100 * self.mask(index)[..., None]).astype(np.uint8)
