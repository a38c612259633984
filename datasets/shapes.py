"""Generated images that need no download: for the tests, the demo, and a first look at a method."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from datasets.base import Dataset, Sample, Split, register
from datasets.painting import STYLES, Draws, paint

_SPLITS = ("train", "validation", "test")


@register("shapes")
class Shapes(Dataset):
    """Binary shapes on cluttered grounds.

    Args:
        train_images, validation_images, test_images: how many of each; the first ones of a larger set are
            those of a smaller one.
        size: the native side in pixels.
        style: what is painted (:mod:`datasets.painting`); "mixed" takes the styles in turn. The
            identifiers carry it, so that scores can be read by style.
    """

    title = "Shapes"
    split_seed = 1706
    regime = {"validation_metric": "iou"}
    metrics = ("iou", "dice", "mae")

    train_images: int = Field(160, ge=1)
    validation_images: int = Field(32, ge=1)
    test_images: int = Field(64, ge=1)
    size: int = Field(160, ge=64, le=2048)
    style: Literal["mixed", "large", "small", "thin", "texture"] = "mixed"

    def open(self, root: Path | None = None, *, allow_broken: bool = False) -> dict[str, Split]:
        counts = (self.train_images, self.validation_images, self.test_images)
        return {split: self._split(split, count) for split, count in zip(_SPLITS, counts, strict=True)}

    def _split(self, split: str, count: int) -> Split:
        styles = tuple(STYLES) if self.style == "mixed" else (self.style,)
        recipes = [
            Recipe((self.split_seed, self.version, _SPLITS.index(split), index), styles[index % len(styles)], self.size)
            for index in range(count)
        ]
        return PaintedSplit(recipes, [f"{split}-{index:05d}-{recipe.style}" for index, recipe in enumerate(recipes)])


class Recipe(NamedTuple):
    """All that a generated sample depends on."""

    key: tuple[int, ...]
    style: str
    size: int


class PaintedSplit(Split):
    """Samples that are painted each time they are asked for, in a few milliseconds."""

    def __init__(self, recipes: Sequence[Recipe], identifiers: Sequence[str]) -> None:
        self.identifiers = tuple(identifiers)
        self._recipes = tuple(recipes)

    def image(self, index: int) -> np.ndarray:
        return self[index].image

    def mask(self, index: int) -> np.ndarray:
        return self[index].mask

    def digest(self, index: int) -> str:
        return hashlib.sha256(repr(tuple(self._recipes[index])).encode()).hexdigest()

    def __getitem__(self, index: int) -> Sample:
        identifier, recipe = self.identifiers[index], self._recipes[index]
        return Sample(*paint(recipe.style, recipe.size, Draws(*recipe.key)), identifier)
