"""What the files of a dataset hold, found out by decoding each of them once.

A damaged body shows only when it is decoded, and every training process opens its dataset: so the pass
is remembered in a small file, by path, size and time of change, and done again for changed files alone.
Only sound files are remembered: damaged ones are looked at each time, since a file that could not be
read for its permissions is repaired without a trace in its size or time.

Found are files cut short, overwritten with something else or with zeros to the end, and in PNG any
changed byte, by its checksums. JPEG has none: one whose inside was changed and still decodes passes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from datasets.encoding import Encoding, Histogram, histogram

FINGERPRINT = 16
"""Pixels on a side of an image's thumbnail."""

_FORMAT = 3
_THREADS = 4
_QUIET_SECONDS = 5

Stamp = tuple[str, int, int]
"""A file's path below its dataset's folder, its size, and its time of change in nanoseconds."""


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
) -> dict[Path, Inspected]:
    """What each of these files holds; all of them lie below ``base``, the folder of the dataset ``name``."""
    memory = _Memory(name, base)
    results: dict[Path, Inspected] = {}
    new: dict[tuple[Path, str], Stamp] = {}
    for path, key in [*((path, "image") for path in images), *((path, encoding.key) for path in masks)]:
        try:
            stat = os.stat(path)
        except OSError as error:
            results[path] = _unreadable(error)
            continue
        stamp = (path.relative_to(base).as_posix(), stat.st_size, stat.st_mtime_ns)
        known = memory.recall(stamp, key)
        if known:
            results[path] = known
        else:
            new[path, key] = stamp
    if new:
        found = _inspect_all(name, new, encoding)
        results |= {path: inspected for (path, _), inspected in found.items()}
        memory.save({(stamp, key): found[path, key] for (path, key), stamp in new.items()})
    return results


def _inspect_all(name: str, files: Iterable[tuple[Path, str]], encoding: Encoding) -> dict[tuple[Path, str], Inspected]:
    """Inspect on several threads, as Pillow decodes without the interpreter's lock; say how far it is."""
    files = list(files)
    start = shown = time.monotonic()
    found = {}
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        inspect = [
            pool.submit(inspect_image, path) if key == "image" else pool.submit(inspect_mask, path, encoding)
            for path, key in files
        ]
        for done, (file, future) in enumerate(zip(files, inspect, strict=True), 1):
            found[file] = future.result()
            if time.monotonic() - shown > _QUIET_SECONDS:
                shown = time.monotonic()
                left = (shown - start) / done * (len(files) - done)
                print(
                    f"{name}: looked at {done:,} of {len(files):,} files, {left:.0f} s left (only the first time)",
                    file=sys.stderr,
                    flush=True,
                )
    return found


def inspect_image(path: Path) -> Inspected:
    """Read, hash and decode one image. A JPEG is decoded at an eighth of its size, which reads all of it."""
    return _inspect(path, _look_at_image)


def inspect_mask(path: Path, encoding: Encoding) -> Inspected:
    """Read, hash and decode one mask."""
    return _inspect(path, lambda picture: {"levels": histogram(encoding.levels(picture))})


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


def _look_at_image(picture: Image.Image) -> dict:
    picture.draft("L", tuple(max(2 * FINGERPRINT, side // 8) for side in picture.size))
    grey = picture.convert("L")
    white = float((np.asarray(grey) == 255).mean())
    return {"white": round(white, 4), "fingerprint": fingerprint(grey)}


def fingerprint(picture: Image.Image) -> str:
    """The thumbnail that :class:`Inspected` holds of an image."""
    return picture.convert("L").resize((FINGERPRINT, FINGERPRINT), Image.Resampling.BOX).tobytes().hex()


def _unreadable(error: OSError) -> Inspected:
    return Inspected(problem=f"cannot be read: {error.strerror or error}")


class _Memory:
    """The remembered results for one dataset folder, a JSON file in the cache."""

    def __init__(self, name: str, base: Path) -> None:
        folder = os.environ.get("BENCH_CACHE") or os.path.join("~", ".cache", "sam-peft-bench")
        place = hashlib.sha256(str(base.resolve()).encode()).hexdigest()[:12]
        self._file = Path(os.path.expanduser(folder)) / "inspection" / f"{name}-{place}.json"
        try:
            stored = json.loads(self._file.read_text(encoding="utf-8"))
            self._entries = stored["files"] if stored["format"] == _FORMAT else {}
        except (OSError, ValueError, KeyError, TypeError):
            self._entries = {}

    def recall(self, stamp: Stamp, key: str) -> Inspected | None:
        path, *change = stamp
        entry = self._entries.get(path)
        if not entry or entry[:3] != [*change, key]:
            return None
        known = Inspected(*entry[3:])
        return known._replace(levels=tuple((level, pixels) for level, pixels in known.levels))

    def save(self, results: dict[tuple[Stamp, str], Inspected]) -> None:
        for ((path, *change), key), inspected in results.items():
            if not inspected.problem:
                self._entries[path] = [*change, key, *inspected[:-1]]
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=self._file.parent, suffix=".tmp")
            try:
                with open(descriptor, "w", encoding="utf-8") as stream:
                    json.dump({"format": _FORMAT, "files": self._entries}, stream)
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
