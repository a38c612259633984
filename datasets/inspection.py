"""What the files of a dataset hold, found out by decoding each of them once.

A damaged body shows only when it is decoded, and every training process opens its dataset: so the pass
is remembered in a small file, by path, size and time of change, and done again for changed files alone.
Only sound files are remembered: damaged ones are looked at each time, since a file that could not be
read for its permissions is repaired without a trace in its size or time.

Found are files cut short or overwritten with something else; zeros to the end in compressed files; and in
PNG any changed byte, by its checksums. JPEG, BMP and TIFF have none: what was changed inside of these and
still decodes passes, as zeros do in uncompressed BMP and TIFF, where they are black pixels.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import stat
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import BITSPERSAMPLE

from datasets.encoding import Encoding, Histogram, histogram

FINGERPRINT = 16
"""Pixels on a side of an image's thumbnail."""

_FORMAT = 4
_THREADS = 4
_QUIET_SECONDS = 5

_IMAGE = "image"

File = tuple[Path, str]
"""A file and what it is looked at for: as an image, or as a mask by the key of its encoding."""

Stamp = tuple[str, str, int, int]
"""A file's path below its dataset's folder, what it is looked at for, its size, its time of change in nanoseconds."""


class Inspected(NamedTuple):
    """What one file holds, or else what is wrong with it.

    Attributes:
        sha256: of the file.
        width, height: of the picture in pixels.
        mode: Pillow's name for how it stores colours.
        levels: of a mask: how many pixels have each level (:mod:`datasets.encoding`).
        white: of an image: the share of pure white, where aerial tiles hold no data.
        fingerprint: of an image: the grey levels of its 16 x 16 thumbnail in hexadecimal, for
            :mod:`datasets.duplicates`.
        problem: why it cannot be used.
    """

    sha256: str = ""
    width: int = 0
    height: int = 0
    mode: str = ""
    levels: Histogram = ()
    white: float = 0.0
    fingerprint: str = ""
    problem: str = ""


def inspect_files(
    name: str, base: Path, images: Iterable[Path], masks: Iterable[Path], encoding: Encoding
) -> tuple[dict[Path, Inspected], dict[Path, Inspected]]:
    """What each of the images holds, and each of the masks; a file may be both.

    All of them lie below ``base``, the folder of the dataset ``name``. What was found before an interruption
    is remembered too.
    """
    memory = _Memory(name, base)
    results: dict[File, Inspected] = {}
    new: dict[File, Stamp] = {}
    for file in [*((path, _IMAGE) for path in images), *((path, encoding.key) for path in masks)]:
        path, key = file
        try:
            status = os.stat(path)
        except OSError as error:
            results[file] = _unreadable(error)
            continue
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
            results[file] = Inspected(problem="is no regular file")
            continue
        stamp = (path.relative_to(base).as_posix(), key, status.st_size, status.st_mtime_ns)
        known = memory.recall(stamp)
        if known:
            results[file] = known
        else:
            new[file] = stamp
    if new:
        found: dict[File, Inspected] = {}
        try:
            _inspect_all(name, new, encoding, found)
        finally:
            memory.save({new[file]: inspected for file, inspected in found.items()})
        results |= found
    return (
        {path: inspected for (path, key), inspected in results.items() if key == _IMAGE},
        {path: inspected for (path, key), inspected in results.items() if key != _IMAGE},
    )


def _inspect_all(name: str, files: Collection[File], encoding: Encoding, found: dict[File, Inspected]) -> None:
    """Inspect on several threads, as Pillow decodes without the interpreter's lock; say how far it is."""
    start = shown = time.monotonic()
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        try:
            inspect = {
                file: pool.submit(inspect_image, file[0])
                if file[1] == _IMAGE
                else pool.submit(inspect_mask, file[0], encoding)
                for file in files
            }
            for done, (file, future) in enumerate(inspect.items(), 1):
                found[file] = future.result()
                if time.monotonic() - shown > _QUIET_SECONDS:
                    shown = time.monotonic()
                    left = (shown - start) / done * (len(files) - done)
                    print(
                        f"{name}: looked at {done:,} of {len(files):,} files, {left:.0f} s left (only the first time)",
                        file=sys.stderr,
                        flush=True,
                    )
        finally:
            pool.shutdown(cancel_futures=True)  # or else an interruption would wait for all files


def inspect_image(path: Path) -> Inspected:
    """Read, hash and decode one image. A JPEG is decoded at an eighth of its size, which reads all of it."""
    return _inspect(path, _look_at_image)


def inspect_mask(path: Path, encoding: Encoding) -> Inspected:
    """Read, hash and decode one mask."""

    def look(picture: Image.Image) -> dict:
        check_depth(picture, grey=True)
        return {"levels": histogram(encoding.levels(picture))}

    return _inspect(path, look)


def _inspect(path: Path, look: Callable[[Image.Image], dict]) -> Inspected:
    try:
        content = path.read_bytes()
    except OSError as error:
        return _unreadable(error)
    digest = hashlib.sha256(content).hexdigest()
    try:
        with Image.open(io.BytesIO(content)) as picture:
            kind = picture.format
            picture.verify()
        if kind in ("JPEG", "MPO") and content.rfind(b"\xff\xd9") < content.rfind(b"\xff\xda"):
            raise ValueError("it is cut short or overwritten, its end is missing")
        with Image.open(io.BytesIO(content)) as picture:
            (width, height), mode = picture.size, picture.mode
            return Inspected(digest, width, height, mode, **look(picture))
    except Image.UnidentifiedImageError:
        return Inspected(digest, problem="is no picture" if content else "is empty")
    except Exception as error:  # a damaged file makes Pillow's parsers raise almost anything
        return Inspected(digest, problem=str(error) or repr(error))


def check_depth(picture: Image.Image, *, grey: bool = False) -> None:
    """Refuse a file, not yet decoded, that Pillow would cut to 8 bits a channel: grey saturates, colours lose a byte.

    Args:
        grey: let deep grey pass, as encodings of masks look at its numbers themselves.

    Raises:
        ValueError: it has 16 bits a channel or more.
    """
    if picture.mode.startswith(("I", "F")):
        deep = not grey
    else:  # BGR;16 has 16 bits for all three channels together
        deep = any(re.search(r"(?<!BGR);16", str(tile.args)) for tile in picture.tile[:1])
        deep |= max(getattr(picture, "tag_v2", {}).get(BITSPERSAMPLE, (8,))) > 8
    if deep:
        raise ValueError("has 16 bits a channel or more: convert it to 8")


def _look_at_image(picture: Image.Image) -> dict:
    check_depth(picture)
    picture.draft("L", tuple(max(2 * FINGERPRINT, side // 8) for side in picture.size))
    grey = picture.convert("L")
    white = float((np.asarray(grey) == 255).mean())
    return {"white": round(white, 4), "fingerprint": fingerprint(grey)}


def fingerprint(picture: Image.Image) -> str:
    """The thumbnail that :class:`Inspected` holds of an image."""
    return picture.convert("L").resize((FINGERPRINT, FINGERPRINT), Image.Resampling.BOX).tobytes().hex()


def _unreadable(error: OSError) -> Inspected:
    remedy = "allow it with chmod u+r" if isinstance(error, PermissionError) else "fetch or copy it again"
    return Inspected(problem=f"cannot be read: {error.strerror or error} ({remedy})")


class _Memory:
    """The remembered results for one dataset folder: in the cache, a file of a digest and the JSON it is of."""

    def __init__(self, name: str, base: Path) -> None:
        folder = os.environ.get("BENCH_CACHE") or os.path.join("~", ".cache", "sam-peft-bench")
        place = hashlib.sha256(os.fsencode(base.resolve())).hexdigest()[:12]
        self._file = Path(os.path.expanduser(folder)) / "inspection" / f"{name}-{place}.txt"
        self._entries: dict[str, list] = {}
        try:
            digest, _, content = self._file.read_text(encoding="utf-8").partition("\n")
        except (OSError, ValueError):
            return
        if digest == self._digest(content):
            self._entries = json.loads(content)

    @staticmethod
    def _digest(content: str) -> str:
        return hashlib.sha256(f"{_FORMAT} {content}".encode()).hexdigest()

    def recall(self, stamp: Stamp) -> Inspected | None:
        path, key, *change = stamp
        entry = self._entries.get(f"{key} {path}")
        if not entry or entry[:2] != change:
            return None
        known = Inspected(*entry[2:])
        return known._replace(levels=tuple((level, pixels) for level, pixels in known.levels))

    def save(self, results: Mapping[Stamp, Inspected]) -> None:
        for (path, key, *change), inspected in results.items():
            if not inspected.problem:
                self._entries[f"{key} {path}"] = [*change, *inspected[:-1]]
        content = json.dumps(self._entries)
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=self._file.parent, suffix=".tmp")
            try:
                with open(descriptor, "w", encoding="utf-8") as stream:
                    stream.write(f"{self._digest(content)}\n{content}")
                os.replace(temporary, self._file)
            except BaseException:
                os.unlink(temporary)
                raise
        except OSError as error:
            warnings.warn(
                f"the inspection of the data cannot be remembered in {self._file.parent} ({error.strerror or error}): "
                f"every start decodes all files again. Name a writable folder with BENCH_CACHE.",
                RuntimeWarning,
                stacklevel=2,
            )
