"""Where a published dataset's folders lie on this machine.

Copies differ in case, are unpacked into a folder of their own name once more, or lie one level deeper; a
dataset names its folders once and :func:`locate` finds them. What is missing is said in full: where it
was looked for, what was expected there, and where to get it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from datasets.base import DatasetMissing


class PairFolders(NamedTuple):
    """The folder of images and the folder of their masks, each by all paths it is known under."""

    images: tuple[str, ...]
    masks: tuple[str, ...]


def locate(
    name: str, root: Path | None, parts: Mapping[str, PairFolders], *, source: str
) -> tuple[Path, dict[str, tuple[Path, Path]]]:
    """The dataset's own folder and, in it, the folders of images and of masks of each part.

    Args:
        root: holds the dataset's folder or is that folder; BENCH_DATA_ROOT where None.
        source: where to get the dataset, for the message.

    Raises:
        DatasetMissing: no folder holds every part.
    """
    attempts = []
    for base in _candidates(name, root):
        found = {part: (_first(base, known.images), _first(base, known.masks)) for part, known in parts.items()}
        both = ((paths, folder) for part in parts for paths, folder in zip(parts[part], found[part], strict=True))
        absent = [paths[0] for paths, folder in both if not folder]
        if not absent:
            return base, found
        attempts.append(f"  {base} ({'lacks ' + ', '.join(absent) if base.is_dir() else 'no such folder'})")
    looked = "\n".join(["Looked in:", *attempts] if attempts else ["No data folder was named."])
    expected = "\n".join(f"  {' or '.join(paths)}" for known in parts.values() for paths in known)
    raise DatasetMissing(
        f"the dataset {name!r} was not found. {looked}\n"
        f"Expected in its folder:\n{expected}\n"
        f"Get it from {source}\n"
        f"Then name the folder with --data-root DIR or BENCH_DATA_ROOT=DIR, "
        f"where DIR/{name} or DIR itself holds these folders."
    )


def find_folder(base: Path, path: str) -> Path | None:
    """The folder at ``path`` below ``base`` in whatever case; of a doubly nested X/X the inner one."""
    folder: Path | None = base
    for part in path.split("/"):
        folder = folder and _child(folder, part)
    return folder and (_child(folder, folder.name) or folder)


def _candidates(name: str, root: Path | None) -> list[Path]:
    named = root or os.environ.get("BENCH_DATA_ROOT")
    if not named:
        return []
    base = Path(named).expanduser()
    return [find_folder(base, name) or base / name, base]


def _child(folder: Path, name: str) -> Path | None:
    exact = folder / name
    if exact.is_dir():
        return exact
    if not folder.is_dir():
        return None
    alike = (child for child in sorted(folder.iterdir()) if child.name.lower() == name.lower() and child.is_dir())
    return next(alike, None)


def _first(base: Path, paths: tuple[str, ...]) -> Path | None:
    return next(filter(None, (find_folder(base, path) for path in paths)), None)
