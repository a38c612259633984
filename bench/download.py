"""One large file from the network: whole and verified under its name, or not there at all.

Checkpoints and datasets are gigabytes and many processes may ask for the same one at once, so a download goes on
where the last one stopped, one process downloads while the others wait, and the file gets its name only
after its SHA-256 was found right.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import TextIO
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from filelock import FileLock, Timeout

Progress = Callable[[int, int], None]
"""Called with the bytes on disk and the bytes of the whole file."""

_BLOCK_BYTES = 1 << 20
_SILENCE_SECONDS = 30
_ATTEMPTS = 4


class DownloadError(RuntimeError):
    """The file could not be had; the message is the reason alone."""


class _PassingFailure(Exception):
    """A failure of the server or the line that the next attempt may not meet."""


def download(
    url: str, target: Path, *, size: int, sha256: str, progress: Progress | None = None, pause: float = 1.0
) -> None:
    """Put the file at ``url`` under ``target``; return at once if another process did so meanwhile.

    Bytes collect in ``<target>.part``, which stays when the download breaks off and is continued by the next
    call. A file of another digest is removed.

    Args:
        size: length of the whole file in bytes, known beforehand: a server that announces another is refused.
        sha256: hexadecimal digest of the whole file.
        progress: defaults to a :class:`ProgressLine` on stderr.
        pause: seconds before the second attempt; doubled for each further one.

    Raises:
        DownloadError: no network, another file at the address, a wrong digest, no room, no permission.
    """
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target):
            if target.exists():
                return
            _check_room(part, size)
            _receive(url, part, size=size, progress=progress or ProgressLine(target.name), pause=pause)
            _check_digest(part, sha256)
            os.replace(part, target)
    except OSError as error:  # those of the network were turned into DownloadError by _receive
        raise DownloadError(f"{error.strerror or error}: {error.filename or part}") from error


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Exclusive among processes; the operating system frees the lock of one that died."""
    lock = FileLock(f"{target}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{target.name}: another process downloads it; waiting for that", file=sys.stderr, flush=True)
        lock.acquire(poll_interval=0.2)
    try:
        yield
    finally:
        lock.release()


def _receive(url: str, part: Path, *, size: int, progress: Progress, pause: float) -> None:
    """Fill ``part`` up to ``size`` bytes, with new attempts for as long as some of them get further."""
    if _length(part) > size:
        part.unlink()
    have = furthest = _length(part)
    failures = 0
    while have < size:
        try:
            have = _receive_once(url, part, start=have, size=size, progress=progress)
            reason = f"the connection ended after {have:,} of {size:,} bytes"
        except _PassingFailure as failure:
            have = _length(part)
            reason = str(failure)
        if have > furthest:
            furthest, failures = have, 0
        elif have < size:
            failures += 1
            if failures == _ATTEMPTS:
                raise DownloadError(f"{reason} ({_ATTEMPTS} attempts without progress)")
            time.sleep(pause * 2 ** (failures - 1))


def _receive_once(url: str, part: Path, *, start: int, size: int, progress: Progress) -> int:
    """One request; returns the length of ``part`` after it."""
    with _request(url, start=start) as response:
        have = _offset(response, start=start, size=size)
        with part.open("ab" if have else "wb") as file:
            while block := _read(response):
                file.write(block)
                have += len(block)
                if have > size:
                    raise DownloadError(f"the server sends more than the expected {size:,} bytes")
                progress(have, size)
    return have


def _request(url: str, *, start: int) -> HTTPResponse:
    headers = {"User-Agent": "sam-peft-bench"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        return urlopen(Request(url, headers=headers), timeout=_SILENCE_SECONDS)
    except HTTPError as error:
        if error.code == 416 and start:  # the file there ends before ours: ask for its length instead
            return _request(url, start=0)
        reason = f"the server answers {error.code} {error.reason}"
        if error.code in (408, 429) or error.code >= 500:
            raise _PassingFailure(reason) from error
        raise DownloadError(reason) from error
    except (OSError, HTTPException) as error:
        raise _PassingFailure(f"no connection ({getattr(error, 'reason', error)})") from error


def _read(response: HTTPResponse) -> bytes:
    try:
        return response.read(_BLOCK_BYTES)
    except (OSError, HTTPException) as error:
        raise _PassingFailure(f"the connection broke ({error})") from error


def _offset(response: HTTPResponse, *, start: int, size: int) -> int:
    """Where in the file the answer begins: ``start``, or 0 from a server that does not know ranges."""
    if response.status == 206:
        sent = response.headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", sent)
        if match is None or int(match[1]) != start:
            raise DownloadError(f"the server was asked for bytes from {start} on and sends {sent!r}")
        total = match[2]
    else:
        start, total = 0, response.headers.get("Content-Length", "*")
    if total != "*" and int(total) != size:
        raise DownloadError(f"the file there has {int(total):,} bytes instead of {size:,}")
    return start


def _check_room(part: Path, size: int) -> None:
    needed = size - _length(part)
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise DownloadError(f"{part.parent} has {free:,} bytes free and {needed:,} are needed")


def _check_digest(part: Path, sha256: str) -> None:
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        part.unlink()
        raise DownloadError(f"what was downloaded is not the file (sha256 {found}, expected {sha256}); it was removed")


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


class ProgressLine:
    """Says how far a download is: one line rewritten on a terminal, else a new line every ten seconds."""

    def __init__(self, name: str, *, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._stream = stream or sys.stderr
        self._clock = clock
        self._terminal = self._stream.isatty()
        self._start: tuple[float, int] | None = None
        self._shown = float("-inf")

    def __call__(self, done: int, total: int) -> None:
        now = self._clock()
        if self._start is None or done < self._start[1]:
            self._start = (now, done)
        if done < total and now - self._shown < (0.2 if self._terminal else 10):
            return
        self._shown = now
        text = f"{self._name}: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB ({done / total:.0%})"
        seconds, received = now - self._start[0], done - self._start[1]
        if seconds and received:
            rate = received / seconds
            text += f", {rate / 1e6:.1f} MB/s, {(total - done) / rate:.0f} s left"
        end = "\n" if done == total or not self._terminal else ""
        print(f"\r{text:<79}" if self._terminal else text, end=end, file=self._stream, flush=True)
