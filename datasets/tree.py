"""Folders and files below a data folder, by names that differ from ours in case or in how letters are stored.

Copies come from file systems that ignore case, and from some that store an accent as a character of its own;
archives are unpacked in a folder of their own name once more.
"""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from datasets.pairing import folded, list_files


class Tree:
    """Each folder is listed once, however many names are looked for, so an instance serves one search.

    Attributes:
        closed: of each folder that may not be listed, why, and what to do.
    """

    def __init__(self) -> None:
        self._names: dict[Path, dict[str, list[str]]] = {}
        self.closed: dict[Path, str] = {}

    def folders(self, base: Path, path: str) -> list[Path]:
        """All folders at ``path`` below ``base``, the exact name first, those before all that lie in one of its name.

        A folder X/X stands for X at each step.
        """
        places = [base]
        for name in path.split("/"):
            outer = [folder for place in places for folder in self._children(place, name) if os.path.isdir(folder)]
            inner = [child for folder in outer for child in self._children(folder, folder.name) if os.path.isdir(child)]
            places = inner + outer
        return places

    def files(self, base: Path, path: str) -> list[Path]:
        """All files at ``path`` below ``base``, found in the same way."""
        above, _, name = path.rpartition("/")
        places = self.folders(base, above) if above else [base]
        return [file for place in places for file in self._children(place, name) if os.path.isfile(file)]

    def listed(self, folder: Path, suffixes: Sequence[str]) -> list[Path]:
        """The folder's files with one of these suffixes (:func:`datasets.pairing.list_files`)."""
        try:
            return list_files(folder, suffixes)
        except OSError as error:
            self._close(folder, error)
            return []

    def resolve(self, base: Path, path: PurePosixPath) -> Path:
        """The one file that ``path`` below ``base`` means, or where it should be."""
        place = base
        for name in path.parts:
            place = self._children(place, name)[0]
        return place

    def _children(self, place: Path, name: str) -> list[Path]:
        """What may have that name: the exact name first, alone and unseen where nothing has it."""
        if place not in self._names:
            self._names[place] = self._list(place)
        alike = self._names[place].get(folded(name), ())
        return [place / each for each in sorted(alike, key=lambda each: (each != name, each))] or [place / name]

    def _list(self, place: Path) -> dict[str, list[str]]:
        names: dict[str, list[str]] = {}
        try:
            for name in os.listdir(place):
                names.setdefault(folded(name), []).append(name)
            if not os.access(place, os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            if not isinstance(error, FileNotFoundError | NotADirectoryError):
                self._close(place, error)
        return names

    def _close(self, place: Path, error: OSError) -> None:
        remedy = f"; allow it: chmod u+rx {shlex.quote(os.path.realpath(place))}"
        self.closed[place] = (error.strerror or str(error)) + (remedy if isinstance(error, PermissionError) else "")
