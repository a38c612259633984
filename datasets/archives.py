"""Unpacking archives from the network, which may be broken, hostile, or no archives at all.

Every entry is looked at before the first byte is written: none may leave its folder, be a link or meet another
one's name, and all of them together may not be more than a disk should bear. What is unpacked then has to be as
long as stated, and right by its checksum. Files come to their place only when all of them are there.
"""

from __future__ import annotations

import errno
import filecmp
import lzma
import os
import re
import shutil
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, TypeVar

_BLOCK_BYTES = 1 << 20
_UNREADABLE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError)
_LITTER = {"__MACOSX", ".DS_Store"}
T = TypeVar("T")


class ArchiveError(Exception):
    """An archive that is not let in; the message names it and the reason."""


class ArchiveDamaged(ArchiveError):
    """The file is not the archive, or only a part of it: it has to be downloaded again."""


@dataclass(frozen=True)
class Limits:
    """More than any published dataset needs: the largest are some 10 GB, and images hardly shrink when packed.

    Attributes:
        files: entries of one archive, folders included.
        bytes: all of them together, unpacked.
        ratio: unpacked bytes for each byte of the archive; zeros alone reach 1000.
    """

    files: int = 1_000_000
    bytes: int = 200_000_000_000
    ratio: int = 500


@dataclass(frozen=True)
class _Entry:
    name: str
    size: int
    folder: bool
    open: Callable[[], IO[bytes]]


def unpack(archive: Path, folder: Path, *, limits: Limits | None = None) -> dict[str, int]:
    """Unpack a zip, tar or tar.gz into ``folder``, which is new or holds nothing that matters if this fails.

    Returns:
        The size of each file by its path below ``folder``.

    Raises:
        ArchiveDamaged: it is half an archive, has wrong checksums, or is a web page.
        ArchiveError: it is encrypted or packed in an unknown way, larger than ``limits`` or the room on the disk,
            or has entries that are no plain files and folders, lie outside ``folder``, or share a name.
        OSError: a file cannot be written.
    """
    try:
        entries = _reader(archive)
        with closing(_readable(entries(archive))) as listed:
            needed = _check(listed, archive.stat().st_size, limits or Limits())
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise ArchiveError(f"its files have {needed:,} bytes and {folder} has {free:,} free")
        with closing(_readable(entries(archive))) as opened:
            return {path: entry.size for entry in opened if (path := _write(entry, folder))}
    except ArchiveError as error:
        raise type(error)(f"{archive}: {error}") from error.__cause__


def _reader(archive: Path) -> Callable[[Path], Iterator[_Entry]]:
    """By content, as addresses and suffixes say little."""
    with archive.open("rb") as file:
        head = file.read(tarfile.BLOCKSIZE)
    if head.startswith(b"PK"):
        return _zip_entries
    if head.startswith(b"\x1f\x8b"):
        return partial(_tar_entries, mode="r:gz")
    if head[257:262] == b"ustar":
        return partial(_tar_entries, mode="r:")
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise ArchiveDamaged("the server sent a web page in place of the archive, probably a login or quota page")
    raise ArchiveDamaged(f"it is no zip, tar or tar.gz (it begins with {head[:8]!r})")


def _zip_entries(archive: Path) -> Iterator[_Entry]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            if info.flag_bits & 1:
                raise ArchiveError(f"its entry {info.orig_filename!r} is encrypted")
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ArchiveError(f"its entry {info.orig_filename!r} is a link or a device")
            yield _Entry(info.orig_filename, info.file_size, info.is_dir(), partial(file.open, info))


class _StrictHeader(tarfile.TarInfo):
    """tarfile takes a damaged or missing header for the archive's end, which its end mark alone is; and reads any
    header's own data, such as a long name, whole into memory."""

    @classmethod
    def frombuf(cls, block: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
        info = super().frombuf(block, encoding, errors)
        if info.size < 0 or (info.size > _BLOCK_BYTES and not info.isreg()):
            raise tarfile.ReadError(f"a header of {info.size:,} bytes")
        return info

    @classmethod
    def fromtarfile(cls, file: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(file)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


def _tar_entries(archive: Path, mode: str) -> Iterator[_Entry]:
    with tarfile.open(archive, mode, tarinfo=_StrictHeader) as file:
        for info in file:
            if info.issparse() or not (info.isreg() or info.isdir()):
                raise ArchiveError(f"its entry {info.name!r} is a link or a device")
            yield _Entry(info.name, info.size, info.isdir(), partial(file.extractfile, info))
        file.fileobj.read(_BLOCK_BYTES)  # what pads the end, so that gzip comes to its checksum


def _readable(items: Iterable[T]) -> Iterator[T]:
    """The items; whatever keeps them from being read is the archive's fault."""
    try:
        yield from items
    except NotImplementedError as error:
        raise ArchiveError(f"it is packed in a way that Python cannot read ({error})") from error
    except (*_UNREADABLE, OSError) as error:
        # gzip's own errors have no number; a senseless offset is an invalid argument.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise ArchiveDamaged(f"it is damaged or only a part of the archive ({error})") from error


def _inside(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or re.search(r"\\|\0|^[A-Za-z]:", name):
        raise ArchiveError(f"its entry {name!r} leads out of the folder")
    return path


def _check(entries: Iterable[_Entry], packed: int, limits: Limits) -> int:
    """The bytes that all entries have together."""
    most = min(limits.bytes, limits.ratio * packed)
    total = 0
    taken: dict[str, tuple[PurePosixPath, bool]] = {}
    for count, entry in enumerate(entries, start=1):
        path = _inside(entry.name)
        if not path.parts and not entry.folder:
            raise ArchiveDamaged(f"its entry {entry.name!r} makes no sense")
        total += entry.size
        if total > most:
            raise ArchiveError(f"its {packed:,} bytes unpack to more than {most:,}: no archive of images does that")
        if count > limits.files:
            raise ArchiveError(f"it has more than {limits.files:,} entries")
        for place in (path, *path.parents[:-1]):
            here = (place, entry.folder or place is not path)
            there = taken.setdefault(unicodedata.normalize("NFC", str(place)).casefold(), here)
            if there[0] != place:
                raise ArchiveError(f"its entries {str(there[0])!r} and {str(place)!r} differ in case alone")
            if there is not here and not (there[1] and here[1]):
                raise ArchiveError(f"it has two entries {str(place)!r}")
    return total


def _write(entry: _Entry, folder: Path) -> str:
    """The path of the file that was written; "" for a folder, and for what macOS leaves in archives."""
    path = _inside(entry.name)
    target = folder / path
    if _LITTER.intersection(path.parts):
        return ""
    if entry.folder:
        target.mkdir(parents=True, exist_ok=True)
        return ""
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with target.open("xb") as file:
        for block in _readable(_blocks(entry)):
            written += len(block)
            if written > entry.size:
                break
            file.write(block)
    if written != entry.size:
        raise ArchiveDamaged(f"its entry {entry.name!r} has not the {entry.size:,} bytes that it states")
    return path.as_posix()


def _blocks(entry: _Entry) -> Iterator[bytes]:
    with entry.open() as source:
        while block := source.read(_BLOCK_BYTES):
            yield block


def merge(source: Path, target: Path) -> None:
    """Move all of one folder into another on the same disk; files that are there already have to be the same.

    What is only in ``source`` comes over in one step, be it a file or a whole folder. Repeated after an
    interruption it goes on.

    Raises:
        ArchiveError: something else lies in the way; nothing was moved.
        OSError: something cannot be moved.
    """
    if way := next(_in_the_way(source, target), None):
        raise ArchiveError(f"{way} is there already and is not what the archive has there; move it away")
    os.sync()  # once for all files: a name must not outlive a power cut that its content does not
    _move(source, target)


def _in_the_way(source: Path, target: Path) -> Iterator[Path]:
    there = {path.name: path for path in target.iterdir()} if target.is_dir() else {}
    alike = {name.casefold(): path for name, path in there.items()}
    for entry in sorted(source.iterdir()):
        other = there.get(entry.name) or alike.get(entry.name.casefold())
        if other is None:
            continue
        if entry.is_dir() and other.is_dir() and other.name == entry.name:
            yield from _in_the_way(entry, other)
        elif not (other.is_file() and other.name == entry.name and filecmp.cmp(entry, other, shallow=False)):
            yield other


def _move(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for entry in sorted(source.iterdir()):
        other = target / entry.name
        if other.is_dir():
            _move(entry, other)
        elif not other.exists():
            entry.rename(other)
