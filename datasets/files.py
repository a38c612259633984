"""Datasets that lie on disk as pairs of files: everything but what tells one from another.

A dataset of files states its layouts, its encoding, its counts and where to get it; finding, checking and
reading them is done here. Everything that is wrong with the files is gathered first and told in one report.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from bench.squash import squash_picture
from datasets.base import IGNORE, Dataset, DatasetBroken, Split
from datasets.encoding import Encoding, UnknownColour, threshold
from datasets.inspection import Inspected, check_depth, inspect_files
from datasets.layout import Found, Layout, locate
from datasets.pairing import Pair, Problem

_LISTED = 20


@dataclass(frozen=True)
class Archive:
    """A published archive that can be fetched without an account.

    Attributes:
        url: where it is.
        sha256, size: of the file where they are known, "" and 0 where nobody published them.
        into: the folder below the dataset's own that it is unpacked in.
    """

    url: str
    sha256: str = ""
    size: int = 0
    into: str = ""


class FileSplit(Split):
    """Pairs of files, read when asked for."""

    def __init__(
        self,
        pairs: Sequence[Pair],
        images: Mapping[Path, Inspected],
        masks: Mapping[Path, Inspected],
        encoding: Encoding,
    ) -> None:
        self.identifiers = tuple(pair.identifier for pair in pairs)
        self._pairs = tuple(pairs)
        self._digests = tuple(images[pair.image].sha256 + masks[pair.mask].sha256 for pair in pairs)
        self._labels = tuple(frozenset(encoding.count(masks[pair.mask].levels)) - {IGNORE} for pair in pairs)
        self._encoding = encoding

    def image(self, index: int) -> np.ndarray:
        with Image.open(self._pairs[index].image) as picture:
            check_depth(picture)
            return np.array(picture.convert("RGB"))

    def mask(self, index: int) -> np.ndarray:
        path = self._pairs[index].mask
        with Image.open(path) as picture:
            check_depth(picture, grey=True)
            try:
                return self._encoding.decode(picture)
            except UnknownColour as error:
                raise UnknownColour(f"{path}: {error}") from None

    def squashed(self, index: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        with Image.open(self._pairs[index].image) as picture:
            check_depth(picture)
            return squash_picture(picture, size), self.mask(index)

    def digest(self, index: int) -> str:
        return self._digests[index]

    def labels(self, index: int) -> frozenset[int]:
        return self._labels[index]


@dataclass(frozen=True)
class Looked:
    """A dataset's files after each was decoded once.

    Attributes:
        found: where they are.
        images, masks: what each file holds.
        encoding: how the masks of this copy are read.
        problems: everything that is wrong, of names and of contents.
        sound: the pairs of each split that can be used.
        left_out: pairs that the dataset's own parameters exclude, with the reason.
    """

    found: Found
    images: Mapping[Path, Inspected]
    masks: Mapping[Path, Inspected]
    encoding: Encoding
    problems: Sequence[Problem]
    sound: Mapping[str, Sequence[Pair]]
    left_out: Mapping[str, Mapping[Pair, str]]

    def splits(self) -> dict[str, FileSplit]:
        """The sound pairs, to be read."""
        return {name: FileSplit(pairs, self.images, self.masks, self.encoding) for name, pairs in self.sound.items()}


class FileDataset(Dataset):
    """A dataset of files.

    Class attributes beside those of :class:`datasets.base.Dataset`:
        layouts: the published arrangements, the preferred ones first.
        encoding: how its masks are read.
        aliases: other names of its folder.
        published: how many pairs each split has as published, where that is known.
        paper: how many the paper counts; the same as ``published`` where empty.
        archives: what ``python -m datasets fetch`` can get.
        steps: how a person gets it, one line.
        terms: under which terms it may be used, one line.
    """

    layouts: ClassVar[tuple[Layout, ...]]
    encoding: ClassVar[Encoding] = threshold()
    aliases: ClassVar[tuple[str, ...]] = ()
    published: ClassVar[Mapping[str, int]] = {}
    paper: ClassVar[Mapping[str, int]] = {}
    archives: ClassVar[tuple[Archive, ...]] = ()
    steps: ClassVar[str]
    terms: ClassVar[str] = ""

    def find(self, root: Path | None = None) -> Found:
        return locate(
            self.name, root, self.layouts, split_seed=self.split_seed, source=self.source(), aliases=self.aliases
        )

    def source(self) -> str:
        """How to get it, for messages."""
        fetch = f"python -m datasets fetch {self.name}, or: " if self.archives else ""
        return f"{fetch}{self.steps}"

    def excludes(self, image: Inspected, mask: Inspected) -> str:
        """Why the dataset's own parameters leave out a sound pair; empty where they do not.

        Asked for training and validation alone: what is scored is never thinned.
        """
        return ""

    def look(self, root: Path | None = None) -> Looked:
        """Find the files and decode each of them once.

        Raises:
            DatasetMissing: see :meth:`find`.
        """
        found = self.find(root)
        pairs = [pair for split in found.splits.values() for pair in split]
        images, masks = inspect_files(
            self.name, found.base, [pair.image for pair in pairs], [pair.mask for pair in pairs], self.encoding
        )
        encoding = self.encoding.fitted(level for mask in masks.values() for level, _ in mask.levels)
        problems = list(found.problems)
        sound: dict[str, list[Pair]] = {}
        left_out: dict[str, dict[Pair, str]] = {}
        for split, members in found.splits.items():
            wrong = {pair: content_problems(pair, images[pair.image], masks[pair.mask], encoding) for pair in members}
            problems += [problem for listed in wrong.values() for problem in listed]
            usable = [pair for pair in members if not wrong[pair]]
            thinned = split in ("train", "validation")
            reasons = {pair: self.excludes(images[pair.image], masks[pair.mask]) if thinned else "" for pair in usable}
            left_out[split] = {pair: reason for pair, reason in reasons.items() if reason}
            sound[split] = [pair for pair in usable if not reasons[pair]]
        return Looked(found, images, masks, encoding, problems, sound, left_out)

    def open(self, root: Path | None = None, *, allow_broken: bool = False) -> dict[str, Split]:
        looked = self.look(root)
        if not all(looked.sound.values()) or (looked.problems and not allow_broken):
            raise DatasetBroken(report(self.name, looked, self.model_dump(exclude_defaults=True)))
        if looked.problems:
            warnings.warn(f"dataset {self.name!r}: left out are {_counts(looked.problems)}", stacklevel=2)
        return dict(looked.splits())


def content_problems(pair: Pair, image: Inspected, mask: Inspected, encoding: Encoding) -> list[Problem]:
    """What keeps a pair of files from being used."""
    found = []
    if image.problem:
        found.append(Problem("corrupt images", pair.image, image.problem))
    if mask.problem:
        found.append(Problem("corrupt masks", pair.mask, mask.problem))
    if found:
        return found
    if image.sha256 == mask.sha256:
        found.append(Problem("masks that are the image itself", pair.mask))
    if (image.width, image.height) != (mask.width, mask.height):
        sizes = f"{mask.width}x{mask.height}, its image {image.width}x{image.height}"
        found.append(Problem("masks of another size than their image", pair.mask, sizes))
    try:
        encoding.check(mask.levels)
    except UnknownColour as error:
        found.append(Problem("masks with values of no class", pair.mask, str(error)))
    if encoding.erases(mask.levels):
        brightest = max(level for level, _ in mask.levels)
        detail = f"largest value {brightest}; {encoding.rule}"
        if len(mask.levels) > 2:
            detail += "; if it is blank but for the noise of JPEG, store it as zeros"
        found.append(Problem("masks whose foreground would be lost", pair.mask, detail))
    return found


def _counts(problems: Sequence[Problem]) -> str:
    return ", ".join(f"{kind} ({count})" for kind, count in Counter(problem.kind for problem in problems).items())


def report(name: str, looked: Looked, parameters: Mapping[str, object]) -> str:
    """All problems by kind, with paths relative to the dataset's folder, splits without pairs, and what to do.

    Args:
        parameters: the dataset's own, which may have left out all there was of a split.
    """
    base, problems = looked.found.base, looked.problems
    words = f"problems with its files ({len(problems)})" if problems else "it cannot be used"
    lines = [f"dataset {name!r} in {base}: {words}."]
    for kind in dict.fromkeys(problem.kind for problem in problems):
        listed = [problem for problem in problems if problem.kind == kind]
        lines.append(f"{kind} ({len(listed)}):")
        for problem in listed[:_LISTED]:
            detail = f": {problem.detail}" if problem.detail else ""
            lines.append(f"  {problem.path.relative_to(base).as_posix()}{detail}")
        if len(listed) > _LISTED:
            lines.append(f"  and {len(listed) - _LISTED} more")
    pairs = looked.found.splits
    empty = [split for split in pairs if not looked.sound[split]]
    if empty and not problems and not any(looked.left_out.values()):
        lines.append(
            f"There is no pair for {', '.join(empty)} among the {sum(map(len, pairs.values()))} found: its folder or "
            f"list is empty, or too few are there to draw from. What it needs: python -m datasets list {name}"
        )
    elif empty:
        thinned = any(looked.left_out[split] for split in empty)
        values = ", ".join(f"{key}={value!r}" for key, value in parameters.items()) if thinned else ""
        other = f", or choose other values than {values}" if values else ""
        lines.append(f"No usable pair is left in {', '.join(empty)}: fetch these files again{other}.")
    else:
        lines.append("Fetch or repair these files, or go on without them: --allow-broken")
    # Names that are no UTF-8 could not be printed or logged.
    return "\n".join(lines).encode("utf-8", "backslashreplace").decode()
