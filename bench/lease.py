"""The right to be the only writer of something, among the processes of a machine.

A file lock: the kernel frees it when its holder dies, in whatever way, so that no lease is ever stale.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from pathlib import Path
from typing import IO

from bench.store import now


class Lease:
    """A lock on ``path``, taken without waiting."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    @property
    def held(self) -> bool:
        """Whether it is ours."""
        return self._file is not None

    def acquire(self) -> bool:
        """Take the lease, without waiting; True if it is ours now or was already.

        Raises:
            OSError: the file cannot be written or locked.
        """
        if self.held:
            return True
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("a", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            if isinstance(error, BlockingIOError):
                return False
            raise
        file.truncate(0)
        json.dump({"host": socket.gethostname(), "pid": os.getpid(), "since": now()}, file)
        file.flush()
        self._file = file
        return True

    def release(self) -> None:
        """Give the lease back, if it is ours."""
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()
            self._file = None

    def holder(self) -> str:
        """Who has the lease, in words."""
        try:
            holder = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return "another process"
        return f"process {holder['pid']} on {holder['host']} (since {holder['since']})"
