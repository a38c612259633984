"""A cell whose process is killed, wherever it was, is in the end the cell that nothing had happened to."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

import datasets
import methods
from bench import saved, work
from bench.cell import FAILED, INTERRUPTED, PARENT_PIPE, Interrupted, main
from bench.spec import Cell, make_cell
from bench.store import CellFolder, Results
from bench.training import NonFiniteLoss, Trainer

ROOT = Path(__file__).resolve().parents[2]
EPOCHS = 4
OF_THE_MOMENT = ("seconds", "images_per_second", "first_step_at", "peak_memory_bytes", "resumed")
# The cell's own process, with one function replaced by one that kills it or must not be called.
PATCHED = """
import os, signal, sys
from bench import cell, saved, work
from bench.training import Trainer

def die(*given, **more):
    os.kill(os.getpid(), signal.SIGKILL)

def unwanted(*given, **more):
    raise AssertionError("trained what was trained already")

{patch}
sys.exit(cell.main(sys.argv[1:]))
"""
WHILE_WRITING = """
files = []

class Dying(saved._Digesting):
    def write(self, content):
        files.extend([self] * (self not in files))
        self.writes = getattr(self, "writes", 0) + 1
        if len(files) == 3 and self.writes == 200:
            self._file.flush()
            die()
        return super().write(content)

saved._Digesting = Dying
"""
STANDS_STILL = """
import time
offer = saved.SavedStates.offer

def offer_and_stay(states, trainer, best):
    offer(states, trainer, best)
    if trainer.record.epochs == {epoch}:
        time.sleep(300)

saved.SavedStates.offer = offer_and_stay
"""
LITTLE_ROOM = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
"""
ALWAYS = "saved.ALWAYS_SECONDS = float('inf')\n"


@pytest.fixture(autouse=True)
def every_epoch(monkeypatch):
    """Nobody holds the input of a cell in this process, and a slow disk must not decide which states there are."""
    monkeypatch.delenv(PARENT_PIPE, raising=False)
    monkeypatch.setattr(saved, "ALWAYS_SECONDS", float("inf"))


def tiny_cell(method: str = "conv_lora", shots: int = 6, **regime: object) -> Cell:
    """A few-shot cell of a few images that trains in seconds."""
    dataset = datasets.load("shapes", train_images=12, validation_images=2, test_images=3, size=64)
    shape = {"backbone": "tiny", "checkpoint": "none", "image_size": 64, "precision": "fp32"}
    recipe = {"epochs": EPOCHS, "lr": 1e-3, **regime}
    return make_cell(method=methods.create(method), dataset=dataset, shots=shots, seed=1, regime=recipe, **shape)


def planned(results: Path, cell: Cell) -> CellFolder:
    folder = Results(results).cell(cell.id)
    folder.create(cell, {})
    return folder


def words(folder: CellFolder, *more: str) -> list[str]:
    return [folder.id, "--results", str(folder.path.parent.parent), "--threads", "1", *more]


def process(folder: CellFolder, patch: str = "", *more: str) -> subprocess.Popen:
    """``python -m bench.cell`` with a patch."""
    script = PATCHED.format(patch=ALWAYS + patch)
    return subprocess.Popen([sys.executable, "-c", script, *words(folder, *more)], cwd=ROOT, stderr=subprocess.PIPE)


def killed(folder: CellFolder, patch: str) -> None:
    """Start a cell that kills itself, and be sure that it did."""
    one = process(folder, patch)
    _, said = one.communicate(timeout=600)
    assert one.returncode == -signal.SIGKILL, said.decode()


def epochs(folder: CellFolder) -> list[int]:
    """Of the saved states."""
    return sorted(int(path.stem.partition("-")[2]) for path in folder.checkpoints.glob("epoch-*.ckpt"))


def content(folder: CellFolder) -> dict[str, Any]:
    """All that a cell's files say but for times."""
    result, lines = folder.result(), (folder.path / "history.jsonl").read_text().splitlines()
    history = [{key: value for key, value in json.loads(line).items() if key not in OF_THE_MOMENT} for line in lines]
    training = {name: value for name, value in result["training"].items() if name not in OF_THE_MOMENT}
    return {
        "scores": result["scores"],
        "training": training,
        "history": history,
        "images": pyarrow.parquet.read_table(folder.path / "per_image.parquet").to_pylist(),
        "experts": pyarrow.parquet.read_table(folder.path / "experts.parquet").to_pylist(),
        "adapter": (folder.path / "adapter.safetensors").read_bytes(),
        "evidence": folder.read()["evidence"],
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, Any]:
    """What the cell is when nothing happens to it; made in a process of its own."""
    folder = planned(tmp_path_factory.mktemp("undisturbed"), tiny_cell())
    one = process(folder)
    _, said = one.communicate(timeout=600)
    assert one.returncode == 0, said.decode()
    assert folder.result()["training"]["resumed"] == []
    assert not folder.checkpoints.exists()
    return content(folder)


def done(folder: CellFolder) -> list[int]:
    """Run a cell to its end; after which epochs it went on, this time and before."""
    assert main(words(folder)) == 0
    assert folder.status()["state"] == "done"
    assert not folder.checkpoints.exists()
    return [entry["epoch"] for entry in folder.result()["training"]["resumed"]]


def test_a_process_killed_from_outside_goes_on_twice(tmp_path, undisturbed, wait_for):
    """After the first epoch and after the third."""
    folder = planned(tmp_path, tiny_cell())
    for epoch in (1, 3):
        one = process(folder, STANDS_STILL.format(epoch=epoch))
        wait_for(lambda: one.poll() is not None or epoch in epochs(folder))
        one.kill()
        _, said = one.communicate()
        assert one.returncode == -signal.SIGKILL, said.decode()
        assert folder.status()["state"] == "interrupted"
    assert done(folder) == [1, 3]
    assert content(folder) == undisturbed
    assert folder.result()["attempt"] == 3
    assert "goes on after epoch 1\n" in (folder.path / "log.txt").read_text()


@pytest.fixture(scope="module")
def killed_while_writing(tmp_path_factory) -> CellFolder:
    """A cell whose process was killed when half of its third state was written."""
    folder = planned(tmp_path_factory.mktemp("killed"), tiny_cell())
    killed(folder, WHILE_WRITING)
    return folder


@pytest.mark.parametrize("truncated", [False, True])
def test_a_process_killed_while_it_writes_a_state_goes_on_from_the_one_before(
    truncated, killed_while_writing, tmp_path, undisturbed
):
    shutil.copytree(killed_while_writing.path, tmp_path / "cells" / killed_while_writing.id)
    folder = Results(tmp_path).cell(killed_while_writing.id)
    assert folder.status()["state"] == "interrupted"
    assert epochs(folder) == [1, 2]
    (half,) = (path for path in folder.checkpoints.iterdir() if path.name.startswith("."))
    assert half.stat().st_size > 0
    if truncated:
        os.truncate(folder.checkpoints / "epoch-2.ckpt", half.stat().st_size)
    assert done(folder) == [1 if truncated else 2]
    assert content(folder) == undisturbed


def interrupted(*given: Any) -> None:
    raise Interrupted


def test_a_process_killed_after_training_is_only_scored(tmp_path, undisturbed, monkeypatch):
    """While it scores, and before it commits."""
    folder = planned(tmp_path, tiny_cell())
    killed(folder, "work.Attempt.commit = die\n")
    assert epochs(folder) == [EPOCHS - 1, EPOCHS]
    monkeypatch.setattr(Trainer, "step", None)
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(work, "_score", interrupted)
        assert main(words(folder)) == INTERRUPTED
    assert done(folder) == [EPOCHS]
    assert content(folder) == undisturbed


def test_a_process_killed_while_it_commits_leaves_no_state_behind(tmp_path, undisturbed, monkeypatch):
    folder = planned(tmp_path, tiny_cell())
    killed(folder, "from bench import store\nstore.shutil.rmtree = die\n")
    assert epochs(folder) == [EPOCHS - 1, EPOCHS]
    monkeypatch.setattr(work, "train_and_score", None)
    assert main(words(folder)) == 0
    assert content(folder) == undisturbed
    assert not folder.checkpoints.exists()


@contextmanager
def broken(error: BaseException) -> Iterator[None]:
    """Let the sixth step, which is in the third epoch, end with an error."""
    step = Trainer.step

    def failing(self: Trainer, *batch: Any) -> Any:
        if self.progress.step == 5:
            raise error
        return step(self, *batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", failing)
        yield


@pytest.mark.parametrize(("error", "code"), [(Interrupted(), INTERRUPTED), (MemoryError(), FAILED)])
def test_whatever_ends_an_attempt_the_next_goes_on(error, code, tmp_path, undisturbed):
    folder = planned(tmp_path, tiny_cell())
    with broken(error):
        assert main(words(folder)) == code
    assert epochs(folder) == [1, 2]
    assert done(folder) == [2]
    assert content(folder) == undisturbed


def test_but_a_loss_that_is_no_number_begins_anew(tmp_path):
    """It would come again at the same step; whoever asks for the cell once more wants another training."""
    folder = planned(tmp_path, tiny_cell())
    with broken(NonFiniteLoss("non-finite loss at step 6")):
        assert main(words(folder)) == FAILED
    assert not folder.checkpoints.exists()


def test_another_source_begins_anew_and_the_log_says_why(tmp_path, undisturbed):
    folder = planned(tmp_path, tiny_cell())
    old = {"method": "o", "dataset": "l", "training": "d", "evaluation": "!"}
    with pytest.MonkeyPatch.context() as yesterday, broken(Interrupted()):
        yesterday.setattr("bench.evidence.source_evidence", lambda cell: old)
        assert main(words(folder)) == INTERRUPTED
    assert done(folder) == []
    assert content(folder) == undisturbed
    log = (folder.path / "log.txt").read_text()
    assert "was made from other source.dataset, source.evaluation, source.method, source.training" in log
    assert "starts anew" in log


def test_a_cell_that_is_done_begins_anew_on_again(tmp_path, undisturbed):
    """And what was begun again is gone on with as well."""
    folder = planned(tmp_path, tiny_cell())
    assert done(folder) == []
    with broken(Interrupted()):
        assert main(words(folder, "--again")) == INTERRUPTED
    assert epochs(folder) == [1, 2]
    assert done(folder) == [2]
    assert content(folder) == undisturbed
    assert folder.result()["attempt"] == 3


def test_a_full_disk_costs_the_states_and_not_the_result(tmp_path, undisturbed):
    """As a quota does it: the adapter has room, three times as much has not."""
    adapter = len(undisturbed["adapter"])
    folder = planned(tmp_path, tiny_cell())
    one = process(folder, LITTLE_ROOM.format(limit=adapter + adapter // 2))
    _, said = one.communicate(timeout=600)
    assert one.returncode == 0, said.decode()
    assert said.decode().count("is not saved, training goes on") == 1
    assert content(folder) == undisturbed
    assert not folder.checkpoints.exists()
