"""The MLflow view: what is logged, that it is logged once, by one writer, and that nothing is lost with the store."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import tracking
from bench.store import CellFolder
from bench.tracking import Tracker, TrackingError, rebuild, sync
from bench.tracking_record import _key, read_record, settled_digest
from bench.tracking_store import EXPERIMENT, Store, _create_database

ROOT = Path(__file__).resolve().parents[2]
UPDATED = "2026-01-02T03:04:05+00:00"
UPDATED_MS = 1767323045000
SPEC = {
    "kind": "accuracy", "method": {"name": "lora", "parameters": {"rank": 6}}, "dataset": {"name": "shapes"},
    "seed": 0, "backbone": "tiny", "regime": {"version": 1},
}  # fmt: skip


def write_cell(results: Path, cell: str = "shapes-lora-s0-0", state: str = "done", **changes) -> CellFolder:
    """A cell as bench.cell leaves it; ``changes`` replace entries of its result, ``attempt`` and ``reason``."""
    folder = CellFolder(results / "cells" / cell)
    attempt = changes.pop("attempt", 1)
    work = folder.path if state == "done" else folder.path / "attempts" / str(attempt)
    work.mkdir(parents=True, exist_ok=True)
    folder.path.joinpath("cell.json").write_text(json.dumps({"schema": 1, "id": cell, "spec": SPEC, "evidence": {}}))
    epochs = [
        {"epoch": n, "step": 40 * n, "loss": 1 / n, "aux": {"balance": 0.1}, "lr": 1e-4, "validation": {"iou": 0.1 * n},
         "seconds": 2.0, "images_per_second": 50.0}
        for n in (1, 2, 3)
    ]  # fmt: skip
    work.joinpath("history.jsonl").write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))
    work.joinpath("log.txt").write_text("epoch 1\n")
    status = {"schema": 1, "state": state, "reason": changes.pop("reason", None), "attempt": attempt}
    if state == "done":
        result = {
            "schema": 1, "id": cell, "attempt": attempt, "random_backbone": True,
            "resolved": {**SPEC, "method": {"name": "lora", "parameters": {"rank": 6, "alpha": 12.0}}, "shots": None},
            "scores": {"test": {"paper": {"iou": 0.75, "mae": None}, "literature": {"iou": [0.5, 0.25]}}},
            "parameters": {"trainable": 10, "total": 100},
            "training": {"seconds": 6.0, "best_epoch": 2},
            "environment": {"device": "cpu", "commit": "abc", "dirty": False},
            **changes,
        }  # fmt: skip
        folder.path.joinpath("result.json").write_text(json.dumps(result))
        folder.path.joinpath("adapter.safetensors").write_bytes(b"weights")
    folder.path.joinpath("status.json").write_text(json.dumps({**status, "updated": UPDATED}))
    return folder


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory) -> Path:
    """A database with MLflow's tables, copied where a test needs one: making it takes seconds."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    _create_database(path)
    return path


@pytest.fixture
def results(tmp_path, monkeypatch, empty_database) -> Path:
    """An empty default results folder, with the database in its place."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    (tmp_path / "results" / "cells").mkdir(parents=True)
    return tmp_path / "results"


def runs_of(results: Path, uri: str | None = None) -> dict:
    """What MLflow's own client finds: cell -> run. Fails if a cell has two."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri or Store(results).uri)
    runs = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    found = {run.data.tags["cell"]: run for run in runs}
    assert len(found) == len(runs)
    return found


def test_record_of_a_finished_cell(tmp_path):
    cell = write_cell(tmp_path, training={"seconds": 10.0, "peak_memory_bytes": 7})
    record = read_record(cell, settled_digest(cell))
    assert (record.status, record.start, record.end) == ("FINISHED", UPDATED_MS - 10_000, UPDATED_MS)
    curve = [(p.step, p.value, p.timestamp - record.start) for p in record.metrics if p.key == "validation.iou"]
    assert curve == [(1, pytest.approx(0.1), 2000), (2, pytest.approx(0.2), 4000), (3, pytest.approx(0.3), 6000)]
    finals = {p.key: p.value for p in record.metrics if p.step == 0}
    assert finals == {
        "test/paper/iou": 0.75, "test/literature/iou/0": 0.5, "test/literature/iou/1": 0.25, "parameters.trainable": 10,
        "parameters.total": 100, "training.seconds": 10, "training.peak_memory_bytes": 7,
    }  # fmt: skip
    assert {p.key for p in record.metrics if p.step == 2} == {
        "loss", "aux.balance", "lr", "validation.iou", "images_per_second",
    }  # fmt: skip
    assert record.params["method.parameters.rank"] == "6"
    assert record.params["method.parameters.alpha"] == "12.0"
    assert record.params["shots"] == "null"


def test_record_of_a_failed_rerun_shows_nothing_of_the_success_before(tmp_path):
    write_cell(tmp_path)
    cell = write_cell(tmp_path, state="oom", attempt=2, reason="out of memory at step 3")
    record = read_record(cell, settled_digest(cell))
    assert record.status == "FAILED"
    assert record.tags["reason"] == "out of memory at step 3"
    assert record.params["method.parameters.rank"] == "6"
    assert not [p for p in record.metrics if p.step == 0]
    assert {file.name for file in record.artifacts} == {"cell.json", "status.json", "history.jsonl", "log.txt"}
    assert record.end - record.start == 6000, "three epochs of two seconds"


def test_a_resumed_history_counts_each_epoch_once(tmp_path):
    cell = write_cell(tmp_path)
    with (cell.path / "history.jsonl").open("a") as file:
        file.write('{"epoch": 2, "loss": 7.0}\n{"epoch": 3, "loss": 8.0}\n{"epoch": 4, "lo')
    losses = [(p.step, p.value) for p in read_record(cell, "").metrics if p.key == "loss"]
    assert losses == [(1, 1.0), (2, 7.0), (3, 8.0)]


@pytest.mark.parametrize("state", ["planned", "skipped"])
def test_a_cell_without_an_end_is_not_shown(tmp_path, state):
    assert settled_digest(write_cell(tmp_path, state=state)) is None


def test_the_digest_follows_the_result_and_not_the_time_of_writing(tmp_path):
    cell = write_cell(tmp_path)
    digest = settled_digest(cell)
    status = json.loads((cell.path / "status.json").read_text())
    (cell.path / "status.json").write_text(json.dumps({**status, "updated": "2027-01-01T00:00:00+00:00"}))
    assert settled_digest(cell) == digest
    assert settled_digest(write_cell(tmp_path, attempt=2)) != digest
    assert settled_digest(write_cell(tmp_path, scores={})) != digest
    failed = [settled_digest(write_cell(tmp_path, state="failed", reason=reason)) for reason in "ab"]
    assert failed[0] != failed[1]


def test_scores_of_classes_are_named_after_them(tmp_path):
    """A name may hold what MLflow refuses, and a class that occurs nowhere has no score."""
    scores = {"test": {"paper": {"iou": [0.5, None, 0.25, 0.75], "miou_all": 0.5}}}
    cell = write_cell(tmp_path, classes=["sky", "pole", "road/path", "car"], scores=scores)
    finals = {p.key: p.value for p in read_record(cell, settled_digest(cell)).metrics if p.key.startswith("test")}
    assert finals == {
        "test/paper/iou/sky": 0.5, "test/paper/iou/road_path": 0.25, "test/paper/iou/car": 0.75,
        "test/paper/miou_all": 0.5,
    }  # fmt: skip
    cell = write_cell(tmp_path, classes=["sky"], scores=scores)
    with pytest.raises(ValueError):
        read_record(cell, settled_digest(cell))


@settings(deadline=None)
@given(st.lists(st.text(max_size=20), min_size=1, max_size=4), st.sampled_from("/."))
def test_mlflow_takes_every_name(path, separator):
    from mlflow.utils.validation import _validate_metric_name, _validate_param_name

    _validate_metric_name(_key(tuple(path), separator))
    _validate_param_name(_key(tuple(path), separator))


def test_cells_are_logged_once(results):
    write_cell(results)
    write_cell(results, "shapes-lora-s1-1", state="failed", reason="loss is nan at step 7")
    write_cell(results, "shapes-lora-s2-2", state="planned")
    assert sync(results) == 2
    assert sync(results) == 0
    runs = runs_of(results)
    assert set(runs) == {"shapes-lora-s0-0", "shapes-lora-s1-1"}
    done, failed = runs["shapes-lora-s0-0"], runs["shapes-lora-s1-1"]
    assert (done.info.status, done.info.start_time, done.info.end_time) == ("FINISHED", UPDATED_MS - 6000, UPDATED_MS)
    assert done.info.run_name == "shapes-lora-s0-0"
    tags = {"state": "done", "method": "lora", "dataset": "shapes", "backbone": "tiny", "commit": "abc", "attempt": "1",
            "random_backbone": "true"}  # fmt: skip
    assert tags.items() <= done.data.tags.items()
    assert done.data.params["method.parameters.alpha"] == "12.0"
    assert done.data.metrics["test/paper/iou"] == 0.75
    assert done.data.metrics["loss"] == pytest.approx(1 / 3), "the last epoch's"
    assert (failed.info.status, failed.data.tags["reason"]) == ("FAILED", "loss is nan at step 7")
    artifacts = results / "mlflow-artifacts" / done.info.run_id / "artifacts"
    assert json.loads((artifacts / "result.json").read_text())["training"] == {"seconds": 6.0, "best_epoch": 2}
    assert (artifacts / "adapter.safetensors").stat().st_nlink == 2, "a link, not a copy"
    assert (artifacts / "log.txt").stat().st_nlink == 1, "a copy, not a link"


def test_a_new_attempt_or_result_replaces_the_run(results):
    write_cell(results, state="failed")
    sync(results)
    first = runs_of(results)["shapes-lora-s0-0"].info.run_id
    write_cell(results, attempt=2)
    assert sync(results) == 1
    assert runs_of(results)["shapes-lora-s0-0"].data.tags["attempt"] == "2"
    write_cell(results, attempt=2, scores={"test": {"paper": {"iou": 0.5}}})
    assert sync(results) == 1
    run = runs_of(results)["shapes-lora-s0-0"]
    assert run.data.metrics["test/paper/iou"] == 0.5
    assert "test/literature/iou/0" not in run.data.metrics
    folders = {path.name for path in (results / "mlflow-artifacts").iterdir()}
    assert folders == {run.info.run_id} and first not in folders


def test_a_run_left_half_written_is_replaced(results):
    cell = write_cell(results)
    store = Store(results)
    client = store.open()
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    client.create_run(experiment, tags={"cell": cell.id, "digest": settled_digest(cell)})
    assert sync(results) == 1
    assert runs_of(results)[cell.id].info.status == "FINISHED"


def test_more_values_than_one_request_holds(results):
    scores = {f"set{n}": {"paper": {"iou": n / 1100}} for n in range(1100)}
    write_cell(results, scores=scores, resolved={**SPEC, "many": {f"p{n}": n for n in range(150)}})
    assert sync(results) == 1
    data = runs_of(results)["shapes-lora-s0-0"].data
    assert data.metrics["set1099/paper/iou"] == 1099 / 1100
    assert data.params["many.p149"] == "149"


def test_an_unreadable_cell_is_named_and_keeps_no_other_from_being_logged(results):
    broken = write_cell(results, "a")
    (broken.path / "result.json").unlink()
    write_cell(results, "b", resolved=None)
    write_cell(results, "c")
    with pytest.raises(TrackingError, match=r"1 cells logged, but not a \(FileNotFoundError.*b \(TypeError"):
        sync(results)
    assert set(runs_of(results)) == {"c"}
    assert "lacks a (FileNotFoundError" in Tracker(results).close()


def test_searching_through_mlflow_finds_what_the_direct_query_finds(results, monkeypatch):
    for number in range(3):
        write_cell(results, f"cell{number}")
    sync(results)
    direct = Store(results).logged()
    monkeypatch.setattr(Store, "_query_logged", lambda self: None)
    assert Store(results).logged() == direct
    assert len(direct) == 3
    assert sync(results) == 0


def test_rebuild_equals_sync_and_leaves_other_experiments(results):
    for number in range(2):
        write_cell(results, f"cell{number}", training={"seconds": 5.0 + number})
    write_cell(results, "cell2", state="timeout", reason="over 2 h")
    sync(results)
    client = Store(results).open()
    other = client.create_run(client.create_experiment("mine"), run_name="kept").info.run_id
    before = runs_of(results)
    shutil.rmtree(results / "cells" / "cell1")
    assert rebuild(results) == 2
    after = runs_of(results)
    assert set(after) == {"cell0", "cell2"}, "a cell that is gone from the folder is gone from the view"
    for cell in after:
        old, new = before[cell], after[cell]
        assert old.info.run_id != new.info.run_id
        assert (old.data.params, old.data.metrics) == (new.data.params, new.data.metrics)
        assert old.data.tags == new.data.tags
        assert (old.info.status, old.info.start_time) == (new.info.status, new.info.start_time)
        curves = [client.get_metric_history(run.info.run_id, "loss") for run in (old, new)]
        values = [[(point.step, point.value, point.timestamp) for point in curve] for curve in curves]
        assert values[0] == values[1] and len(values[0]) == 3
    assert client.get_run(other).info.lifecycle_stage == "active"
    folders = {path.name for path in (results / "mlflow-artifacts").iterdir()}
    assert folders == {run.info.run_id for run in after.values()}
    assert sync(results) == 0


def test_an_experiment_deleted_by_hand_comes_back(results):
    write_cell(results)
    sync(results)
    client = Store(results).open()
    client.delete_experiment(client.get_experiment_by_name(EXPERIMENT).experiment_id)
    sync(results)
    assert set(runs_of(results)) == {"shapes-lora-s0-0"}


def test_a_tracker_logs_cells_as_they_end(results, monkeypatch, wait_for):
    monkeypatch.setattr(tracking, "SWEEP_SECONDS", 1000.0)
    cell = write_cell(results, "first")
    store = Store(results)
    tracker = Tracker(results)
    tracker.start()

    def logged(cell):
        store.forget()
        return store.has(cell.id, settled_digest(cell))

    wait_for(lambda: logged(cell))
    cell = write_cell(results, "second")
    tracker.cell_changed("second")
    wait_for(lambda: logged(cell))
    write_cell(results, "third, of another scheduler")
    assert "up to date (3 cells logged): mlflow ui" in tracker.close()
    assert len(runs_of(results)) == 3
    assert store.lease.acquire()
    store.lease.release()


def test_a_disabled_tracker_does_nothing(results):
    write_cell(results)
    with Tracker(results, enabled=False) as tracker:
        tracker.cell_changed("shapes-lora-s0-0")
        assert tracker.close() is None
    assert Store(results).logged() == {}


HOLDER = """
import time
from pathlib import Path
from bench.lease import Lease

lease = Lease(Path("mlflow.db.lease"))
print(lease.acquire(), flush=True)
time.sleep(300)
"""


def test_only_the_holder_of_the_lease_writes_until_it_is_killed(results):
    write_cell(results)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, env=environment) as holder:
        try:
            assert holder.stdout.readline() == b"True\n"
            with Tracker(results) as tracker:
                tracker.cell_changed("shapes-lora-s0-0")
                assert f"written by process {holder.pid} on" in tracker.close()
            with pytest.raises(TrackingError, match=f"process {holder.pid}"):
                rebuild(results)
            assert Store(results).logged() == {}
        finally:
            holder.send_signal(signal.SIGKILL)
    assert sync(results) == 1


@pytest.mark.parametrize("started", [True, False])
def test_cells_left_to_a_holder_that_is_just_ending_are_logged(results, monkeypatch, wait_for, started):
    """A second scheduler ends, and trusts the lease's holder with its cells, after the holder has looked for the last
    time and before it gives the lease back."""
    write_cell(results, "ours")
    tracker = Tracker(results)
    if started:
        tracker.start()
        wait_for(lambda: "ours" in Store(results).logged())
    release = tracker._store.lease.release
    others = iter(["theirs"])

    def late(*_):
        if tracker._store.lease.held:
            for cell in others:
                write_cell(results, cell)
        release()

    monkeypatch.setattr(tracker._store.lease, "release", late)
    assert "up to date (2 cells" in tracker.close()
    assert set(runs_of(results)) == {"ours", "theirs"}


def test_a_database_deleted_during_a_run_is_made_anew(results, wait_for):
    write_cell(results, "before")
    tracker = Tracker(results)
    tracker.start()
    wait_for(lambda: "before" in Store(results).logged())
    (results.parent / "mlflow.db").unlink()
    write_cell(results, "after")
    tracker.cell_changed("after")
    assert "up to date" in tracker.close()
    assert set(runs_of(results)) == {"before", "after"}


def test_a_database_deleted_while_a_cell_is_logged_is_made_anew(results, monkeypatch):
    store_artifacts = Store._store_artifacts
    databases = iter([results.parent / "mlflow.db"])

    def delete_once(*arguments):
        for database in databases:
            database.unlink()
        store_artifacts(*arguments)

    monkeypatch.setattr(Store, "_store_artifacts", delete_once)
    write_cell(results)
    assert "up to date (1 cells" in Tracker(results).close()
    assert set(runs_of(results)) == {"shapes-lora-s0-0"}


def test_a_locked_database_is_reported_and_caught_up_with(results):
    write_cell(results)
    with closing(sqlite3.connect("mlflow.db", isolation_level=None)) as lock:
        lock.execute("BEGIN EXCLUSIVE")
        tracker = Tracker(results)
        tracker.start()
        assert "not up to date (still busy after 0 s); `python -m bench.tracking rebuild`" in tracker.close(timeout=0.2)
        lock.execute("ROLLBACK")
    tracker._thread.join(300)
    assert set(runs_of(results)) == {"shapes-lora-s0-0"}


def test_an_impossible_store_is_a_warning(results, wait_for):
    write_cell(results)
    (results / "file").touch()
    tracker = Tracker(results, uri=f"sqlite:///{results}/file/mlflow.db")
    tracker.start()
    wait_for(lambda: tracker._problem)
    message = tracker.close(timeout=0.1)
    assert "not up to date (" in message and "bench.tracking rebuild" in message
    with pytest.raises(TrackingError, match="file/mlflow.db"):
        sync(results, f"sqlite:///{results}/file/mlflow.db")


def test_a_broken_database_is_a_warning_and_rebuild_sets_it_aside(results):
    write_cell(results)
    (results.parent / "mlflow.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(TrackingError, match="not a database"):
        sync(results)
    assert rebuild(results) == 1
    assert set(runs_of(results)) == {"shapes-lora-s0-0"}
    assert [p.read_bytes()[:11] for p in results.parent.glob("mlflow.db.broken-*")] == [b"no database"]


def test_artifacts_of_a_moved_folder(results, monkeypatch):
    write_cell(results)
    sync(results)
    moved = results.parent.with_name(results.parent.name + "-moved")
    results.parent.rename(moved)
    monkeypatch.chdir(moved)
    write_cell(moved / "results", "new")
    with pytest.raises(TrackingError, match=r"keeps its artifacts in .* gone"):
        sync(moved / "results")
    assert rebuild(moved / "results") == 2
    assert len(list((moved / "results" / "mlflow-artifacts").iterdir())) == 2
    assert not results.exists()


def test_where_the_store_lies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    default, other = Store(Path("results")), Store(Path("elsewhere"))
    assert (default.uri, default.view_command) == (f"sqlite:///{tmp_path}/mlflow.db", "mlflow ui")
    assert other.uri == f"sqlite:///{tmp_path}/elsewhere/mlflow.db"
    assert other.view_command == f"mlflow ui --backend-store-uri {other.uri}"
    assert Store(ROOT / "results").uri == f"sqlite:///{ROOT}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    assert Store(Path("results")).uri == "http://localhost:5000"
    assert Store(Path("results"), "sqlite:///x.db").database == tmp_path / "x.db"


def test_the_command_line(results, capsys):
    write_cell(results)
    assert tracking.main(["sync"]) == 0
    printed = f"1 cells logged in sqlite:///{results.parent}/mlflow.db\nlook at them with: mlflow ui\n"
    assert capsys.readouterr().out == printed
    assert tracking.main(["rebuild", "--results", "nowhere"]) == 1
    assert "nowhere holds no cells" in capsys.readouterr().err


OUTSIDE = """
import sys
from pathlib import Path
from bench.tracking import Tracker
from bench.tracking_store import Store

print(Tracker(Path("results")).close())
assert "mlflow" not in sys.modules, "a folder that is up to date needs no MLflow"
Store(Path("results")).open()
from mlflow.telemetry.client import get_telemetry_client
from mlflow.telemetry.utils import is_telemetry_disabled
assert is_telemetry_disabled() and get_telemetry_client() is None
"""

BARE = """
from mlflow import MlflowClient

client = MlflowClient()
experiment = client.get_experiment_by_name("sam-peft")
print([run.data.tags["cell"] for run in client.search_runs([experiment.experiment_id])])
"""


def test_mlflow_is_imported_late_without_telemetry_and_a_bare_client_sees_the_runs(results):
    write_cell(results)
    sync(results)
    # MLflow turns its telemetry off by itself where it sees tests or CI.
    clean = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    run = {"cwd": results.parent, "capture_output": True, "text": True, "timeout": 300}
    ours = subprocess.run([sys.executable, "-c", OUTSIDE], env={**clean, "PYTHONPATH": str(ROOT)}, **run)
    assert (ours.returncode, ours.stderr) == (0, "")
    assert ours.stdout == "MLflow is up to date (0 cells logged): mlflow ui\n"
    bare = subprocess.run([sys.executable, "-c", BARE], env={**clean, "DO_NOT_TRACK": "true"}, **run)
    assert bare.stdout == "['shapes-lora-s0-0']\n", bare.stderr
