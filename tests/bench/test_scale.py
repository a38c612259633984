"""Thousands of cells: what the harness itself takes, beside the processes that it starts.

The limits are ten times what is aimed at, for busy machines; ``BENCH_SCALE=1000 python -m pytest
tests/bench/test_scale.py -s`` runs so many cells and prints what they took.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench import plan as planning
from bench import tracking
from bench.devices import Device, Slot
from bench.estimates import Estimates
from bench.matrix import Entered, expand, override, read
from bench.overview import overview
from bench.scheduler import CellOptions, Scheduler
from bench.store import Results, now
from bench.tasks import order
from bench.tracking import Tracker, rebuild

STUBS = Path(__file__).resolve().parent / "stubs"
CELLS = int(os.environ.get("BENCH_SCALE", "100"))
MANY = 10_000
CPU = Device.of(Slot("cpu", "cpu", 1))
MATRIX = """
name = "scale"
backbone = "tiny"
checkpoint = "none"
image_size = 64
[[cells]]
datasets = [{ name = "shapes", train_images = 4, validation_images = 1, test_images = 2, size = 64 }]
methods = [
  "decoder_only", "adapter", "bitfit", "lora", "conv_lora",
  { name = "lora", rank = 2 }, { name = "lora", rank = 6 }, { name = "lora", rank = 7 }, { name = "lora", rank = 8 },
  { name = "lora", rank = 9 },
]
regime = { epochs = 2 }
"""


@contextmanager
def measured(what: str, limit: float, *, count: int = 1) -> Iterator[None]:
    """Say how long something takes for each of so many, and fail beyond a limit in seconds."""
    began = time.perf_counter()
    yield
    seconds = (time.perf_counter() - began) / count
    print(f"\n{what}: {seconds:.3f} s" + (f" a cell, {count} cells" if count > 1 else ""), end="")
    assert seconds < limit, what


@pytest.fixture(scope="module")
def entered(tmp_path_factory) -> Callable[[int], list[Entered]]:
    """So many cells of a matrix."""
    path = tmp_path_factory.mktemp("scale") / "scale.toml"
    path.write_text(MATRIX)

    def make(count: int) -> list[Entered]:
        chosen = override(read(str(path)), {"seeds": list(range(-(-count // 10)))})
        return expand(chosen, precision="fp32")[:count]

    return make


def write(results: Results, entered: Entered, state: str) -> None:
    """A cell's folder as it is left behind; a done one has trained for ten epochs."""
    cell, folder = entered.cell, results.path / "cells" / entered.cell.id
    folder.mkdir(parents=True)

    def put(name: str, content: object) -> None:
        folder.joinpath(name).write_text(json.dumps(content, indent=1))

    put("cell.json", {"schema": 1, "id": cell.id, "spec": cell.spec, "evidence": {}})
    put("status.json", {"schema": 1, "state": state, "reason": None, "attempt": 1, "updated": now()})
    if state == "done":
        training = {"seconds": 60.0, "train_images": 4, "validation_images": 1, "epochs": 10, "steps": 10}
        put("result.json", {
            "schema": 1, "id": cell.id, "attempt": 1, "random_backbone": True, "resolved": cell.resolved(),
            "scores": {"test": {"paper": {name: 0.5 for name in ("iou", "dice", "mae")}}},
            "parameters": {"trainable": 10, "total": 100}, "training": training, "evaluation": {"seconds": 1.0},
            "environment": {"device": "cpu", "commit": "abc", "dirty": False},
        })  # fmt: skip
        lines = [
            {"epoch": n, "step": n, "loss": 1 / n, "lr": 1e-4, "seconds": 6.0, "validation": {"iou": n / 20}}
            for n in range(1, 11)
        ]
        folder.joinpath("history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        folder.joinpath("log.txt").write_text("epoch 1\n" * 20)


def test_a_cell_costs_little_beside_its_process(tmp_path, entered, monkeypatch):
    """Cells that are claimed and committed by real processes, which do nothing in between."""
    monkeypatch.setenv("PYTHONPATH", str(STUBS))
    monkeypatch.setenv("STUB_SECONDS", "0")
    results = Results(tmp_path)
    plan = planning.make(entered(CELLS), results)
    planning.write(plan, results)
    some, began = min(CELLS, 50), time.perf_counter()
    for _ in range(some):
        subprocess.run([sys.executable, "-c", "pass"], check=True, env={**os.environ, "PYTHONPATH": ""})
    process = (time.perf_counter() - began) / some
    with measured(f"a cell whose bare process takes {process:.3f} s", process + 0.5, count=CELLS):
        scheduler = Scheduler(results, [CPU], CellOptions(), estimates=Estimates(results, device="cpu"))
        outcomes = list(scheduler.run(plan.todo()))
    assert sorted(outcome.id for outcome in outcomes) == sorted(cell.id for cell in results.cells())
    assert {outcome.state for outcome in outcomes} == {"done"}
    assert all(len(cell.attempts()) == 1 for cell in results.cells())


@pytest.fixture(scope="module")
def many(tmp_path_factory, entered) -> tuple[Results, list[Entered]]:
    """A results folder of 10,000 cells, half of them done."""
    results, cells = Results(tmp_path_factory.mktemp("many")), entered(MANY)
    for number, one in enumerate(cells):
        write(results, one, "done" if number % 2 else "planned")
    return results, cells


def test_planning_many_cells(tmp_path, entered, many):
    with measured(f"a matrix of {MANY} cells", 25):
        cells = entered(MANY)
    with measured(f"a plan of {MANY} new cells in order", 25):
        plan = planning.make(cells, Results(tmp_path))
        assert len(order(plan.todo(), Estimates(Results(tmp_path), device="cpu"))) == MANY
    results, _ = many
    with measured(f"a plan of {MANY} cells, half of them done, in order", 50):
        plan = planning.make(cells, results)
        assert len(order(plan.todo(), Estimates(results, device="cpu"))) == MANY // 2


def test_status_of_many_cells(many):
    results, _ = many
    with measured(f"status of {MANY} cells", 10):
        assert overview(results).counts == {"done": MANY // 2, "planned": MANY // 2}


def test_mlflow_keeps_up_with_a_run_although_its_database_is_locked_and_deleted(tmp_path, entered, monkeypatch, logged):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    results, cells = Results(tmp_path), entered(CELLS // 2)
    database = results.path / "mlflow.db"
    (results.path / "cells").mkdir()
    rebuild(results.path)  # makes the database, which takes seconds
    with measured("MLflow, beside a run", 5, count=len(cells)):
        tracker = Tracker(results.path)
        tracker.start()
        for number, one in enumerate(cells):
            if number == len(cells) // 3:
                lock = sqlite3.connect(database, isolation_level=None, check_same_thread=False)
                lock.execute("BEGIN EXCLUSIVE")
                threading.Timer(1, lock.close).start()
            if number == 2 * len(cells) // 3:
                database.unlink()
            write(results, one, "done")
            tracker.cell_changed(one.cell.id)
            time.sleep(0.02)
        assert "up to date" in tracker.close(timeout=5 * len(cells))
    names = sorted(one.cell.id for one in cells)
    assert logged(database) == names
    with measured("MLflow, rebuilt", 5, count=len(cells)):
        assert tracking.rebuild(results.path) == len(cells)
    assert logged(database) == names
