"""Where dask finds its workers: processes started here, a scheduler that somebody runs, or SLURM jobs.

A cluster has a fixed size: an adaptive one leaves workers with resources idle (dask-jobqueue #230, #304).
"""

from __future__ import annotations

import logging
import shlex
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.backends.section import MEMORY, OWN_DIRECTIVES, Address, BackendError, Section, Slurm
from bench.guard import PROJECT

if TYPE_CHECKING:
    from distributed import Client

    from bench.devices import Device

# Ctrl-C in the terminal is the front's to hand on; a worker that it reached would take its cells along.
IGNORE_INTERRUPTS = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
NO_DASHBOARD = {"dashboard": False, "dashboard_address": ":0"}


@dataclass(frozen=True)
class Worker:
    """One of dask's: its name, how many devices it was started with, and the CPU threads that it may use."""

    name: str
    devices: int
    threads: int


@dataclass(frozen=True)
class Cluster:
    """Workers to be.

    Attributes:
        client: the connection to their scheduler.
        resource: what of them a device is, "GPU" or "CPU".
        start: how a worker with that resource comes to be, for people who wait for one.
        renew: has jobs that are gone submitted again.
        errors: what SLURM said to jobs that it did not take.
    """

    client: Client
    resource: str
    start: str
    renew: Callable[[], object] = lambda: None
    errors: list[str] = field(default_factory=list)

    def workers(self) -> dict[str, Worker]:
        """The workers that have devices, by address.

        Raises:
            BackendError: the scheduler does not answer any more.
        """
        found = {
            address: Worker(str(worker["name"]), int(worker["resources"].get(self.resource, 0)), worker["nthreads"])
            for address, worker in self._all().items()
        }
        return {address: worker for address, worker in found.items() if worker.devices}

    def _all(self) -> dict[str, dict[str, Any]]:
        try:
            return self.client.scheduler_info(n_workers=-1)["workers"]
        except OSError as error:
            raise BackendError(f"the dask scheduler is gone ({error}); the same command goes on from here") from None

    def missing(self) -> str:
        """What is there while no worker has a device, and what is wanted."""
        count = len(self._all())
        there = f"{count} workers are there, none with the resource {self.resource}" if count else "no worker is there"
        return f"{there}; {self.start}"


@contextmanager
def connect(section: Section, *, devices: Sequence[Device], results: Path) -> Iterator[Cluster]:
    """The cluster that a section describes; what was started here is ended in the end, what others run goes on.

    Args:
        section: which.
        devices: of this machine, one for each worker that is to be started on it.
        results: the results folder, in which the output of SLURM jobs is kept.

    Raises:
        BackendError: dask is not installed, nobody answers, or SLURM does not take a job.
    """
    require(section)
    logging.getLogger("distributed").setLevel(logging.ERROR)  # a worker that is lost is said by the run
    if isinstance(section, Address):
        opened = _address(section)
    elif isinstance(section, Slurm):
        opened = _slurm(section, results)
    else:
        opened = _local(len(devices), "CPU" if devices[0].device == "cpu" else "GPU")
    with opened as cluster:
        yield cluster


def require(section: Section) -> None:
    """Make sure that the packages a section needs are here.

    Raises:
        BackendError: they are not.
    """
    try:
        import distributed  # noqa: F401

        if isinstance(section, Slurm):
            _import_jobqueue()
    except ImportError as error:
        raise BackendError(
            f"--backend dask needs {error.name}, which is not installed here; the extra `cluster` brings it: "
            f"pip install -e '{PROJECT}[cluster]'"
        ) from None


def _import_jobqueue() -> None:
    """Import dask-jobqueue, which takes Ctrl-C over when it is imported first (0.9.0, in its ``runner``)."""
    handler = signal.getsignal(signal.SIGINT)
    import dask_jobqueue  # noqa: F401

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, handler)


@contextmanager
def _local(count: int, resource: str) -> Iterator[Cluster]:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            resources={resource: 1},
            memory_limit=0,
            preload=IGNORE_INTERRUPTS,
            dashboard_address=None,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield Cluster(client, resource, f"{count} worker processes of this machine are being started")


@contextmanager
def _address(section: Address) -> Iterator[Cluster]:
    from distributed import Client

    try:
        client = Client(section.address, timeout=section.timeout)
    except OSError as error:
        raise BackendError(
            f"no dask scheduler answers at {section.address} within {section.timeout:g} s ({error}); start one with "
            "`dask scheduler`, or correct the address"
        ) from None
    start = f"start one with: dask worker {section.address} --resources {section.resource}=1 (in {PROJECT})"
    with client:
        yield Cluster(client, section.resource, start)


@contextmanager
def _slurm(section: Slurm, results: Path) -> Iterator[Cluster]:
    from dask_jobqueue import SLURMCluster
    from dask_jobqueue.slurm import SLURMJob
    from distributed import Client
    from distributed.core import Status

    errors: list[str] = []

    class Job(SLURMJob):
        async def start(self) -> None:
            try:
                await super().start()
            except (OSError, RuntimeError, ValueError) as error:  # dask would log it, and wait for the job for ever
                errors.append(" ".join(str(error).split()))
                self.status = Status.failed
                raise

    logs = _logs(section, results)
    logs.mkdir(parents=True, exist_ok=True)
    logging.getLogger("tornado.application").setLevel(logging.CRITICAL)
    options = {"interface": section.interface, **NO_DASHBOARD}
    try:
        cluster = SLURMCluster(job_cls=Job, scheduler_options=options, silence_logs="critical", **job(section, results))
    except (OSError, ValueError, RuntimeError) as error:
        raise BackendError(f"the dask scheduler for the SLURM jobs cannot be started here: {error}") from None
    start = f"{section.jobs} SLURM jobs were submitted; squeue says what they wait for, their output comes to {logs}"

    def submit() -> None:
        cluster.scale(jobs=section.jobs)

    with cluster, Client(cluster) as client:
        submit()
        yield Cluster(client, section.resource, start, submit, errors)


def describe(section: Section, devices: Sequence[Device], results: Path) -> str:
    """What would be started, in words; of SLURM jobs the script."""
    if isinstance(section, Address):
        return f"on the workers with the resource {section.resource} of the dask scheduler at {section.address}"
    if isinstance(section, Slurm):
        return f"{section.jobs} SLURM jobs of this script:\n\n{job_script(section, results)}"
    return f"on {len(devices)} dask workers of this machine: {', '.join(device.label for device in devices)}"


def job_script(section: Slurm, results: Path) -> str:
    """The script of one job as dask-jobqueue submits it; nothing is started or written."""
    require(section)
    from dask_jobqueue.slurm import SLURMJob

    return SLURMJob("tcp://<address of this machine>:<port>", name="<worker>", **job(section, results)).job_script()


def job(section: Slurm, results: Path) -> dict[str, Any]:
    """A section as the arguments of dask-jobqueue."""
    amount, unit = MEMORY.fullmatch(section.memory).group(1, 2)
    directives = [f"--output={shlex.quote(str(_logs(section, results) / '%x-%j.log'))}", *section.directives]
    if section.gpus and not any(word.startswith(OWN_DIRECTIVES) for word in section.directives):
        directives.insert(0, f"--gres=gpu:{section.gpus}")
    path = f"export PYTHONPATH={shlex.quote(str(PROJECT))}${{PYTHONPATH:+:$PYTHONPATH}}"
    return {
        "job_name": "bench-worker",
        "queue": section.partition,
        "account": section.account,
        "walltime": section.walltime,
        "cores": section.cores,
        "memory": f"{amount}{unit}iB",
        "job_mem": f"{amount}{unit}",
        "processes": 1,
        "job_extra_directives": directives,
        "job_script_prologue": [*section.prologue, path],
        "python": section.python,
        "interface": section.interface,
        "worker_extra_args": ["--resources", f"{section.resource}={max(1, section.gpus)}", "--no-dashboard"],
    }


def _logs(section: Slurm, results: Path) -> Path:
    return (Path(section.logs) if section.logs else results / "slurm").resolve()
