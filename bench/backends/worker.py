"""What runs on a dask worker: one task for each of its devices, a scheduler of that device alone.

The task takes cells from the shared results folder as any run does, and claims see to it that none runs twice. A
file there ties it to the front: the task starts only if it can read it, and stops its cells when it is removed or no
longer touched.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.backends.observer import ended_anew
from bench.backends.section import BackendError
from bench.devices import Device, devices
from bench.estimates import Estimates
from bench.guard import check_packages
from bench.plan import Planned
from bench.scheduler import CellOptions, Scheduler
from bench.store import Results

FOLLOW_SECONDS = 1.0
LOST_SECONDS = 120.0  # without a touch until the front is taken for dead; network folders show it late
VISIBLE_SECONDS = 20.0  # for a new file to be seen on another machine
# dask sets them for its own tasks; of the last, a training on a CPU becomes slower.
NANNY_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MALLOC_TRIM_THRESHOLD_")


@dataclass(frozen=True)
class Work:
    """What a task is told: plain values and absolute paths.

    Attributes:
        sign, token: the front's file, and how it ends.
        results: the results folder.
        cells, before: the cells, and the status of each when the run began.
        watched: cells that other runs have.
        options: passed on to the cells.
        data: the data folder and what the front sees in it.
        timeout, budget: as :class:`bench.scheduler.Scheduler` takes them.
        per_gpu: as :func:`bench.devices.devices` takes it.
        device: the device where the front knows it; else the worker looks for its own.
    """

    sign: Path
    token: str
    results: Path
    cells: tuple[Planned, ...]
    before: Mapping[str, Mapping[str, Any]]
    watched: tuple[Planned, ...]
    options: CellOptions
    data: tuple[Path, ...] = ()
    timeout: float | None = None
    budget: float | None = None
    per_gpu: int | None = None
    device: Device | None = None


@dataclass(frozen=True)
class Place:
    """A device of a worker.

    Attributes:
        worker: the worker's name.
        resource: "GPU" or "CPU".
        index, count: which of how many devices it was started with.
        threads: the device's share of the worker's cores.
        share: which of how many devices of the cluster.
    """

    worker: str
    resource: str
    index: int
    count: int
    threads: int
    share: tuple[int, int]


@dataclass(frozen=True)
class Report:
    """What a task has to say that is in no file: how busy its device was, and why it did not start cells, by id."""

    busy: str
    not_started: Mapping[str, str]


def feed(work: Work, place: Place) -> Report:
    """Run cells on one device of this worker until none is left.

    Raises:
        BackendError: the folders or the device are not here.
    """
    for name in NANNY_VARIABLES:
        os.environ.pop(name, None)
    check_packages()
    check_folders(work)
    device, results = work.device or own_device(place, work.per_gpu), Results(work.results)
    threads = device.slots[0].threads if device.device == "cpu" else 0
    scheduler = Scheduler(
        results,
        [device],
        work.options,
        estimates=Estimates(results, device=device.model, threads=threads),
        timeout=work.timeout,
        budget=work.budget,
        share=place.share,
    )
    ended = threading.Event()
    threading.Thread(target=_follow, args=(work.sign, scheduler, ended), daemon=True).start()
    try:
        cells = [cell for cell in work.cells if not _ended(cell, work)]
        outcomes = list(scheduler.run(cells, watched=work.watched))
    finally:
        ended.set()
    busy = " ".join([socket.gethostname(), *map(str, scheduler.busy)])
    return Report(busy, {outcome.id: outcome.reason for outcome in outcomes if outcome.state == "not started"})


def _ended(cell: Planned, work: Work) -> bool:
    """Whether a cell that is to be run once more has been, by another task of this run."""
    again = cell.state not in ("planned", "interrupted", "skipped")
    return again and ended_anew(cell, Results(work.results).cell(cell.id).status(), work.before[cell.id])


def check_folders(work: Work) -> None:
    """Make sure that this worker sees the front's folders.

    Raises:
        BackendError: it does not.
    """
    deadline = time.monotonic() + VISIBLE_SECONDS
    while not (work.sign.is_file() and work.sign.read_text(encoding="utf-8").endswith(work.token)):
        if not work.sign.parent.is_dir() or time.monotonic() > deadline:
            raise BackendError(
                f"{socket.gethostname()} does not see the results folder of this run: there is no {work.sign}, which "
                "was just written; --results wants a folder that all machines share"
            )
        time.sleep(0.5)
    if missing := [path for path in work.data if not path.exists()]:
        raise BackendError(
            f"{socket.gethostname()} does not see {missing[0]}; --data-root wants a folder that all machines share"
        )


def own_device(place: Place, per_gpu: int | None) -> Device:
    """The device of a worker that it has to find itself.

    Raises:
        BackendError: it has fewer than it was started with.
    """
    if place.resource == "CPU":
        (device,) = devices("cpu")
        return replace(device, slots=(device.slots[0].with_threads(place.threads),))
    own = [device for device in devices("auto", per_gpu=per_gpu) if device.device != "cpu"]
    if len(own) <= place.index:
        raise BackendError(
            f"worker {place.worker} on {socket.gethostname()} was started with --resources GPU={place.count}, but has "
            f"{len(own)} GPUs that torch can use"
        )
    return own[place.index]


def _follow(sign: Path, scheduler: Scheduler, ended: threading.Event) -> None:
    """Stop the scheduler when the front's file is removed or has not been touched for long.

    Times are compared with each other only: the clocks of two machines differ.
    """
    touched, since = None, time.monotonic()
    while not ended.wait(FOLLOW_SECONDS):
        try:
            last = sign.stat().st_mtime_ns
        except FileNotFoundError:
            break
        except OSError:
            last = touched  # a network folder that does not answer at the moment
        if last != touched:
            touched, since = last, time.monotonic()
        elif time.monotonic() - since > LOST_SECONDS:
            break
    scheduler.stop()
