"""Images and masks in two folders become pairs by name, and pairs that were looked at become splits.

By name and never by position, as published copies lack files on either side. Everything that is wrong
with the files is gathered first and told in one report.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from datasets.base import DatasetBroken, Split
from datasets.inspection import Inspected, inspect_files

THRESHOLD = 127
"""Mask values above it are foreground: copies of 0/255 masks hold noise near both ends."""

_LISTED = 20


class Pair(NamedTuple):
    """One image and its mask, under the image's own name."""

    identifier: str
    image: Path
    mask: Path


class Problem(NamedTuple):
    """A kind of problem, as a heading in the plural, and a file that has it."""

    kind: str
    path: Path
    detail: str = ""


def list_files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """The folder's files with one of these (lower-case) suffixes, by name; hidden ones are left out."""
    with os.scandir(folder) as entries:
        names = [
            entry.name
            for entry in entries
            if not entry.name.startswith(".") and entry.name.lower().endswith(tuple(suffixes)) and entry.is_file()
        ]
    return [folder / name for name in sorted(names)]


def read_grey(path: Path) -> np.ndarray:
    """A picture as grey levels (H, W) in uint8."""
    with Image.open(path) as picture:
        return np.array(picture.convert("L"))


def pair_files(
    images: Sequence[Path], masks: Sequence[Path], *, mask_key: Callable[[str], str] = str
) -> tuple[list[Pair], list[Problem]]:
    """Pairs of equal name in whatever case, in the order of that name, and the files that have no partner.

    Args:
        mask_key: from a mask's stem in lower case to its image's.
    """
    problems: list[Problem] = []
    image_of = _by_key(images, str, problems)
    mask_of = _by_key(masks, mask_key, problems)
    problems += [Problem("images without a mask", image_of[key]) for key in sorted(image_of.keys() - mask_of.keys())]
    problems += [Problem("masks without an image", mask_of[key]) for key in sorted(mask_of.keys() - image_of.keys())]
    common = sorted(image_of.keys() & mask_of.keys())
    return [Pair(image_of[key].stem, image_of[key], mask_of[key]) for key in common], problems


def _by_key(paths: Sequence[Path], key_of: Callable[[str], str], problems: list[Problem]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        first = found.setdefault(key_of(path.stem.lower()), path)
        if first is not path:
            problems.append(Problem("second files of one name", path, f"beside {first.name}"))
    return found


class FileSplit(Split):
    """Binary pairs of files. Masks are read as grey and are foreground above :data:`THRESHOLD`."""

    def __init__(self, pairs: Sequence[Pair], digests: Sequence[str]) -> None:
        self.identifiers = tuple(pair.identifier for pair in pairs)
        self._pairs = tuple(pairs)
        self._digests = tuple(digests)

    def image(self, index: int) -> np.ndarray:
        with Image.open(self._pairs[index].image) as picture:
            return np.array(picture.convert("RGB"))

    def mask(self, index: int) -> np.ndarray:
        return (read_grey(self._pairs[index].mask) > THRESHOLD).astype(np.uint8)

    def digest(self, index: int) -> str:
        return self._digests[index]


def open_pairs(
    name: str,
    base: Path,
    parts: Mapping[str, Sequence[Pair]],
    problems: Sequence[Problem],
    *,
    allow_broken: bool,
) -> dict[str, Split]:
    """A split of each part's sound pairs, every file of which was decoded once.

    Args:
        base: the folder of the dataset ``name``, to which the report's paths are relative.
        problems: those that pairing found, told in the same report.
        allow_broken: go on with the sound pairs, with a warning.

    Raises:
        DatasetBroken: there are problems and ``allow_broken`` is not set, or a part has no sound pair.
    """
    files = inspect_files(name, base, [path for pairs in parts.values() for pair in pairs for path in pair[1:]])
    splits: dict[str, Split] = {}
    problems = list(problems)
    for part, pairs in parts.items():
        wrong = {pair: _content_problems(pair, files[pair.image], files[pair.mask]) for pair in pairs}
        problems += [problem for found in wrong.values() for problem in found]
        sound = [pair for pair in pairs if not wrong[pair]]
        splits[part] = FileSplit(sound, [files[pair.image].sha256 + files[pair.mask].sha256 for pair in sound])
    empty = [part for part, split in splits.items() if not len(split)]
    if problems and (empty or not allow_broken):
        raise DatasetBroken(_report(name, base, problems, empty))
    if problems:
        warnings.warn(f"dataset {name!r}: left out are {_counts(problems)}", stacklevel=3)
    return splits


def _content_problems(pair: Pair, image: Inspected, mask: Inspected) -> list[Problem]:
    found = []
    if image.problem:
        found.append(Problem("corrupt images", pair.image, image.problem))
    if mask.problem:
        found.append(Problem("corrupt masks", pair.mask, mask.problem))
    if found:
        return found
    if (image.width, image.height) != (mask.width, mask.height):
        sizes = f"{mask.width}x{mask.height}, its image {image.width}x{image.height}"
        found.append(Problem("masks of another size than their image", pair.mask, sizes))
    if 0 < mask.brightest <= THRESHOLD:
        found.append(Problem("masks that are not 0 and 255", pair.mask, f"largest value {mask.brightest}"))
    return found


def _counts(problems: Sequence[Problem]) -> str:
    return ", ".join(f"{kind} ({count})" for kind, count in Counter(problem.kind for problem in problems).items())


def _report(name: str, base: Path, problems: Sequence[Problem], empty: Sequence[str]) -> str:
    lines = [f"dataset {name!r} in {base}: problems with its files ({len(problems)})."]
    for kind in dict.fromkeys(problem.kind for problem in problems):
        listed = [problem for problem in problems if problem.kind == kind]
        lines.append(f"{kind} ({len(listed)}):")
        for problem in listed[:_LISTED]:
            detail = f": {problem.detail}" if problem.detail else ""
            lines.append(f"  {problem.path.relative_to(base).as_posix()}{detail}")
        if len(listed) > _LISTED:
            lines.append(f"  and {len(listed) - _LISTED} more")
    if empty:
        lines.append(f"No usable pair is left in {', '.join(empty)}: fetch these files again.")
    else:
        lines.append("Fetch or repair these files, or go on without them: --allow-broken")
    return "\n".join(lines)
