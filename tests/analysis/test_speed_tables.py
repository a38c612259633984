"""Tables 14 and 3 from measurements: beside the paper's numbers, as ratios to LoRA, and never as differences."""

from __future__ import annotations

import hashlib
import json

import pytest

from analysis.results import read_results
from analysis.speed import export, file_name, ratio, read_measurements, reference_of
from analysis.speed_tables import speed_tables
from analysis.tables import main

DEFAULTS = {
    "lora": {"rank": 3},
    "conv_lora": {"rank": 3, "routing": "moe", "implementation": "fused"},
    "bitfit": {},
}


@pytest.fixture
def measure(folder):
    """Writes the folder of one measurement; returns its id."""

    def of_cell(method="lora", train=2.0, inference=4.0, *, batch=1, version=1, state="done", drift=(), **spec):
        parameters = spec.pop("parameters", {})
        described = {"name": method, "version": version} | ({"parameters": parameters} if parameters else {})
        spec = {
            "kind": "speed",
            "method": described,
            "backbone": "vit_h",
            "checkpoint": "none",
            "image_size": 1024,
            "precision": "bf16",
            "device": "NVIDIA H200",
            "machine": {"micro_batch": batch},
        } | spec
        name = f"speed-{method}-b{batch}-{hashlib.sha256(json.dumps(spec).encode()).hexdigest()[:8]}"
        path = folder.path / "cells" / name
        path.mkdir(parents=True)
        folder.write(path / "cell.json", {"id": name, "spec": spec, "evidence": {}})
        folder.write(path / "status.json", {"state": state, "reason": None, "attempt": 1})
        rates = {"inference": inference} | ({"train": train} if train else {})
        speed = {"matrix_flop_per_s": 1e14, "cores_busy_elsewhere": 0.1, "memory": "allocated on the device"}
        for key, rate in rates.items():
            speed |= {f"{key}_it_per_s": rate, f"{key}_it_per_s_repeats": [0.99 * rate, rate, 1.02 * rate]}
            speed |= {f"{key}_memory_gb": 10.0, f"{key}_flop_per_image": 1e13, f"{key}_share": 1e13 * rate / 1e14}
        if train:
            speed["train_min_per_epoch"] = 2000 / train / 60
        folder.write(path / "result.json", {
            "id": name,
            "measured": "2026-11-22T12:00:00+00:00",
            "resolved": {"method": {"name": method, "parameters": DEFAULTS[method] | parameters}},
            "parameters": {"trainable": 4_000_000, "total": 640_000_000},
            "random_backbone": spec["checkpoint"] == "none",
            "speed": speed | dict(drift),
            "environment": {"torch": "2.12", "commit": "c0ffee", "dirty": False, "threads": 16, "host": "secret"},
        })  # fmt: skip
        return name

    return of_cell


@pytest.fixture
def tables(folder, measure):
    """The tables of the folder by number."""
    return lambda *wanted: {table.subject: table for table in speed_tables(read_measurements(folder.path)[0], wanted)}


def entry(table, row, metric, machine="micro-batch 1"):
    (column,) = [column for column in table.columns if (column.metric, column.data) == (metric, machine)]
    return table.entries[row, column]


def test_the_papers_rows_stand_beside_ours_without_a_difference(measure, tables):
    measure("lora", 20.0, 50.0)
    measure("conv_lora", 19.0, 45.0)
    table = tables()["14"]
    assert [row.label for row in table.rows] == ["BitFit", "Adapter", "VPT", "LoRA", "Conv-LoRA"]
    found = entry(table, "Conv-LoRA", "train_it_per_s")
    assert (found.ours.mean, found.paper.value, found.difference) == (19.0, "1.22", None)
    assert not table.has_difference
    assert entry(table, "Conv-LoRA", "train_min_per_epoch").paper.value == "27.3"
    assert entry(table, "Conv-LoRA", "inference_it_per_s").paper.value == "3.64"
    bitfit = entry(table, "BitFit", "train_it_per_s")
    assert (bitfit.ours, bitfit.paper.value) == (None, "1.82")
    assert "no difference" in table.caption.text and "random weights" in table.caption.text


def test_ratios_to_lora_are_ours_on_one_device_and_the_papers_on_the_other(measure, tables):
    measure("lora", 20.0, 50.0)
    measure("lora", 80.0, 100.0, batch=4)
    measure("conv_lora", 19.0, 45.0)
    measure("conv_lora", 72.0, 97.0, batch=4)
    table = tables()["14"]
    assert entry(table, "Conv-LoRA", "train_ratio").ours.mean == pytest.approx(0.95)
    assert entry(table, "Conv-LoRA", "inference_ratio").ours.mean == pytest.approx(0.9)
    assert entry(table, "Conv-LoRA", "train_ratio", "micro-batch 4").ours.mean == pytest.approx(0.9)
    assert entry(table, "Conv-LoRA", "train_ratio").paper.value == "0.74"
    assert entry(table, "Conv-LoRA", "inference_ratio").paper.value == "0.79"
    assert entry(table, "Conv-LoRA", "train_ratio", "micro-batch 4").paper is None, "the paper has one image at a time"
    assert list(table.groups()) == ["Micro-batch 1", "Micro-batch 4"]


def test_without_lora_in_the_same_setting_there_is_no_ratio(folder, measure, tables):
    measure("lora", precision="fp32")
    measure("lora", batch=4)
    measure("lora", parameters={"rank": 6})
    measure("conv_lora")
    one = next(one for one in read_measurements(folder.path)[0] if one.method == "conv_lora")
    assert reference_of(one, read_measurements(folder.path)[0]) is None
    assert ratio(one, None, "train_it_per_s") is None
    measured = [table for table in speed_tables(read_measurements(folder.path)[0]) if "bf16" in table.setting]
    assert entry(measured[0], "Conv-LoRA", "train_ratio").ours is None


def test_table_3_has_the_row_of_all_scales_and_lora(measure, tables):
    measure("lora", 20.0)
    measure("conv_lora", 19.0)
    assert "3" not in tables(), "its own row was not measured"
    measure("conv_lora", 10.0, parameters={"routing": "sum"})
    table = tables("3")["3"]
    assert [row.label for row in table.rows] == ["Multi-scale", "Conv-LoRA", "LoRA"]
    several = entry(table, "Multi-scale", "train_ratio")
    assert several.ours.mean == pytest.approx(0.5) and several.paper.value == "0.48"
    assert entry(table, "Multi-scale", "train_memory_gb").paper.value == "23.4"


def test_what_the_paper_has_not_is_a_row_of_its_own(measure, tables):
    measure("lora")
    measure("conv_lora", parameters={"implementation": "explicit"})
    table = tables()["14"]
    assert table.rows[-1].label == "conv_lora (implementation = explicit)"
    assert entry(table, "Conv-LoRA", "train_it_per_s").ours is None


def test_each_setting_has_its_table(measure, folder):
    for change in ({}, {"image_size": 512}, {"device": "NVIDIA A100"}, {"clock": "processor"}, {"checkpoint": "a.pth"}):
        measure(**change)
    made = speed_tables(read_measurements(folder.path)[0])
    assert len({table.name for table in made}) == len({table.setting for table in made}) == 5
    assert "table14-nvidia-h200-vit-h-1024-px-bf16" in {table.name for table in made}


def test_the_newest_version_of_a_method_counts(measure, folder):
    measure("lora", 1.0)
    newer = measure("lora", 2.0, version=2)
    assert [one.id for one in read_measurements(folder.path)[0]] == [newer]


def test_a_method_that_trains_nothing_has_a_rate_of_inference_only(measure, tables):
    measure("bitfit", train=None)
    table = tables()["14"]
    assert entry(table, "BitFit", "train_it_per_s").ours is None
    assert entry(table, "BitFit", "inference_it_per_s").ours.mean == 4.0


def test_noise_is_said(measure, tables):
    measure("lora", drift={"train_drift": 0.01, "inference_drift": -0.05})
    caption = tables()["14"].caption
    assert "further than 2.0% from it (lora (micro-batch 1), " in caption.text
    (warning,) = caption.warnings
    assert "UNSTEADY: lora (micro-batch 1), inference -5.0%" in warning
    assert "training +1.0%" in caption.notes[0]


def test_an_export_has_ratios_and_no_host(measure, folder):
    lora, conv = measure("lora", 1 / 3), measure("conv_lora", 0.3)
    made = export(read_measurements(folder.path)[0])
    assert made["device"] == "NVIDIA H200" and made["measurements"].keys() == {lora, conv}
    entry = made["measurements"][conv]
    assert entry["ratio_to_lora"]["train_it_per_s"] == 0.9
    assert made["measurements"][lora]["speed"]["train_it_per_s"] == 0.333333
    assert entry["commit"] == "c0ffee" and entry["speed"]["train_it_per_s_repeats"] == [0.297, 0.3, 0.306]
    assert "secret" not in json.dumps(made)
    assert file_name("NVIDIA H200 (80 GB)") == "nvidia-h200-80-gb"


def test_measurements_and_scores_keep_apart(folder, measure):
    measure()
    measure("conv_lora", state="failed")
    folder.add(method="lora")
    results = read_results(folder.path)
    assert set(results.cells["kind"]) == {"accuracy"} and not results.skipped
    assert len(read_measurements(folder.path)[0]) == 1


def test_a_broken_measurement_is_named_and_left_out(folder, measure):
    broken = measure()
    whole = measure("conv_lora")
    (folder.path / "cells" / broken / "result.json").write_text("{")
    measured, skipped = read_measurements(folder.path)
    assert [one.id for one in measured] == [whole]
    assert len(skipped) == 1 and broken in skipped[0] and "no JSON" in skipped[0]


def test_the_command_prints_and_writes_them(folder, measure, capsys):
    measure("lora", 20.0)
    measure("conv_lora", 19.0)
    assert main(["--results", str(folder.path), "--table", "14"]) == 0
    printed = capsys.readouterr().out
    assert "Table 14" in printed and "1.22" in printed and "19.00" in printed
    written = {path.suffix: path.read_text() for path in (folder.path / "tables").iterdir()}
    assert written.keys() == {".md", ".csv", ".tex"}
    assert all("19" in text and "1.22" in text for text in written.values())


def test_a_table_of_speed_that_nothing_was_measured_for(folder, capsys):
    folder.add()
    assert main(["--results", str(folder.path), "--table", "14"]) == 2
    assert "python -m bench.speed --matrix table14" in capsys.readouterr().err


def test_table_3_is_two_tables_where_both_were_run(folder, measure, capsys):
    measure("lora", 20.0)
    measure("conv_lora", 10.0, parameters={"routing": "sum"})
    assert main(["--results", str(folder.path), "--table", "3", "--format", "md"]) == 0
    folder.add(parameters={"routing": "sum"}, scores={"iou": 0.5})
    assert main(["--results", str(folder.path), "--table", "3", "--format", "md"]) == 0
    files = {path.name: path.read_text() for path in (folder.path / "tables").iterdir()}
    scores, speed = files["table3-vit_h-1024-bf16.md"], files["table3-nvidia-h200-vit-h-1024-px-bf16.md"]
    assert len(files) == 2 and "77.4" in scores and "0.79" not in scores and "0.79" in speed and "77.4" not in speed
    assert "scores" in scores.splitlines()[0] and "speed" in speed.splitlines()[0]
    capsys.readouterr()


def test_one_command_makes_tables_of_scores_and_of_speed(folder, measure, capsys):
    measure("lora", 20.0)
    folder.add()
    assert main(["--results", str(folder.path), "--format", "csv"]) == 0
    subjects = {path.name.partition("-")[0] for path in (folder.path / "tables").iterdir()}
    assert subjects == {"table1", "table6", "table14"}
    capsys.readouterr()
