"""Cells on the workers of a dask cluster.

dask finds machines and starts one task on each device of each worker (:mod:`bench.backends.worker`); it schedules no
cell. :class:`Front` keeps these tasks going and reads from the files what they do.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.backends.cluster import Cluster, connect, require
from bench.backends.observer import Observer, Seen
from bench.backends.section import BackendError, LocalCluster, Section
from bench.backends.worker import Place, Work, feed
from bench.devices import Device, Slot, devices
from bench.guard import PROJECT
from bench.plan import Planned
from bench.scheduler import GRACE_SECONDS, CellOptions
from bench.store import Results, now
from bench.tasks import Outcome

if TYPE_CHECKING:
    from distributed import Future

LOOK_SECONDS = 1.0
LOOKING_SHARE = 0.1  # of the time, at most, for reading the states of many cells in a slow folder
TOUCH_SECONDS = 5.0
RENEW_SECONDS = 60.0
REPORT_SECONDS = 3.0
FIRST_WORD, NEXT_WORD = 15.0, 600.0  # seconds without any worker until that is said, and said again


def places(section: Section, wanted: str, *, per_gpu: int | None = None) -> list[Device]:
    """The devices that a run is planned for.

    Args:
        section: the cluster; of workers elsewhere it is only known whether their devices are GPUs.
        wanted, per_gpu: of this machine, as :func:`bench.devices.devices` takes them.

    Returns:
        A device for each worker process of this machine, or one that stands for all elsewhere.

    Raises:
        BackendError: dask is not installed.
    """
    require(section)
    if not isinstance(section, LocalCluster):
        return [Device.of(Slot("dask workers", "cuda:0" if section.resource == "GPU" else "cpu", 0))]
    found = devices(wanted, per_gpu=per_gpu)
    if found[0].device != "cpu":
        return found
    return [replace(found[0], label=slot.label, slots=(slot,)) for slot in found[0].slots]


class Front:
    """Runs cells on a cluster; for ``bench.run`` what :class:`bench.scheduler.Scheduler` is on one machine.

    Args:
        results: the results folder.
        section: the cluster.
        devices: what :func:`places` found.
        options: passed on to the cells.
        timeout, budget, per_gpu: as in :class:`bench.backends.worker.Work`.
        on_start: called when a cell was seen to have begun.
        on_remark: called with what whoever waits should know.

    Attributes:
        busy: when the run has ended, in words how much each device was at work.
    """

    def __init__(
        self,
        results: Results,
        section: Section,
        devices: Sequence[Device],
        options: CellOptions,
        *,
        timeout: float | None = None,
        budget: float | None = None,
        per_gpu: int | None = None,
        on_start: Callable[[Seen], None] = lambda seen: None,
        on_remark: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._results, self._section, self._devices, self._options = results, section, devices, _absolute(options)
        self._timeout, self._per_gpu, self._on_start, self._on_remark = timeout, per_gpu, on_start, on_remark
        self._until = None if budget is None else time.monotonic() + budget
        self._stopping = threading.Event()
        self._observer = Observer(results, [])
        self._tasks: dict[tuple[str, int], Future] = {}
        self._refused: dict[tuple[str, int], str] = {}
        self._spoke = time.monotonic() + FIRST_WORD - NEXT_WORD
        self._renewed = time.monotonic()
        self.busy: list[str] = []

    def run(self, cells: Sequence[Planned], watched: Sequence[Planned] = ()) -> Iterator[Outcome]:
        """Execute the cells; yields how each ended, as it is seen to have ended.

        Raises:
            BackendError: there is no cluster, or none of its workers can run cells.
        """
        if not cells and not watched:
            return
        self._observer = Observer(self._results, [*cells, *watched])
        work = self._work(cells, watched)
        local = self._devices if isinstance(self._section, LocalCluster) else []
        with _sign(work), connect(self._section, devices=local, results=self._results.path) as cluster:
            try:
                yield from self._attend(cluster, work)
            finally:
                work.sign.unlink(missing_ok=True)
                self._wait_for_tasks()
            yield from self._rest()

    def stop(self) -> None:
        """Interrupt what runs and start nothing more; may be called from a signal handler."""
        self._stopping.set()

    @property
    def stopped(self) -> bool:
        return self._stopping.is_set()

    def running(self) -> list[tuple[Seen, dict[str, Any]]]:
        """The cells at work, each with the progress it last reported."""
        return self._observer.running()

    def _work(self, cells: Sequence[Planned], watched: Sequence[Planned]) -> Work:
        token, root = uuid.uuid4().hex[:12], self._options.data_root
        return Work(
            sign=self._results.path.resolve() / f".run-{token}",
            token=token,
            results=self._results.path.resolve(),
            cells=tuple(map(_slim, cells)),
            before={cell.id: self._observer.before[cell.id] for cell in cells},
            watched=tuple(map(_slim, watched)),
            options=self._options,
            data=(root, *root.iterdir()) if root and root.is_dir() else (),
            timeout=self._timeout,
            per_gpu=self._per_gpu,
        )

    def _attend(self, cluster: Cluster, work: Work) -> Iterator[Outcome]:
        """Keep a task on every device until all cells have ended, or all tasks have."""
        while not self.stopped:
            began = time.monotonic()
            self._tend(cluster, work)
            yield from self._look()
            if not self._observer.open or (self._tasks and all(task.done() for task in self._tasks.values())):
                return
            self._stopping.wait(max(LOOK_SECONDS, (time.monotonic() - began) / LOOKING_SHARE))

    def _tend(self, cluster: Cluster, work: Work) -> None:
        """Give devices that have come a task, forget those of workers that are gone, and say what is wrong."""
        workers = cluster.workers()
        for key in [key for key in self._tasks if key[0] not in workers]:
            self._tasks.pop(key).cancel()
            self._on_remark(f"a worker is gone ({key[0]}); what it ran is taken over by the others")
        for address, worker in workers.items():
            for index in range(worker.devices):
                if (address, index) not in self._tasks:
                    self._tasks[address, index] = self._submit(cluster, work, address, index)
        self._check_tasks()
        self._check_jobs(cluster)
        if workers:
            self._spoke = time.monotonic() + FIRST_WORD - NEXT_WORD
        elif time.monotonic() - self._spoke > NEXT_WORD:
            self._spoke = time.monotonic()
            self._on_remark(f"waiting for workers: {cluster.missing()}")
        if time.monotonic() - self._renewed > RENEW_SECONDS:
            self._renewed = time.monotonic()
            cluster.renew()

    def _submit(self, cluster: Cluster, work: Work, address: str, index: int) -> Future:
        workers = cluster.workers()
        worker, count = workers[address], sum(worker.devices for worker in workers.values())
        share = len(self._tasks) % count, count
        threads = max(1, worker.threads // worker.devices)
        place = Place(worker.name, cluster.resource, index, worker.devices, threads, share)
        device = self._devices[int(worker.name)] if isinstance(self._section, LocalCluster) else None
        budget = None if self._until is None else max(0.0, self._until - time.monotonic())
        return cluster.client.submit(
            feed,
            replace(work, device=device, budget=budget),
            place,
            workers=[address],
            resources={cluster.resource: 1},
            pure=False,
        )

    def _check_jobs(self, cluster: Cluster) -> None:
        """Say why a job was not submitted.

        Raises:
            BackendError: and none has brought a worker yet.
        """
        while cluster.errors:
            said = f"a job was not submitted: {cluster.errors.pop(0)}"
            if not self._tasks:
                raise BackendError(said)
            self._on_remark(said)

    def _check_tasks(self) -> None:
        """Note the tasks that failed.

        Raises:
            BackendError: all have.
        """
        for key, task in list(self._tasks.items()):
            if task.status in ("cancelled", "lost"):
                del self._tasks[key]
            elif task.status == "error" and key not in self._refused:
                self._refused[key] = _words(task.exception())
                self._on_remark(f"no cell runs on {key[0]}: {self._refused[key]}")
        if self._tasks and all(key in self._refused for key in self._tasks):
            raise BackendError(f"no worker can run cells: {next(iter(self._refused.values()))}")

    def _wait_for_tasks(self) -> None:
        """Let the tasks interrupt their cells and end; without cells there is nothing to wait for but a report."""
        patience = GRACE_SECONDS + 10 if self._observer.running() else REPORT_SECONDS
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and not all(task.done() for task in self._tasks.values()):
            time.sleep(0.1)
        for task in self._tasks.values():
            if not task.done():
                task.cancel()

    def _look(self) -> Iterator[Outcome]:
        for planned, seen, status in self._observer.look():
            if seen:
                self._on_start(seen)
            else:
                yield self._outcome(planned, status)

    def _outcome(self, planned: Planned, status: Mapping[str, Any]) -> Outcome:
        seconds, place = self._observer.ran(planned, status)
        return Outcome(planned.id, status["state"], status["reason"] or "", seconds, place)

    def _rest(self) -> Iterator[Outcome]:
        """What the files say in the end of the cells that were not seen to end."""
        yield from self._look()
        reports = [task.result() for task in self._tasks.values() if task.status == "finished"]
        self.busy = sorted(report.busy for report in reports)
        reasons = {cell: reason for report in reports for cell, reason in report.not_started.items()}
        for planned in self._observer.open:
            status = self._results.cell(planned.id).status()
            if status["state"] == "running":
                yield Outcome(planned.id, "elsewhere", "another process runs it", 0.0, "")
            elif status != self._observer.before[planned.id]:
                yield self._outcome(planned, status)
            else:
                reason = reasons.get(planned.id, "the run was stopped" if self.stopped else "no worker took it")
                yield Outcome(planned.id, "not started", reason, 0.0, "")


@contextmanager
def _sign(work: Work) -> Iterator[None]:
    """The file by which tasks know that the front is there."""
    left = threading.Event()

    def touch() -> None:
        while not left.wait(TOUCH_SECONDS):
            with suppress(OSError):  # removed by now, or a network folder that does not answer at the moment
                os.utime(work.sign)

    words = {"host": socket.gethostname(), "pid": os.getpid(), "since": now()}
    work.sign.write_text(f"{json.dumps(words)} {work.token}", encoding="utf-8")
    threading.Thread(target=touch, daemon=True).start()
    try:
        yield
    finally:
        left.set()
        work.sign.unlink(missing_ok=True)


def _slim(cell: Planned) -> Planned:
    """A cell with no more evidence than a queue asks for: thousands of them are sent to every worker."""
    return replace(cell, evidence={"images": (cell.evidence or {}).get("images")})


def _absolute(options: CellOptions) -> CellOptions:
    """Options that mean the same on another machine, where neither the current folder nor variables do."""
    root = options.data_root or os.environ.get("BENCH_DATA_ROOT")
    return replace(options, data_root=Path(root).resolve()) if root else options


def _words(error: BaseException) -> str:
    if isinstance(error, BackendError):
        return str(error)
    hint = f"; workers must find `bench`: start them in {PROJECT}" if isinstance(error, ModuleNotFoundError) else ""
    return f"{type(error).__name__}: {error}{hint}"
