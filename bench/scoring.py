"""Images scored in worker processes while the device goes on predicting.

A core takes a quarter of a second for the metrics of an image of 1024 px, a GPU a small part of that to predict it.
Scoring begins in this process, where a small test set ends before workers would have started; what is measured
there decides whether the rest is worth them. Scores are pure functions of an image, entered in the order in which
images were given: processes change no bit of a result.

Imports no torch: a worker needs none.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from bench.metrics import ClassScores, Scores, score_classes, score_image

log = logging.getLogger(__name__)
WORTH_SECONDS = 10.0
"""Scoring left over from which workers are started: they take about three seconds to import what they need."""

WAITING = 2
"""Images a worker that are predicted and not yet entered, at most: a bound on memory."""


class View(NamedTuple):
    """An image as one protocol compares it: where its scores are entered, the prediction and the mask."""

    scores: Scores | ClassScores
    prediction: np.ndarray
    mask: np.ndarray


class _Sent(NamedTuple):
    identifier: str
    views: Sequence[View]
    future: Future[list[tuple[Any, ...]]]


class Scoring:
    """Scores images here or in worker processes; a context, at whose regular end everything is entered.

    Args:
        images: how many will be given.
        num_classes: 1 for binary masks.
        workers: processes at most, 0 for none.
    """

    def __init__(self, images: int, num_classes: int, *, workers: int = 0) -> None:
        self._left, self._num_classes, self._workers = images, num_classes, workers
        self._seconds: list[float] = []
        self._pool: ProcessPoolExecutor | None = None
        self._sent: deque[_Sent] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while self._sent and kind is None:
                self._enter_next()
        finally:
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)

    def add(self, identifier: str, views: Sequence[View]) -> None:
        """Score an image under several protocols; what an earlier image has done wrong may be raised here too.

        Raises:
            ValueError: as the scores' own ``add``, which names the image.
        """
        self._left -= 1
        while self._sent and len(self._sent) >= WAITING * self._workers:
            self._enter_next()
        if self._pool is None and self._worth():
            # Spawned, as a copy of a process with threads and a CUDA context would not work.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._workers, context, _start)
        if self._pool is not None:
            self._send(identifier, views)
            return
        began = time.perf_counter()
        self._score_here(identifier, views)
        self._seconds.append(time.perf_counter() - began)

    def _worth(self) -> bool:
        """Whether workers are allowed and pay; the first image, which pays for imports, says nothing about the rest."""
        known = min(self._seconds[1:], default=0.0)
        return self._workers > 0 and known * (self._left + 1) > WORTH_SECONDS

    def _score_here(self, identifier: str, views: Sequence[View]) -> None:
        work = self._work(views)
        _enter(identifier, views, lambda: _score(*work))

    def _send(self, identifier: str, views: Sequence[View]) -> None:
        try:
            future = self._pool.submit(_score, *self._work(views))
        except BrokenProcessPool:
            self._go_on_alone()
            self._score_here(identifier, views)
        else:
            self._sent.append(_Sent(identifier, views, future))

    def _enter_next(self) -> None:
        sent = self._sent[0]
        try:
            _enter(sent.identifier, sent.views, sent.future.result)
        except BrokenProcessPool:
            self._go_on_alone()
        else:
            self._sent.popleft()

    def _go_on_alone(self) -> None:
        """Score here what a killed worker has left, and everything that comes."""
        log.warning("a process that scored images was killed, perhaps for want of memory; this one scores the rest")
        self._pool.shutdown()
        self._pool, self._workers = None, 0
        while self._sent:
            sent = self._sent.popleft()
            self._score_here(sent.identifier, sent.views)

    def _work(self, views: Sequence[View]) -> tuple[int, list[tuple[str, np.ndarray, np.ndarray]]]:
        return self._num_classes, [(view.scores.protocol, view.prediction, view.mask) for view in views]


def _enter(identifier: str, views: Sequence[View], measured: Callable[[], list[tuple[Any, ...]]]) -> None:
    """Enter what ``measured`` returns; what it raises names the image."""
    try:
        results = measured()
    except (BrokenProcessPool, MemoryError):
        raise
    except Exception as error:
        raise ValueError(f"image {identifier}: {error}") from error
    for view, result in zip(views, results, strict=True):
        view.scores.enter(identifier, *result)


def _score(num_classes: int, views: list[tuple[str, np.ndarray, np.ndarray]]) -> list[tuple[Any, ...]]:
    """For each view what ``enter`` takes beside the identifier; a pure function, also in a worker."""
    if num_classes == 1:
        return [score_image(prediction, mask, protocol) for protocol, prediction, mask in views]
    return [(score_classes(prediction, mask, protocol, num_classes),) for protocol, prediction, mask in views]


def _start() -> None:
    """What a worker does first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """The pool's workers would wait for ever for a parent that was killed."""
    multiprocessing.parent_process().join()
    os._exit(1)
