"""Processes that end in every possible way, run by the scheduler in place of real cells, which start in seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

import psutil
import pytest

from bench import queueing
from bench import scheduler as module
from bench.backends.local import dispatch
from bench.devices import Device, Slot, devices
from bench.matrix import Entered
from bench.plan import Planned
from bench.process import settle
from bench.scheduler import CellOptions, Outcome, Scheduler
from bench.spec import Cell
from bench.store import Results, read_json
from bench.tasks import Task

ROOT = Path(__file__).resolve().parents[2]
CPU = Device.of(Slot("cpu", "cpu", 1))
# What a cell's process does before its work: it takes the cell and says so.
CLAIM = """
import json, os, signal, sys, time
from pathlib import Path
from bench.store import CellFolder
folder = CellFolder(Path(sys.argv[1]))
attempt = folder.claim()
folder.set_state("running", attempt=attempt.number)

def commit():
    attempt.commit([], {"attempt": attempt.number})

def record(state, reason):
    attempt.revoke()
    folder.set_state(state, reason=reason, attempt=attempt.number)
    sys.exit(1)

def die(number):
    os.kill(os.getpid(), number)

"""


class Stub(Scheduler):
    """Runs a script with the cell's folder as its argument in place of ``python -m bench.cell``."""

    script = ""

    def _command(self, task: Task, slot: Slot) -> list[str]:
        return [sys.executable, "-c", self.script, str(self.results.cell(task.id).path.resolve())]


@pytest.fixture
def results(tmp_path) -> Results:
    return Results(tmp_path)


@pytest.fixture
def plan(results) -> Callable:
    """Makes planned cells."""

    def make(count: int = 1, state: str = "planned") -> list[Planned]:
        cells = []
        for seed in range(count):
            spec = {"dataset": {"name": "shapes"}, "method": {"name": "lora"}, "seed": seed, "regime": {}}
            cell = Cell(spec)
            results.cell(cell.id).create(cell, {})
            cells.append(Planned(Entered(cell), state, True))
        return cells

    return make


def run(
    results: Results, cells: list[Planned], script: str, places: list[Device] | None = None, **options
) -> list[Outcome]:
    stub = Stub(results, places or [CPU], CellOptions(), **options)
    stub.script = script
    return list(stub.run(cells))


def test_a_cell_that_commits_is_done(results, plan):
    (outcome,) = run(results, plan(), CLAIM + "commit()")
    assert (outcome.state, outcome.reason, outcome.slot) == ("done", "", "cpu")
    assert outcome.seconds > 0
    assert results.cell(outcome.id).result() == {"attempt": 1}


# What a process does after it claimed its cell; the state and the reason this leaves.
ENDS = {
    "killed": ("die(9)", "failed", "killed by SIGKILL; the system may have been out of memory"),
    "crashed": ("die(11)", "failed", "killed by SIGSEGV"),
    "left without a word": ("print('boom', flush=True); os._exit(7)", "failed", "exit code 7: boom"),
    "uncaught error": ("raise RuntimeError('no space')", "failed", "exit code 1: RuntimeError: no space"),
    "recorded its error": ("record('failed', 'RuntimeError: why')", "failed", "RuntimeError: why"),
    "recorded out of memory": ("record('oom', 'too big')", "oom", "too big"),
    "killed after its commit": ("commit(); die(11)", "done", ""),
    "killed in its commit": ("CellFolder.finish_commit = lambda *_: die(9); commit()", "done", ""),
}


@pytest.mark.parametrize("name", ENDS)
def test_how_a_process_ends_decides_the_state(results, plan, name):
    script, state, reason = ENDS[name]
    (outcome,) = run(results, plan(), CLAIM + script)
    assert (outcome.state, outcome.reason) == (state, reason)
    status = read_json(results.cell(outcome.id).path / "status.json")
    assert (status["state"], status["reason"] or "") == (state, reason), (
        "it must be on disk, or the next run tries again"
    )
    assert (results.cell(outcome.id).path / "attempts/1/end").exists()


@pytest.mark.parametrize(
    "script",
    ["raise ImportError('broken')", "import sys; sys.exit('error: broken')", "import os; print('broken'); os.abort()"],
)
def test_a_process_that_dies_before_it_claims_its_cell_has_failed(results, plan, script):
    (outcome,) = run(results, plan(), script)
    assert outcome.state == read_json(results.cell(outcome.id).path / "status.json")["state"] == "failed"
    assert "broken" in outcome.reason or "SIGABRT" in outcome.reason


def test_an_old_failure_is_not_taken_for_todays(results, plan):
    (cell,) = plan(state="failed")
    results.cell(cell.id).claim().revoke()
    results.cell(cell.id).set_state("failed", reason="the old reason", attempt=1)
    (outcome,) = run(results, [cell], "import sys; sys.exit('error: the new reason')")
    assert outcome.state == "failed"
    assert "the new reason" in outcome.reason


def test_an_old_result_is_not_taken_for_todays(results, plan):
    """A cell that is run again and dies before it claims itself is not done, although it was."""
    (cell,) = plan(state="stale")
    attempt = results.cell(cell.id).claim()
    attempt.commit([], {"attempt": 1})
    (outcome,) = run(results, [cell], "import os; os.kill(os.getpid(), 9)")
    assert outcome.state == "failed"
    assert "SIGKILL" in outcome.reason


@pytest.fixture
def held_elsewhere(results, plan):
    """A cell that a live process of another scheduler has claimed since it was planned here."""
    (cell,) = plan()
    process = subprocess.Popen(
        [sys.executable, "-c", CLAIM + "print('claimed', flush=True); sys.stdin.read()", results.cell(cell.id).path],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "claimed\n"
    yield cell
    process.kill()
    process.communicate()


def run_until_only_others_work(results: Results, cells: list[Planned], script: str) -> list[Outcome]:
    """The outcomes of a run that is stopped as soon as it waits for other processes only."""
    stub = Stub(results, [CPU], CellOptions(), on_remark=lambda line: stub.stop())
    stub.script = script
    return list(stub.run(cells))


def test_a_cell_that_another_scheduler_runs_is_waited_for_and_left_alone_by_a_stop(results, held_elsewhere):
    remarks = []
    stub = Stub(results, [CPU], CellOptions(), on_remark=lambda line: (remarks.append(line), stub.stop()))
    (outcome,) = stub.run([held_elsewhere])
    folder = results.cell(held_elsewhere.id)
    assert folder.attempts()[0].alive()
    assert folder.status()["state"] == "running"
    assert (outcome.state, outcome.reason) == ("elsewhere", "another process runs it")
    assert remarks == ["waiting for 1 cell that another process runs; Ctrl-C leaves what runs elsewhere alone"]
    assert not (folder.path / "log.txt").exists(), "nothing was started for it"


@pytest.mark.parametrize("known", ["planned", "running"])
def test_a_cell_whose_process_dies_elsewhere_is_taken_over(results, held_elsewhere, monkeypatch, known):
    """Whether it was running when the run was planned, or only later."""
    monkeypatch.setattr(queueing, "WATCH_SECONDS", 0.1)
    folder = results.cell(held_elsewhere.id)

    def kill(line: str) -> None:
        os.kill(read_json(folder.attempts()[0].path / "claim.json")["pid"], 9)

    stub = Stub(results, [CPU], CellOptions(), on_remark=kill)
    stub.script = CLAIM + "commit()"
    held_elsewhere.state = known
    (outcome,) = stub.run([held_elsewhere]) if known == "planned" else stub.run([], watched=[held_elsewhere])
    assert (outcome.state, outcome.slot) == ("done", "cpu")
    assert folder.result() == {"attempt": 2}


def test_a_cell_that_another_scheduler_brings_to_its_end_is_not_run_again(results, plan, monkeypatch):
    """Done, failed, or done before it was its turn: in each case its end is told, and nothing is started."""
    monkeypatch.setattr(queueing, "WATCH_SECONDS", 0.1)
    done, failed, early = plan(3)
    attempt = results.cell(early.id).claim()
    attempt.commit([], {"attempt": 1})
    for cell in (done, failed):
        results.cell(cell.id).claim()
        results.cell(cell.id).set_state("running", attempt=1)

    def end(line: str) -> None:
        results.cell(done.id).attempts()[0].commit([], {"attempt": 1})
        results.cell(failed.id).attempts()[0].revoke()
        results.cell(failed.id).set_state("failed", reason="why", attempt=1)

    stub = Stub(results, [CPU], CellOptions(), on_remark=end)
    stub.script = CLAIM + "commit()"
    ends = {outcome.id: (outcome.state, outcome.reason, outcome.slot) for outcome in stub.run([done, failed, early])}
    assert ends == {done.id: ("done", "", ""), failed.id: ("failed", "why", ""), early.id: ("done", "", "")}
    assert [len(results.cell(cell.id).attempts()) for cell in (done, failed, early)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("code", "state"), [(3, "elsewhere"), (4, "elsewhere"), (-9, "failed"), (-15, "failed"), (2, "failed")]
)
def test_a_process_that_never_had_the_cell_leaves_it_to_who_has_it(results, held_elsewhere, code, state):
    """However our process ended: the one that has the cell must be able to commit."""
    folder = results.cell(held_elsewhere.id)
    assert settle(folder, os.getpid(), code, stopped=False)[0] == state
    assert settle(folder, os.getpid(), code, stopped=True)[0] == "elsewhere"
    assert folder.attempts()[0].alive()
    assert folder.status()["state"] == "running"


TAKEN_AWAY = f"""{CLAIM}
from bench.store import write_json
import psutil
attempt.revoke()
other, parent = folder.claim(), psutil.Process(os.getppid())
claim = json.loads((other.path / "claim.json").read_text())
write_json(other.path / "claim.json", claim | {{"pid": parent.pid, "started": parent.create_time()}})
folder.set_state("running", attempt=other.number)
sys.exit(4)
"""


def test_a_cell_that_was_taken_away_belongs_to_who_took_it(results, plan):
    """Our process slept too long, another one claimed the cell, and ours found its attempt revoked."""
    (outcome,) = run_until_only_others_work(results, plan(), TAKEN_AWAY)
    folder = results.cell(outcome.id)
    assert outcome.state == "elsewhere"
    assert (folder.status()["state"], folder.status()["attempt"]) == ("running", 2)
    assert folder.attempts()[1].alive()


def test_one_crash_costs_one_cell(results, plan):
    script = CLAIM + "if '-s1-' in folder.id: die(9)\ncommit()"
    outcomes = run(results, plan(4), script, devices("cpu:2"))
    states = {outcome.id.split("-")[2]: outcome.state for outcome in outcomes}
    assert states == {"s0": "done", "s1": "failed", "s2": "done", "s3": "done"}


def test_a_process_that_cannot_be_started_is_a_failed_cell(results, plan, monkeypatch):
    monkeypatch.setattr(Stub, "_command", lambda *_: ["/no/such/interpreter"])
    (outcome,) = run(results, plan(), "")
    assert outcome.state == "failed"
    assert "/no/such/interpreter" in results.cell(outcome.id).status()["reason"]


def test_cells_start_in_order_and_share_no_slot(results, plan):
    script = CLAIM + "time.sleep(0.3); commit()"
    seen: list[tuple[str, str]] = []
    lock, busy, clashes = threading.Lock(), set(), []

    def started(running) -> None:
        with lock:
            seen.append((running.planned.id, running.slot.label))

    class Watched(Stub):
        @contextmanager
        def at_work(self, running) -> Iterator[None]:
            label = running.slot.label
            with lock:
                clashes.extend([label] if label in busy else [])
                busy.add(label)
            with super().at_work(running):
                yield
            with lock:
                busy.discard(label)

    cells = plan(5)
    watched = Watched(results, devices("cpu:2"), CellOptions(), on_start=started)
    watched.script = script
    outcomes = list(watched.run(cells))
    assert [outcome.state for outcome in outcomes] == ["done"] * 5
    assert {label for _, label in seen} == {"cpu 0", "cpu 1"}
    assert not clashes
    assert {seen[0][0], seen[1][0]} == {cells[0].id, cells[1].id}
    assert seen[-1][0] == cells[-1].id


WAIT = f"""{CLAIM}
signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
attempt.beat({{"stage": "training", "step": 3}})
print("ready", flush=True)
while True:
    time.sleep(0.05)
"""


def stopped(results: Results, cells: list[Planned], script: str) -> tuple[list[Outcome], float]:
    """The outcomes of a run that is stopped once its first cell is at work, and the seconds that took."""
    stub = Stub(results, [CPU], CellOptions())
    stub.script = script
    began: list[float] = []

    def stop() -> None:
        log = results.cell(cells[0].id).path / "log.txt"
        while not log.exists() or "ready" not in log.read_text():
            time.sleep(0.02)
        ((running, _),) = stub.running()
        assert running.planned.id == cells[0].id
        began.append(time.monotonic())
        stub.stop()

    thread = threading.Thread(target=stop)
    thread.start()
    outcomes = list(stub.run(cells))
    thread.join()
    return outcomes, time.monotonic() - began[0]


def test_stop_interrupts_what_runs_and_starts_nothing_more(results, plan):
    cells = plan(3)
    outcomes, seconds = stopped(results, cells, WAIT)
    assert [outcome.state for outcome in outcomes] == ["interrupted", "not started", "not started"]
    assert seconds < module.GRACE_SECONDS, "it ended by itself"
    states = [results.cell(cell.id).status()["state"] for cell in cells]
    assert states == ["interrupted", "planned", "planned"]
    assert read_json(results.cell(cells[0].id).path / "status.json")["state"] == "interrupted"


def test_a_process_that_will_not_end_is_killed(results, plan, monkeypatch):
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.5)
    outcomes, seconds = stopped(
        results, plan(), CLAIM + "signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(300)"
    )
    assert outcomes[0].state == results.cell(outcomes[0].id).status()["state"] == "interrupted"
    assert seconds < 120


def test_a_cell_stopped_before_it_claims_itself_is_interrupted(results, plan):
    """Python's own answer to a signal while it imports is a traceback and the exit code 1."""
    script = (
        "import signal, sys, time\nsignal.signal(15, lambda *_: 1 / 0)\nprint('ready', flush=True)\ntime.sleep(300)"
    )
    outcomes, _ = stopped(results, plan(), script)
    assert outcomes[0].state == results.cell(outcomes[0].id).status()["state"] == "interrupted"


def test_a_cell_that_commits_while_it_is_stopped_is_done(results, plan):
    script = CLAIM + "def end(*_):\n    commit()\n    os._exit(130)\n"
    script += "signal.signal(15, end); print('ready', flush=True); time.sleep(300)"
    outcomes, _ = stopped(results, plan(), script)
    assert outcomes[0].state == results.cell(outcomes[0].id).status()["state"] == "done"


def test_the_progress_of_running_cells_is_known(results, plan):
    cells, seen = plan(), []
    stub = Stub(results, [CPU], CellOptions())
    stub.script = WAIT

    def look() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (seen and seen[-1].get("step")):
            seen.extend(progress for _, progress in stub.running())
            time.sleep(0.02)
        stub.stop()

    thread = threading.Thread(target=look)
    thread.start()
    list(stub.run(cells))
    thread.join()
    assert seen[-1] == {"stage": "training", "step": 3}
    assert stub.running() == []


TELL = """
import json, os, stat, datasets
is_pipe, own_session = stat.S_ISFIFO(os.fstat(0).st_mode), os.getsid(0) == os.getpid()
print(json.dumps([datasets.__file__, dict(os.environ), is_pipe, own_session]))
"""


def test_children_have_the_project_first_on_the_path_and_a_pipe_to_the_parent(results, plan, tmp_path, monkeypatch):
    """Although the scheduler was started where another package named ``datasets`` lies."""
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "datasets").mkdir(parents=True)
    (elsewhere / "datasets" / "__init__.py").write_text("raise RuntimeError('the wrong one')")
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("PYTHONPATH", str(elsewhere))
    place = Device.of(Slot("cpu", "cpu", 1, {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "3"}))
    (cell,) = plan()
    run(results, [cell], TELL, [place])
    log = (results.cell(cell.id).path / "log.txt").read_text()
    file, environment, is_pipe, own_session = json.loads(log.splitlines()[-1])
    assert file == str(ROOT / "datasets" / "__init__.py")
    assert environment["BENCH_PARENT_PIPE"]
    assert (environment["OMP_NUM_THREADS"], environment["CUDA_VISIBLE_DEVICES"]) == ("3", "")
    assert str(elsewhere) in environment["PYTHONPATH"], "what the user put there stays reachable"
    assert is_pipe
    assert own_session, "Ctrl-C in the terminal must reach the scheduler alone"


def test_the_real_command_finds_our_packages_from_anywhere(results, plan, tmp_path, monkeypatch):
    """``-m`` puts the current folder before everything; the folder holds another cell, so that nothing heavy starts."""
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "datasets").mkdir(parents=True)
    (elsewhere / "datasets" / "__init__.py").touch()
    first, second = plan(2)
    (results.cell(first.id).path / "cell.json").write_bytes((results.cell(second.id).path / "cell.json").read_bytes())
    monkeypatch.chdir(elsewhere)
    (outcome,) = Scheduler(results, [CPU], CellOptions()).run([first])
    assert outcome.state == "failed"
    assert f"holds the cell {second.id}" in outcome.reason


def test_what_is_passed_on_to_a_cell(results, plan, tmp_path):
    (cell,) = plan()
    mine = Planned(Entered(cell.entered.cell, str(tmp_path / "mine.pth")), "stale", True)
    execution = {"attention": "bias", "checkpointing": "blocks", "compile": True}
    options = CellOptions(data_root=tmp_path / "data", micro_batch=2, allow_broken=True, **execution)
    again = ["--checkpoint", str(tmp_path / "mine.pth"), "--oom-retries", "2", "--again"]
    for task, micro_batch, more in (
        (Task(cell, 0), "2", []),
        (Task(mine, 0, micro_batch=1, retries=2), "1", again),
    ):
        command = Scheduler(results, [CPU], options)._command(task, Slot("gpu 3", "cuda:0", 5))
        assert command[:4] == [sys.executable, "-m", "bench.cell", cell.id]
        words = ["--results", str(tmp_path), "--device", "cuda:0", "--threads", "5", "--allow-broken"]
        words += ["--data-root", str(tmp_path / "data"), "--micro-batch", micro_batch]
        words += ["--attention", "bias", "--checkpointing", "blocks", "--compile"]
        assert command[4:] == words + more
    assert CellOptions().words() == []


def test_logs_of_several_attempts_stand_one_after_the_other(results, plan):
    (cell,) = plan()
    run(results, [cell], "print('first', flush=True); import os; os._exit(9)")
    cell.state = "failed"
    run(results, [cell], "print('second', flush=True); import os; os._exit(9)")
    assert (results.cell(cell.id).path / "log.txt").read_text() == "first\nsecond\n"


def test_no_process_and_no_descriptor_is_left(results, plan):
    me = psutil.Process()
    run(results, plan(2), CLAIM + "commit()")
    before, children = me.num_fds(), set(me.children())
    run(results, plan(6), "pass")
    assert me.num_fds() <= before
    assert not [child for child in set(me.children()) - children if child.status() != psutil.STATUS_ZOMBIE]


def test_dispatch_yields_what_lanes_tell_as_they_tell_it():
    release, told = threading.Event(), SimpleQueue()

    def slow() -> None:
        assert release.wait(120)
        told.put("slow")

    outcomes = dispatch([slow, lambda: told.put("quick"), lambda: None], told)
    assert next(outcomes) == "quick", "one slow lane must not hold up the others"
    release.set()
    assert list(outcomes) == ["slow"]
    assert list(dispatch([], told)) == []


def test_an_error_in_a_lane_ends_the_run_and_is_not_lost():
    told = SimpleQueue()

    def broken() -> None:
        told.put("one")
        raise KeyError("lane")

    outcomes = dispatch([broken, lambda: told.put("other")], told)
    assert {next(outcomes), next(outcomes)} == {"one", "other"}
    with pytest.raises(KeyError, match="lane"):
        next(outcomes)
