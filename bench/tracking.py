"""The MLflow view of a results folder: one run a cell in the experiment ``sam-peft``.

The files are the truth. A scheduler's :class:`Tracker` logs cells as they end, from a background thread that
nothing waits for; whatever goes wrong there, ``python -m bench.tracking sync`` adds what is missing and
``python -m bench.tracking rebuild`` makes everything anew. Of several processes that share a store one writes,
the one with the lease, and it logs every cell of the folder, whoever ran it.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.store import CellFolder, Results
from bench.tracking_record import read_record, settled_digest
from bench.tracking_store import RefusedRun, Store

SWEEP_SECONDS = 30.0  # how soon the writer sees cells that others ran
LONGEST_PAUSE = 60.0  # seconds between attempts on a store that fails, while cells run
LAST_PAUSE = 5.0  # the same after the last cell, when somebody is waiting
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)
REMEDY = "`python -m bench.tracking rebuild` brings everything back"


class TrackingError(RuntimeError):
    """Cells could not be logged; the message says which or why, and what to do."""


class Tracker:
    """Keeps MLflow up with a results folder while a scheduler runs cells.

    Nothing here raises for MLflow's sake: a locked, deleted or broken store is tried again after growing pauses, and
    :meth:`close` says what is missing in the end.

    Args:
        results: the results folder.
        uri: an MLflow tracking URI instead of the default (see :class:`bench.tracking_store.Store`).
        enabled: False for a tracker that does nothing.
    """

    def __init__(self, results: Path, *, uri: str | None = None, enabled: bool = True) -> None:
        self._enabled = enabled
        self._store = Store(results, uri)
        self._results = Results(results)
        self._thread: threading.Thread | None = None
        self._changed: set[str] = set()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._next_sweep = 0.0
        self._logged = 0
        self._unlogged: dict[str, str] = {}
        self._problem = ""
        self._other_writer = ""

    def __enter__(self) -> Tracker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Begin, in the background, to import MLflow, to create what is missing and to log what the folder holds."""
        if self._enabled and self._thread is None:
            self._thread = threading.Thread(target=self._follow, name="mlflow", daemon=True)
            self._thread.start()

    def cell_changed(self, cell_id: str) -> None:
        """Note that a cell has a new state; returns at once."""
        self._changed.add(cell_id)
        self._wake.set()

    def close(self, timeout: float = 60) -> str | None:
        """Log whatever has ended and is not logged yet, and end.

        A tracker that was never started does this too, and imports MLflow only if something is missing: the cheap
        way for a scheduler that has nothing to run.

        Args:
            timeout: seconds to wait for it.

        Returns:
            One line for the user: how to see the runs, or what is missing and how to get it. None for a tracker
            that is not enabled.
        """
        if not self._enabled:
            return None
        self._closing.set()
        self._wake.set()
        self.start()
        self._thread.join(timeout)
        if self._problem or self._thread.is_alive():
            return f"MLflow is not up to date ({self._problem or f'still busy after {timeout:.0f} s'}); {REMEDY}"
        if self._unlogged:
            return f"MLflow lacks {_listed(self._unlogged)}; once they are mended, {REMEDY}"
        if self._other_writer:
            return f"MLflow is written by {self._other_writer}, with the cells of this run: {self._store.view_command}"
        return f"MLflow is up to date ({self._logged} cells logged): {self._store.view_command}"

    def _follow(self) -> None:
        """The thread: :meth:`_step` until the tracker is closed, then :meth:`_finish`."""
        pause = 0.0
        while True:
            closing = self._closing.is_set()
            try:
                if closing:
                    self._finish()
                else:
                    self._step()
            # What MLflow, its database driver or its server may raise is an open list.
            except Exception as error:
                self._problem = _words(error)
                self._store.forget()
                self._next_sweep = 0.0
                pause = min(2 * pause + 1, LONGEST_PAUSE)
                if not closing:
                    self._closing.wait(pause)
                elif pause < LAST_PAUSE:
                    time.sleep(pause)
                else:
                    return
            else:
                self._problem, pause = "", 0.0
                if closing:
                    return
                self._wake.wait(max(0.0, self._next_sweep - time.monotonic()))
                self._wake.clear()

    def _step(self) -> None:
        """Log the cells that changed, and now and then all; none while another process has the lease and does it."""
        lease = self._store.lease
        sweep = not lease.held or time.monotonic() >= self._next_sweep
        changed = [self._changed.pop() for _ in range(len(self._changed))]
        if lease.acquire():
            self._store.open()
            self._log(self._results.cells() if sweep else map(self._results.cell, changed), anew=sweep)
        if sweep:
            self._next_sweep = time.monotonic() + SWEEP_SECONDS

    def _finish(self) -> None:
        """Log the rest and give the lease back.

        The look that finds nothing comes after that: another scheduler may have ended meanwhile, and left its cells
        to the holder of the lease.
        """
        lease = self._store.lease
        lease.release()
        self._unlogged = {}
        while self._missing():
            if not lease.acquire():
                self._other_writer = lease.holder()
                return
            try:
                self._log(self._results.cells(), anew=True)
            finally:
                lease.release()

    def _missing(self) -> bool:
        self._store.forget()
        settled, _ = _settled(self._results.cells())
        return any(not self._store.has(cell.id, digest) for cell, digest in settled if cell.id not in self._unlogged)

    def _log(self, cells: Iterable[CellFolder], *, anew: bool) -> None:
        if anew:
            self._store.forget()
        logged, unlogged = _log(self._store, cells)
        self._logged += logged
        self._unlogged = unlogged if anew else self._unlogged | unlogged


def sync(results: Path, uri: str | None = None) -> int:
    """Log every cell that has ended and stands in MLflow not at all or with another attempt or result.

    Returns:
        How many cells were logged.

    Raises:
        TrackingError: another process is the writer, the store does not work, or some cells cannot be read (the
            others are logged).
    """
    with _writing(results, uri) as store:
        return _log_all(store)


def rebuild(results: Path, uri: str | None = None) -> int:
    """Log every cell anew, in a new experiment of the same name; other experiments stay as they are.

    The former experiment is marked deleted. A damaged database file is renamed and a new one begun.

    Returns:
        How many cells were logged.

    Raises:
        TrackingError: as :func:`sync`.
    """
    with _writing(results, uri) as store:
        store.clear()
        return _log_all(store)


@contextmanager
def _writing(results: Path, uri: str | None) -> Iterator[Store]:
    store = Store(results, uri)
    if not (store.results / "cells").is_dir():
        raise TrackingError(f"{results} holds no cells; name the results folder: --results FOLDER")
    try:
        if not store.lease.acquire():
            raise TrackingError(f"{store.uri} is written by {store.lease.holder()}, with every cell of {results}")
        yield store
    except TrackingError:
        raise
    except Exception as error:
        raise TrackingError(f"{store.uri}: {_words(error)}") from error
    finally:
        store.lease.release()


def _log_all(store: Store) -> int:
    logged, unlogged = _log(store, Results(store.results).cells())
    if unlogged:
        raise TrackingError(f"{logged} cells logged, but not {_listed(unlogged)}")
    return logged


def _log(store: Store, cells: Iterable[CellFolder]) -> tuple[int, dict[str, str]]:
    """Log what is missing; how many that were, and the cells that could not be logged with the reason."""
    settled, unlogged = _settled(cells)
    logged = 0
    for cell, digest in settled:
        if store.has(cell.id, digest):
            continue
        try:
            record = read_record(cell, digest)
        except UNREADABLE as error:
            unlogged[cell.id] = _words(error)
            continue
        try:
            store.write(record)
        except RefusedRun as error:
            unlogged[cell.id] = _words(error)
        else:
            logged += 1
    return logged, unlogged


def _settled(cells: Iterable[CellFolder]) -> tuple[list[tuple[CellFolder, str]], dict[str, str]]:
    """The cells that have ended, each with its digest, and the unreadable ones with the reason."""
    settled, unreadable = [], {}
    for cell in cells:
        try:
            digest = settled_digest(cell)
        except UNREADABLE as error:
            unreadable[cell.id] = _words(error)
        else:
            settled += [(cell, digest)] if digest else []
    return settled, unreadable


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _listed(unlogged: dict[str, str]) -> str:
    shown = [f"{cell} ({reason})" for cell, reason in list(unlogged.items())[:3]]
    more = [f"{len(unlogged) - 3} more"] if len(unlogged) > 3 else []
    return ", ".join(shown + more)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.tracking", description="The MLflow view of the results.")
    parser.add_argument("action", choices=("sync", "rebuild"), help="log what is missing, or everything anew")
    parser.add_argument("--results", type=Path, default=Path("results"), help="the results folder (%(default)s)")
    parser.add_argument("--tracking-uri", help="another MLflow store (default: MLFLOW_TRACKING_URI, else mlflow.db)")
    options = parser.parse_args(arguments)
    try:
        logged = (sync if options.action == "sync" else rebuild)(options.results, options.tracking_uri)
    except TrackingError as error:
        print(f"bench.tracking: {error}", file=sys.stderr)
        return 1
    store = Store(options.results, options.tracking_uri)
    print(f"{logged} cells logged in {store.uri}\nlook at them with: {store.view_command}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
