"""``python -m bench.speed`` from the command line to tables and export, at toy size, and what it refuses."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from bench import cell, speed
from bench.devices import Slot
from bench.store import Results
from bench.timing import surroundings
from bench.tracking_record import read_record, settled_digest

ROOT = Path(__file__).resolve().parents[2]
WORDS = [
    "--device",
    "cpu",
    "--threads",
    "1",
    "--image-size",
    "64",
    "--seconds",
    "0.02",
    "--repeats",
    "3",
    "--batch",
    "4",
]
ABSENT = ("mlflow", "py_sod_metrics", "cv2", "skimage", "pyarrow")
RATES = ("train_it_per_s", "inference_it_per_s")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A results folder, and what was printed while it was made where much of what else we need is not installed."""
    folder = tmp_path_factory.mktemp("speed")
    for name in ABSENT:
        (folder / f"{name}.py").write_text("raise ImportError('not installed here')\n")
    words = [*WORDS, "--methods", "lora,conv_lora:implementation=explicit", "--results", str(folder / "results")]
    path = os.pathsep.join([str(folder), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "bench.speed", *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Results(folder / "results"), words, done.stdout


def by_method(results):
    return {folder.read()["spec"]["method"]["name"]: folder for folder in results.cells()}


def test_each_cell_is_measured_in_a_process_of_its_own_and_the_reference_twice(measured):
    folders = by_method(measured[0])
    assert {name: len(folder.attempts()) for name, folder in folders.items()} == {"lora": 2, "conv_lora": 1}
    processes = [
        json.loads((attempt.path / "claim.json").read_text())["pid"]
        for folder in folders.values()
        for attempt in folder.attempts()
    ]
    assert len(set(processes)) == 3
    assert {folder.status()["state"] for folder in folders.values()} == {"done"}


def test_a_result_holds_medians_and_all_that_is_needed_to_judge_them(measured):
    for folder in by_method(measured[0]).values():
        result = folder.result()
        figures = result["speed"]
        for rate in RATES:
            repeats = figures[f"{rate}_repeats"]
            assert len(repeats) == (6 if "train_drift" in figures else 3)
            assert figures[rate] == statistics.median(repeats) > 0
        assert figures["train_min_per_epoch"] == pytest.approx(2000 / figures["train_it_per_s"] / 60)
        for name in ("train", "inference"):
            share = figures[f"{name}_it_per_s"] * figures[f"{name}_flop_per_image"] / figures["matrix_flop_per_s"]
            assert figures[f"{name}_share"] == pytest.approx(share)
        assert figures["train_flop_per_image"] > 1.5 * figures["inference_flop_per_image"]
        assert 0.1 < figures["inference_memory_gb"] <= figures["train_memory_gb"]
        assert figures["memory"] == "resident memory of the whole process"
        assert figures["cores_busy_elsewhere"] >= 0
        assert result["random_backbone"] is True
        assert result["environment"]["threads"] == 1 and result["environment"]["torch"]
        assert result["resolved"]["machine"] == {"micro_batch": 4}


def test_the_reference_says_how_much_its_rates_have_changed(measured):
    folders = by_method(measured[0])
    assert not [key for key in folders["conv_lora"].result()["speed"] if "drift" in key]
    figures = folders["lora"].result()["speed"]
    for name in ("train", "inference"):
        repeats = figures[f"{name}_it_per_s_repeats"]
        first, second = statistics.median(repeats[:3]), statistics.median(repeats[3:])
        assert figures[f"{name}_drift"] == pytest.approx(second / first - 1)


def test_what_is_going_on_and_the_table_are_printed(measured):
    printed = " ".join(measured[2].split())
    assert "lora (micro-batch 4), once more" in printed
    assert "Table 14 of Convolution Meets LoRA" in printed
    assert "conv_lora (implementation = explicit, micro-batch 4) images/s: " in printed
    assert "V100, another device: no difference" in printed and "random weights" in printed
    assert "Table 3" not in printed, "its own row was not measured"


def test_the_export_is_small_sorted_and_without_the_hosts_name(measured):
    results, _, printed = measured
    (path,) = (results.path / "speed").iterdir()
    assert f"wrote {path}" in printed
    text = path.read_text()
    export = json.loads(text)
    assert text == json.dumps(export, indent=1, sort_keys=True) + "\n"
    assert len(text) < 2000 * len(export["measurements"])
    assert os.uname().nodename not in text
    folders = by_method(results)
    for name, folder in folders.items():
        entry, result = export["measurements"][folder.id], folder.result()
        assert entry["speed"]["train_it_per_s"] == pytest.approx(result["speed"]["train_it_per_s"], rel=1e-5)
        assert {"commit", "torch", "measured"} <= entry.keys()
        reference = folders["lora"].result()["speed"]
        expected = {rate: result["speed"][rate] / reference[rate] for rate in RATES}
        assert entry["ratio_to_lora"] == pytest.approx(expected, rel=1e-5), name


def test_what_was_measured_is_not_measured_again_and_json_is_all_that_is_printed(measured, capsys):
    results, words, _ = measured
    assert speed.main([*words, "--json"]) == 0
    printed = capsys.readouterr()
    (path,) = (results.path / "speed").iterdir()
    assert printed.out == path.read_text()
    assert "2 cells, 2 measured before" in printed.err
    assert sum(len(folder.attempts()) for folder in results.cells()) == 3


def test_mlflow_shows_a_measurement(measured):
    folder = by_method(measured[0])["lora"]
    record = read_record(folder, settled_digest(folder))
    assert "dataset" not in record.tags and record.tags["method"] == "lora"
    assert {"speed.train_it_per_s", "speed.train_drift"} <= {point.key for point in record.metrics}


def test_a_measurement_cannot_be_scored_again_or_made_on_another_device(measured, tmp_path, capsys):
    folder = by_method(measured[0])["lora"]
    assert cell.main([folder.id, "--results", str(measured[0].path), "--evaluate"]) == 2
    assert "nothing to score" in capsys.readouterr().err

    made = cell.cell_of(folder.read()["spec"] | {"device": "a card"})
    other = Results(tmp_path).cell(made.id)
    other.create(made, {})
    assert cell.main([made.id, "--results", str(tmp_path), "--threads", "1"]) == 1
    assert other.status()["state"] == "failed"
    assert "measures a card, and this is " in other.status()["reason"]


REFUSED = {
    "method": (["--methods", "lroa"], ["'lroa'", "'lora'"]),
    "device": (["--device", "cuda:99"], ["99"]),
    "matrix": (["--matrix", "demo"], ["bench.run --matrix demo"]),
    "matrix's name": (["--matrix", "sped"], ["'sped'", "'speed'"]),
    "image size": (["--image-size", "100"], ["100", "16"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_choice_ends_before_anything_runs(name, tmp_path, capsys):
    words, expected = REFUSED[name]
    assert speed.main([*WORDS, *words, "--results", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in ("error: ", *expected)), error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["--batch", "0"], ["--batch", "1,x"], ["--repeats", "0"], ["--precision", "fp16"]])
def test_an_impossible_number_is_a_usage_error(words, capsys):
    with pytest.raises(SystemExit) as ended:
        speed.parse(words)
    assert ended.value.code == 2 and words[0] in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--clock", "processor"]])
def test_a_gpu_that_others_use_is_left_alone(words, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(speed, "place", lambda device, threads: Slot("gpu 0", "cuda:0", 1, {}))
    monkeypatch.setattr(surroundings, "others_on", lambda slot: ["process 77, python, 4000 MiB"])
    assert speed.main(["--results", str(tmp_path), *words]) == 2
    error = capsys.readouterr().err
    expected = ["--clock processor is for the CPU"] if words else ["gpu 0 is in use", "process 77", "--beside-others"]
    assert all(part in error for part in expected), error
