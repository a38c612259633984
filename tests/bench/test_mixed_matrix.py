"""A matrix that trains and measures speed: what is planned, counted, handed to ``bench.speed``, and when."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench import matrix as matrices
from bench import run, speed, speed_part
from bench.devices import Slot
from bench.matrix import expand, override, read
from bench.timing import cells

SMALL = "datasets = [{ name = 'shapes', train_images = 8, validation_images = 4, test_images = 4, size = 64 }]"
MIXED = f"""
name = "mixed"
backbone = "tiny"
image_size = 64
seeds = [0, 1]
[[cells]]
{SMALL}
methods = ["decoder_only"]
regime = {{ epochs = 1 }}
[[cells]]
kind = "speed"
checkpoint = "none"
methods = ["lora", "vpt"]
"""
GPUS = [Slot(f"gpu {number}", "cuda:0", 1, {}) for number in (1, 0)]
CPU = [Slot("cpu", "cpu", 1, {})]


@pytest.fixture
def mixed(tmp_path) -> Path:
    path = tmp_path / "mixed.toml"
    path.write_text(MIXED)
    return path


@pytest.fixture
def measured(monkeypatch) -> list[tuple[str, ...]]:
    """The commands that were left to measure speed, in place of their doing it."""
    found: list[tuple[str, ...]] = []
    monkeypatch.setattr(speed_part.SpeedPart, "measure", lambda part: found.append(part.words) or 0)
    return found


@pytest.fixture
def trained(monkeypatch) -> list[str]:
    """The cells that a run would train, in place of its doing so."""
    found: list[str] = []

    def execute(plan, *rest):
        found.extend(cell.id for cell in plan.todo())
        return {}, False

    monkeypatch.setattr(run, "execute", execute)
    return found


def words(matrix: Path, *more: str) -> list[str]:
    results = str(matrix.parent / "results")
    return ["--matrix", str(matrix), "--results", results, "--devices", "cpu", "--no-tracking", *more]


def test_each_command_takes_its_own_blocks(mixed):
    matrix = read(str(mixed))
    assert [entered.cell.spec["method"]["name"] for entered in expand(matrix, precision="fp32")] == ["decoder_only"] * 2
    found = cells.expand(matrix, precision="fp32", device="a card")
    assert [entered.cell.spec["method"]["name"] for entered in found] == ["lora", "vpt"]
    assert {entered.cell.spec["checkpoint"] for entered in found} == {"none"}


def test_seeds_and_the_recipe_are_changed_where_there_are_any(mixed):
    changed = override(read(str(mixed)), {"seeds": [5], "epochs": 3, "image_size": 96})
    (entered,) = expand(changed, precision="fp32")
    assert (entered.cell.spec["seed"], entered.cell.regime().epochs) == (5, 3)
    assert {item.cell.spec["image_size"] for item in cells.expand(changed, precision="fp32", device="")} == {96}


def test_on_a_cpu_speed_is_measured_when_it_is_asked_for(mixed, measured, trained, capsys):
    assert run.main(words(mixed)) == 0
    shown = capsys.readouterr().out
    assert "2 cells (2 planned); 2 to run on cpu" in shown and len(trained) == 2 and not measured
    assert "2 cells measure speed, on a CPU only when asked for with --only kind=speed: python -m bench.speed" in shown

    trained.clear()
    assert run.main(words(mixed, "--only", "kind=speed")) == 0
    shown = capsys.readouterr().out
    assert "to run on" not in shown and "tables:" not in shown and not trained
    (command,) = measured
    assert command[:3] == (sys.executable, "-m", "bench.speed")
    options = speed.parse(command[3:])
    assert (options.matrix, options.device) == (str(mixed), "cpu")
    assert options.results == mixed.parent / "results"

    assert run.main(words(mixed, "--only", "kind=accuracy,speed", "--set", "image_size=96")) == 0
    assert len(trained) == 2 and speed.parse(measured[1][3:]).image_size == 96


@pytest.mark.parametrize("more", [["--only", "seed=0"], ["--only", "kind=accuracy"]])
def test_filters_of_trainings_leave_speed_out(mixed, measured, trained, capsys, more):
    assert run.main(words(mixed, *more)) == 0
    assert "measure speed" not in capsys.readouterr().out
    assert len(trained) == (1 if "seed=0" in more else 2) and not measured


def test_on_a_gpu_speed_is_measured_last_on_the_first_device(mixed, monkeypatch, tmp_path):
    monkeypatch.setattr(speed_part, "place", lambda device, threads: Slot("gpu 1", "cuda:0", 1, {}))
    part = speed_part.part(str(mixed), {"backbone": "vit_b"}, GPUS, tmp_path, asked=False)
    assert part.runs and "after all trainings" in str(part)
    options = speed.parse(part.words[3:])
    assert (options.device, options.backbone) == ("cuda:1", "vit_b")
    assert {item.cell.spec["precision"] for item in part.cells()} == {"bf16"}


@pytest.mark.parametrize(("code", "expected"), [(0, 1), (1, 1), (130, 130)])
def test_a_failed_training_does_not_keep_speed_from_being_measured(mixed, monkeypatch, code, expected):
    monkeypatch.setattr(run, "execute", lambda *rest: ({"failed": 1}, False))
    monkeypatch.setattr(speed_part.SpeedPart, "measure", lambda part: code)
    assert run.main(words(mixed, "--only", "kind=accuracy,speed")) == expected


def test_nothing_is_measured_after_a_stop_or_without_data(mixed, measured, monkeypatch, data_root):
    monkeypatch.setattr(run, "execute", lambda *rest: ({}, True))
    assert run.main(words(mixed, "--only", "kind=accuracy,speed")) == 130
    mixed.write_text(MIXED.replace(SMALL, 'datasets = ["sbu"]'))
    assert run.main(words(mixed, "--only", "kind=accuracy,speed")) == 2
    assert not measured


def test_a_signal_is_handed_on(mixed, monkeypatch, tmp_path):
    part = speed_part.part(str(mixed), {}, CPU, tmp_path, asked=True)
    waiting = (sys.executable, "-c", "import os, time; os.write(1, b'.'); time.sleep(60)")
    original = subprocess.Popen

    def start(words, **options):
        process = original(waiting, stdout=subprocess.PIPE, **options)
        assert process.stdout.read(1) == b"."
        wait = process.wait
        process.wait = lambda: (os.kill(os.getpid(), signal.SIGTERM), wait(timeout=30))[1]
        return process

    monkeypatch.setattr(subprocess, "Popen", start)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert part.measure() == -signal.SIGTERM
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


REFUSED = {
    "no such kind": (["--only", "kind=sped"], ["'sped'", "'speed'"]),
    "speed and another filter": (["--only", "kind=speed", "--only", "method=lora"], ["bench.speed", "--methods"]),
    "several values": (["--set", "image_size=[64, 96]"], ["image_size=[64, 96]", "--only kind=accuracy"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_asked_is_refused(mixed, capsys, name):
    more, expected = REFUSED[name]
    assert run.main(words(mixed, *more)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and all(part in error for part in expected), error
    assert not (mixed.parent / "results").exists()


def counted(capsys, *words: str) -> dict[str, str]:
    """The lines of a dry run that count the paper's tables."""
    assert run.main([*words, "--dry-run", "--devices", "cpu"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("table ")]
    return dict(line.split(": ", 1) for line in lines)


def test_a_dry_run_counts_each_table(capsys, tmp_path, data_root):
    results = ("--results", str(tmp_path / "results"))
    found = counted(capsys, "--matrix", "full", *results)
    assert list(found) == [f"table {number}" for number in range(1, 16)]
    assert found["table 1"] == "198 of 198 cells (198 skipped)"
    assert found["table 3"] == "9 of 9 cells (9 skipped)" and found["table 14"] == "5 of 5 cells (5 skipped)"

    data_root.isic2017()
    found = counted(capsys, "--matrix", "table3", "--set", "backbone=tiny", "--set", "seeds=[0]", *results)
    assert found == {
        "table 1": "1 of 66 cells (1 planned)",
        "table 3": "5 of 5 cells (2 planned, 3 skipped)",
        "table 6": "1 of 10 cells (1 planned)",
        "table 14": "2 of 5 cells (2 skipped)",
    }
    found = counted(capsys, "--matrix", "full", "--only", "kind=speed", *results)
    assert found == {"table 3": "3 of 9 cells (3 planned)", "table 14": "5 of 5 cells (5 planned)"}
    assert counted(capsys, "--matrix", "demo", *results) == {}


def test_what_is_done_is_counted_as_done(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "reason_to_measure", lambda entered, results: "")
    words = ("--matrix", "table3", "--only", "kind=speed", "--results", str(tmp_path / "results"))
    assert counted(capsys, *words)["table 3"] == "3 of 9 cells (3 done)"


def test_the_matrix_of_everything_measures_the_speed_of_both_tables():
    full, three, fourteen = (
        {item.cell.id for item in cells.expand(read(name), precision="bf16", device="a card")}
        for name in ("full", "table3", "table14")
    )
    assert full == three | fourteen and len(full) == 6
    assert {block.kind for block in matrices.read("table3").cells} == {"accuracy", "speed"}
