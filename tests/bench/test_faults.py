"""Real cells under a real scheduler, while everything that can die is killed and the disk is full for a while.

In the end every cell is what it is when nothing happens. ``BENCH_FAULTS=50 python -m pytest tests/bench/test_faults.py
-s`` kills fifty times instead of seven, and prints where each kill fell.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pyarrow.parquet
import pytest

from bench import tracking
from bench.cell import main as run_cell
from bench.matrix import expand, override, read
from bench.store import CellFolder, Results, write_json

ROOT = Path(__file__).resolve().parents[2]
FAULTS = Path(__file__).resolve().parent / "faults"
KILLS = int(os.environ.get("BENCH_FAULTS", "7"))
LONG = KILLS > 7
EPOCHS = 4
MATRIX = f"""
name = "faults"
backbone = "tiny"
checkpoint = "none"
image_size = 64
[[cells]]
datasets = [{{ name = "shapes", train_images = 4, validation_images = 1, test_images = 2, size = 64 }}]
methods = {["decoder_only", "lora", "conv_lora"] if LONG else ["decoder_only", "conv_lora"]}
regime = {{ epochs = {EPOCHS}, patience = 0, lr = 1e-3 }}
"""
# Of each ten kills; every kind once where there are seven.
SHARES = {"training": 2, "saving": 2, "commit": 1, "moving": 1, "ahead": 1, "scheduler": 2, "everything": 1}
DAMAGES = ("state truncated", "claim of a dead process", "claim of another host", "status cut short", "status empty")
OF_THE_MOMENT = ("seconds", "images_per_second", "first_step_at", "peak_memory_bytes", "resumed")
HOUR = 3600.0
DIES_WHILE_WRITING = """
import os, signal, sqlite3, sys
store = sqlite3.connect(sys.argv[1], isolation_level=None)
store.execute("pragma cache_size = 1")  # so that the file is half written when its writer dies
store.execute("begin immediate")
store.execute("update metrics set value = -1")
store.execute("update tags set value = 'lost'")
os.kill(os.getpid(), signal.SIGKILL)
"""

pytestmark = pytest.mark.skipif(
    not hasattr(resource, "prlimit"), reason="fills the disk with prlimit, which is Linux's"
)


def load_evil() -> ModuleType:
    spec = importlib.util.spec_from_file_location("evil", FAULTS / "evil.py")
    module = sys.modules["evil"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two cores, so that a cell has one thread on every machine; a slow disk in the processes of cells."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(FAULTS), os.environ.get("PYTHONPATH")])))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[:2])
    yield
    os.sched_setaffinity(0, cores)


def words(matrix: Path, results: Results, seeds: int) -> list[str]:
    """The command, the same every time."""
    given = ["--matrix", str(matrix), "--set", f"seeds={list(range(seeds))}", "--results", str(results.path)]
    return [*given, "--devices", "cpu:2", "--rerun", "failed", *([] if LONG else ["--no-tracking"])]


def cells_of(matrix: Path, results: Results, seeds: int) -> list[CellFolder]:
    chosen = override(read(str(matrix)), {"seeds": list(range(seeds))})
    return [results.cell(entered.cell.id) for entered in expand(chosen, precision="fp32")]


def done(cell: CellFolder) -> bool:
    return (cell.path / "result.json").exists()


def damage(what: str, cell: CellFolder, pid: int) -> bool:
    """Leave a cell's files as a crash can, while nobody runs it; False if it has none that fit.

    Args:
        what: one of ``DAMAGES``.
        cell: the cell.
        pid: of a process that is gone.
    """
    status = cell.path / "status.json"
    if not status.exists():
        return False
    if what.startswith("status"):
        os.truncate(status, 0 if what.endswith("empty") else status.stat().st_size // 2)
        return True
    if done(cell) or any(attempt.alive() for attempt in cell.attempts()):
        return False
    if what == "state truncated":
        states = sorted(cell.checkpoints.glob("epoch-*.ckpt"))
        for path in states[-1:]:
            os.truncate(path, path.stat().st_size // 2)
        return bool(states)
    attempt = cell.claim()
    host = socket.gethostname() if what.endswith("process") else "elsewhere"
    write_json(attempt.path / "claim.json", {"host": host, "pid": pid, "started": time.time() - HOUR, "device": "cpu"})
    cell.set_state("running", attempt=attempt.number)
    if host == "elsewhere":
        attempt.beat({"stage": "training"})
        for path in (*attempt.path.iterdir(), attempt.path):
            os.utime(path, times=(time.time() - HOUR,) * 2)
    return True


def content(cell: CellFolder) -> dict[str, Any]:
    """All that a cell came to, but for times."""
    result, lines = cell.result(), (cell.path / "history.jsonl").read_text().splitlines()
    tables = ("per_image", *(["experts"] if (cell.path / "experts.parquet").exists() else []))
    return {
        "scores": result["scores"],
        "training": {name: value for name, value in result["training"].items() if name not in OF_THE_MOMENT},
        "history": [{k: v for k, v in json.loads(line).items() if k not in OF_THE_MOMENT} for line in lines],
        "adapter": (cell.path / "adapter.safetensors").read_bytes(),
        **{name: pyarrow.parquet.read_table(cell.path / f"{name}.parquet").to_pylist() for name in tables},
    }


def undisturbed(cell: CellFolder, results: Results) -> dict[str, Any]:
    """What a cell comes to in this process, one after the other, with nothing that happens to it."""
    own = results.cell(cell.id)
    own.path.mkdir(parents=True)
    write_json(own.path / "cell.json", cell.read())
    assert run_cell([own.id, "--results", str(results.path), "--threads", "1"]) == 0
    assert own.result()["training"]["resumed"] == []
    return content(own)


def left(results: Results) -> list[psutil.Process]:
    """The processes that work on a results folder; where nobody collects orphans they stay in the table as zombies."""
    everything = psutil.process_iter(["cmdline"])
    found = [process for process in everything if str(results.path) in (process.info["cmdline"] or [])]
    return [process for process in found if process.status() != psutil.STATUS_ZOMBIE]


def disturbed(matrix: Path, results: Results, evil: Any) -> tuple[list[CellFolder], list[str]]:
    """Run the matrix, with everything that happens to it, until all has happened and all cells are done.

    Returns:
        The cells, and what was damaged between two runs.
    """
    seeds, damaged, to_damage = 3 if LONG else 2, [], list(DAMAGES) * (3 if LONG else 1)
    evil.chance.shuffle(to_damage)
    output = matrix.with_suffix(".txt")
    while True:
        harm = len(evil.struck)
        with output.open("ab") as file:
            command = [sys.executable, "-m", "bench.run", *words(matrix, results, seeds)]
            scheduler = psutil.Popen(command, cwd=ROOT, stdout=file, stderr=file)
            evil.seen[scheduler] = command
            evil.haunt(scheduler)
        assert scheduler.returncode == 0 or len(evil.struck) > harm, output.read_text()
        for path in results.path.rglob(".*"):  # it goes on a while later
            os.utime(path, times=(time.time() - HOUR,) * 2)
        cells = cells_of(matrix, results, seeds)
        if all(map(done, cells)) and scheduler.returncode == 0:
            if evil.satisfied and not to_damage:
                return cells, damaged
            seeds += 1  # nothing is left that could be interrupted
            assert seeds < 3 + KILLS, output.read_text()
            evil.aims["everything"] += bool(to_damage)
        for cell in evil.chance.sample(cells, len(cells)):
            if what := next((one for one in to_damage if damage(one, cell, scheduler.pid)), None):
                to_damage.remove(what)
                damaged.append(what)


def test_whatever_dies_every_cell_is_done_once_and_as_if_nothing_had_happened(tmp_path, logged):
    matrix, results, began = tmp_path / "faults.toml", Results(tmp_path / "results"), time.monotonic()
    matrix.write_text(MATRIX)
    aims = Counter({where: max(1, share * KILLS // sum(SHARES.values())) for where, share in SHARES.items()})
    aims["training"] += max(0, KILLS - aims.total())
    evil = load_evil().Evil(results, EPOCHS, random.Random(KILLS), aims=aims.copy(), full=5 if LONG else 1)
    cells, damaged = disturbed(matrix, results, evil)
    seconds = time.monotonic() - began

    struck = Counter(where for where, _ in evil.struck)
    print(report(evil, struck, damaged, cells, seconds))
    assert all(struck[where] >= count for where, count in aims.items())
    assert set(damaged) == set(DAMAGES)
    assert evil.noticed() >= 1, "a training met a full disk and went on"
    assert left(results) == []
    assert list(results.cells()) == sorted(cells, key=lambda cell: cell.id)
    for cell in cells:
        assert cell.status()["state"] == "done"
        assert [attempt.ended() for attempt in cell.attempts()].count("committed") == 1, cell.id
        assert content(cell) == undisturbed(cell, Results(tmp_path / "undisturbed")), cell.id
        assert not cell.checkpoints.exists()
    assert [path for path in results.path.rglob(".*")] == [], "temporary files"
    tracking.sync(results.path)
    writer = [sys.executable, "-c", DIES_WHILE_WRITING, str(results.path / "mlflow.db")]
    assert subprocess.run(writer).returncode == -signal.SIGKILL
    assert (results.path / "mlflow.db-journal").stat().st_size > 0
    assert tracking.sync(results.path) == 0
    assert logged(results.path / "mlflow.db") == sorted(cell.id for cell in cells)


def report(evil: Any, struck: Counter[str], damaged: list[str], cells: list[CellFolder], seconds: float) -> str:
    """Where each kill fell, and what it took to get over it."""
    lines = [f"{number:>3}  {where:<16} {cell}" for number, (where, cell) in enumerate(evil.struck, start=1)]
    lines += ["", *(f"{count:>3}  {where}" for where, count in sorted((struck + Counter(damaged)).items()))]
    schedulers = sum("bench.run" in command for command in evil.seen.values())
    attempts = sum(len(cell.attempts()) for cell in cells)
    resumed = sum(len(cell.result()["training"]["resumed"]) for cell in cells)
    lines += ["", f"{len(cells)} cells, {attempts} attempts, {resumed} of them from a saved state"]
    return "\n".join(["", *lines, f"{schedulers} schedulers, {seconds:.0f} s", ""])
