"""What is shown of a results folder while cells run: from files alone, in terminals, lines and JSON."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

import datasets
import methods
from bench import status, store
from bench.overview import Overview, overview
from bench.spec import make_cell
from bench.store import Attempt, CellFolder, Results, write_json

ROOT = Path(__file__).parents[2]


@pytest.fixture
def results(tmp_path) -> Results:
    (tmp_path / "results" / "cells").mkdir(parents=True)
    return Results(tmp_path / "results")


def planned(results: Results, method: str = "lora", seed: int = 0) -> CellFolder:
    cell = make_cell(
        method=methods.create(method),
        dataset=datasets.load("shapes"),
        seed=seed,
        backbone="tiny",
        checkpoint="none",
        image_size=64,
        precision="fp32",
    )
    results.cell(cell.id).create(cell, {})
    return results.cell(cell.id)


def running(folder: CellFolder, device: str = "gpu 0", **progress) -> Attempt:
    """A cell that this process has."""
    attempt = folder.claim(device=device)
    folder.set_state("running", attempt=attempt.number)
    attempt.beat({"stage": "training", "device": "cuda:0", "at": time.time()} | progress)
    return attempt


TRAINING = {"epoch": 3, "epochs": 30, "images_per_second": 12.34, "seconds_left": 3725.0}


def test_cells_are_counted_by_state_and_stale_marks_beside(results):
    planned(results)
    for seed, state in enumerate(("done", "done", "failed", "skipped", "interrupted"), start=1):
        planned(results, seed=seed).set_state(state, attempt=1, **({"stale": ["data.train"]} if seed == 1 else {}))
    (results.path / "cells" / "no cell").mkdir()
    (results.path / "cells" / "notes.txt").write_text("nor this")
    seen = overview(results)
    assert seen.counts == {"done": 2, "failed": 1, "interrupted": 1, "planned": 1, "skipped": 1}
    assert seen.stale == 1 and not seen.at_work
    assert status.counted(seen) == (
        "6 cells: 2 done, 1 failed, 1 interrupted, 1 planned, 1 skipped; 1 of the done ones stale"
    )
    assert status.counted(Overview()) == "0 cells: nothing planned yet"


def test_a_cell_at_work_is_shown_with_its_device_and_how_far_it_is(results):
    folder = planned(results)
    running(folder, "gpu 3", **TRAINING, at=time.time() - 1000)
    (one,) = overview(results).at_work
    assert (one.id, one.host, one.device, one.pid) == (folder.id, socket.gethostname(), "gpu 3", os.getpid())
    assert (one.stage, one.epoch, one.epochs, one.images_per_second) == ("training", 3, 30, 12.34)
    assert one.seconds_left == pytest.approx(2725, abs=100), "less what has passed since it was said"
    assert 0 <= one.seconds < 100 and one.attempt == 1


def test_a_cell_that_scores_has_no_time_left_of_its_training(results):
    running(planned(results), **TRAINING | {"stage": "scoring test 3/4"})
    (one,) = overview(results).at_work
    assert (one.stage, one.seconds_left) == ("scoring test 3/4", None)


def test_claims_of_before_the_label_show_the_device_of_the_process(results):
    attempt = running(planned(results), **TRAINING)
    claim = json.loads((attempt.path / "claim.json").read_text())
    del claim["device"]
    write_json(attempt.path / "claim.json", claim)
    assert overview(results).at_work[0].device == "cuda:0"
    (attempt.path / "progress.json").unlink()
    (one,) = overview(results).at_work
    assert (one.device, one.stage, one.seconds_left) == ("?", "starting", None)


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_cell_of_a_dead_process_reads_as_interrupted(results, where, monkeypatch):
    attempt = running(planned(results), **TRAINING)
    claim = json.loads((attempt.path / "claim.json").read_text())
    if where == "here":
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        claim["pid"] = gone.pid
    else:
        claim["host"] = "another"
    write_json(attempt.path / "claim.json", claim)
    if where == "elsewhere":
        assert overview(results).counts == {"running": 1}, "nobody here can tell whether a process there lives"
        monkeypatch.setattr(store, "STALE_SECONDS", -1.0)
    seen = overview(results)
    assert seen.counts == {"interrupted": 1} and not seen.at_work and not seen.failures


def test_the_newest_errors_come_first_with_their_logs(results):
    for seed, state in enumerate(("failed", "oom", "timeout")):
        folder = planned(results, seed=seed)
        folder.set_state(state, reason=f"reason {seed}", attempt=1)
        record = json.loads((folder.path / "status.json").read_text())
        write_json(folder.path / "status.json", record | {"updated": f"2026-11-2{seed}T00:00:00+00:00"})
    failures = overview(results).failures
    assert [(one.state, one.reason) for one in failures] == [
        ("timeout", "reason 2"), ("oom", "reason 1"), ("failed", "reason 0")
    ]  # fmt: skip
    for one in failures:
        assert Path(one.log) == results.cell(one.id).path / "log.txt"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_damaged_file_hides_no_other_cell(results, content):
    (planned(results).path / "status.json").write_text(content)
    planned(results, seed=1)
    attempt = running(planned(results, seed=2))
    (attempt.path / "claim.json").write_text("{")
    assert overview(results).counts == {"planned": 1, "unreadable": 2}


@pytest.fixture
def busy(results) -> Results:
    """Two cells at work, one of them with a long name, and six errors with long reasons."""
    running(planned(results, "conv_lora+vpt"), "gpu 0", **TRAINING)
    running(planned(results, "sam_adapter"), "gpu 1", **TRAINING | {"stage": "scoring cvc_colondb 120/380"})
    for seed in range(6):
        planned(results, seed=seed).set_state("failed", reason="RuntimeError: " + "many words " * 30, attempt=1)
    return results


def shown(results: Results, width: int) -> list[str]:
    console = Console(width=width, force_terminal=True, color_system=None, highlight=False)
    with console.capture() as capture:
        console.print(status.screen(overview(results), width))
    return [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in capture.get().splitlines()]


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_shows_whole_names_and_numbers_in_its_width(busy, width):
    lines = shown(busy, width)
    assert max(map(len, lines)) <= width
    table = next(place for place, line in enumerate(lines) if line.startswith("device"))
    header, first, second = (line.split() for line in lines[table : table + 3])
    assert header == ["device", "cell", "stage", "epoch", "images/s", *(["for"] if width > 100 else []), "ETA"]
    assert first[:6] == ["gpu", "0", overview(busy).at_work[0].id, "training", "3/30", "12.3"]
    assert first[-1] in ("1h02m", "1h01m", "1h00m")
    assert overview(busy).at_work[1].id in second and "3/30" in second
    assert ("120/380" in second) == (width > 100)
    text = "\n".join(lines)
    assert text.count("log.txt") == status.SHOWN and "1 more such cells; why one of them" in text


def test_of_several_hosts_each_device_is_told_apart(busy):
    attempt = results_attempt(busy)
    claim = json.loads((attempt.path / "claim.json").read_text())
    write_json(attempt.path / "claim.json", claim | {"host": "node7"})
    text = "\n".join(shown(busy, 120))
    assert "node7 gpu 0" in text and f"{socket.gethostname()} gpu 1" in text


def results_attempt(results: Results) -> Attempt:
    """The attempt of the cell at work on the first card."""
    (one,) = (one for one in overview(results).at_work if one.device == "gpu 0")
    return results.cell(one.id).attempts()[-1]


def test_without_a_terminal_there_are_plain_lines(busy, capsys):
    assert status.main(["--results", str(busy.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "8 cells: 6 failed, 2 running"
    assert re.fullmatch(
        r"running shapes-conv_lora\+vpt-s0-\w+ on \S+ gpu 0: "
        r"training, epoch 3/30, 12\.3 images/s, for \w+, 1h0[012]m of training left",
        lines[1],
    )
    assert sum(line.startswith("failed shapes-lora-s") and line.endswith("log.txt") for line in lines) == status.SHOWN


def test_json_holds_everything_on_one_line(busy, capsys):
    assert status.main(["--results", str(busy.path), "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    read = json.loads(line)
    assert read["counts"] == {"failed": 6, "running": 2} and len(read["failures"]) == 6
    assert [one["device"] for one in read["at_work"]] == ["gpu 0", "gpu 1"]


def test_watching_goes_on_until_ctrl_c_and_sees_what_changes(busy):
    words = [sys.executable, "-m", "bench.status", "--results", str(busy.path), "--json", "--watch", "0.05"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert json.loads(process.stdout.readline())["counts"] == {"failed": 6, "running": 2}
        planned(busy, seed=77)
        while "planned" not in (last := json.loads(process.stdout.readline())["counts"]):
            continue
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(60) == 0
    assert last["planned"] == 1


def test_a_folder_without_cells_is_said_to_be_none(tmp_path, capsys):
    assert status.main(["--results", str(tmp_path)]) == 2
    assert "is no folder" in capsys.readouterr().err


def test_it_starts_without_torch_and_plugins():
    check = (
        "import sys, bench.status; print([name for name in ('torch', 'methods', 'datasets') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True).stdout == "[]\n"


def test_ten_thousand_cells_are_looked_at_in_a_second(results):
    """Measured: 0.1 s of processor time; the test has ten times as long."""
    content = json.dumps({"schema": 1, "state": "done", "reason": None, "attempt": 1, "updated": store.now()})
    for number in range(10_000):
        folder = results.path / "cells" / f"shapes-lora-s{number}-01234567"
        folder.mkdir()
        (folder / "status.json").write_text(content)
    began = time.process_time()
    assert overview(results).counts == {"done": 10_000}
    assert time.process_time() - began < 2
