"""One large file from the network: whole and verified under its name, or not there at all.

Checkpoints and datasets are gigabytes and many processes may ask for the same one at once, so a download goes on
where the last one stopped, one process downloads while the others wait, and the file gets its name only when it
is whole. Where its SHA-256 was published that decides; else the server's own word for its versions (ETag,
Last-Modified) keeps the halves of two files from being joined.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import TextIO
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from filelock import FileLock, Timeout

Progress = Callable[[int, int], None]
"""Called with the bytes on disk and the bytes of the whole file, 0 while the server has not said how many."""

_BLOCK_BYTES = 1 << 20
_SILENCE_SECONDS = 30
_ATTEMPTS = 4


class DownloadError(RuntimeError):
    """The file could not be had; the message is the reason alone."""


class _PassingFailure(Exception):
    """A failure of the server or the line that the next attempt may not meet."""


def download(
    url: str,
    target: Path,
    *,
    size: int = 0,
    sha256: str = "",
    progress: Progress | None = None,
    pause: float = 1.0,
) -> str:
    """Put the file at ``url`` under ``target``, unless it is there; return its SHA-256.

    Bytes collect in ``<target>.part``, which stays when the download breaks off and is continued by the next
    call. A file of another digest is removed.

    Args:
        size: length of the whole file in bytes, where known beforehand: a server that announces another is refused.
        sha256: hexadecimal digest of the whole file, where known beforehand.
        progress: defaults to a :class:`ProgressLine` on stderr.
        pause: seconds before the second attempt; doubled for each further one.

    Raises:
        DownloadError: no network, another file at the address, a wrong digest, no room, no permission.
    """
    part = _Part(target.with_name(f"{target.name}.part"), url, size)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target, doing="downloads"):
            if target.exists():
                found = _digest(target)
                if sha256 not in ("", found):
                    raise DownloadError(f"{target} is there and is another file (sha256 {found}, expected {sha256})")
                return found
            _receive(part, known=bool(sha256), progress=progress or ProgressLine(target.name), pause=pause)
            found = _digest(part.path)
            if sha256 not in ("", found):
                part.remove()
                raise DownloadError(
                    f"what was downloaded is not the file (sha256 {found}, expected {sha256}); it was removed"
                )
            os.replace(part.path, target)
            part.remove()
            return found
    except OSError as error:  # those of the network were turned into DownloadError by _receive
        raise DownloadError(f"{error.strerror or error}: {error.filename or part.path}") from error


@contextmanager
def locked(target: Path, *, doing: str) -> Iterator[None]:
    """Exclusive among processes; the operating system frees the lock of one that died."""
    lock = FileLock(f"{target}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{target.name}: another process {doing} it; waiting for that", file=sys.stderr, flush=True)
        lock.acquire(poll_interval=0.2)
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class _Version:
    """What the server calls the file: ``mark`` is "" where it gives no name, ``size`` 0 where it tells no length."""

    url: str
    mark: str
    size: int


class _Part:
    """The bytes that have arrived, and beside them which version of the file they are of."""

    def __init__(self, path: Path, url: str, size: int) -> None:
        self.path = path
        self.url = url
        self.size = size
        self._note = path.with_name(f"{path.name}.json")

    @property
    def length(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def version(self) -> _Version | None:
        try:
            version = _Version(**json.loads(self._note.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):  # none, or torn by a crash
            return None
        return version if version.url == self.url else None

    @property
    def expected(self) -> int:
        """The bytes of the whole file; 0 where nobody has said."""
        return self.size or (self.version.size if self.version else 0)

    def whole(self) -> bool:
        return 0 < self.expected == self.length

    def note(self, version: _Version) -> None:
        self._note.write_text(json.dumps(asdict(version)), encoding="utf-8")

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)


def _receive(part: _Part, *, known: bool, progress: Progress, pause: float) -> None:
    """Fill the part, with new attempts for as long as some of them get further; ``known``: a digest will judge it."""
    if 0 < part.expected < part.length:
        part.remove()
    _check_room(part, part.expected)
    furthest, failures = part.length, 0
    while not part.whole():
        try:
            _receive_once(part, known=known, progress=progress)
            reason = f"the connection ended after {part.length:,} of {part.expected:,} bytes"
        except _PassingFailure as failure:
            reason = str(failure)
        if part.length > furthest:
            furthest, failures = part.length, 0
        elif not part.whole():
            failures += 1
            if failures == _ATTEMPTS:
                raise DownloadError(f"{reason} ({_ATTEMPTS} attempts without progress)")
            time.sleep(pause * 2 ** (failures - 1))


def _receive_once(part: _Part, *, known: bool, progress: Progress) -> None:
    """One request, from the end of the part on if what comes is certain to continue it."""
    noted = None if known else part.version
    start = part.length if known or (noted and noted.mark) else 0
    with _request(part.url, start=start, mark=noted.mark if noted else "") as response:
        have, version = _answered(response, part.url, start=start)
        if part.size and version.size not in (0, part.size):
            raise DownloadError(f"the file there has {version.size:,} bytes instead of {part.size:,}")
        if have and noted:  # an answer to If-Range need not repeat what it confirms
            version = replace(version, mark=version.mark or noted.mark, size=version.size or noted.size)
            if version.mark != noted.mark or noted.size not in (0, version.size):
                part.remove()
                raise _PassingFailure("the file at the address was replaced by another")
        with part.path.open("ab" if have else "wb") as file:
            part.note(version)
            total = part.expected
            _check_room(part, total)
            while block := _read(response):
                file.write(block)
                have += len(block)
                if 0 < total < have:
                    raise DownloadError(f"the server sends more than the expected {total:,} bytes")
                progress(have, total)
            os.fsync(file.fileno())
    if not total:  # the end of an answer of unstated length
        part.note(replace(version, size=have))
        progress(have, have)


def _request(url: str, *, start: int, mark: str) -> HTTPResponse:
    headers = {"User-Agent": "sam-peft-bench"}
    if start:
        headers["Range"] = f"bytes={start}-"
    if start and mark:
        headers["If-Range"] = mark
    try:
        return urlopen(Request(url, headers=headers), timeout=_SILENCE_SECONDS)
    except HTTPError as error:
        if error.code == 416 and start:  # the file there ends before ours: ask for its length instead
            return _request(url, start=0, mark="")
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


def _answered(response: HTTPResponse, url: str, *, start: int) -> tuple[int, _Version]:
    """Of which file the answer is, and where in it it begins: ``start``, or 0 from a server that knows no ranges."""
    if response.headers.get_content_type() == "text/html":
        raise DownloadError("the server sends a web page in place of the file, probably a login or quota page")
    if response.status == 206:
        sent = response.headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", sent)
        if match is None or int(match[1]) != start:
            raise DownloadError(f"the server was asked for bytes from {start} on and sends {sent!r}")
        total = match[2]
    else:
        start, total = 0, response.headers.get("Content-Length", "*")
    etag = response.headers.get("ETag", "")
    # A weak ETag (W/"...") does not vouch for every byte.
    mark = etag if etag.startswith('"') else response.headers.get("Last-Modified", "")
    return start, _Version(url, mark, 0 if total == "*" else int(total))


def _check_room(part: _Part, size: int) -> None:
    needed = size - part.length
    free = shutil.disk_usage(part.path.parent).free
    if needed > free:
        raise DownloadError(f"{part.path.parent} has {free:,} bytes free and {needed:,} are needed")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        if done != total and now - self._shown < (0.2 if self._terminal else 10):
            return
        self._shown = now
        text = f"{self._name}: {done / 1e6:,.0f} "
        text += f"of {total / 1e6:,.0f} MB ({done / total:.0%})" if total else "MB"
        seconds, received = now - self._start[0], done - self._start[1]
        if seconds and received:
            rate = received / seconds
            text += f", {rate / 1e6:.1f} MB/s"
            text += f", {(total - done) / rate:.0f} s left" if total else ""
        end = "\n" if done == total or not self._terminal else ""
        print(f"\r{text:<79}" if self._terminal else text, end=end, file=self._stream, flush=True)
