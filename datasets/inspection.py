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
import tempfile
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from PIL import Image

_FORMAT = 1
_THREADS = 4

Stamp = tuple[str, int, int]
"""A file's path below its dataset's folder, its size, and its time of change in nanoseconds."""


class Inspected(NamedTuple):
    """A file's digest, its picture's size in pixels and largest grey value, or else what is wrong with it."""

    sha256: str = ""
    width: int = 0
    height: int = 0
    brightest: int = 0
    problem: str = ""


def inspect_files(name: str, base: Path, files: Iterable[Path]) -> dict[Path, Inspected]:
    """What each of ``files`` holds; all of them lie below ``base``, the folder of the dataset ``name``."""
    memory = _Memory(name, base)
    results: dict[Path, Inspected] = {}
    new: dict[Path, Stamp] = {}
    for path in files:
        try:
            stat = os.stat(path)
        except OSError as error:
            results[path] = _unreadable(error)
            continue
        stamp = (path.relative_to(base).as_posix(), stat.st_size, stat.st_mtime_ns)
        known = memory.recall(stamp)
        if known:
            results[path] = known
        else:
            new[path] = stamp
    if new:
        with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
            results.update(zip(new, pool.map(inspect_file, new), strict=True))
        memory.save({stamp: results[path] for path, stamp in new.items() if not results[path].problem})
    return results


def inspect_file(path: Path) -> Inspected:
    """Read, hash and decode one picture."""
    try:
        content = path.read_bytes()
    except OSError as error:
        return _unreadable(error)
    digest = hashlib.sha256(content).hexdigest()
    try:
        return Inspected(digest, *_decode(content))
    except Image.UnidentifiedImageError:
        return Inspected(digest, problem="is no picture" if content else "is empty")
    except Exception as error:  # a damaged file makes Pillow's parsers raise almost anything
        return Inspected(digest, problem=str(error) or repr(error))


def _unreadable(error: OSError) -> Inspected:
    return Inspected(problem=f"cannot be read: {error.strerror or error}")


def _decode(content: bytes) -> tuple[int, int, int]:
    """Width, height and largest grey value. A JPEG is decoded at an eighth of its size, which reads all of it."""
    with Image.open(io.BytesIO(content)) as picture:
        kind = picture.format
        picture.verify()
    if kind in ("JPEG", "MPO") and content.rfind(b"\xff\xd9") < content.rfind(b"\xff\xda"):
        raise ValueError("it is cut short or overwritten, its end is missing")
    with Image.open(io.BytesIO(content)) as picture:
        width, height = picture.size
        picture.draft("L", (max(1, width // 8), max(1, height // 8)))
        _, brightest = picture.convert("L").getextrema()
    return width, height, brightest


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

    def recall(self, stamp: Stamp) -> Inspected | None:
        path, *change = stamp
        entry = self._entries.get(path)
        return Inspected(*entry[2:]) if entry and entry[:2] == change else None

    def save(self, results: dict[Stamp, Inspected]) -> None:
        self._entries |= {path: [*change, *inspected[:-1]] for (path, *change), inspected in results.items()}
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
