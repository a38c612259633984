"""One cell from its folder to its result: all its files, all its ends, and what happens when it is started twice."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

import datasets
import methods
from bench import work
from bench.cell import CLAIMED, FAILED, INTERRUPTED, PARENT_PIPE, REVOKED, Interrupted, headline, main, outcome
from bench.metrics import PROTOCOLS, metrics_of
from bench.spec import Cell, make_cell
from bench.store import Attempt, CellFolder, Results, read_json, write_json

ROOT = Path(__file__).resolve().parents[2]
PROMISED = {
    "cell.json",
    "log.txt",
    "status.json",
    "history.jsonl",
    "result.json",
    "per_image.parquet",
    "adapter.safetensors",
    "adapter.json",
    "experts.parquet",
    "attempts",
}


def replace_method(cell: Cell, method: methods.Method) -> Cell:
    """The same cell with another method."""
    own = {"name": method.name, "version": method.version, "parameters": method.model_dump(exclude_defaults=True)}
    return Cell({**cell.spec, "method": own})


def tiny_cell(method: str = "conv_lora", **regime: object) -> Cell:
    """A cell of eight images that trains in a second or two."""
    dataset = datasets.load("shapes", train_images=8, validation_images=4, test_images=4, size=64)
    return make_cell(
        method=methods.create(method),
        dataset=dataset,
        seed=0,
        backbone="tiny",
        checkpoint="none",
        image_size=64,
        precision="fp32",
        regime={"epochs": 1, **regime},
    )


def planned(results: Path, cell: Cell) -> CellFolder:
    folder = Results(results).cell(cell.id)
    folder.create(cell, {})
    return folder


def start(folder: CellFolder, *words: str) -> int:
    """``python -m bench.cell`` in this process."""
    return main([folder.id, "--results", str(folder.path.parent.parent), *words])


@pytest.fixture(autouse=True)
def no_parent(monkeypatch):
    """Nobody holds the input of a cell in this process."""
    monkeypatch.delenv(PARENT_PIPE, raising=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> CellFolder:
    """A cell that is done; tests leave it as it is."""
    folder = planned(tmp_path_factory.mktemp("results"), tiny_cell())
    handler = signal.getsignal(signal.SIGTERM)
    assert start(folder, "--threads", "1") == 0
    signal.signal(signal.SIGTERM, handler)
    return folder


@pytest.fixture
def copied(trained, tmp_path) -> CellFolder:
    """A copy of the cell that is done, to be changed."""
    shutil.copytree(trained.path, tmp_path / "cells" / trained.id)
    return Results(tmp_path).cell(trained.id)


@pytest.fixture
def worker(monkeypatch) -> Callable:
    """Puts a function of the attempt in the place of training."""

    def put(do: Callable[[Attempt], None]) -> None:
        monkeypatch.setattr(work, "train_and_score", lambda cell, attempt, options, watcher: do(attempt))

    return put


def no_training(attempt: Attempt) -> None:
    raise AssertionError("trained a cell that is done")


def test_a_cell_writes_all_that_is_promised(trained):
    assert {path.name for path in trained.path.iterdir()} == PROMISED
    assert trained.status()["state"] == "done"
    card = read_json(trained.path / "cell.json")
    assert card["id"] == trained.id == Cell(card["spec"]).id
    assert set(card["evidence"]) == {"data", "images", "checkpoint", "source"}
    assert set(card["evidence"]["data"]) == {"train", "validation", "test"}
    assert card["evidence"]["images"] == {"train": 8, "validation": 4, "test": 4}
    (line,) = map(json.loads, (trained.path / "history.jsonl").read_text().splitlines())
    assert (line["epoch"], line["step"]) == (1, 2)
    assert set(line["validation"]) == {"iou"}
    assert [(len(counts), sum(counts)) for counts in line["experts"]] == [(8, 4)] * 12, "an expert a validation image"


def test_a_result_holds_all_that_is_promised(trained):
    result = trained.result()
    assert set(result["scores"]) == {"test"}
    assert set(result["scores"]["test"]) == set(PROTOCOLS)
    for scores in result["scores"]["test"].values():
        assert set(scores) == set(metrics_of(1))
        assert all(0 <= value <= 1 for value in scores.values())
    assert result["parameters"]["trainable"] < result["parameters"]["total"]
    assert result["random_backbone"] is True
    training = result["training"]
    assert (training["steps"], training["epochs"], training["best_epoch"], training["micro_batch"]) == (2, 1, 1, 4)
    assert training["seconds"] > 0
    assert training["images_per_second"] > 0
    assert training["peak_memory_bytes"] > 1e7
    assert {"device", "threads", "torch", "python", "host", "commit", "dirty"} <= set(result["environment"])
    assert result["environment"]["threads"] == 1
    assert result["attempt"] == 1
    assert result["resolved"]["regime"]["lr"] == 1e-4


def test_the_adapter_is_the_trained_model(trained):
    """Loaded again it predicts what was scored, and it is not what training began with."""
    from bench.evaluation import evaluate
    from bench.machine import Machine

    cell, scores = tiny_cell(), trained.result()["scores"]
    test_sets = {"test": cell.dataset().open()["test"]}
    again = evaluate(methods.load(trained.path), test_sets, Machine(), image_size=64)
    assert again.scores == scores
    fresh = evaluate(cell.method().build(cell.context()), test_sets, Machine(), image_size=64)
    assert fresh.scores != scores


def test_a_second_start_does_nothing(trained, worker, caplog):
    worker(no_training)
    before = {path: path.stat().st_mtime_ns for path in trained.path.rglob("*")}
    with caplog.at_level("INFO"):
        assert start(trained) == 0
    assert "is done already" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in trained.path.rglob("*")} == before


def test_scoring_again_trains_nothing(copied, worker):
    """An old score and an old digest are replaced, everything that training left stays as it was."""
    worker(no_training)
    result, card = copied.result(), copied.read()
    write_json(copied.path / "result.json", result | {"scores": {}})
    evidence = card["evidence"] | {
        "data": "trained on these",
        "source": card["evidence"]["source"] | {"evaluation": "old"},
    }
    write_json(copied.path / "cell.json", card | {"evidence": evidence})
    (copied.path / "per_image.parquet").unlink()
    kept = ["adapter.safetensors", "adapter.json", "history.jsonl"]
    before = [hashlib.sha256((copied.path / name).read_bytes()).hexdigest() for name in kept]

    assert start(copied, "--evaluate") == 0

    assert [hashlib.sha256((copied.path / name).read_bytes()).hexdigest() for name in kept] == before
    again = copied.result()
    assert again["scores"] == result["scores"]
    assert again["training"] == result["training"]
    assert again["attempt"] == 2
    assert (copied.path / "per_image.parquet").exists()
    assert copied.status()["state"] == "done"
    source = card["evidence"]["source"]
    assert copied.read()["evidence"]["source"] == source, "it was scored with today's metrics"
    assert copied.read()["evidence"]["data"] == "trained on these", "it was not trained on today's images"


def test_scoring_again_keeps_the_mark_of_a_stale_training(copied):
    """Whoever scores an old training again must not make it look new, not even until the next plan."""
    status = copied.status()
    copied.set_state("done", attempt=status["attempt"], stale=["data", "source.evaluation"])
    assert start(copied, "--evaluate") == 0
    assert copied.status().get("stale") == ["data"]


def test_scoring_again_that_fails_leaves_the_result(copied, monkeypatch):
    def broken(*_) -> None:
        raise RuntimeError("metric broken")

    monkeypatch.setattr(work, "score_again", broken)
    result, status = copied.result(), copied.status()
    assert start(copied, "--evaluate") == FAILED
    assert copied.result() == result
    assert (copied.status()["state"], copied.status()["attempt"]) == ("done", status["attempt"])
    assert "metric broken" in copied.status()["reason"]


def test_scoring_again_needs_a_result(tmp_path):
    folder = planned(tmp_path, tiny_cell())
    assert start(folder, "--evaluate") == FAILED
    assert f"python -m bench.cell {folder.id}" in folder.status()["reason"]


def test_again_runs_a_cell_that_is_done(copied):
    result = copied.result()
    assert start(copied, "--again", "--threads", "1") == 0
    assert copied.result()["attempt"] == 2
    assert copied.result()["scores"] == result["scores"]


def test_an_error_is_recorded_with_its_reason(tmp_path, worker):
    def broken(attempt: Attempt) -> None:
        raise ValueError("the third image\nis upside down\n\n(long explanation)")

    worker(broken)
    folder = planned(tmp_path, tiny_cell())
    assert start(folder) == FAILED
    status = folder.status()
    assert (status["state"], status["attempt"]) == ("failed", 1)
    assert status["reason"].startswith("ValueError: the third image")
    assert "\n" not in status["reason"], "a reason is one line"
    assert folder.result() is None
    assert (folder.path / "attempts/1/end").read_text() == "revoked"


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "oom"),
        (MemoryError(), "oom"),
        (RuntimeError("CUDA error: out of memory"), "oom"),
        (RuntimeError("cuBLAS failed: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "oom"),
        (Interrupted(), "interrupted"),
        (KeyboardInterrupt(), "interrupted"),
        (RuntimeError("x"), "failed"),
        (SystemExit(1), "failed"),
    ],
)
def test_every_error_has_a_state_and_a_reason(error, state):
    assert outcome(error)[0] == state
    assert outcome(error)[1].strip()


def test_an_interruption_while_committing_does_not_undo_the_commit(tmp_path, worker, monkeypatch):
    """Once ``end`` says committed the cell is done, whatever signal comes while its files move."""
    finish, calls = CellFolder.finish_commit, []

    def interrupted_once(self: CellFolder, attempt: Attempt) -> None:
        calls.append(attempt.number)
        if len(calls) == 1:
            raise Interrupted
        finish(self, attempt)

    monkeypatch.setattr(CellFolder, "finish_commit", interrupted_once)
    worker(lambda attempt: attempt.commit([], {"attempt": attempt.number}))
    folder = planned(tmp_path, tiny_cell())
    with suppress(Interrupted):
        start(folder)
    assert folder.status()["state"] == "done"
    assert folder.result() == {"attempt": 1}


def test_a_commit_that_died_half_way_is_finished_and_nothing_trained_again(tmp_path, worker):
    folder = planned(tmp_path, tiny_cell())
    attempt = folder.claim()
    folder.set_state("running", attempt=1)
    write_json(attempt.path / "result.json", {"attempt": 1})
    write_json(attempt.path / "commit.json", {"files": ["result.json"], "stale": []})
    (attempt.path / "end").write_text("committed")
    worker(no_training)
    assert start(folder) == 0
    assert folder.result() == {"attempt": 1}
    assert folder.status()["state"] == "done"


def test_a_cell_that_runs_elsewhere_is_left_alone(tmp_path, worker, caplog):
    folder = planned(tmp_path, tiny_cell())
    folder.claim()
    folder.set_state("running", attempt=1)
    worker(no_training)
    assert start(folder) == CLAIMED
    assert "is running" in caplog.text
    assert folder.status()["state"] == "running"


def test_an_attempt_given_up_for_dead_does_not_commit(tmp_path, worker):
    def overtaken(attempt: Attempt) -> None:
        attempt.revoke()
        other = attempt.cell.claim()
        attempt.cell.set_state("running", attempt=other.number)
        attempt.commit([], {"attempt": attempt.number})

    worker(overtaken)
    folder = planned(tmp_path, tiny_cell())
    assert start(folder) == REVOKED
    assert folder.result() is None
    assert (folder.status()["state"], folder.status()["attempt"]) == ("running", 2)


def test_messages_for_cells_that_are_not_there_or_not_themselves(tmp_path, capsys):
    assert main(["no-such-cell", "--results", str(tmp_path)]) == 2
    assert "--dry-run" in capsys.readouterr().err
    folder = planned(tmp_path, tiny_cell())
    renamed = folder.path.rename(folder.path.with_name("shapes-lora-s0-00000000"))
    assert main([renamed.name, "--results", str(tmp_path)]) == 2
    assert folder.id in capsys.readouterr().err


def test_the_headline_says_the_datasets_own_metrics_and_what_looks_wrong(trained):
    result = trained.result()
    assert headline(result).startswith(f"test: iou {result['scores']['test']['paper']['iou']:.4f}, dice ")
    assert headline(result | {"degenerate": ["test: predicts no foreground anywhere"]}).endswith(
        "DEGENERATE, test: predicts no foreground anywhere"
    )
    assert headline({}) == ""


@pytest.fixture
def long_process(tmp_path, wait_for):
    """A cell's process in its training, which would last for hours, and its folder."""
    folder = planned(tmp_path, tiny_cell("decoder_only", epochs=10**6, patience=0))
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.cell", folder.id, "--results", tmp_path, "--threads", "1"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {PARENT_PIPE: "1"},
    )
    progress = folder.path / "attempts/1/progress.json"
    wait_for(lambda: process.poll() is not None or (read_json(progress) or {}).get("step"))
    assert process.poll() is None, process.stderr.read()
    yield process, folder
    process.kill()
    process.communicate()


@pytest.fixture
def held_process(tmp_path):
    """A process that is prepared for a cell and waits, its folder, the pipe it says so in, and how long it took."""
    folder, began = planned(tmp_path, tiny_cell()), time.monotonic()
    signs, theirs = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.cell", folder.id, "--results", tmp_path, "--threads", "1", "--hold"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {PARENT_PIPE: str(theirs)},
        pass_fds=(theirs,),
    )
    os.close(theirs)
    with os.fdopen(signs) as heard:
        assert heard.readline() == "ready\n", process.stderr.read()
        assert not folder.attempts() and folder.status()["state"] == "planned", "it has taken nothing"
        yield process, folder, heard, time.monotonic() - began
    process.kill()
    process.communicate()


def test_a_held_process_claims_its_cell_when_it_is_set_free(held_process, trained):
    process, folder, heard, preparation = held_process
    began = time.monotonic()
    process.stdin.write("go on\n")
    process.stdin.flush()
    assert heard.readline() == "working\n"
    assert time.monotonic() - began < preparation / 2, "all that takes long was done ahead"
    assert folder.status()["state"] == "running"
    assert heard.read().split() == ["ending", "worked"]
    assert process.wait(120) == 0
    assert folder.result()["scores"] == trained.result()["scores"], "prepared ahead or not, the numbers are the same"


def test_a_held_process_ends_with_whoever_holds_it(held_process):
    process, folder, *_ = held_process
    process.stdin.close()
    process.stdin = None
    assert process.wait(60) == INTERRUPTED
    assert not folder.attempts() and folder.status()["state"] == "planned"


def test_what_cannot_be_prepared_fails_under_the_claim(tmp_path, monkeypatch):
    """A held process that found its data broken records that when it is its turn."""
    monkeypatch.setattr("bench.cell.listen_to_parent", lambda hold: threading.Event())
    monkeypatch.setattr(threading.Event, "wait", lambda self, timeout=None: True)
    folder = planned(tmp_path, tiny_cell())
    assert start(folder, "--hold", "--checkpoint", str(tmp_path / "no-such.pth")) == FAILED
    assert "no-such.pth" in folder.status()["reason"]


def test_sigterm_interrupts_a_training(long_process):
    process, folder = long_process
    progress = read_json(folder.path / "attempts/1/progress.json")
    assert (progress["device"], progress["epochs"]) == ("cpu", 10**6)
    assert folder.status()["state"] == "running"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == INTERRUPTED
    status = read_json(folder.path / "status.json")
    assert (status["state"], status["reason"]) == ("interrupted", "stopped by a signal")
    assert "Traceback" not in process.stderr.read()


def test_a_process_ends_with_whoever_holds_its_input(long_process):
    process, folder = long_process
    process.stdin.close()
    process.stdin = None
    assert process.wait(60) == INTERRUPTED
    assert folder.status()["state"] == "interrupted"
    assert folder.claim().number == 2


def test_what_trains_nothing_is_scored_only(tmp_path):
    """Published SAM with an oracle's prompt: no steps, an empty delta, and its caveat on record."""
    method = methods.create("sam_zero_shot", {"prompt": "box"})
    folder = planned(tmp_path, replace_method(tiny_cell(), method))
    assert start(folder) == 0
    result = folder.result()
    assert result["parameters"]["trainable"] == result["training"]["steps"] == result["training"]["train_images"] == 0
    assert result["caveats"] == ["oracle: its box is taken from the true mask"]
    assert (folder.path / "history.jsonl").read_text() == ""
    scores = result["scores"]
    assert start(folder, "--evaluate") == 0
    assert folder.result()["scores"] == scores


def test_how_a_cell_is_executed_is_recorded_and_changes_no_number(trained, tmp_path):
    folder = planned(tmp_path, tiny_cell())
    words = ["--attention", "bias", "--checkpointing", "selective", "--micro-batch", "2", "--oom-retries", "2"]
    assert start(folder, *words) == 0
    how = {"attention": "bias", "checkpointing": "selective", "compile": False, "micro_batch": 2, "oom_retries": 2}
    before, after = trained.result()["training"], folder.result()["training"]
    assert {key: after[key] for key in how} == how
    assert {key: before[key] for key in how} == how | {
        "attention": "auto", "checkpointing": "none", "micro_batch": 4, "oom_retries": 0,
    }  # fmt: skip
    assert after["last_loss"] == pytest.approx(before["last_loss"], rel=1e-4)


def test_an_unknown_execution_fails_with_what_is_allowed(tmp_path):
    folder = planned(tmp_path, tiny_cell())
    assert start(folder, "--checkpointing", "all") == 1
    assert "checkpointing = 'all'; allowed: none, blocks, selective" in folder.status()["reason"]
