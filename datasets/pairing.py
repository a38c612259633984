"""Images and masks in two folders become pairs by name.

By name and never by position, as published copies lack files on either side.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class Pair(NamedTuple):
    """One image and its mask, under the image's own name."""

    identifier: str
    image: Path
    mask: Path


class Problem(NamedTuple):
    """A kind of problem, as a heading in the plural, and a file that has it; harmless where it was published so."""

    kind: str
    path: Path
    detail: str = ""
    harmless: bool = False


def composed(name: str) -> str:
    """The name with accented letters as single characters, as most systems store them and some do not."""
    return unicodedata.normalize("NFC", name)


def folded(name: str) -> str:
    """What names have in common that differ in case or in how accented letters are stored."""
    return composed(name).lower()


def list_files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """The folder's files with one of these (lower-case) suffixes, by name; hidden ones are left out."""
    with os.scandir(folder) as entries:
        names = [
            entry.name
            for entry in entries
            if not entry.name.startswith(".") and entry.name.lower().endswith(tuple(suffixes)) and _is_file(entry)
        ]
    return [folder / name for name in sorted(names)]


def _is_file(entry: os.DirEntry) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link that leads to itself
        return False


def pair_files(
    images: Sequence[Path],
    masks: Sequence[Path],
    *,
    mask_key: Callable[[str], str] = str,
    spare_masks: bool = False,
    unpaired: int = 0,
) -> tuple[list[Pair], list[Problem]]:
    """Pairs of equal :func:`folded` name, in the order of that name, and the files that have no partner.

    Identifiers are :func:`composed`, so that they are the same on every system.

    Args:
        mask_key: from a mask's folded stem to its image's.
        spare_masks: masks without an image belong to another split and are no problem.
        unpaired: how many files of a kind are known to have no partner; no more than these are harmless.
    """
    problems: list[Problem] = []
    image_of = _by_key(images, str, problems)
    mask_of = _by_key(masks, mask_key, problems)
    problems += _alone("images without a mask", image_of, mask_of, unpaired)
    if not spare_masks:
        problems += _alone("masks without an image", mask_of, image_of, unpaired)
    common = sorted(image_of.keys() & mask_of.keys())
    return [Pair(composed(image_of[key].stem), image_of[key], mask_of[key]) for key in common], problems


def _alone(kind: str, files: Mapping[str, Path], partners: Mapping[str, Path], unpaired: int) -> list[Problem]:
    keys = sorted(files.keys() - partners.keys())
    return [Problem(kind, files[key], harmless=len(keys) <= unpaired) for key in keys]


def _by_key(paths: Sequence[Path], key_of: Callable[[str], str], problems: list[Problem]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        first = found.setdefault(key_of(folded(path.stem)), path)
        if first is not path:
            problems.append(Problem("second files of one name", path, f"beside {first.name}"))
    return found
