"""Images drawn over several datasets: a stated, repeatable choice, and the list that says which they were.

Each dataset gives an equal share of its test images (all its test sets taken together). Its images stand in an order
that the seed means, SHA-256 of seed and identifier, and the first ones are drawn: neither the machine nor the other
datasets asked for change it, and more images are the same ones and further ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
from datasets.splitting import rank

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

DOWNSTREAM = ("polyps", "isic2017", "camouflage", "sbu", "leaf", "road", "trans10k_v2")
"""The paper's downstream segmentation tasks."""


class NoImages(ValueError):
    """No dataset that was asked for is there."""


@dataclass(frozen=True)
class Picture:
    """A drawn image; ``digest`` is its dataset's, of the sample."""

    dataset: str
    test_set: str
    identifier: str
    digest: str
    split: datasets.Split
    index: int

    def pixels(self, size: int) -> Tensor:
        """The squashed image, (1, 3, size, size) in uint8."""
        import torch

        image = datasets.squash_image(self.split.image(self.index), size)
        return torch.from_numpy(image).permute(2, 0, 1)[None].contiguous()


@dataclass(frozen=True)
class Drawn:
    """The pictures, by dataset, and a line for each dataset that was left out."""

    pictures: tuple[Picture, ...]
    skipped: tuple[str, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many pictures each dataset gave."""
        names = [picture.dataset for picture in self.pictures]
        return {name: names.count(name) for name in dict.fromkeys(names)}

    def table(self) -> pd.DataFrame:
        """A line a picture."""
        import pandas as pd

        columns = ["dataset", "test_set", "identifier", "digest"]
        return pd.DataFrame([[getattr(p, name) for name in columns] for p in self.pictures], columns=columns)


def draw(names: Sequence[str], root: Path | None, count: int, *, seed: int = 0) -> Drawn:
    """``count`` test images in equal shares, or fewer where the datasets hold fewer.

    Args:
        names: of datasets; those that are not below ``root`` are left out.
        root: see :meth:`datasets.Dataset.open`.

    Raises:
        bench.registry.UnknownName: no such dataset.
        NoImages: none of the datasets is there.
        datasets.DatasetBroken: a dataset has no files that can be used.
    """
    pools: dict[str, list[Picture]] = {}
    skipped = []
    for name in dict.fromkeys(names):
        dataset = datasets.load(name)
        try:
            splits = dataset.open(root, allow_broken=True)
        except datasets.DatasetMissing:
            where = f" --data-root {root}" if root else ""
            skipped.append(f"the dataset {name!r} is not there. Next: python -m datasets verify {name}{where}")
            continue
        pool = [
            Picture(name, test_set, identifier, splits[test_set].digest(index), splits[test_set], index)
            for test_set in dataset.test_sets
            if test_set in splits
            for index, identifier in enumerate(splits[test_set].identifiers)
        ]
        if not pool:
            skipped.append(f"the copy of {name!r} that is here holds no test images")
            continue
        pools[name] = sorted(pool, key=lambda picture: (rank(picture.identifier, seed), picture.test_set))
    if not pools:
        raise NoImages("; ".join(skipped))
    taken = shares({name: len(pool) for name, pool in pools.items()}, count)
    return Drawn(tuple(picture for name, pool in pools.items() for picture in pool[: taken[name]]), tuple(skipped))


def shares(available: Mapping[str, int], count: int) -> dict[str, int]:
    """How many of ``count`` each takes: equally many, give or take one; what one lacks falls to the others."""
    left, taken = count, {}
    for place, name in enumerate(sorted(available, key=lambda name: (available[name], name))):
        taken[name] = min(available[name], left // (len(available) - place))
        left -= taken[name]
    return taken
