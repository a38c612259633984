"""Squashed samples on disk, found again by the content of the files they were made from.

A photograph of 24 megapixels takes a second to decode and a training reads it dozens of times. So
``python -m datasets prepare`` writes every sample as it looks at the cell's image size, and trainings map
these files into memory. A sample is found by the digest of its two files: one whose files changed is simply
not there, and is decoded.

A cache is a folder for one dataset, image size and way of reading. It holds shards of up to
:data:`SHARD` samples: ``<name>.npy`` with the planes red, green, blue and class index of each, and
``<name>.json`` with their digests and checksums. The second file is written last, and a shard counts only
with both. Any folder of a cache, or the whole of it, can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import warnings
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import __version__ as pillow_version

from datasets.base import Dataset
from datasets.files import FileDataset

SHARD = 32
"""Samples in a shard; what an interrupted preparation loses."""

_FORMAT = 1
"""Raised whenever bench/squash.py or the shards change, so that older caches are no longer found."""


class _Place(NamedTuple):
    shard: Path
    row: int
    checksum: int


class Cache:
    """The prepared samples of one dataset at one size. It holds no open file, so threads may share it.

    Args:
        folder: of the shards; there need not be one.
        size: side in pixels.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        self._damaged: set[Path] = set()
        self._places: dict[str, _Place] = {}
        self._sound: set[str] = set()
        self._warning = threading.Lock()  # taken once and for all by whoever warns
        for index in sorted(folder.glob("*.json")):
            shard = index.with_suffix(".npy")
            try:
                checksums = dict(json.loads(index.read_text(encoding="utf-8")))
                if _open(shard).shape != (len(checksums), 4, size, size):
                    raise ValueError("its shape does not fit its index")
            except (OSError, ValueError, TypeError):
                self._damaged.add(shard)
                continue
            for row, (digest, checksum) in enumerate(checksums.items()):
                self._places[digest] = _Place(shard, row, checksum)

    @classmethod
    def of(cls, dataset: Dataset, size: int) -> Cache | None:
        """The cache of ``dataset`` at ``size`` below BENCH_CACHE, empty at first; None for a generated dataset."""
        if not isinstance(dataset, FileDataset):
            return None
        # The encoding as declared stands also for that fitted to a copy of 0 and 1 (Encoding.fitted): a mask of
        # these values is read the second way or not at all.
        encoding = dataset.encoding
        reading = [_FORMAT, pillow_version, dataset.version, encoding.key, encoding.classes]
        key = hashlib.sha256(json.dumps(reading).encode()).hexdigest()[:12]
        root = Path(os.environ.get("BENCH_CACHE") or "~/.cache/sam-peft-bench").expanduser()
        return cls(root / "prepared" / f"{dataset.name}-{size}-{key}", size)

    def __contains__(self, digest: str) -> bool:
        return digest in self._places

    def __len__(self) -> int:
        return len(self._places)

    def get(self, digest: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Image (S, S, 3) and mask (S, S), read-only, of the sample with this digest; None if it is not there.

        What turns out to be damaged or deleted is no longer there, which is warned about once.
        """
        place = self._places.get(digest)
        if place is None:
            return None
        try:
            planes = self._read(digest, place)
        except (OSError, ValueError) as error:
            self._places.pop(digest, None)
            if self._warning.acquire(blocking=False):
                warnings.warn(
                    f"{place.shard}: {error}. What cannot be read from this cache is decoded from its file; "
                    "repair the cache with: python -m datasets prepare",
                    RuntimeWarning,
                    stacklevel=2,
                )
            return None
        return planes[:3].transpose(1, 2, 0), planes[3]

    def remove_damaged(self) -> int:
        """Read everything, delete the shards in which something is damaged, and count them."""
        for digest, place in self._places.items():
            try:
                self._read(digest, place)
            except (OSError, ValueError):
                self._damaged.add(place.shard)
        for shard in self._damaged:
            _index(shard).unlink(missing_ok=True)
            shard.unlink(missing_ok=True)
        self._places = {digest: place for digest, place in self._places.items() if place.shard not in self._damaged}
        count = len(self._damaged)
        self._damaged.clear()
        return count

    def _read(self, digest: str, place: _Place) -> np.ndarray:
        """The planes of one sample; their checksum is looked at the first time."""
        planes = np.asarray(_open(place.shard)[place.row])
        if digest not in self._sound:
            if zlib.crc32(planes) != place.checksum:
                raise ValueError("its content changed since it was written")
            self._sound.add(digest)
        return planes


def _open(shard: Path) -> np.ndarray:
    """The shard, mapped: one that is cut short raises ValueError here and not a fault at some later access."""
    return np.lib.format.open_memmap(shard, mode="r")


def _index(shard: Path) -> Path:
    return shard.with_suffix(".json")


def shard_path(folder: Path, digests: Sequence[str]) -> Path:
    """Where the shard of these samples belongs: the same for whoever makes it."""
    return folder / f"{hashlib.sha256(' '.join(digests).encode()).hexdigest()[:16]}.npy"


def is_whole(shard: Path) -> bool:
    """Whether somebody has finished writing it."""
    return _index(shard).exists()


def write_shard(shard: Path, size: int, digests: Sequence[str], pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
    """Write squashed images and masks, in the order of their digests; nothing counts before all of it is there.

    Raises:
        OSError: the disk is full or not writable; the error names the file, and nothing is left of it.
    """
    part = shard.with_suffix(".part")
    row = np.empty((4, size, size), np.uint8)
    checksums = {}
    try:
        with part.open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (len(digests), *row.shape)}
            np.lib.format.write_array_header_1_0(file, header)
            for digest, (image, mask) in zip(digests, pairs, strict=True):
                row[:3], row[3] = image.transpose(2, 0, 1), mask
                checksums[digest] = zlib.crc32(row)
                # Not through a mapping: on a full disk that ends the process instead of raising an error.
                file.write(row)
        os.replace(part, shard)
        part.write_text(json.dumps(checksums), encoding="utf-8")
        os.replace(part, _index(shard))
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(part)) from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise
