"""A whole matrix: run, run again, killed in the middle and gone on with. Two slow tests start real, small cells."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from bench import tracking
from bench.cell import main as run_cell
from bench.matrix import MatrixError, expand, read
from bench.run import filters, main, settings
from bench.store import CellFolder, Results, read_json
from datasets.files import FileDataset

ROOT = Path(__file__).resolve().parents[2]
MATRIX = """
name = "tiny"
backbone = "tiny"
image_size = 64
[[cells]]
datasets = [{{ name = "shapes", train_images = 8, validation_images = 4, test_images = 4, size = 64 }}]
methods = {methods}
regime = {{ epochs = {epochs}, patience = 0 }}
"""


def write_matrix(folder: Path, methods: str, epochs: int = 1) -> Path:
    path = folder / "tiny.toml"
    path.write_text(MATRIX.format(methods=methods, epochs=epochs))
    return path


def words(matrix: Path, *more: str) -> list[str]:
    return [
        "--matrix",
        str(matrix),
        "--results",
        str(matrix.parent / "results"),
        "--devices",
        "cpu",
        "--no-tracking",
        *more,
    ]


@pytest.fixture(autouse=True)
def few_threads(monkeypatch):
    """Cells that a run in this process starts have one; threads elsewhere must not spin on a busy machine."""
    monkeypatch.setattr("bench.devices.cores", lambda: 1)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture
def three(tmp_path) -> Path:
    """A matrix of three cells."""
    return write_matrix(tmp_path, '["decoder_only", "lora", "conv_lora"]')


def test_a_dry_run_shows_every_cell_and_writes_nothing(three, capsys, monkeypatch):
    monkeypatch.chdir(three.parent)
    assert main(words(three, "--dry-run")) == 0
    shown = capsys.readouterr().out
    assert "3 cells (3 planned); 3 to run on cpu" in shown
    for entered in expand(read(str(three)), precision="fp32"):
        assert entered.cell.id in shown
    assert [path.name for path in three.parent.iterdir()] == [three.name]


def test_what_changes_no_result_changes_no_id(three, capsys, tmp_path):
    def ids(*more: str) -> set[str]:
        assert main(words(three, "--dry-run", *more)) == 0
        return set(re.findall(r"shapes-\S+", capsys.readouterr().out))

    plain = ids()
    assert len(plain) == 3
    assert plain == ids(
        "--micro-batch", "1", "--data-root", str(tmp_path), "--allow-broken", "--devices", "cpu:2", "--rerun", "all"
    )
    assert plain != ids("--set", "lr=1e-3")


def test_a_random_backbone_is_said_loudly(three, capsys):
    main(words(three, "--dry-run", "--set", "checkpoint=none"))
    assert "RANDOM BACKBONE: tiny" in capsys.readouterr().out
    main(words(three, "--dry-run", "--set", "checkpoint=auto"))
    assert "RANDOM" not in capsys.readouterr().out


def test_a_network_that_is_no_sam_runs_where_sams_checkpoint_cannot_be_had(tmp_path, capsys, monkeypatch):
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    for name in ("BENCH_CACHE", "TORCH_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    matrix = write_matrix(tmp_path, '["linknet34mtl", "lora"]')
    vit_b = "--set", "backbone=vit_b", "--set", "checkpoint=auto"
    assert main(words(matrix, *vit_b, "--only", "method=linknet34mtl")) == 0
    shown = capsys.readouterr().out
    assert "1 done" in shown and "sam_vit_b" not in shown
    assert main(words(matrix, *vit_b, "--only", "method=lora")) != 0
    assert "cannot download sam_vit_b_01ec64.pth" in "".join(capsys.readouterr())


def test_filters_and_settings_reach_the_cells(three, capsys):
    assert main(words(three, "--dry-run", "--only", "method=lora,conv_lora", "--set", "seeds=[0, 1]")) == 0
    assert "4 cells (4 planned)" in capsys.readouterr().out


def test_how_filters_and_settings_are_written():
    assert filters(["method=lora,conv_lora", "seed=0", "seed=1"]) == {
        "method": ["lora", "conv_lora"],
        "seed": ["0", "1"],
    }
    read_back = settings(
        [
            "epochs=5",
            "lr=1e-3",
            "backbone=vit_b",
            "seeds=[0, 1]",
            "flip=false",
            'loss="structure"',
            "checkpoint=a=b.pth",
        ]
    )
    assert read_back == {
        "epochs": 5,
        "lr": 1e-3,
        "backbone": "vit_b",
        "seeds": [0, 1],
        "flip": False,
        "loss": "structure",
        "checkpoint": "a=b.pth",
    }
    for wrong in ("method", "method="):
        with pytest.raises(MatrixError, match=r"--only.*KEY=VALUE"):
            filters([wrong])
    with pytest.raises(MatrixError, match=r"--set.*KEY=VALUE"):
        settings(["epochs"])


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--matrix", "smok"], "'smoke'"),
        (["--only", "method=lorra"], "'lora'"),
        (["--set", "epoch=3"], "'epochs'"),
        (["--set", "image_size=100"], "16"),
        (["--devices", "gpu"], "cpu:N"),
        (["--set", "epochs=none"], "epochs"),
    ],
)
def test_a_usage_error_is_one_message_and_nothing_is_written(three, capsys, more, expected):
    assert main(words(three, *more)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert expected in error
    assert not (three.parent / "results").exists()


PAPERS_BINARY = ("polyps", "isic2017", "camouflage", "sbu", "leaf", "road")


def add_datasets(matrix: Path, *names: str) -> Path:
    """A block with one more cell for each dataset."""
    matrix.write_text(f'{matrix.read_text()}[[cells]]\ndatasets = {list(names)}\nmethods = ["lora"]\n')
    return matrix


def test_missing_datasets_stop_the_run_unless_told_otherwise(tmp_path, data_root, capsys):
    """Each has a line of its own, however many cells need it."""
    matrix = add_datasets(write_matrix(tmp_path, '["lora"]'), *PAPERS_BINARY)
    only = words(matrix, "--only", "dataset=sbu,leaf", "--set", "seeds=[0, 1, 2]")
    missing = [
        f"missing: {name}: not found in {data_root.path}; python -m datasets fetch {name}" for name in ("sbu", "leaf")
    ]
    assert main([*only, "--dry-run"]) == 0, "looking at a plan is no failure"
    shown = capsys.readouterr()
    assert [line for line in shown.out.splitlines() if line.startswith("missing")] == missing and not shown.err
    assert main(only) == 2
    shown = capsys.readouterr()
    assert [line for line in shown.out.splitlines() if line.startswith("missing")] == missing
    assert shown.out.rstrip().endswith("python -m datasets list NAME")
    assert "--skip-missing" in shown.err
    assert not (tmp_path / "results").exists()
    assert main([*only, "--data-root", str(data_root.path)]) == 2
    assert f"fetch leaf --data-root {data_root.path}" in capsys.readouterr().out, "the command can be copied"
    assert main([*only, "--skip-missing"]) == 0
    assert "executed 0 cells" in capsys.readouterr().out
    assert [cell.status()["state"] for cell in Results(tmp_path / "results").cells()] == ["skipped"] * 6


def test_without_a_data_folder_that_is_said(tmp_path, data_root, capsys, monkeypatch):
    monkeypatch.delenv("BENCH_DATA_ROOT")
    matrix = add_datasets(write_matrix(tmp_path, '["lora"]'), "sbu")
    assert main(words(matrix, "--dry-run")) == 0
    assert "missing: sbu: no data folder was named; python -m datasets fetch sbu" in capsys.readouterr().out


def test_broken_files_of_all_datasets_are_told_and_nothing_runs(tmp_path, data_root, capsys):
    for file in (
        data_root.isic2017() / "ISIC-2017_Validation_Part1_GroundTruth" / "ISIC_0000001_segmentation.png",
        data_root.polyps("Kvasir") / "TestDataset" / "Kvasir" / "images" / "2.png",
    ):
        file.write_bytes(file.read_bytes()[:50])
    matrix = add_datasets(write_matrix(tmp_path, '["lora"]'), *PAPERS_BINARY)
    for more, code in (("--dry-run", 0), ("--skip-missing", 2)):
        assert main(words(matrix, more)) == code
        shown = capsys.readouterr()
        assert "7 cells (1 planned, 6 skipped); 1 to run" in shown.out
        assert "ISIC_0000001_segmentation.png" in shown.out and "TestDataset/Kvasir/images/2.png" in shown.out
        assert shown.out.count("\nmissing: ") == 4 and shown.out.count("\nbroken: ") == 2
        assert ("nothing was started" in shown.err) == (code == 2)
        assert not (tmp_path / "results").exists()


def test_a_plan_of_everything_opens_each_dataset_once(tmp_path, data_root, capsys, monkeypatch):
    data_root.isic2017()
    data_root.polyps("Kvasir", "CVC-300")
    opened, original = Counter(), FileDataset.open
    monkeypatch.setattr(
        FileDataset,
        "open",
        lambda self, *args, **options: opened.update([self.name]) or original(self, *args, **options),
    )
    assert main(["--matrix", "full", "--dry-run", "--devices", "cpu", "--results", str(tmp_path / "results")]) == 0
    shown = capsys.readouterr().out
    assert opened == Counter([*PAPERS_BINARY, "trans10k_v1", "trans10k_v2"])
    assert "386 cells (100 planned, 286 skipped); 100 to run" in shown
    assert shown.count("\nmissing: ") == 6


def test_a_test_set_that_came_later_is_scored_without_a_training(tmp_path, data_root, capsys):
    """One real cell: trained with one test set at hand, scored again when there are two."""
    data_root.polyps("Kvasir")
    matrix = write_matrix(tmp_path, '["decoder_only"]')
    matrix.write_text(re.sub(r"datasets = .*", 'datasets = ["polyps"]', matrix.read_text()))
    assert main(words(matrix)) == 0
    (folder,) = Results(tmp_path / "results").cells()
    first, adapter = folder.result(), (folder.path / "adapter.safetensors").read_bytes()
    assert set(first["scores"]) == {"kvasir"}

    data_root.polyps("CVC-300")
    capsys.readouterr()
    assert main(words(matrix)) == 0
    shown = capsys.readouterr().out
    assert "1 cells (1 done); 0 to run" in shown and "executed 0 cells" in shown
    assert "1 cells need no training, only new scores (has no scores of cvc_t)" in shown
    command = re.search(r"python -m bench\.cell ID (--evaluate .*)", shown)[1]
    assert run_cell([folder.id, *command.split()]) == 0
    second = folder.result()
    assert set(second["scores"]) == {"kvasir", "cvc_t"} and second["training"] == first["training"]
    assert second["scores"]["kvasir"] == first["scores"]["kvasir"]
    assert (folder.path / "adapter.safetensors").read_bytes() == adapter

    assert main(words(matrix)) == 0
    assert "need no training" not in capsys.readouterr().out
    assert len(list((tmp_path / "results" / "manifests").iterdir())) == 2

    (data_root.path / "polyps" / "TestDataset" / "CVC-300").rename(tmp_path / "elsewhere")
    assert run_cell([folder.id, *command.split()]) != 0
    assert folder.result() == second and folder.status()["state"] == "done", "no scores are lost"
    assert "cvc_t" in folder.status()["reason"]


def test_a_reason_is_printed_as_it_is(three, capsys):
    """Square brackets are no markup: they stand in many messages and paths."""
    (first, *_) = expand(read(str(three)), precision="fp32")
    folder = Results(three.parent / "results").cell(first.cell.id)
    folder.create(first.cell, {})
    folder.set_state("failed", reason="OSError: [/data/x.png] and [bold] are broken")
    assert main(words(three, "--dry-run")) == 0
    assert "OSError: [/data/x.png] and [bold] are broken" in capsys.readouterr().out


class Tracker:
    """Notes what a run tells MLflow's writer."""

    seen: list[tuple]

    def __init__(self, results: Path, *, uri: str | None, enabled: bool) -> None:
        self.seen.append(("made", results, uri, enabled))

    def start(self) -> None:
        self.seen.append(("started",))

    def cell_changed(self, cell: str) -> None:
        self.seen.append(("changed", cell))

    def close(self) -> str:
        return "MLflow knows about it"


@pytest.fixture
def tracker(monkeypatch) -> list[tuple]:
    monkeypatch.setattr(Tracker, "seen", [], raising=False)
    monkeypatch.setattr(tracking, "Tracker", Tracker)
    return Tracker.seen


def when_claimed(folder: Path, do: Callable[[CellFolder, int], None]) -> threading.Thread:
    """Calls ``do`` with the first cell that a process claims, and the process's id."""

    def watch() -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            for claim in folder.glob("cells/*/attempts/1/claim.json"):
                do(CellFolder(claim.parents[2]), read_json(claim)["pid"])
                return
            time.sleep(0.02)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_a_killed_cell_costs_one_cell_and_is_run_again_on_request_only(three, capsys, tracker):
    """Four real cells: the first of three is killed, the others finish; later it is run again alone."""
    results = Results(three.parent / "results")
    killer = when_claimed(results.path, lambda cell, pid: os.kill(pid, signal.SIGKILL))
    assert main(words(three)) == 1
    killer.join()
    shown = capsys.readouterr().out
    first, *others = [entered.cell.id for entered in expand(read(str(three)), precision="fp32")]
    states = {cell.id: cell.status()["state"] for cell in results.cells()}
    assert states == {first: "failed", **dict.fromkeys(others, "done")}
    assert "SIGKILL" in results.cell(first).status()["reason"]
    assert re.search(rf"failed +{first}.*SIGKILL", shown)
    for cell in others:
        assert f"start   {cell} on cpu" in shown
        assert re.search(rf"done +{cell} \w+ test: iou 0\.\d+", shown)
        log = (results.cell(cell).path / "log.txt").read_text()
        assert f"{cell} done" in log
        assert "Traceback" not in log
    assert "executed 3 cells: 2 done, 1 failed" in shown
    assert "MLflow knows about it" in shown
    made, started, *changed = tracker
    assert made == ("made", results.path, None, False)
    assert started == ("started",)
    assert changed == [("changed", cell) for cell in (first, *others)]
    untouched = {cell: (results.cell(cell).path / "result.json").stat().st_mtime_ns for cell in others}

    assert main(words(three)) == 1, "not all cells are done"
    shown = capsys.readouterr().out
    assert "3 cells (2 done, 1 failed); 0 to run" in shown
    assert "executed 0 cells" in shown
    assert f"failed      {first}" in shown
    assert "--rerun failed" in shown

    assert main(words(three, "--rerun", "failed")) == 0
    assert "executed 1 cells: 1 done" in capsys.readouterr().out
    assert results.cell(first).result()["attempt"] == 2

    assert main(words(three)) == 0
    shown = capsys.readouterr().out
    assert "3 cells (3 done); 0 to run" in shown
    assert "executed 0 cells" in shown
    assert untouched == {cell: (results.cell(cell).path / "result.json").stat().st_mtime_ns for cell in others}


# On PYTHONPATH as sitecustomize.py: a cell's process saves the state after one epoch, and never ends with the next.
STANDS_STILL = """
import sys

if "bench.cell" in sys.orig_argv:
    import os, time
    calls, fsync = [], os.fsync

    def slow(file):
        calls.append(file)
        fsync(file) if len(calls) == 1 else time.sleep(300)

    os.fsync = slow
"""


def start(matrix: Path) -> subprocess.Popen:
    """A scheduler in a process of its own, whose cells come to no end."""
    (matrix.parent / "sitecustomize.py").write_text(STANDS_STILL)
    return subprocess.Popen(
        [sys.executable, "-m", "bench.run", *words(matrix)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": str(matrix.parent)},
    )


def gone(pid: int) -> bool:
    """Whether a process has ended; where nobody collects orphans it stays in the table."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_limits_of_time_are_kept_and_told(tmp_path, capsys):
    """The first of three cells, hours long, is ended after two seconds; then none starts within the budget of one."""
    matrix = write_matrix(tmp_path, '["decoder_only", "lora", "conv_lora"]', epochs=10**5)
    assert main(words(matrix, "--timeout", "2s", "--budget", "1s")) == 1
    shown = capsys.readouterr().out
    first, *others = [entered.cell.id for entered in expand(read(str(matrix)), precision="fp32")]
    assert re.search(rf"timeout +{first} .*took longer than 2s \(--timeout\)", shown)
    assert "executed 1 cells: 2 not started, 1 timeout" in shown
    reason = "how long it takes is unknown, 0s of the budget of 1s were left"
    assert f"not started, {reason}: {', '.join(others)}" in shown
    assert "cpu: busy" in shown
    states = {cell.id: cell.status()["state"] for cell in Results(tmp_path / "results").cells()}
    assert states == {first: "timeout", **dict.fromkeys(others, "planned")}


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--timeout", "2 hours"], "write e.g. 8h"),
        (["--budget", "0h"], "write e.g. 8h"),
        (["--per-gpu", "0"], "write 1, 2, ... or auto"),
        (["--backend", "slurm"], "local"),
    ],
)
def test_options_that_mean_nothing(three, capsys, more, expected):
    with pytest.raises(SystemExit):
        main(words(three, *more))
    assert expected in capsys.readouterr().err


def test_options_of_devices_and_execution_reach_the_scheduler(three, monkeypatch):
    seen = {}

    class Noted:
        stopped, busy = False, ()

        def __init__(self, results: Results, devices: list, options: object, **limits: object) -> None:
            seen.update(devices=devices, options=options, **limits)

        def run(self, cells: list, watched: list) -> list:
            return []

    monkeypatch.setattr("bench.scheduler.Scheduler", Noted)
    more = ["--attention", "bias", "--checkpointing", "blocks", "--compile", "--micro-batch", "2", "--budget", "2h"]
    assert main(words(three, *more, "--devices", "cpu:2", "--per-gpu", "1")) == 0
    options = seen["options"]
    assert (options.attention, options.checkpointing, options.compile, options.micro_batch) == (
        "bias",
        "blocks",
        True,
        2,
    )
    assert (seen["budget"], seen["timeout"]) == (7200.0, None)
    assert [len(device.slots) for device in seen["devices"]] == [2]


def test_a_run_goes_on_after_ctrl_c_and_after_it_was_killed(tmp_path, capsys, wait_for):
    """One cell, started three times: interrupted in its second epoch, orphaned in its start, and run to its end."""
    matrix = write_matrix(tmp_path, '["decoder_only"]', epochs=12)
    (entered,) = expand(read(str(matrix)), precision="fp32")
    folder = Results(tmp_path / "results").cell(entered.cell.id)
    attempts = folder.path / "attempts"

    scheduler = start(matrix)
    try:
        wait_for(lambda: (read_json(attempts / "1" / "progress.json") or {}).get("epoch") == 2)
        scheduler.send_signal(signal.SIGINT)
        output, _ = scheduler.communicate(timeout=120)
    finally:
        scheduler.kill()
    assert scheduler.returncode == 130, output
    assert re.search(rf"interrupted +{folder.id}", output)
    assert "the same command goes on from here" in output
    assert "Traceback" not in output
    assert read_json(folder.path / "status.json")["state"] == "interrupted"
    assert gone(read_json(attempts / "1" / "claim.json")["pid"])

    scheduler = start(matrix)
    try:
        cell = wait_for(lambda: read_json(attempts / "2" / "claim.json") if attempts.joinpath("2").exists() else None)[
            "pid"
        ]
        assert cell in [child.pid for child in psutil.Process(scheduler.pid).children(recursive=True)]
    finally:
        scheduler.kill()
        scheduler.communicate()
    wait_for(lambda: gone(cell))
    assert folder.status()["state"] == "interrupted"

    assert main(words(matrix)) == 0
    assert "executed 1 cells: 1 done" in capsys.readouterr().out
    assert folder.result()["attempt"] == 3
    training = folder.result()["training"]
    assert training["steps"] == 24 and training["resumed"][0]["epoch"] == 1
    assert len((folder.path / "history.jsonl").read_text().splitlines()) == 12, "nothing of earlier attempts is in it"
