"""Two ``python -m bench.run`` on one results folder, as processes of their own; what a cell does is a stub's."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest

from bench.store import CellFolder, Results, read_json
from bench.tracking_store import Store, _create_database

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stub_matrix: Callable[..., Path]
) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts a scheduler with one CPU lane on a matrix of so many cells, which wait for the file ``go on``."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    started = []

    def run(*more: str, cells: int, seconds: float = 0.0) -> subprocess.Popen:
        words = [
            "--matrix",
            str(stub_matrix(cells, seconds, tmp_path / "go on")),
            "--results",
            str(tmp_path / "results"),
            "--devices",
            "cpu",
            *more,
        ]
        command = [sys.executable, "-m", "bench.run", *words]
        started.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()


def commits(cell: CellFolder) -> int:
    return [attempt.ended() for attempt in cell.attempts()].count("committed")


def parent(cell: CellFolder) -> int:
    """The scheduler whose process committed the cell."""
    return cell.result()["seen"]["parent"]


def claimed(results: Results, scheduler: subprocess.Popen) -> set[str]:
    """The cells that processes of a scheduler have."""
    found = set()
    for path in results.path.glob("cells/*/attempts/*/claim.json"):
        with suppress(psutil.NoSuchProcess):
            if psutil.Process(read_json(path)["pid"]).ppid() == scheduler.pid:
                found.add(path.parents[2].name)
    return found


def test_two_share_the_work_and_one_writes_mlflow(start, tmp_path, wait_for):
    results = Results(tmp_path / "results")
    results.path.mkdir()
    database = Path(Store(results.path).uri.removeprefix("sqlite:///"))
    _create_database(database)
    first, second = start(cells=10, seconds=0.3), start(cells=10, seconds=0.3)
    wait_for(lambda: claimed(results, first) and claimed(results, second))
    (tmp_path / "go on").touch()
    shown = [process.communicate(timeout=300)[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), shown
    cells = list(results.cells())
    assert [cell.status()["state"] for cell in cells] == ["done"] * 10
    assert [commits(cell) for cell in cells] == [1] * 10
    shares = Counter(parent(cell) for cell in cells)
    assert set(shares) == {first.pid, second.pid} and min(shares.values()) >= 2, shares
    assert all("MLflow is up to date" in output or "MLflow is written by" in output for output in shown), shown
    with closing(sqlite3.connect(database)) as store:
        logged = [cell for (cell,) in store.execute("select value from tags where key = 'cell'")]
    assert sorted(logged) == [cell.id for cell in cells], "every cell once, whoever ran it"


def test_one_takes_over_what_the_other_left_when_it_was_killed(start, tmp_path, wait_for):
    results = Results(tmp_path / "results")
    victim, other = start("--no-tracking", cells=8), start("--no-tracking", cells=8)
    wait_for(lambda: claimed(results, victim) and claimed(results, other))
    (left,) = claimed(results, victim)
    victim.kill()
    victim.communicate()
    wait_for(lambda: not any(attempt.alive() for attempt in results.cell(left).attempts()))
    (tmp_path / "go on").touch()
    shown, _ = other.communicate(timeout=300)
    assert other.returncode == 0, shown
    cells = list(results.cells())
    assert [cell.status()["state"] for cell in cells] == ["done"] * 8
    assert [commits(cell) for cell in cells] == [1] * 8
    assert parent(results.cell(left)) == other.pid
    assert [attempt.ended() for attempt in results.cell(left).attempts()] == ["revoked", "committed"]
