"""``python -m datasets prepare``: squash every sample of a dataset once, into its :mod:`datasets.cache`.

Several processes, started here or by different people, share the work: whoever holds a shard's lock makes
it, the others go on to the next one. A preparation that was interrupted, killed or ran out of disk goes on
where it stopped, and what is half-written never counts.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from bench.squash import squash_mask
from datasets.base import Dataset, Split, load
from datasets.cache import SHARD, Cache, is_whole, shard_path, write_shard

_QUIET_SECONDS = 5
_REMEDY = "Make room there, name another folder with BENCH_CACHE, or choose a smaller --image-size"
_KEPT = "What is prepared stays; the same command goes on from there."

Member = tuple[str, str, int]
"""The digest of a sample, its split and its index there."""


class PrepareError(RuntimeError):
    """The samples cannot be prepared; the message says why and what to do."""


class _Stopped(Exception):
    """Somebody asked this worker to stop."""


class _Shard(NamedTuple):
    path: Path
    members: Sequence[Member]


def prepare_command(
    name: str,
    root: Path | None,
    *,
    image_size: int,
    workers: int = 0,
    allow_broken: bool = False,
    parameters: Mapping[str, Any] | None = None,
) -> int:
    """``python -m datasets prepare NAME``; returns the exit code.

    Args:
        name: of the dataset.
        root: where it lies, see :meth:`datasets.Dataset.open`.
        image_size: side in pixels.
        workers: processes; 0 for one on each core.
        allow_broken: leave out files that cannot be used.
        parameters: the dataset's own.

    Raises:
        PrepareError: see :func:`prepare`; beside it all that :func:`load` and :meth:`datasets.Dataset.open` raise.
    """
    dataset = load(name, **(parameters or {}))
    try:
        prepare(dataset, dataset.open(root, allow_broken=allow_broken), image_size, workers=workers)
    except KeyboardInterrupt:
        _say(f"{name}: stopped. {_KEPT}")
        return 130
    return 0


def prepare(dataset: Dataset, splits: Mapping[str, Split], image_size: int, *, workers: int = 0) -> Cache:
    """Bring all samples of ``splits`` into the dataset's cache; says on stderr how far it is.

    What is there already is read and checked, and made again where it is damaged.

    Raises:
        PrepareError: the dataset is generated; the disk is full or not writable; a file cannot be read.
    """
    if image_size < 1:
        raise PrepareError(f"--image-size {image_size}: a side in pixels is needed, such as 1024")
    if workers < 0:
        raise PrepareError(f"--workers {workers}: a number of processes is needed, or 0 for one on each core")
    cache = Cache.of(dataset, image_size)
    if cache is None:
        raise PrepareError(f"{dataset.name!r} is generated as it is read and needs no cache; train on it as it is.")
    try:
        cache.folder.mkdir(parents=True, exist_ok=True)
        if cache:
            _say(f"{dataset.name}: checking {len(cache):,} images in {cache.folder}")
        damaged = cache.remove_damaged()
        where = {split.digest(i): (name, i) for name, split in splits.items() for i in range(len(split))}
        members = [(digest, *place) for digest, place in where.items() if digest not in cache]
        needed, free = 4 * image_size**2 * len(members), shutil.disk_usage(cache.folder).free
        _say(
            f"{dataset.name}: {len(where) - len(members):,} of {len(where):,} images are prepared at {image_size} px "
            f"in {cache.folder}"
            + (f", {damaged} damaged files were removed" if damaged else "")
            + (f"; the others need {_bytes(needed)}" if needed else "")
        )
        if needed > free:
            raise PrepareError(f"{cache.folder}: {_bytes(needed)} are needed and {_bytes(free)} are free. {_REMEDY}.")
        _make(dataset.name, _shards(cache.folder, members), splits, image_size, workers)
    except OSError as error:
        file = error.filename or cache.folder
        raise PrepareError(f"{file}: {error.strerror or error}. {_REMEDY}. {_KEPT}") from error
    return Cache(cache.folder, image_size)


def _shards(folder: Path, members: Sequence[Member]) -> list[_Shard]:
    parts = [members[start : start + SHARD] for start in range(0, len(members), SHARD)]
    return [_Shard(shard_path(folder, [digest for digest, _, _ in part]), part) for part in parts]


def _make(name: str, shards: Sequence[_Shard], splits: Mapping[str, Split], size: int, workers: int) -> None:
    """Make the shards in worker processes; those that others are making are waited for."""
    from joblib import cpu_count

    if not shards:
        return
    progress = _Progress(name, sum(len(shard.members) for shard in shards))
    # Spawned, as a copy of a process with threads (those of the inspection, or of torch) may hang.
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    with ProcessPoolExecutor(min(workers or cpu_count(), len(shards)), context, _start, (splits, stop)) as pool:
        try:
            waiting = list(shards)
            while waiting:
                running = {pool.submit(_make_shard, shard, size): shard for shard in waiting}
                waiting = []
                for future in as_completed(running):
                    if future.result():
                        progress.add(len(running[future].members))
                    else:
                        waiting.append(running[future])
        except BrokenProcessPool as error:
            raise PrepareError(
                f"a worker process was killed, perhaps for want of memory: try fewer --workers. {_KEPT}"
            ) from error
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


# What a worker process was started with.
_splits: Mapping[str, Split] = {}
_stop: Event


def _start(splits: Mapping[str, Split], stop: Event) -> None:
    global _splits, _stop
    _splits, _stop = splits, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent tells when to stop
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """The pool's own workers would wait for ever for a parent that was killed."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _make_shard(shard: _Shard, size: int) -> bool:
    """Make a shard unless it is there; False if another process is at it for longer than a second."""
    lock = FileLock(shard.path.with_suffix(".lock"))
    try:
        with lock.acquire(timeout=1):
            if not is_whole(shard.path):
                write_shard(shard.path, size, [digest for digest, _, _ in shard.members], _squash(shard.members, size))
    except Timeout:
        return False
    return True


def _squash(members: Sequence[Member], size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for _, name, index in members:
        if _stop.is_set():
            raise _Stopped
        split = _splits[name]
        try:
            image, mask = split.squashed(index, size)
        except Exception as error:  # a damaged file makes Pillow's parsers raise almost anything
            raise PrepareError(
                f"{name} {split.identifiers[index]} cannot be read ({error}): its file has changed. {_KEPT}"
            ) from error
        yield image, squash_mask(mask, size)


class _Progress:
    """Says every few seconds how far the work is."""

    def __init__(self, name: str, total: int) -> None:
        self._name, self._total, self._done = name, total, 0
        self._started = self._shown = time.monotonic()

    def add(self, images: int) -> None:
        self._done += images
        now = time.monotonic()
        if self._done < self._total and now - self._shown < _QUIET_SECONDS:
            return
        self._shown = now
        rate = self._done / (now - self._started)
        left = (self._total - self._done) / rate
        _say(f"{self._name}: {self._done:,} of {self._total:,} images, {rate:.1f} images/s, {left:.0f} s left")


def _bytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
