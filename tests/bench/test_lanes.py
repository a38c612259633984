"""Lanes: the next process started ahead, retries after running out of memory, limits of time, shares of cores."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import psutil
import pytest

from bench import lane as module
from bench import scheduler
from bench.busy import Busy
from bench.devices import Device, Slot
from bench.durations import duration, seconds_of
from bench.matrix import Entered
from bench.plan import Planned
from bench.scheduler import CellOptions, Outcome, Scheduler
from bench.spec import Cell
from bench.store import Results, read_json
from bench.tasks import Task

CPU = Device.of(Slot("cpu", "cpu", 1))
HOUR = 3600.0
# A cell's process that can be held, without torch; what happened when stands in its log.
CELL = """
import json, os, sys, time
from pathlib import Path
from bench.signs import ENDING, READY, WORKED, WORKING, listen_to_parent, say
from bench.store import CellFolder

folder, words = CellFolder(Path(sys.argv[1])), sys.argv[2:]

def note(what):
    print(json.dumps([what, time.monotonic(), os.getpid(), words]), flush=True)

free = listen_to_parent()
note("started")
if "--hold" in words:
    say(READY)
    free.wait()
attempt = folder.claim()
folder.set_state("running", attempt=attempt.number)
say(WORKING)
note("claimed")

def wait():
    while not (folder.path / "go on").exists():
        time.sleep(0.02)

def commit():
    attempt.commit([], {"attempt": attempt.number})
    say(WORKED)
    note("worked")

def out_of_memory():
    attempt.revoke()
    folder.set_state("oom", reason="too big", attempt=attempt.number)
    sys.exit(1)

"""
TOLD = CELL + "say(ENDING); wait(); commit()"


class Stub(Scheduler):
    """Runs a script in place of ``python -m bench.cell``, with the words that this would get.

    Attributes:
        seen: the cells whose processes were started and went to work, in that order.
    """

    script = ""

    def __init__(self, *given, **options) -> None:
        self.seen: list[tuple[str, str]] = []
        super().__init__(*given, on_start=lambda one: self.seen.append(("works", one.planned.id)), **options)

    def _command(self, task: Task, slot: Slot) -> list[str]:
        self.seen.append(("starts", task.id))
        folder = self.results.cell(task.id).path.resolve()
        return [sys.executable, "-c", self.script, str(folder), *super()._command(task, slot)[4:]]


@pytest.fixture
def results(tmp_path) -> Results:
    return Results(tmp_path)


@pytest.fixture
def plan(results) -> Callable[[int], list[Planned]]:
    """Makes planned cells."""

    def make(count: int) -> list[Planned]:
        cells = []
        for seed in range(count):
            cell = Cell({"dataset": {"name": "shapes"}, "method": {"name": "lora"}, "seed": seed, "regime": {}})
            results.cell(cell.id).create(cell, {})
            cells.append(Planned(Entered(cell), "planned", True))
        return cells

    return make


def stub(results: Results, script: str, device: Device = CPU, **options) -> Stub:
    made = Stub(results, [device], CellOptions(), **options)
    made.script = script
    return made


def notes(results: Results, cell: Planned, what: str) -> list[tuple[float, int, list[str]]]:
    """Time, process and words of each time that something happened to a cell."""
    log = results.cell(cell.id).path / "log.txt"
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("[")] if log.exists() else []
    return [(at, pid, words) for said, at, pid, words in lines if said == what]


def when(what: Callable[[], object], do: Callable[[], None]) -> threading.Thread:
    """Does something as soon as something is true, or when there is no hope that it will be."""

    def watch() -> None:
        deadline = time.monotonic() + 120
        while not what() and time.monotonic() < deadline:
            time.sleep(0.02)
        do()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def tell(results: Results, cell: Planned) -> None:
    """Lets a cell that waits go on."""
    (results.cell(cell.id).path / "go on").touch()


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_the_next_process_is_started_ahead_and_waits_for_the_device(results, plan):
    cells = plan(3)
    run = stub(results, TOLD)
    for one, other in pairwise(cells):
        when(partial(notes, results, other, "started"), partial(tell, results, one))
    tell(results, cells[-1])
    assert [outcome.state for outcome in run.run(cells)] == ["done"] * 3
    first, second, third = (cell.id for cell in cells)
    both = [("starts", first), ("works", first), ("starts", second), ("works", second)]
    assert run.seen == [*both, ("starts", third), ("works", third)], "one at a time is prepared"
    for one, other in pairwise(cells):
        ((worked, _, _),) = notes(results, one, "worked")
        ((started, pid, words),) = notes(results, other, "started")
        ((claimed, same, _),) = notes(results, other, "claimed")
        assert started < worked < claimed, "prepared during the cell before, claimed after it"
        assert claimed - worked < 10
        assert "--hold" in words and pid == same
    ((_, _, words),) = notes(results, cells[0], "started")
    assert "--hold" not in words
    (busy,) = run.busy
    assert len(busy.spans) == 3 and max(busy.gaps()[1:]) < 10


def test_a_prepared_process_gives_way_to_a_retry(results, plan):
    """The first cell runs out of memory in its end: it is run again first, then a new process runs the second."""
    first, second = plan(2)
    script = CELL + "say(ENDING); wait(); out_of_memory() if attempt.number == 1 and '-s0-' in folder.id else commit()"
    when(lambda: notes(results, second, "started"), lambda: tell(results, first))
    tell(results, second)
    assert {outcome.id: outcome.state for outcome in stub(results, script).run([first, second])} == {
        first.id: "done",
        second.id: "done",
    }
    assert len(notes(results, first, "claimed")) == 2
    started, claimed = notes(results, second, "started"), notes(results, second, "claimed")
    assert len(claimed) == 1 and claimed[0][0] > notes(results, first, "worked")[0][0]
    assert len(started) == 2 and not alive(started[0][1])


def test_a_stop_ends_a_prepared_process_at_once(results, plan):
    first, second = plan(2)
    run = stub(results, CELL + "say(ENDING); time.sleep(300)")
    thread = when(lambda: notes(results, second, "started"), run.stop)
    ends = {outcome.id: outcome.state for outcome in run.run([first, second])}
    thread.join()
    assert ends == {first.id: "interrupted", second.id: "not started"}
    assert not alive(notes(results, second, "started")[0][1])
    assert results.cell(second.id).status()["state"] == "planned" and not results.cell(second.id).attempts()


def test_a_prepared_process_that_was_killed_is_replaced(results, plan):
    first, second = plan(2)

    def kill() -> None:
        ((_, pid, _),) = notes(results, second, "started")
        psutil.Process(pid).kill()
        while alive(pid):
            time.sleep(0.01)
        tell(results, first)

    when(lambda: notes(results, second, "started"), kill)
    tell(results, second)
    assert [outcome.state for outcome in stub(results, TOLD).run([first, second])] == ["done", "done"]
    assert len(notes(results, second, "started")) == 2


def test_out_of_memory_is_tried_alone_then_with_less_and_all_of_it_is_on_record(results, plan):
    (cell,) = plan(1)
    remarks: list[str] = []
    script = (
        CELL + "commit() if words[words.index('--threads') + 2:][:2] == ['--micro-batch', '1'] else out_of_memory()"
    )
    (outcome,) = stub(results, script, on_remark=remarks.append).run([cell])
    assert outcome.state == "done"
    words = [" ".join(words[words.index("--threads") + 2 :]) for _, _, words in notes(results, cell, "started")]
    assert words == [
        "",
        "--oom-retries 1",
        "--micro-batch 2 --oom-retries 2",
        "--micro-batch 1 --oom-retries 3",
    ]
    tries = [f"out of memory; once more, alone on cpu{more}" for more in ("", ", micro-batch 2", ", micro-batch 1")]
    assert remarks == [f"{cell.id}: {line}" for line in tries]
    log = (results.cell(cell.id).path / "log.txt").read_text()
    assert all(f" {line}\n" in log for line in tries)


def test_a_cell_that_is_tried_again_is_no_failure_meanwhile(results, plan):
    """Whoever looks, or finds it after the run was killed, sees that it is to go on."""
    (cell,) = plan(1)
    run = stub(results, CELL + "out_of_memory() if attempt.number == 1 else time.sleep(300)")
    seen: list[dict] = []

    def look(line: str) -> None:
        seen.append(read_json(results.cell(cell.id).path / "status.json"))
        run.stop()

    run._on_remark = look
    (outcome,) = run.run([cell])
    assert (outcome.state, seen[0]["state"], seen[0]["attempt"]) == ("not started", "interrupted", 1)


@pytest.mark.parametrize(
    ("first", "late", "state"),
    [("time.sleep(300)", "claimed", "timeout"), ("commit(); time.sleep(300)", "worked", "done")],
)
def test_a_cell_that_takes_too_long_is_ended(results, plan, monkeypatch, first, late, state):
    """For its lane two hours pass as soon as the first cell says ``late``, and none for the second."""
    cells = plan(2)
    run = stub(results, CELL + f"if '-s1-' in folder.id:\n    commit()\nelse:\n    {first}", timeout=HOUR)

    def clock() -> float:
        heard = any(one.planned.id == cells[0].id and one.working for one, _ in run.running())
        return time.monotonic() + (2 * HOUR if heard and notes(results, cells[0], late) else 0)

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock))
    ends = {outcome.id: (outcome.state, outcome.reason) for outcome in run.run(cells)}
    reason = "took longer than 1h00m (--timeout)" if state == "timeout" else ""
    assert ends == {cells[0].id: (state, reason), cells[1].id: ("done", "")}, "and the run goes on"
    assert read_json(results.cell(cells[0].id).path / "status.json")["state"] == state


def test_a_run_whose_outcomes_nobody_takes_ends_its_cells(results, plan):
    cells = plan(3)
    run = stub(results, CELL + "commit() if '-s0-' in folder.id else time.sleep(300)")
    outcomes = run.run(cells)
    assert next(outcomes).state == "done"
    when(lambda: notes(results, cells[1], "claimed"), lambda: None).join()
    outcomes.close()
    assert not alive(notes(results, cells[1], "claimed")[0][1])


def test_cells_share_the_cores(results, plan, monkeypatch):
    """Each gets what the cells at work leave it when it starts; when the first one does, both may have been taken."""
    monkeypatch.setattr(scheduler, "cores", lambda: 8)
    slot = Slot("gpu 0", "cuda:0", 8).with_threads(8)
    script = CELL + "print(json.dumps(['omp', os.environ['OMP_NUM_THREADS'], 0, 0]), flush=True); wait(); commit()"
    cells = plan(2)
    for one, other in (cells, cells[::-1]):
        when(partial(notes, results, other, "started"), partial(tell, results, one))
    list(stub(results, script, Device("gpu 0", (slot, slot))).run(cells))
    given = sorted(
        words[words.index("--threads") + 1] for cell in cells for _, _, words in notes(results, cell, "started")
    )
    assert given in (["4", "8"], ["4", "4"])
    heard = [(results.cell(cell.id).path / "log.txt").read_text().partition('"omp", "')[2][0] for cell in cells]
    assert sorted(heard) == given


def test_a_lane_that_breaks_ends_the_run_with_its_error(results, plan, monkeypatch):
    def broken(self, task: Task) -> Outcome:
        raise KeyError("lane")

    monkeypatch.setattr(module.Lane, "_run", broken)
    with pytest.raises(KeyError, match="lane"):
        list(stub(results, TOLD).run(plan(2)))


def test_how_busy_a_device_was():
    busy = Busy("gpu 0", began=100.0)
    assert str(busy) == "gpu 0: no cells"
    busy.add(110.0, 150.0)
    assert str(busy) == "gpu 0: busy 80 % of 50s, 1 cell"
    for span in ((150.5, 200.0), (160.0, 190.0), (202.0, 300.0)):
        busy.add(*span)
    assert busy.gaps() == [10.0, 0.5, 2.0]
    assert str(busy) == "gpu 0: busy 94 % of 3m20s, 4 cells, waited at most 2.0 s between two"


@pytest.mark.parametrize(
    ("text", "seconds"), [("8h", 28800), ("45m", 2700), ("1h30m", 5400), ("2d", 172800), ("90s", 90), ("0.5h", 1800)]
)
def test_lengths_of_time(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "8", "h", "8 h", "-1h", "0s", "8hours", "1h x"])
def test_what_is_no_length_of_time(text):
    with pytest.raises(ValueError, match="write e.g. 8h"):
        seconds_of(text)


def test_durations_as_people_read_them():
    assert [duration(seconds) for seconds in (None, 0, 59.9, 60, 3599, 7620)] == [
        "",
        "0s",
        "59s",
        "1m00s",
        "59m59s",
        "2h07m",
    ]
