"""How soon a cell's process reaches its first training step, and what it must not have imported by then."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

import datasets
import methods
from bench.spec import make_cell
from bench.store import CellFolder, Results

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 6.0  # what is asked for on a machine of two cores of its own
HEAVY = {
    "pandas",
    "mlflow",
    "py_sod_metrics",
    "cv2",
    "scipy",
    "skimage",
    "matplotlib",
    "seaborn",
    "rich",
    "joblib",
    "pyarrow",
    "timm",
}
# The cell as it is, ended at its first step; prints what was imported by then.
AT_THE_FIRST_STEP = """
import json, os, sys
from bench import cell, training

class Training(training.Training):
    def __setattr__(self, name, value):
        if name == "first_step_at" and value is not None:
            print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})), flush=True)
            os._exit(0)
        super().__setattr__(name, value)

training.Training = Training
sys.exit(cell.main(sys.argv[1:]))
"""


@pytest.fixture
def folder(tmp_path) -> CellFolder:
    """A cell as the matrix ``smoke`` has it, of fewer images."""
    dataset = datasets.load("shapes", train_images=8, validation_images=1, test_images=1, size=64)
    cell = make_cell(
        method=methods.create("conv_lora"),
        dataset=dataset,
        seed=0,
        backbone="tiny",
        checkpoint="none",
        image_size=128,
        precision="fp32",
        regime={"epochs": 1, "max_steps": 1},
    )
    made = Results(tmp_path).cell(cell.id)
    made.create(cell, {})
    return made


def python(*words: str) -> float:
    """Runs Python to its end; returns when it was started."""
    began = time.time()
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return began


def test_a_cell_reaches_its_first_step_in_time(folder):
    """The better of two runs, with one thread, since several wait for each other where others compute too.

    On a machine so busy that six seconds are not enough, one and a half times the bare imports are allowed; a cell
    takes less than those where nothing heavy crept in.
    """
    words = ["-m", "bench.cell", folder.id, "--results", str(folder.path.parent.parent), "--again", "--threads", "1"]
    taken = []
    while not taken or (taken[-1] > SECONDS and len(taken) < 2):
        began = python(*words)
        taken.append(folder.result()["training"]["first_step_at"] - began)
    if min(taken) > SECONDS:
        began = python("-c", "import torch, segment_anything")
        bare = time.time() - began
        assert min(taken) < 1.5 * bare, f"first step after {min(taken):.1f} s, bare imports take {bare:.1f} s"


def test_what_scores_and_shows_is_not_imported_before_the_first_step(folder):
    done = subprocess.run(
        [sys.executable, "-c", AT_THE_FIRST_STEP, folder.id, "--results", folder.path.parent.parent],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    imported = set(json.loads(done.stdout))
    assert {"torch", "methods", "datasets"} <= imported
    assert not imported & HEAVY
    assert folder.result() is None, "the process went on after its first step"


def test_the_commands_own_imports_are_light():
    """What stands between a typed command and its first message."""
    code = "import sys, bench.cell; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & (HEAVY | {"torch", "numpy"})
