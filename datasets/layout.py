"""In which published layout a dataset's files lie on this machine.

The same images are found as original archives, as the re-packs that everyone trains on, and as the zips
of the paper's authors; copies differ in case, are unpacked into a folder of their own name once more, or
lie one level deeper. A dataset describes each layout once and :func:`locate` finds the first one that is
whole. What is missing is said in full: where it was looked for, what was expected there, where to get it.

Every zip of the authors has a train.csv. So lists are believed in a folder alone that has the dataset's name,
and all lists of a layout come from one folder: two zips in one place are no dataset.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from datasets.base import DatasetMissing
from datasets.pairing import Pair, Problem, folded
from datasets.parts import Listing, Part
from datasets.splitting import Arrange, as_found
from datasets.tree import Tree


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
        """Whether some of its paths are those of any dataset, so that a folder has to be named like this one."""
        return any(part.nameless for parts in self.parts.values() for part in parts)


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


class _Lacking(NamedTuple):
    """What a folder lacks to hold a layout, and how many of the layout's paths it has."""

    paths: Sequence[str]
    there: int = 0


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
    search = _Search((name, *aliases), root, split_seed)
    lacking: dict[Path, list[_Lacking]] = {base: [] for base in search.bases}
    for layout in layouts:
        for base in search.bases:
            found = search.read(layout, base)
            if isinstance(found, Found):
                return found
            lacking[base].append(found)
    raise DatasetMissing(_missing(search, layouts, lacking, source))


class _Search:
    """The folders in which the dataset may be, each listed once."""

    def __init__(self, names: Sequence[str], root: Path | None, split_seed: int) -> None:
        self.names = names
        self.tree = Tree()
        self.bases: list[Path] = []
        self._split_seed = split_seed
        if named := root or os.environ.get("BENCH_DATA_ROOT"):
            top = Path(named).expanduser()
            own = self._named_below(top)
            # An archive unpacked in the dataset's folder brings a folder of its own name.
            inner = [place for folder in own for place in self._named_below(folder)]
            self.bases = list(dict.fromkeys([*(own + inner or [top / names[0]]), top]))

    def read(self, layout: Layout, base: Path) -> Found | _Lacking:
        """What the layout finds in ``base``, or else what it lacks there."""
        if not os.path.isdir(base):
            return _Lacking(["the folder"])
        here = self._read(layout, base, base)
        if not layout.nameless or (isinstance(here, Found) and self._is_named(base)):
            return here
        for place in self._named_below(base):
            if isinstance(found := self._read(layout, base, place), Found):
                return found
        if isinstance(here, Found):
            absent = f"the name {self.names[0]}, without which these files may be another dataset's"
            return _Lacking([absent], len(layout.required))
        return here

    def _named_below(self, base: Path) -> list[Path]:
        return [place for name in self.names for place in self.tree.folders(base, name)]

    def _is_named(self, base: Path) -> bool:
        return bool({folded(base.name), folded(base.resolve().name)} & {folded(name) for name in self.names})

    def _read(self, layout: Layout, base: Path, named: Path) -> Found | _Lacking:
        """With the parts that have no name of their own in ``named``."""
        parts: dict[str, list[Pair]] = {}
        problems: list[Problem] = []
        lacks: list[str] = []
        lacks_of_tests: list[str] = []
        for part, sources in layout.parts.items():
            placed = [(source, named if source.nameless else base) for source in sources]
            read = [source.read(place, self.tree) for source, place in placed]
            if all(read):
                parts[part] = [pair for pairs, _ in read for pair in pairs]
                problems += [problem for _, found in read for problem in found]
                problems += _twice(parts[part])
                continue
            absent = [each for each, found in zip(placed, read, strict=True) if not found]
            lacked = [path for source, place in absent for path in source.lacks(place, self.tree) or source.expected()]
            there = [path for source, place in placed for path in source.there(place, self.tree)]
            if part not in layout.optional:
                lacks += lacked
            elif there:
                lacks_of_tests += lacked
                problems.append(Problem("test sets that are there in part", there[0], f"lacks {', '.join(lacked)}"))
        if lacks:
            return _Lacking(lacks, len(layout.required) - len(set(lacks) & set(layout.required)))
        splits = layout.arrange(parts, self._split_seed)
        if not splits.keys() - {"train", "validation"}:
            each = f"each of the test sets {', '.join(sorted(layout.optional))}"
            return _Lacking(lacks_of_tests or [each], len(layout.required))
        if layout.optional - parts.keys():  # which may lie there
            below = {place: why for place, why in self.tree.closed.items() if base in place.parents}
            closed = [each for each in below.items() if each[0] not in self.bases]
            problems += [Problem("folders that cannot be read", *each) for each in closed]
        leftovers = [problem for problem in problems if problem.harmless]
        return Found(base, layout, splits, [problem for problem in problems if not problem.harmless], leftovers)


def _twice(pairs: Sequence[Pair]) -> Iterator[Problem]:
    seen: dict[str, Pair] = {}
    for pair in pairs:
        first = seen.setdefault(pair.identifier, pair)
        if first is not pair:
            yield Problem(
                "second files of one name", pair.image, f"beside {first.image.name} in {first.image.parent.name}"
            )


def _missing(
    search: _Search, layouts: Sequence[Layout], lacking: Mapping[Path, Sequence[_Lacking]], source: str
) -> str:
    name, closed = search.names[0], search.tree.closed
    looked = [f"  {base} ({_shortage(base, each)})" for base, each in lacking.items()]
    lines = [
        f"the dataset {name!r} was not found. " + ("Looked in:" if looked else "No data folder was named."),
        *looked,
        *(f"Cannot be read: {folder} ({reason})" for folder, reason in closed.items()),
        "Expected in its folder, in one of these layouts:",
    ]
    for layout in layouts:
        named = f" (in a folder named {' or '.join(search.names)})" if layout.nameless else ""
        optional = f"; where there, the test sets {', '.join(sorted(layout.optional))}" if layout.optional else ""
        lines.append(f"  {layout.name}{named}: {', '.join(layout.required)}{optional}")
    lines += [
        f"Get it: {source}",
        f"Then name the folder with --data-root DIR or BENCH_DATA_ROOT=DIR, "
        f"where DIR/{name} or DIR itself holds these files.",
    ]
    return "\n".join(lines)


def _shortage(base: Path, lacking: Sequence[_Lacking]) -> str:
    """What is missing for the layout that most is there of."""
    if not os.path.isdir(base):
        return "no such folder"
    paths, there = max(lacking, key=lambda each: (each.there, -len(each.paths)))
    if not there:
        return "holds nothing of it"
    return f"lacks {', '.join(paths[:3])}" + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
