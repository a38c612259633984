"""What a layout is made of: pairs from two folders, or from a table that names them."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar, NamedTuple, Protocol

from datasets.pairing import Pair, Problem, composed, folded, pair_files
from datasets.tree import Tree

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".gif")

Read = tuple[list[Pair], list[Problem]]
"""The pairs of a part, and what is wrong with them by their names."""


class Part(Protocol):
    """Some pairs of a layout. ``base`` is the folder that its paths are relative to.

    Attributes:
        nameless: its paths, such as train.csv, may be any dataset's, so that ``base`` has to be named like this one.
    """

    nameless: bool

    def expected(self) -> list[str]:
        """The paths that it needs, for messages."""

    def lacks(self, base: Path, tree: Tree) -> list[str]:
        """Those of the expected paths that are not there, or what they lack themselves."""

    def there(self, base: Path, tree: Tree) -> list[Path]:
        """What is there and belongs to this part alone."""

    def read(self, base: Path, tree: Tree) -> Read | None:
        """Its pairs; None if the part is not there as a whole."""


class _Side(NamedTuple):
    """The images or the masks: their folder, its files, and those of them that count."""

    folder: Path | None
    files: Sequence[Path]
    kept: Sequence[Path]


@dataclass(frozen=True)
class Folders:
    """A folder of images and a folder of their masks. Of several that are there, the first one that holds files counts.

    Attributes:
        images, masks: the folder, by all paths it is known under.
        image_suffixes, mask_suffixes: of the files that count, in lower case.
        mask_key: from a mask's stem in lower case to its image's.
        keep: which image stems (in lower case) count; all where None.
        spare_masks: the folder of masks serves other parts too, so that masks without an image are no problem.
        unpaired: how many images, and how many masks, have no partner as published: no problem up to that number.
        prefix: put before the identifiers, where a split joins folders that number their files alike.
        nameless: see :class:`Part`.
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
    nameless: bool = False

    def expected(self) -> list[str]:
        return [" or ".join(f"{path}/" for path in paths) for paths in (self.images, self.masks)]

    def lacks(self, base: Path, tree: Tree) -> list[str]:
        lacking = []
        suffixes = (self.image_suffixes, self.mask_suffixes)
        for path, side, known in zip(self.expected(), self._sides(base, tree), suffixes, strict=True):
            if not side.folder:
                lacking.append(path)
            elif not side.files:
                lacking.append(f"{side.folder.relative_to(base).as_posix()}/*{' *'.join(known)}")
        return lacking

    def there(self, base: Path, tree: Tree) -> list[Path]:
        images, masks = self._sides(base, tree)
        return [side.folder for side in (images, *(() if self.spare_masks else (masks,))) if side.kept]

    def read(self, base: Path, tree: Tree) -> Read | None:
        images, masks = self._sides(base, tree)
        if not images.kept or not masks.files:
            return None
        pairs, problems = pair_files(
            images.kept, masks.kept, mask_key=self.mask_key, spare_masks=self.spare_masks, unpaired=self.unpaired
        )
        return [pair._replace(identifier=self.prefix + pair.identifier) for pair in pairs], problems

    def _sides(self, base: Path, tree: Tree) -> tuple[_Side, _Side]:
        return (
            self._side(base, tree, self.images, self.image_suffixes, str),
            self._side(base, tree, self.masks, self.mask_suffixes, self.mask_key),
        )

    def _side(
        self, base: Path, tree: Tree, paths: Sequence[str], suffixes: Sequence[str], key_of: Callable[[str], str]
    ) -> _Side:
        places = [place for path in paths for place in tree.folders(base, path)]
        filled = ((place, files) for place in places if (files := tree.listed(place, suffixes)))
        folder, files = next(filled, (places[0] if places else None, []))
        kept = [path for path in files if self.keep(key_of(folded(path.stem)))] if self.keep else files
        return _Side(folder, files, kept)


@dataclass(frozen=True)
class Listing:
    """A table with the columns ``image`` and ``label``: paths relative to its own folder, as the authors' zips have.

    A table with other columns is some other program's. A copy's files may differ in case from what the table names.

    Attributes:
        paths: the CSV file, by all paths it is known under.
    """

    nameless: ClassVar[bool] = True

    paths: tuple[str, ...]

    def expected(self) -> list[str]:
        return [" or ".join(self.paths)]

    def lacks(self, base: Path, tree: Tree) -> list[str]:
        tables = self._tables(base, tree)
        if not tables:
            return self.expected()
        if self.there(base, tree):
            return []
        name, columns = tables[0].relative_to(base).as_posix(), ", ".join(_table(tables[0]).columns) or "none"
        return [f"{name} with the columns image and label (its columns are {columns})"]

    def there(self, base: Path, tree: Tree) -> list[Path]:
        return [path for path in self._tables(base, tree) if _table(path).is_list]

    def read(self, base: Path, tree: Tree) -> Read | None:
        for path in self._tables(base, tree):
            table = _table(path)
            if table.problem:
                return [], [Problem("lists that cannot be read", path, table.problem)]
            if table.is_list:
                return _listed_pairs(path, table.entries, tree)
        return None

    def _tables(self, base: Path, tree: Tree) -> list[Path]:
        return [file for path in self.paths for file in tree.files(base, path)]


class _Table(NamedTuple):
    columns: Sequence[str] = ()
    entries: Sequence[tuple[str, str]] = ()
    problem: str = ""

    @property
    def is_list(self) -> bool:
        return bool(self.problem) or {"image", "label"} <= set(self.columns)


def _table(path: Path) -> _Table:
    foreign = "or move it away if it is not this dataset's"
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        return _Table(problem=f"{error.strerror or error}; allow it: chmod u+r, {foreign}")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        return _Table(problem=f"it is no text in UTF-8: save it again as 'CSV UTF-8', {foreign}")
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = tuple(rows.fieldnames or ())
        return _Table(columns, [(row.get("image") or "", row.get("label") or "") for row in rows])
    except csv.Error as error:
        return _Table(problem=f"line {rows.reader.line_num}: {error}; mend its quotation marks, {foreign}")


def _listed_pairs(table: Path, entries: Sequence[tuple[str, str]], tree: Tree) -> Read:
    pairs: dict[Path, Pair] = {}
    problems: list[Problem] = []
    for image, label in entries:
        paths = [PurePosixPath(name.replace("\\", "/")) for name in (image, label)]
        if not all(path.parts for path in paths):
            problems.append(Problem("list entries without an image or a mask", table, f"{image!r}, {label!r}"))
            continue
        if any(path.is_absolute() or ".." in path.parts for path in paths):
            problems.append(Problem("list entries that leave their folder", table, f"{image!r}, {label!r}"))
            continue
        files = [tree.resolve(table.parent, path) for path in paths]
        if (stem := files[0].with_suffix("")) in pairs:
            problems.append(Problem("images listed twice", table, image))
            continue
        pairs[stem] = Pair(composed(paths[0].with_suffix("").as_posix()), *files)
    # A list names hundreds of files in one folder: stems identify them wherever they are unique.
    stems = [PurePosixPath(pair.identifier).name for pair in pairs.values()]
    if len(set(stems)) == len(stems):
        return [pair._replace(identifier=stem) for pair, stem in zip(pairs.values(), stems, strict=True)], problems
    return list(pairs.values()), problems
