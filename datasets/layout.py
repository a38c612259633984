"""In which published layout a dataset's files lie on this machine.

The same images are found as original archives, as the re-packs that everyone trains on, and as the zips
of the paper's authors; copies differ in case, are unpacked into a folder of their own name once more, or
lie one level deeper. A dataset describes each layout once and :func:`locate` finds the first one that is
whole. What is missing is said in full: where it was looked for, what was expected there, where to get it.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

from datasets.base import DatasetMissing
from datasets.pairing import Pair, Problem, list_files, pair_files
from datasets.splitting import Arrange, as_found

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".gif")


class Part(Protocol):
    """Some pairs of a layout."""

    def expected(self) -> list[str]:
        """The paths below the dataset's folder that it needs, for messages."""

    def lacks(self, base: Path) -> list[str]:
        """Those of the expected paths that are not below ``base``, or hold nothing that counts."""

    def read(self, base: Path) -> tuple[list[Pair], list[Problem]] | None:
        """The pairs below ``base`` and what is wrong with the files' names; None if the part is not there."""


@dataclass(frozen=True)
class Folders:
    """A folder of images and a folder of their masks.

    Attributes:
        images, masks: the folder, by all paths it is known under.
        image_suffixes, mask_suffixes: of the files that count, in lower case.
        mask_key: from a mask's stem in lower case to its image's.
        keep: which image stems (in lower case) count; all where None.
        spare_masks: the folder of masks serves other parts too, so that masks without an image are no problem.
        unpaired: how many images, and how many masks, have no partner as published: no problem up to that number.
        prefix: put before the identifiers, where a split joins folders that number their files alike.
    """

    images: tuple[str, ...]
    masks: tuple[str, ...]
    image_suffixes: tuple[str, ...] = SUFFIXES
    mask_suffixes: tuple[str, ...] = SUFFIXES
    mask_key: Callable[[str], str] = str
    keep: Callable[[str], bool] | None = None
    spare_masks: bool = False
    unpaired: int = 0
    prefix: str = ""

    def expected(self) -> list[str]:
        return [f"{' or '.join(self.images)}/", f"{' or '.join(self.masks)}/"]

    def lacks(self, base: Path) -> list[str]:
        lacking = []
        for path, known, suffixes in zip(
            self.expected(), (self.images, self.masks), (self.image_suffixes, self.mask_suffixes), strict=True
        ):
            folder = _first(base, known)
            if not folder:
                lacking.append(path)
            elif not list_files(folder, suffixes):
                lacking.append(f"{folder.relative_to(base).as_posix()}/*{' *'.join(suffixes)}")
        return lacking

    def read(self, base: Path) -> tuple[list[Pair], list[Problem]] | None:
        image_folder, mask_folder = _first(base, self.images), _first(base, self.masks)
        if not image_folder or not mask_folder:
            return None
        images, masks = list_files(image_folder, self.image_suffixes), list_files(mask_folder, self.mask_suffixes)
        if self.keep:
            images = [path for path in images if self.keep(path.stem.lower())]
            masks = [path for path in masks if self.keep(self.mask_key(path.stem.lower()))]
        if not images:
            return None
        pairs, problems = pair_files(
            images, masks, mask_key=self.mask_key, spare_masks=self.spare_masks, unpaired=self.unpaired
        )
        return [pair._replace(identifier=self.prefix + pair.identifier) for pair in pairs], problems


@dataclass(frozen=True)
class Listing:
    """A table with the columns ``image`` and ``label``: paths relative to its own folder, as the authors' zips have.

    Attributes:
        paths: the CSV file, by all paths it is known under.
    """

    paths: tuple[str, ...]

    def expected(self) -> list[str]:
        return [" or ".join(self.paths)]

    def lacks(self, base: Path) -> list[str]:
        return [] if _first(base, self.paths, folder=False) else self.expected()

    def read(self, base: Path) -> tuple[list[Pair], list[Problem]] | None:
        table = _first(base, self.paths, folder=False)
        if table is None:
            return None
        with table.open(newline="", encoding="utf-8-sig") as stream:
            rows = csv.DictReader(stream)
            if not {"image", "label"} <= set(rows.fieldnames or ()):
                columns = ", ".join(rows.fieldnames or ()) or "none"
                return [], [Problem("lists without the columns image and label", table, f"its columns are {columns}")]
            entries = [(row["image"] or "", row["label"] or "") for row in rows]
        return _listed_pairs(table, entries)


def _listed_pairs(table: Path, entries: Sequence[tuple[str, str]]) -> tuple[list[Pair], list[Problem]]:
    pairs: dict[str, Pair] = {}
    problems: list[Problem] = []
    for image, label in entries:
        paths = [PurePosixPath(name.replace("\\", "/")) for name in (image, label)]
        if any(not path.parts or path.is_absolute() or ".." in path.parts for path in paths):
            problems.append(Problem("list entries that leave their folder", table, f"{image!r}, {label!r}"))
            continue
        identifier = paths[0].with_suffix("").as_posix()
        if identifier in pairs:
            problems.append(Problem("images listed twice", table, image))
            continue
        pairs[identifier] = Pair(identifier, *(table.parent / path for path in paths))
    # A list names hundreds of files in one folder: stems identify them wherever they are unique.
    stems = [PurePosixPath(identifier).name for identifier in pairs]
    if len(set(stems)) == len(stems):
        return [pair._replace(identifier=stem) for pair, stem in zip(pairs.values(), stems, strict=True)], problems
    return list(pairs.values()), problems


@dataclass(frozen=True)
class Layout:
    """One published arrangement of a dataset's files.

    Attributes:
        name: how it is called in reports.
        parts: what each split, or each pool that ``arrange`` draws splits from, is made of; several entries are joined.
        optional: parts that a copy may lack: further test sets.
        arrange: from the parts and the dataset's ``split_seed`` to the splits.
        note: what a user has to know about results on this layout.
    """

    name: str
    parts: Mapping[str, tuple[Part, ...]]
    optional: frozenset[str] = frozenset()
    arrange: Arrange = as_found
    note: str = ""

    @property
    def required(self) -> list[str]:
        """The paths without which it is not whole, for messages."""
        needed = [parts for name, parts in self.parts.items() if name not in self.optional]
        return [path for parts in needed for part in parts for path in part.expected()]

    @property
    def nameless(self) -> bool:
        """Whether it consists of lists such as train.csv, which say nothing about the dataset they belong to."""
        return all(isinstance(part, Listing) for parts in self.parts.values() for part in parts)


def authors_lists(**test_sets: str) -> Layout:
    """The zips of the paper's authors: ``train.csv``, ``val.csv`` and the list of each test set."""
    tables = {"train": "train.csv", "validation": "val.csv"} | test_sets
    return Layout("lists of the paper's authors", {split: (Listing((path,)),) for split, path in tables.items()})


@dataclass(frozen=True)
class Found:
    """A dataset's files as they lie here, by name only: no file was opened but lists.

    Attributes:
        base: the dataset's own folder.
        layout: which layout it holds.
        splits: the pairs of each split.
        problems: files without a partner and the like.
        leftovers: those without a partner that were published so.
    """

    base: Path
    layout: Layout
    splits: Mapping[str, Sequence[Pair]]
    problems: Sequence[Problem] = ()
    leftovers: Sequence[Problem] = ()


class _Attempt(NamedTuple):
    base: Path
    lacks: str


def locate(
    name: str,
    root: Path | None,
    layouts: Sequence[Layout],
    *,
    split_seed: int,
    source: str,
    aliases: Sequence[str] = (),
) -> Found:
    """The first layout that is whole in one of the possible folders.

    Args:
        name: of the dataset, which its folder may have.
        root: holds the dataset's folder or is that folder; BENCH_DATA_ROOT where None.
        layouts: the preferred ones first.
        split_seed: for layouts that draw splits.
        source: how to get the dataset, for the message.
        aliases: other names that copies of the folder have.

    Raises:
        DatasetMissing: no folder holds all required parts of a layout.
    """
    bases = _candidates((name, *aliases), root)
    known = {each.lower() for each in (name, *aliases)}
    lacking: dict[Path, list[tuple[int, list[str]]]] = {base: [] for base in bases}
    for layout in layouts:
        for base in bases:
            found, lacks = _read(base, layout, split_seed)
            if found and layout.nameless and not known & {base.name.lower(), base.resolve().name.lower()}:
                lacks = [f"the name {name}, without which these files may be another dataset's"]
            elif found:
                return found
            lacking[base].append((len(layout.required) - len(lacks), lacks))
    attempts = [_Attempt(base, _shortage(lacking[base]) if base.is_dir() else "no such folder") for base in bases]
    raise DatasetMissing(_missing(name, layouts, attempts, source))


def _shortage(lacking: Sequence[tuple[int, list[str]]]) -> str:
    """What is missing for the layout that most is there of; of each, how many paths are there and which are not."""
    there, paths = max(lacking, key=lambda layout: (layout[0], -len(layout[1])))
    if not there:
        return "holds nothing of it"
    return f"lacks {', '.join(paths[:3])}" + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


def _read(base: Path, layout: Layout, split_seed: int) -> tuple[Found | None, list[str]]:
    """What the layout finds in ``base``, or else the paths it lacks."""
    if not base.is_dir():
        return None, ["the folder"]
    parts: dict[str, list[Pair]] = {}
    problems: list[Problem] = []
    lacks: list[str] = []
    for part, sources in layout.parts.items():
        read = [source.read(base) for source in sources]
        if all(read):
            parts[part] = [pair for pairs, _ in read for pair in pairs]
            problems += [problem for _, found in read for problem in found]
            problems += _twice(parts[part])
        elif part not in layout.optional:
            absent = [source for source, found in zip(sources, read, strict=True) if not found]
            lacks += [path for source in absent for path in source.lacks(base) or source.expected()]
    if lacks:
        return None, lacks
    splits = layout.arrange(parts, split_seed)
    if not splits.keys() - {"train", "validation"}:
        return None, [f"each of the test sets {', '.join(sorted(layout.optional))}"]
    leftovers = [problem for problem in problems if problem.harmless]
    return Found(base, layout, splits, [problem for problem in problems if not problem.harmless], leftovers), []


def _twice(pairs: Sequence[Pair]) -> Iterator[Problem]:
    seen: dict[str, Pair] = {}
    for pair in pairs:
        first = seen.setdefault(pair.identifier, pair)
        if first is not pair:
            yield Problem(
                "second files of one name", pair.image, f"beside {first.image.name} in {first.image.parent.name}"
            )


def _missing(name: str, layouts: Sequence[Layout], attempts: Sequence[_Attempt], source: str) -> str:
    looked = [f"  {attempt.base} ({attempt.lacks})" for attempt in attempts]
    lines = [
        f"the dataset {name!r} was not found. " + ("Looked in:" if looked else "No data folder was named."),
        *looked,
    ]
    lines.append("Expected in its folder, in one of these layouts:")
    for layout in layouts:
        optional = f"; where there, the test sets {', '.join(sorted(layout.optional))}" if layout.optional else ""
        lines.append(f"  {layout.name}: {', '.join(layout.required)}{optional}")
    lines += [
        f"Get it: {source}",
        f"Then name the folder with --data-root DIR or BENCH_DATA_ROOT=DIR, "
        f"where DIR/{name} or DIR itself holds these files.",
    ]
    return "\n".join(lines)


def find(base: Path, path: str, *, folder: bool = True) -> Path | None:
    """The folder or file at ``path`` below ``base`` in whatever case, in doubly nested folders X/X too."""
    places = [base]
    *above, last = path.split("/")
    for name in above:
        places = _folders(places, name)
    found = _folders(places, last) if folder else [_child(place, last, folder=False) for place in places]
    return next(filter(None, found), None)


def _folders(places: Sequence[Path], name: str) -> list[Path]:
    """The folders of that name, those first that lie in another of the same name."""
    outer = [folder for place in places if (folder := _child(place, name))]
    inner = [folder for place in outer if (folder := _child(place, place.name))]
    return inner + outer


def _candidates(names: Sequence[str], root: Path | None) -> list[Path]:
    named = root or os.environ.get("BENCH_DATA_ROOT")
    if not named:
        return []
    base = Path(named).expanduser()
    own = [place for name in names if (place := find(base, name))]
    # An archive unpacked in the dataset's folder brings a folder of its own name.
    inner = [place for folder in own for name in names if (place := find(folder, name))]
    return [*(own + inner or [base / names[0]]), base]


def _child(place: Path, name: str, *, folder: bool = True) -> Path | None:
    def fits(path: Path) -> bool:
        return path.is_dir() if folder else path.is_file()

    if fits(place / name):
        return place / name
    if not place.is_dir():
        return None
    alike = (child for child in sorted(place.iterdir()) if child.name.lower() == name.lower() and fits(child))
    return next(alike, None)


def _first(base: Path, paths: Sequence[str], *, folder: bool = True) -> Path | None:
    return next(filter(None, (find(base, path, folder=folder) for path in paths)), None)
