"""``python -m datasets verify``: what a copy of a dataset holds, and what keeps it from being the published one.

Every file is decoded once (:mod:`datasets.inspection`), and everything found is told at once: counts against
those published and the paper's, files that cannot be used, how the masks are encoded and read, how much is
foreground, images that are in training and test alike. A partial or damaged copy is described like a whole one, as
long as the folders or lists of every split that is not optional are there, be they empty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from datasets.base import IGNORE, Dataset, Split, evidence
from datasets.duplicates import changes, near, same
from datasets.encoding import histogram
from datasets.files import FileDataset
from datasets.inspection import Inspected, fingerprint
from datasets.pairing import Problem
from datasets.verdict import judge

TRAINED_ON = ("train", "validation")


class Facts(NamedTuple):
    """What is known of one pair of an image and its mask.

    Attributes:
        identifier: of the pair in its split.
        image, mask: of the two files.
        pixels: of each class, :data:`IGNORE` among them.
    """

    identifier: str
    image: Inspected
    mask: Inspected
    pixels: Mapping[int, int]


@dataclass(frozen=True)
class Copy:
    """A dataset as it lies here.

    Attributes:
        samples: the usable pairs of each split.
        splits: the same, as the dataset opens them.
        layout: the name of its layout.
        rule: how its masks are read.
        base: its folder; None where it is generated.
        note: what its layout means for results.
        pairs: how many pairs each split has, usable or not.
        problems, leftovers: files that cannot be used; files without a partner that were published so.
        left_out: how many pairs of each split the dataset's own parameters exclude.
    """

    samples: Mapping[str, Sequence[Facts]]
    splits: Mapping[str, Split]
    layout: str
    rule: str
    pairs: Mapping[str, int]
    base: Path | None = None
    note: str = ""
    problems: Sequence[Problem] = ()
    leftovers: Sequence[Problem] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)


def verify(dataset: Dataset, root: Path | None = None) -> dict[str, Any]:
    """All that is found out about a dataset's files, ready for JSON.

    Splits are called ``train``, ``val`` and by the names of the test sets; ``splits`` has all of them, with 0
    pairs where the copy lacks one. ``missing`` and ``more`` compare with the published counts, or else with the
    paper's. What the findings mean is in ``whole``, ``errors`` and ``warnings`` (:mod:`datasets.verdict`).

    Raises:
        DatasetMissing: see :meth:`Dataset.open`.
    """
    here = _look(dataset, root)
    names = [*TRAINED_ON, *dataset.test_sets]
    pairs = {short(name): here.pairs.get(name, 0) for name in names}
    published = by_split(getattr(dataset, "published", {}))
    paper = by_split(getattr(dataset, "paper", {})) or published
    counts = published or paper
    report = {
        "dataset": dataset.name,
        "title": dataset.title,
        "parameters": dataset.model_dump(mode="json", exclude_defaults=True),
        "base": str(here.base) if here.base else None,
        "layout": here.layout,
        "note": here.note,
        "splits": pairs,
        "usable": {short(name): len(here.samples.get(name, ())) for name in names},
        "left_out": {short(name): count for name, count in here.left_out.items() if count},
        "published": published,
        "paper": paper,
        "missing": {split: count - pairs[split] for split, count in counts.items() if count > pairs[split]},
        "more": {split: pairs[split] - count for split, count in counts.items() if count < pairs[split]},
        "problems": _by_kind(here.problems, here.base),
        "leftovers": _by_kind(here.leftovers, here.base),
        "images": {short(name): _images(samples) for name, samples in here.samples.items()},
        "masks": _masks(here),
        "blank": _where(here, lambda pixels: not pixels.keys() - {0, IGNORE}),
        "all_foreground": {} if dataset.classes else _where(here, lambda pixels: pixels.keys() <= {1}),
        "foreground": {short(name): _foreground(samples) for name, samples in here.samples.items()},
        "classes": {short(name): _classes(dataset.classes, samples) for name, samples in here.samples.items()},
        **_duplicates(here),
        "digests": by_split(evidence(here.splits)["data"]),
    }
    return report | judge(report)


def short(split: str) -> str:
    """The name of a split in reports."""
    return "val" if split == "validation" else split


def by_split(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values under the names that splits have in reports."""
    return {short(split): value for split, value in values.items()}


def _look(dataset: Dataset, root: Path | None) -> Copy:
    if isinstance(dataset, FileDataset):
        return _look_at_files(dataset, root)
    splits = dataset.open(root)
    return Copy(
        samples={name: [_painted(split, index) for index in range(len(split))] for name, split in splits.items()},
        splits=splits,
        layout="generated",
        rule="its masks are made as class indices",
        pairs={name: len(split) for name, split in splits.items()},
    )


def _look_at_files(dataset: FileDataset, root: Path | None) -> Copy:
    looked = dataset.look(root)
    found, images, masks, encoding = looked.found, looked.images, looked.masks, looked.encoding
    return Copy(
        samples={
            name: [
                Facts(pair.identifier, images[pair.image], masks[pair.mask], encoding.count(masks[pair.mask].levels))
                for pair in pairs
            ]
            for name, pairs in looked.sound.items()
        },
        splits=looked.splits(),
        layout=found.layout.name,
        rule=encoding.rule,
        pairs={name: len(pairs) for name, pairs in found.splits.items()},
        base=found.base,
        note=found.layout.note,
        problems=looked.problems,
        leftovers=found.leftovers,
        left_out={name: len(pairs) for name, pairs in looked.left_out.items()},
    )


def _painted(split: Split, index: int) -> Facts:
    image, mask, identifier = split[index]
    (height, width), levels = mask.shape, histogram(mask)
    picture = Inspected(split.digest(index), width, height, "RGB", fingerprint=fingerprint(Image.fromarray(image)))
    return Facts(identifier, picture, Inspected(width=width, height=height, mode="L", levels=levels), dict(levels))


def _by_kind(problems: Sequence[Problem], base: Path | None) -> list[dict[str, Any]]:
    return [
        {
            "kind": kind,
            "files": [
                {"path": problem.path.relative_to(base).as_posix(), "detail": problem.detail}
                for problem in problems
                if problem.kind == kind
            ],
        }
        for kind in dict.fromkeys(problem.kind for problem in problems)
    ]


def _images(samples: Sequence[Facts]) -> dict[str, Any]:
    """Sizes as width and height, ordered by area, and how colours are stored."""
    sizes = sorted([(image.width, image.height) for _, image, _, _ in samples], key=lambda size: (prod(size), size))
    picked = {"smallest": 0, "median": len(sizes) // 2, "largest": -1} if sizes else {}
    return {
        "sizes": {name: list(sizes[place]) for name, place in picked.items()},
        "modes": dict(Counter(sample.image.mode for sample in samples)),
    }


def _masks(here: Copy) -> dict[str, Any]:
    """How masks are stored, which levels occur in them, and the rule that makes classes of these."""
    masks = [sample.mask for samples in here.samples.values() for sample in samples]
    return {
        "modes": dict(Counter(mask.mode for mask in masks)),
        "levels": sorted({level for mask in masks for level, _ in mask.levels}),
        "rule": here.rule,
    }


def _where(here: Copy, holds: Callable[[Mapping[int, int]], bool]) -> dict[str, list[str]]:
    """The identifiers of the masks for which ``holds`` is true of the pixels of their classes, split by split."""
    found = {
        short(name): [sample.identifier for sample in samples if holds(sample.pixels)]
        for name, samples in here.samples.items()
    }
    return {name: identifiers for name, identifiers in found.items() if identifiers}


def _foreground(samples: Sequence[Facts]) -> dict[str, float]:
    """The share of foreground in the pixels that count, over the images that have such pixels."""
    counted = [{label: n for label, n in sample.pixels.items() if label != IGNORE} for sample in samples]
    shares = [1 - pixels.get(0, 0) / sum(pixels.values()) for pixels in counted if pixels]
    if not shares:
        return {}
    summary = {"min": min(shares), "median": float(np.median(shares)), "max": max(shares)}
    return {name: round(share, 6) for name, share in summary.items()}


def _classes(classes: Sequence[str], samples: Sequence[Facts]) -> dict[str, dict[str, float]]:
    """For each class how many images hold it, and its share of all pixels that count; empty for binary masks."""
    total = sum(n for sample in samples for label, n in sample.pixels.items() if label != IGNORE) or 1
    return {
        name: {
            "images": sum(label in sample.pixels for sample in samples),
            "pixels": round(sum(sample.pixels.get(label, 0) for sample in samples) / total, 6),
        }
        for label, name in enumerate(classes)
    }


def _duplicates(here: Copy) -> dict[str, Any]:
    """Images that are there twice, each as its split and its identifier.

    ``duplicates`` are groups with the same image file; ``leaked`` counts, of validation, the images whose file is
    one of those for training, and of each test set, of those for training or validation. ``near_duplicates`` has
    an entry for each other test image that resembles such an image: the nearest, and how many are ``alike``.
    ``uniform`` counts the images that show too little to be compared.
    """
    names = [(name, sample.identifier) for name, samples in here.samples.items() for sample in samples]
    images = [sample.image for samples in here.samples.values() for sample in samples]
    vectors = changes([image.fingerprint for image in images])
    trained = [place for place, (name, _) in enumerate(names) if name in TRAINED_ON]
    known = {images[place].sha256 for place in trained}
    train = {images[place].sha256 for place in trained if names[place][0] == "train"}
    resembling = []
    leaked = {"val": sum(names[place][0] == "validation" and images[place].sha256 in train for place in trained)}
    for test_set in [name for name in here.samples if name not in TRAINED_ON]:
        tested = [place for place, (name, _) in enumerate(names) if name == test_set]
        new = [place for place in tested if images[place].sha256 not in known]
        leaked[test_set] = len(tested) - len(new)
        resembling += [
            {
                "image": _label(names[new[pair.index]]),
                "nearest": _label(names[trained[pair.nearest]]),
                "similarity": round(pair.similarity, 3),
                "alike": pair.alike,
            }
            for pair in near(vectors[new], vectors[trained])
        ]
    return {
        "duplicates": [[_label(names[place]) for place in group] for group in same([image.sha256 for image in images])],
        "leaked": {name: count for name, count in leaked.items() if count},
        "near_duplicates": sorted(resembling, key=lambda entry: -entry["similarity"]),
        "uniform": int((~vectors.any(axis=1)).sum()),
    }


def _label(name: tuple[str, str]) -> list[str]:
    return [short(name[0]), name[1]]
