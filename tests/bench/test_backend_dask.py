"""Cells on dask workers: real schedulers, workers and processes; only what a cell does is a stub that takes no time.

There is no SLURM here. In its place are an ``sbatch`` and a ``scancel`` that run a job's script on this machine.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

pytest.importorskip("distributed")

import dask
from distributed import Client, LocalCluster

from bench import devices, matrix
from bench.backends import cluster, section, worker
from bench.backends import dask as module
from bench.backends.dask import Front, places
from bench.backends.section import BackendError
from bench.plan import Planned
from bench.run import main
from bench.scheduler import CellOptions
from bench.store import Results, read_json

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path / "results")


@pytest.fixture
def cells(results: Results, tmp_path: Path, stub_matrix: Callable[..., Path]) -> Callable[..., list[Planned]]:
    """Planned cells, whose work is a stub's that takes a moment; ``held``, it waits for the file ``go on``."""

    def plan(count: int, *, held: bool = False, state: str = "planned") -> list[Planned]:
        file = stub_matrix(count, 0.3, tmp_path / "go on" if held else None)
        entered = matrix.expand(matrix.read(str(file)), precision="fp32")
        for item in entered:
            results.cell(item.cell.id).create(item.cell, {})
        return [Planned(item, state, True) for item in entered]

    return plan


def front(results: Results, at: section.Section, wanted: str = "cpu", **options) -> Front:
    return Front(results, at, places(at, wanted), CellOptions(), **options)


def committed(results: Results, cell: str) -> int:
    """How many attempts of a cell were committed."""
    return [attempt.ended() for attempt in results.cell(cell).attempts()].count("committed")


def workers() -> list[psutil.Process]:
    """The processes of this one's dask workers."""
    return [child for child in psutil.Process().children(recursive=True) if "spawn_main" in "".join(child.cmdline())]


def in_background(what: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=what, daemon=True)
    thread.start()
    return thread


def test_a_lost_workers_cell_runs_again_elsewhere_and_every_cell_once(results, cells, tmp_path, wait_for):
    """Two worker processes; the one that has the cell that was seen second is killed in its midst."""
    planned, said, started = cells(8, held=True), [], []

    def kill() -> None:
        cell = results.cell(wait_for(lambda: started[1:])[0].planned.id)
        (attempt,) = cell.attempts()
        pid = read_json(attempt.path / "claim.json")["pid"]
        next(parent for parent in psutil.Process(pid).parents() if parent in workers()).kill()
        wait_for(lambda: not attempt.alive())
        (tmp_path / "go on").touch()

    run = front(results, section.LocalCluster(), "cpu:2", on_remark=said.append, on_start=started.append)
    thread = in_background(kill)
    outcomes = list(run.run(planned))
    thread.join()
    assert {outcome.id: outcome.state for outcome in outcomes} == {cell.id: "done" for cell in planned}
    assert len(outcomes) == 8
    assert [committed(results, cell.id) for cell in planned] == [1] * 8
    begun = {cell.id: len(results.cell(cell.id).attempts()) for cell in planned}
    lost = started[1].planned.id
    assert begun == {**dict.fromkeys(begun, 1), lost: 2}, "the cell of the killed worker was begun twice"
    assert any("a worker is gone" in line for line in said)
    assert {seen.slot.label.split(" ", 1)[1] for seen in started[:2]} == {"cpu 0", "cpu 1"}, "both had cells"
    assert not list(results.path.glob(".run-*"))
    variables = results.cell(planned[0].id).result()["seen"]["variables"]
    assert not {"MKL_NUM_THREADS", "MALLOC_TRIM_THRESHOLD_"} & set(variables), "dask's own settings reach no cell"


@pytest.fixture
def running_scheduler() -> Iterator[LocalCluster]:
    """A scheduler that somebody runs, with one worker that has a CPU, both in this process."""
    with LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        processes=False,
        protocol="tcp://",
        resources={"CPU": 1},
        dashboard_address=None,
    ) as somebodys:
        yield somebodys


def at(somebodys: LocalCluster, resource: str = "CPU") -> section.Address:
    return section.Address(kind="address", address=somebodys.scheduler_address, resource=resource)


def test_a_stop_interrupts_the_cells_and_leaves_a_foreign_scheduler_running(
    results, cells, running_scheduler, wait_for
):
    planned = cells(3, held=True)
    run = front(results, at(running_scheduler))
    thread = in_background(lambda: (wait_for(run.running), run.stop()))
    outcomes = list(run.run(planned))
    thread.join()
    assert [outcome.state for outcome in outcomes] == ["interrupted", "not started", "not started"]
    assert [results.cell(cell.id).status()["state"] for cell in planned] == ["interrupted", "planned", "planned"]
    with Client(running_scheduler.scheduler_address) as client:
        assert client.submit(int, "3").result(timeout=60) == 3, "its worker is free again"


def test_cells_that_are_run_again_are_run_once_each(results, cells, running_scheduler):
    """Another device's task comes when they have been done already."""
    planned = cells(2, state="stale")
    for cell in planned:
        results.cell(cell.id).claim().commit([], {})
    run = front(results, at(running_scheduler))
    assert [outcome.state for outcome in run.run(planned)] == ["done", "done"]
    assert [committed(results, cell.id) for cell in planned] == [2, 2]
    late = worker.Work(
        sign=results.path,
        token="",
        results=results.path,
        cells=tuple(planned),
        before={cell.id: {"state": "done", "attempt": 1} for cell in planned},
        watched=(),
        options=CellOptions(),
    )
    assert all(worker._ended(cell, late) for cell in planned)


def test_without_a_worker_that_has_a_device_it_says_what_is_missing(
    results, cells, running_scheduler, monkeypatch, wait_for
):
    monkeypatch.setattr(module, "FIRST_WORD", 0.5)
    said: list[str] = []
    run = front(results, at(running_scheduler, "GPU"), on_remark=said.append)
    thread = in_background(lambda: (wait_for(lambda: said), run.stop()))
    outcomes = list(run.run(cells(1)))
    thread.join()
    assert [outcome.state for outcome in outcomes] == ["not started"]
    assert "1 workers are there, none with the resource GPU" in said[0]
    assert f"dask worker {running_scheduler.scheduler_address} --resources GPU=1" in said[0]


def test_a_worker_that_sees_no_gpu_is_named(results, cells, running_scheduler, monkeypatch):
    async def give_gpus(dask_worker: object) -> None:
        await dask_worker.set_resources(GPU=2)

    with Client(running_scheduler.scheduler_address) as client:
        client.run(give_gpus)
        monkeypatch.setattr(worker, "devices", lambda *_, **__: devices.devices("cpu"))
        with pytest.raises(BackendError, match="--resources GPU=2, but has 0 GPUs that torch can use"):
            list(front(results, at(running_scheduler, "GPU")).run(cells(1)))


def work(results: Results, **more) -> worker.Work:
    """What a task is told, with the front's file in place."""
    told = worker.Work(
        sign=results.path / ".run-1",
        token="1",
        results=results.path,
        cells=(),
        before={},
        watched=(),
        options=CellOptions(),
    )
    return worker.replace(told, **more)


def test_a_worker_that_does_not_see_the_folders_says_so(results, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "VISIBLE_SECONDS", 0.2)
    results.path.mkdir()
    (results.path / ".run-1").write_text("{} 1")
    worker.check_folders(work(results, data=(tmp_path,)))
    for other in ({"sign": tmp_path / "elsewhere" / ".run-1"}, {"token": "2"}, {"sign": results.path / ".run-3"}):
        with pytest.raises(BackendError, match="does not see the results folder .* --results"):
            worker.check_folders(work(results, **other))
    with pytest.raises(BackendError, match="does not see .*isic2017.* --data-root"):
        worker.check_folders(work(results, data=(tmp_path, tmp_path / "isic2017")))


class Clock:
    """A clock that says what it is told, and is looked at once in each round of what looks at it."""

    now, looks = 0.0, 0

    def monotonic(self) -> float:
        self.looks += 1
        return self.now


@pytest.mark.parametrize("how", ["removed", "not touched"])
def test_a_task_stops_when_the_front_is_gone(tmp_path, monkeypatch, wait_for, how):
    """The front's file is touched shortly before it would be too late, ten times."""
    monkeypatch.setattr(worker, "FOLLOW_SECONDS", 0.005)
    monkeypatch.setattr(worker, "time", clock := Clock())
    sign, stopped = tmp_path / ".run-1", threading.Event()

    class Scheduler:
        stop = staticmethod(stopped.set)

    def pass_by(seconds: float) -> None:
        clock.now += seconds
        looks = clock.looks
        wait_for(lambda: clock.looks > looks + 1 or stopped.is_set())

    sign.touch()
    thread = in_background(lambda: worker._follow(sign, Scheduler(), threading.Event()))
    for second in range(10):
        os.utime(sign, (second, second))  # whatever the time is there, it changes
        pass_by(0)
        pass_by(worker.LOST_SECONDS - 1)
    assert not stopped.is_set()
    if how == "removed":
        sign.unlink()
    else:
        pass_by(2)
    assert stopped.wait(60)
    thread.join()


def test_an_address_that_does_not_answer(results, cells):
    nobody = section.Address(kind="address", address="tcp://127.0.0.1:1", timeout=0.5)
    with pytest.raises(BackendError, match="no dask scheduler answers at tcp://127.0.0.1:1 within 0.5 s"):
        list(front(results, nobody).run(cells(1)))
    assert not list(results.path.glob(".run-*"))


def test_without_dask_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(BackendError, match=r"needs distributed.*pip install -e '.*\[cluster\]'"):
        cluster.require(section.LocalCluster())


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[section.Slurm]:
    """A section for jobs without GPUs; ``sbatch`` starts a job here, ``scancel`` ends it, a file has their numbers."""
    folder = tmp_path / "bin"
    folder.mkdir()
    commands = {
        "sbatch": f'cp "$1" {tmp_path}/script; setsid bash {tmp_path}/script > {tmp_path}/job.log 2>&1 & '
        f'echo $! >> {tmp_path}/jobs; echo "Submitted batch job $!"',
        "scancel": 'kill -- "-$1"',
    }
    for name, command in commands.items():
        (folder / name).write_text(f"#!/bin/bash\n{command}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    yield section.Slurm(kind="slurm", gpus=0, cores=2, memory="1G", walltime="1:00", interface="lo")
    for pid in map(int, (tmp_path / "jobs").read_text().split() if (tmp_path / "jobs").exists() else ()):
        with suppress(psutil.NoSuchProcess):
            for process in [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]:
                process.kill()


def test_cells_run_in_jobs_of_a_batch_system(results, cells, slurm, tmp_path, wait_for):
    planned = cells(2)
    assert [outcome.state for outcome in front(results, slurm).run(planned)] == ["done", "done"]
    submitted, printed = (tmp_path / "script").read_text(), cluster.job_script(slurm, results.path)
    assert re.sub(r"tcp://\S+|--name \S+", "", submitted) == re.sub(r"tcp://<[^>]*>:<port>|--name \S+", "", printed), (
        "what --dry-run shows is what is submitted"
    )
    words = results.cell(planned[0].id).result()["seen"]["words"]
    assert words[words.index("--threads") + 1] == "2", "the cores of the job"
    (pid,) = (tmp_path / "jobs").read_text().split()
    wait_for(lambda: not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == "zombie")


def test_a_job_that_was_ended_is_submitted_again(results, cells, slurm, tmp_path, monkeypatch, wait_for):
    """As at the end of its walltime."""
    monkeypatch.setattr(module, "RENEW_SECONDS", 1.0)
    planned, jobs = cells(3, held=True), tmp_path / "jobs"

    def end_job() -> None:
        wait_for(lambda: any(cell.status()["state"] == "running" for cell in results.cells()))
        os.killpg(int(jobs.read_text()), signal.SIGKILL)
        (tmp_path / "go on").touch()

    thread = in_background(end_job)
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "1s"}):
        outcomes = list(front(results, slurm).run(planned))
    thread.join()
    assert [outcome.state for outcome in outcomes] == ["done"] * 3
    assert [committed(results, cell.id) for cell in planned] == [1] * 3
    assert len(jobs.read_text().split()) == 2


def test_a_job_that_is_refused_ends_the_run(results, cells, slurm, tmp_path):
    (tmp_path / "bin" / "sbatch").write_text('#!/bin/bash\necho "sbatch: error: invalid partition" >&2; exit 1\n')
    with pytest.raises(BackendError, match="a job was not submitted: .*invalid partition"):
        list(front(results, slurm).run(cells(1)))


def test_ctrl_c_in_the_terminal_interrupts_the_cells_of_workers_too(cells, results, tmp_path, wait_for):
    """It reaches every process of the terminal, so the workers must leave it to the one that started them."""
    planned = cells(3, held=True)
    words = ["--matrix", str(tmp_path / "stubs.toml"), "--results", str(results.path), "--devices", "cpu:2"]
    run = subprocess.Popen(
        [sys.executable, "-m", "bench.run", *words, "--backend", "dask", "--no-tracking"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        wait_for(lambda: sum(cell.status()["state"] == "running" for cell in results.cells()) == 2)
        os.killpg(run.pid, signal.SIGINT)
        shown, _ = run.communicate(timeout=120)
    finally:
        run.kill()
    assert run.returncode == 130, shown
    assert "Traceback" not in shown
    assert "executed 2 cells: 2 interrupted, 1 not started" in shown
    reasons = [(status["state"], status["reason"]) for status in (results.cell(cell.id).status() for cell in planned)]
    assert reasons == [("interrupted", "stopped by a signal")] * 2 + [("planned", None)]


def test_a_dry_run_shows_the_job_script_and_writes_nothing(cells, results, tmp_path, capsys):
    cells(1)
    text = (tmp_path / "stubs.toml").read_text()
    section_text = '[backend]\nkind = "slurm"\njobs = 3\ncores = 4\nmemory = "8G"\nwalltime = "1:00:00"\n[[cells]]'
    (tmp_path / "slurm.toml").write_text(text.replace("[[cells]]", section_text))
    elsewhere = tmp_path / "other"
    assert main(["--matrix", str(tmp_path / "slurm.toml"), "--results", str(elsewhere), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "3 SLURM jobs of this script:" in shown
    assert "#SBATCH --gres=gpu:1" in shown and "--resources GPU=1" in shown
    assert "1 to run on dask workers" in shown
    assert not elsewhere.exists()
