"""Claims, commits and states: what happens when processes race, die in the middle, or come back from the dead."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from bench import store
from bench.spec import Cell
from bench.store import STALE_SECONDS, AlreadyRunning, Attempt, CellFolder, Results, Revoked, read_json, write_json

ROOT = Path(__file__).resolve().parents[2]
FILES = ["history.jsonl", "adapter.safetensors"]


@pytest.fixture
def folder(tmp_path) -> CellFolder:
    """A planned cell."""
    made = Results(tmp_path).cell("shapes-lora-s0-00000000")
    made.create(Cell({"seed": 0}), {"data": "abc"})
    return made


def work(attempt: Attempt) -> dict[str, int]:
    """Leave an attempt's files behind as a training does; returns its result."""
    for name in FILES:
        (attempt.path / name).write_text(f"{name} of attempt {attempt.number}")
    return {"attempt": attempt.number}


def committed(folder: CellFolder, number: int) -> bool:
    """Whether the cell holds exactly what attempt ``number`` made."""
    texts = [(folder.path / name).read_text() for name in FILES]
    return texts == [f"{name} of attempt {number}" for name in FILES] and folder.result() == {"attempt": number}


def python(code: str, *words: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def claimed_elsewhere(folder):
    """A live process that has claimed the cell and said that it runs."""
    code = (
        "import sys; from pathlib import Path; from bench.store import CellFolder\n"
        "folder = CellFolder(Path(sys.argv[1])); folder.set_state('running', attempt=folder.claim().number)\n"
        "print('claimed', flush=True); sys.stdin.read()"
    )
    process = python(code, folder.path)
    assert process.stdout.readline() == "claimed\n"
    yield process
    process.kill()
    process.wait()


RACER = """
import sys, time
from pathlib import Path
from bench.store import AlreadyRunning, CellFolder
place, me, other, rounds = Path(sys.argv[1]), *sys.argv[2:4], int(sys.argv[4])
won = []
for number in range(rounds):
    (place / f"ready-{number}-{me}").touch()
    while not (place / f"ready-{number}-{other}").exists():
        time.sleep(0)
    try:
        CellFolder(place / "cells" / str(number)).claim()
        won.append(number)
    except AlreadyRunning:
        pass
print(*won, flush=True)
sys.stdin.read()
"""


def test_exactly_one_of_two_racing_processes_claims_a_cell(tmp_path):
    """Half of the cells are new, the others have a dead claim."""
    rounds, dead = 100, {"host": socket.gethostname(), "pid": 2**22 + 1, "started": 0.0}
    for number in range(rounds):
        folder = Results(tmp_path).cell(str(number))
        folder.path.mkdir(parents=True)
        if number % 2:
            attempt = Attempt(folder, 1)
            attempt.path.mkdir(parents=True)
            write_json(attempt.path / "claim.json", dead)
    racers = [python(RACER, tmp_path, me, other, rounds) for me, other in (("a", "b"), ("b", "a"))]
    won = [set(map(int, racer.stdout.readline().split())) for racer in racers]
    for racer in racers:
        racer.communicate()
    assert won[0] | won[1] == set(range(rounds))
    assert not won[0] & won[1]
    assert all(won), "one process never won: they did not race"


def test_a_claim_that_lost_the_race_after_looking_is_refused(folder, monkeypatch):
    seen = folder.attempts()
    folder.claim()
    monkeypatch.setattr(CellFolder, "attempts", lambda self: seen)
    with pytest.raises(AlreadyRunning, match="just now"):
        folder.claim()


def test_a_live_claim_is_refused_and_the_holder_named(folder, claimed_elsewhere):
    with pytest.raises(AlreadyRunning, match=str(claimed_elsewhere.pid)):
        folder.claim()
    assert folder.status()["state"] == "running"


def test_a_killed_process_loses_its_claim(folder, claimed_elsewhere):
    claimed_elsewhere.kill()
    claimed_elsewhere.wait()
    assert folder.status()["state"] == "interrupted"
    assert read_json(folder.path / "status.json")["state"] == "running", "reading a status must not write it"
    assert folder.claim().number == 2
    assert (folder.path / "attempts/1/end").read_text() == "revoked"


def test_a_dead_process_that_nobody_collects_is_dead(folder, claimed_elsewhere):
    """In a container without an init process orphans stay in the table for ever."""
    claimed_elsewhere.kill()
    process = psutil.Process(claimed_elsewhere.pid)
    while process.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert folder.status()["state"] == "interrupted"
    assert folder.claim().number == 2


def test_a_reused_pid_is_another_process(folder):
    attempt = folder.claim()
    claim = read_json(attempt.path / "claim.json")
    assert attempt.alive()
    assert abs(claim["started"] - psutil.Process().create_time()) < 2
    write_json(attempt.path / "claim.json", claim | {"started": claim["started"] - 100})
    assert not attempt.alive()


@pytest.mark.parametrize(("age", "alive"), [(STALE_SECONDS / 2, True), (STALE_SECONDS * 2, False)])
def test_on_another_host_only_a_recent_heartbeat_counts(folder, age, alive):
    attempt = folder.claim()
    write_json(attempt.path / "claim.json", read_json(attempt.path / "claim.json") | {"host": "elsewhere"})
    attempt.beat({"step": 1})
    for path in (*attempt.path.iterdir(), attempt.path):
        os.utime(path, (time.time() - age,) * 2)
    assert attempt.alive() is alive


def test_a_claim_without_its_card_yet_is_alive(folder):
    attempt = folder.claim()
    (attempt.path / "claim.json").unlink()
    assert attempt.alive()


def test_a_commit_publishes_every_file_and_the_state(folder):
    attempt = folder.claim()
    folder.set_state("running", attempt=attempt.number)
    attempt.commit(FILES, work(attempt))
    assert committed(folder, 1)
    assert folder.status() | {"updated": None} == {
        "schema": 1,
        "state": "done",
        "reason": None,
        "attempt": 1,
        "updated": None,
    }


def test_an_attempt_ends_once(folder):
    first = folder.claim()
    assert first.revoke()
    assert not first.revoke()
    with pytest.raises(Revoked, match="attempt 1"):
        first.commit(FILES, work(first))
    assert folder.result() is None
    second = folder.claim()
    second.commit(FILES, work(second))
    assert not second.revoke()
    with pytest.raises(Revoked):
        second.commit(FILES, {"attempt": 99})
    assert committed(folder, 2)


class PowerCut(BaseException):
    """Stands for a process that dies."""


def interrupted_commit(folder: CellFolder, monkeypatch, moved: int) -> Attempt:
    """A commit whose process died after moving ``moved`` files, and can be seen to be dead."""
    attempt = folder.claim()
    folder.set_state("running", attempt=attempt.number)
    replace, count = os.replace, [0]

    def dying(source, target):
        if Path(target).parent == folder.path:
            if count[0] == moved:
                raise PowerCut
            count[0] += 1
        replace(source, target)

    result = work(attempt)
    with monkeypatch.context() as patch, suppress(PowerCut):
        patch.setattr(store.os, "replace", dying)
        attempt.commit(FILES, result)
    return attempt


@pytest.mark.parametrize("moved", range(len(FILES) + 2))
def test_an_interrupted_commit_is_finished_by_the_next_process(folder, monkeypatch, moved):
    """The last case dies between the result and the state."""
    interrupted_commit(folder, monkeypatch, moved)
    assert folder.status()["state"] == ("done" if moved > len(FILES) else "interrupted")
    with suppress(AlreadyRunning):
        folder.claim()
    assert committed(folder, 1)
    assert read_json(folder.path / "status.json")["state"] == "done"


def test_an_interrupted_commit_over_an_older_result_does_not_read_as_done(folder, monkeypatch):
    first = folder.claim()
    first.commit(FILES, work(first))
    interrupted_commit(folder, monkeypatch, 1)
    assert folder.status()["state"] == "interrupted"
    with suppress(AlreadyRunning):
        folder.claim()
    assert committed(folder, 2)


def test_an_attempt_never_ends_without_saying_how(folder):
    """Whoever finds ``end`` decides by its text between finishing the commit and a new training; the disk is full."""
    attempt = folder.claim()
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(OSError):
            attempt.revoke()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (attempt.path / "end").exists()
    assert attempt.revoke()


def test_recovering_does_not_touch_a_claim_made_meanwhile(folder, claimed_elsewhere, monkeypatch):
    """Two schedulers find the same dead attempt; one of them claims the cell while the other still looks."""
    claimed_elsewhere.kill()
    claimed_elsewhere.wait()
    look = CellFolder.status

    def slow_look(self: CellFolder) -> dict:
        seen = look(self)
        if len(self.attempts()) == 1:
            self.claim()
        return seen

    monkeypatch.setattr(CellFolder, "status", slow_look)
    folder.recover()
    assert all(attempt.alive() for attempt in folder.attempts()[1:])


def test_states_are_checked_and_a_new_cell_is_planned(folder, tmp_path):
    assert folder.status()["state"] == "planned"
    with pytest.raises(ValueError, match=r"'finished'.*planned, running, done"):
        folder.set_state("finished")
    folder.set_state("failed", reason="why", attempt=3)
    folder.create(Cell({"seed": 0}), {"data": "new"})
    assert folder.status()["reason"] == "why", "planning again must not forget how it ended"
    assert folder.read()["evidence"] == {"data": "new"}
    assert Results(tmp_path).cell("never").status()["state"] == "planned"
    with pytest.raises(FileNotFoundError, match=r"'never'.*--dry-run"):
        Results(tmp_path).cell("never").read()


def test_attempts_are_in_the_order_of_their_numbers(folder):
    for number in (10, 9, 2):
        Attempt(folder, number).path.mkdir(parents=True)
    (folder.path / "attempts" / "notes").mkdir()
    assert [attempt.number for attempt in folder.attempts()] == [2, 9, 10]


def test_cells_are_those_that_were_planned(folder, tmp_path):
    (tmp_path / "cells" / "leftover").mkdir()
    assert [cell.id for cell in Results(tmp_path).cells()] == [folder.id]
    assert list(Results(tmp_path / "nowhere").cells()) == []


def test_a_reader_never_sees_half_a_file(tmp_path):
    path, stop = tmp_path / "status.json", threading.Event()
    write_json(path, ["a"] * 20_000)

    def read() -> set[tuple[str, int]]:
        seen = set()
        while not stop.is_set():
            value = json.loads(path.read_text())
            seen.add((value[0], len(value)))
        return seen

    with ThreadPoolExecutor() as pool:
        reader = pool.submit(read)
        for _ in range(15):
            write_json(path, ["b"] * 30_000)
            write_json(path, ["a"] * 20_000)
        stop.set()
    assert reader.result() <= {("a", 20_000), ("b", 30_000)}


def test_a_value_that_is_no_json_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "status.json"
    write_json(path, {"state": "done"})
    with pytest.raises(TypeError):
        write_json(path, {"state": object()})
    assert read_json(path) == {"state": "done"}
    assert list(tmp_path.iterdir()) == [path]
    assert read_json(tmp_path / "absent.json") is None
