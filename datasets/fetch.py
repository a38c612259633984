"""``python -m datasets fetch NAME``: a dataset's published archives, each downloaded, checked and unpacked once.

Everything on the way lies in ``.fetch-NAME`` in the dataset's folder: parts of downloads, what is being unpacked,
and for each archive that is done a note of its digest and its files. An archive is fetched unless it has such a
note and its files are still there, so a process may end at any moment and the same command goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import sys
from contextlib import suppress
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from bench.download import DownloadError, ProgressLine, download, locked
from bench.registry import UnknownName
from datasets.archives import ArchiveDamaged, ArchiveError, merge, unpack
from datasets.base import DatasetMissing, registry
from datasets.files import Archive, FileDataset
from datasets.layout import Found
from datasets.tree import Tree


class _Failure(Exception):
    """An archive could not be fetched; the message says which, why, and what to do."""


def fetch(name: str, root: Path | None = None) -> int:
    """Fetch what can be fetched of a dataset, say what is done and what is there then, and give the exit code.

    Args:
        root: as in :meth:`datasets.base.Dataset.open`. Files come into the folder ``name`` in it, unless it is
            the dataset's own folder or has one under another of the dataset's names.

    Returns:
        0 if the dataset is there or needs no files, 1 if it is not, 2 for an unknown name or without a root,
        130 if interrupted.
    """
    try:
        kind = registry[name]
    except UnknownName as error:
        return _fail(f"{error}\n  See what there is: python -m datasets list", code=2)
    if not issubclass(kind, FileDataset):
        _say(f"{name} is generated when it is used: there is nothing to fetch.")
        return 0
    if not kind.archives:
        return _by_hand(kind, root)
    folder = root or os.environ.get("BENCH_DATA_ROOT")
    if not folder:
        return _fail(
            f"where to? Name the folder of all datasets with --data-root DIR or BENCH_DATA_ROOT=DIR:\n"
            f"  python -m datasets fetch {name} --data-root DIR",
            code=2,
        )
    again = f"The same command goes on: {_command('fetch', name, folder)}"
    try:
        return _fetch_archives(kind(), Path(folder).expanduser())
    except _Failure as failure:
        return _fail(f"{failure}\n  {again}\n  Or, by hand: {kind.steps}")
    except OSError as error:
        return _fail(f"cannot write in {folder}: {error}.\n  Make room or choose another folder. {again}")
    except KeyboardInterrupt:
        return _fail(f"interrupted. {again}", code=130)


def _by_hand(kind: type[FileDataset], root: Path | None) -> int:
    with suppress(DatasetMissing, ValueError):  # nowhere, or a dataset that is found by parameters alone
        _show(kind, kind().find(root), root)
        return 0
    _say(f"{kind.name} has no address that could be fetched without an account or a click. Get it:\n  {kind.steps}")
    if kind.terms:
        _say(f"  Terms: {kind.terms}.")
    _say(f"Then see whether it is whole: {_command('verify', kind.name, root or 'DIR')}")
    return 1


def _fetch_archives(dataset: FileDataset, root: Path) -> int:
    base = _own_folder(dataset, root)
    work = _work(dataset, base)
    if not work.is_dir():
        with suppress(DatasetMissing):
            found = dataset.find(root)
            _say(f"{dataset.name} is there already, from elsewhere: nothing is fetched into it.")
            if any(len(found.splits.get(split, ())) < count for split, count in dataset.published.items()):
                _say(f"It is not all of it. To fetch all: {_command('fetch', dataset.name, 'ANOTHER_DIR')}")
            return _show(type(dataset), found, root)
    _say(f"Fetching {dataset.name} into {base}. Terms: {dataset.terms or 'none stated'}.")
    work.mkdir(parents=True, exist_ok=True)
    with locked(work / dataset.name, doing="fetches"):
        for archive in dataset.archives:
            _fetch_archive(archive, base, work)
    try:
        return _show(type(dataset), dataset.find(root), root)
    except DatasetMissing as missing:
        return _fail(f"the archives are unpacked in {base}, and yet {missing}")


def _own_folder(dataset: FileDataset, root: Path) -> Path:
    names = {name.lower() for name in (dataset.name, *dataset.aliases)}
    children = [path for path in root.iterdir() if path.name.lower() in names] if root.is_dir() else []
    own = sorted((path for path in children if path.is_dir()), key=lambda path: path.name != dataset.name)
    tree = Tree()
    parts = [part for layout in dataset.layouts for part in sum(layout.parts.values(), ()) if not part.nameless]
    if root.absolute().name.lower() in names or any(not part.lacks(root, tree) for part in parts):
        own.append(root)
    begun = [path for path in (*own, root) if _work(dataset, path).is_dir()]
    return next(iter(begun + own), root / dataset.name)


def _work(dataset: FileDataset, base: Path) -> Path:
    return base / f".fetch-{dataset.name}"


def _fetch_archive(archive: Archive, base: Path, work: Path) -> None:
    name = PurePosixPath(unquote(urlsplit(archive.url).path)).name
    # Archives of two folders may have one name.
    target = work / f"{hashlib.sha256(archive.url.encode()).hexdigest()[:8]}-{name}"
    note = target.with_name(f"{target.name}.json")
    if _done(archive, base, note):
        _say(f"  {name}: unpacked already")
        return
    _say(f"  {name}: {archive.url}")
    try:
        progress = ProgressLine(name)
        sha256 = download(archive.url, target, size=archive.size, sha256=archive.sha256, progress=progress)
        size = target.stat().st_size
        files = _unpack(target, base, work / "unpacked", archive.into)
    except DownloadError as error:
        raise _Failure(f"cannot download {archive.url}: {error}.\n  If a browser can, save it as {target}") from error
    except ArchiveDamaged as error:
        target.unlink()
        raise _Failure(f"{error}.\n  It was removed, to be downloaded anew.") from error
    except ArchiveError as error:
        raise _Failure(f"{error}.\n  Nothing of it was put into {base}; the archive is kept.") from error
    _write_whole(note, json.dumps({"url": archive.url, "sha256": sha256, "bytes": size, "files": files}))
    target.unlink()
    published = "as published" if archive.sha256 else "noted, as none is published"
    _say(f"    {len(files):,} files, {sum(files.values()) / 1e6:,.1f} MB; sha256 {sha256} ({published})")
    _say(f"    the archive itself ({size / 1e6:,.1f} MB) was removed again")


def _unpack(archive: Path, base: Path, staging: Path, into: str) -> dict[str, int]:
    shutil.rmtree(staging, ignore_errors=True)
    try:
        files = unpack(archive, staging / into)
        merge(staging, base)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return {(PurePosixPath(into) / path).as_posix(): size for path, size in files.items()}


def _done(archive: Archive, base: Path, note: Path) -> bool:
    """Whether this very archive was unpacked and its files are still as long as they were."""
    try:
        noted = json.loads(note.read_text(encoding="utf-8"))
        return archive.sha256 in ("", noted["sha256"]) and all(
            (base / path).stat().st_size == size for path, size in noted["files"].items()
        )
    except FileNotFoundError:
        return False


def _write_whole(path: Path, text: str) -> None:
    new = path.with_name(f"{path.name}.new")
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def _show(kind: type[FileDataset], found: Found, root: Path | None) -> int:
    """What is there, and the next command."""
    _say(f"{kind.name} in {found.base} ({found.layout.name}):")
    for split, pairs in found.splits.items():
        published = kind.published.get(split, len(pairs))
        _say(f"  {split}: {len(pairs):,} pairs" + (f" of {published:,}" if published != len(pairs) else ""))
    if absent := [name for name in kind.test_sets if name not in found.splits]:
        _say(f"  not there: {', '.join(absent)}. Get them: {kind.steps}")
    if found.problems:
        _say(f"  problems with files' names: {len(found.problems)}")
    _say(f"Next, check every file: {_command('verify', kind.name, root)}")
    return 0


def _command(verb: str, name: str, root: Path | str | None) -> str:
    return f"python -m datasets {verb} {name}" + (f" --data-root {shlex.quote(str(root))}" if root else "")


def _say(text: str) -> None:
    print(text, flush=True)


def _fail(text: str, *, code: int = 1) -> int:
    print(f"error: {text}", file=sys.stderr, flush=True)
    return code
