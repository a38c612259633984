"""Scoring folders of class indices, and entering the scores among the results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import datasets
from analysis import tables
from analysis.results import read_results
from bench import score
from bench.metrics import PROTOCOLS, ClassScores, metrics_of
from bench.store import Results
from bench.tracking_record import read_record, settled_digest
from datasets import squash_mask

ROOT = Path(__file__).parents[2]
CLASSES = 4
SHAPES = {"a": (20, 31), "b": (33, 16), "c": (8, 8), "d": (5, 40)}
COLOURS = [200, 10, 10, 0, 0, 0, 9, 9, 9, 255, 255, 255]


def samples() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Predictions and masks by name, in blocks; class 3 is nowhere, and the mask of "d" counts nowhere."""
    rng, made = np.random.default_rng(8), {}
    for name, (height, width) in SHAPES.items():
        blocks = rng.integers(0, 3, (2, height // 4 + 1, width // 4 + 1)).repeat(4, 1).repeat(4, 2)
        truth, other = blocks[:, :height, :width].astype(np.uint8)
        prediction = np.where(rng.random((height, width)) < 0.8, truth, other).astype(np.uint8)
        truth[: height if name == "d" else 2] = 255
        made[name] = prediction, truth
    return made


SAMPLES = samples()


def save(path: Path, labels: np.ndarray, *, palette: bool) -> None:
    picture = Image.fromarray(labels)
    if palette:
        picture = picture.convert("L")
        picture.putpalette(COLOURS + [0, 0, 0] * 252)
        assert picture.mode == "P"
    picture.save(path)


@pytest.fixture
def folders(tmp_path: Path):
    """Writes the samples' maps and masks, as palette or grey pictures; returns both folders."""

    def write(*, palette: bool = False, ignored: int = 255) -> tuple[Path, Path]:
        predictions, masks = tmp_path / "pred", tmp_path / "gt"
        for folder in (predictions, masks):
            folder.mkdir(exist_ok=True)
        for name, (prediction, mask) in SAMPLES.items():
            save(predictions / f"{name}.png", prediction, palette=palette)
            save(masks / f"{name}.png", np.where(mask == 255, ignored, mask).astype(np.uint8), palette=palette)
        return predictions, masks

    return write


def run(folders: tuple[Path, Path], *words: str, classes: int | None = CLASSES, ignore: str = "255") -> int:
    predictions, masks = folders
    kind = ["--classes", str(classes), "--ignore", *ignore.split()] if classes else []
    return score.main(["--pred", str(predictions), "--gt", str(masks), "--workers", "1", *kind, *words])


def run_json(capsys: pytest.CaptureFixture[str], folders: tuple[Path, Path], *words: str, **options) -> dict:
    assert run(folders, "--json", *words, **options) == 0
    return json.loads(capsys.readouterr().out)


def direct(protocol: str, *, size: int | None = None, names: str = "abcd") -> ClassScores:
    """The samples scored without files."""
    scores = ClassScores(protocol, CLASSES)
    for name in names:
        scores.add(name, *(array if size is None else squash_mask(array, size) for array in SAMPLES[name]))
    return scores


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("palette", [False, True], ids=["grey", "palette"])
def test_files_score_as_in_memory(folders, capsys, palette: bool, protocol: str) -> None:
    report = run_json(capsys, folders(palette=palette), "--protocol", protocol)
    expected = direct(protocol)
    assert report["mean"] == expected.mean() and list(report["mean"]) == list(metrics_of(CLASSES))
    assert report["mean"]["iou"][3] == (0.0 if protocol == "paper" else None)
    assert {key: report[key] for key in ("protocol", "images", "size", "num_classes", "ignored", "quantised")} == {
        "protocol": protocol, "images": 4, "size": None, "num_classes": CLASSES, "ignored": [255], "quantised": False,
    }  # fmt: skip
    for found, row in zip(report["per_image"], expected.rows, strict=True):
        assert found == {"id": row["image"], "accuracy": row["accuracy"], "label_mae": row["label_mae"]}
    assert report["per_image"][3] == {"id": "d", "accuracy": None, "label_mae": None}


@pytest.mark.parametrize("ignored", [0, 9, 254])
def test_any_value_can_be_ignored_and_several(folders, capsys, ignored: int) -> None:
    written = folders(ignored=ignored)
    report = run_json(capsys, written, ignore=str(ignored))
    expected = ClassScores("paper", CLASSES)
    for name, (prediction, mask) in SAMPLES.items():
        expected.add(name, prediction, np.where(mask == ignored, 255, mask).astype(np.uint8))
    assert report["mean"] == expected.mean() and report["ignored"] == [ignored]
    if ignored:
        assert report["mean"] == direct("paper").mean()
    for several in (f"7 {ignored}", f"7 --ignore {ignored}", f"{ignored} 7 {ignored}"):
        again = run_json(capsys, written, ignore=several)
        assert again["mean"] == report["mean"] and again["ignored"] == sorted({7, ignored})


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_size_squashes_both_sides_to_the_nearest_pixel(folders, capsys, protocol: str) -> None:
    report = run_json(capsys, folders(palette=True), "--size", "24", "--protocol", protocol)
    assert report["mean"] == direct(protocol, size=24).mean() != direct(protocol).mean()
    assert report["size"] == 24


def test_maps_of_other_sizes_need_a_common_one(folders, capsys) -> None:
    predictions, masks = folders()
    save(predictions / "c.png", SAMPLES["c"][0].repeat(2, 0), palette=False)
    assert run((predictions, masks)) == 2
    error = capsys.readouterr().err
    assert "c.png: 8x16, its mask 8x8" in error and "--size 16" in error and "1 of 4 images" in error
    assert run_json(capsys, (predictions, masks), "--size", "16")["images"] == 4


def test_leftovers_are_named_and_left_out(folders, capsys) -> None:
    predictions, masks = folders()
    (predictions / "a.png").rename(predictions / "extra.png")
    np.save(predictions / "a.npy", SAMPLES["a"][0])
    assert run((predictions, masks), "--json") == 0
    out, error = capsys.readouterr()
    report = json.loads(out)
    assert report["unpaired"] == {"predictions": ["extra.png"], "masks": ["a.png"]}
    assert report["mean"] == direct("paper", names="bcd").mean()
    assert "extra.png" in error and "a.png" in error


def test_the_number_of_processes_changes_nothing(folders, capsys) -> None:
    written = folders()
    one = run_json(capsys, written)
    assert run_json(capsys, written, "--workers", "2") == one


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "pred/b.png",
            np.full(SHAPES["b"], 4, np.uint8),
            "528 pixels have a value of no class: 4 (classes are 0 to 3)",
        ),
        ("pred/b.png", np.full(SHAPES["b"], 255, np.uint8), "no class: 255 (classes are 0 to 3)"),
        (
            "gt/b.png",
            np.full(SHAPES["b"], 4, np.uint8),
            "no class: 4 (classes are 0 to 3, ignored is 255; --ignore VALUE",
        ),
        ("gt/b.png", np.zeros((*SHAPES["b"], 3), np.uint8), "its mode is RGB"),
        ("pred/b.png", np.zeros(SHAPES["b"], np.uint16), "its mode is I;16"),
        ("pred/b.png", b"\x89PNG\r\n\x1a\nbroken", "cannot identify"),
        ("gt/b.png", b"", "cannot identify"),
    ],
)
def test_a_bad_file_is_named(folders, tmp_path, capsys, name: str, content, said: str) -> None:
    written, path = folders(), tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        Image.fromarray(content).save(path)
    assert run(written) == 2
    error = capsys.readouterr().err
    assert f"{path}: " in error and said in error and "1 of 4 images" in error


def test_all_bad_files_are_named_at_once(folders, capsys) -> None:
    predictions, masks = folders()
    assert run((predictions, masks), classes=2) == 2
    error = capsys.readouterr().err
    assert "4 of 4 images cannot be scored" in error and "classes are 0 to 1" in error
    assert all(str(predictions / f"{name}.png") in error for name in SAMPLES)


def test_nothing_is_ignored_unasked(folders, capsys) -> None:
    predictions, masks = folders()
    assert score.main(["--pred", str(predictions), "--gt", str(masks), "--workers", "1", "--classes", "4"]) == 2
    error = capsys.readouterr().err
    assert "no class: 255 (classes are 0 to 3; --ignore VALUE leaves pixels out)" in error


@pytest.mark.parametrize("ignored", [255, 200])
@pytest.mark.parametrize("palette", [None, "masks", "maps"])
def test_indices_are_not_scored_as_binary(folders, capsys, palette: str | None, ignored: int) -> None:
    predictions, masks = folders(ignored=ignored)
    for path in {None: [], "maps": predictions.iterdir(), "masks": masks.iterdir()}[palette]:
        with Image.open(path) as picture:
            picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0] + [224, 224, 192] * 252)
            picture.save(path)
    assert run((predictions, masks), classes=None) == 2
    error = capsys.readouterr().err
    assert "class indices are scored with --classes K" in error
    if palette is None:
        assert f"no map in {predictions} holds more than 2, and the masks hold 0, 1, 2, {ignored}:" in error
        assert f"--classes K --ignore {ignored}" in error


def test_nothing_but_ignored_pixels_is_no_error(folders, capsys) -> None:
    predictions, masks = folders()
    for name in "abc":
        (masks / f"{name}.png").unlink()
    report = run_json(capsys, (predictions, masks))
    assert report["mean"] == {**dict.fromkeys(metrics_of(CLASSES)), "iou": [None] * CLASSES}
    assert run((predictions, masks)) == 0
    assert "1 images, protocol paper" in " ".join(capsys.readouterr().out.split())


def test_folders_without_index_pictures_end_with_a_message(folders, tmp_path, capsys) -> None:
    _, masks = folders()
    arrays = tmp_path / "arrays"
    arrays.mkdir()
    np.save(arrays / "a.npy", SAMPLES["a"][0])
    assert run((arrays, masks)) == 2
    assert "no predictions in" in capsys.readouterr().err
    assert run((tmp_path / "nowhere", masks)) == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--classes", "1"], "1: a whole number from 2 to 255"),
        (["--classes", "256"], "from 2 to 255"),
        (["--classes", "x"], "x: a whole number"),
        (["--classes", "3", "--ignore", "256"], "256: a whole number from 0 to 255"),
        (["--classes", "3", "--ignore", "-1"], "--ignore"),
        (["--ignore", "255"], "--classes K"),
        (["--size", "0"], "0: a whole number of 1 or more"),
    ],
)
def test_impossible_options_are_refused(capsys, words: list[str], said: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        score.main(["--pred", "p", "--gt", "g", *words])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_as_a_command_it_prints_a_table_with_every_class(folders) -> None:
    predictions, masks = folders(palette=True)
    command = [sys.executable, "-m", "bench.score", "--pred", str(predictions), "--gt", str(masks), "--workers", "1"]
    command += ["--classes", "4", "--ignore", "255", "--protocol", "literature"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    assert "4 images, protocol literature, at the masks' size" in " ".join(done.stdout.split())
    means = direct("literature").mean()
    shown = dict(line.strip("│ ").split("│") for line in done.stdout.splitlines() if line.startswith("│"))
    shown = {label.strip(): value.strip() for label, value in shown.items()}
    assert shown["mIoU (all classes) ↑"] == f"{100 * means['miou_all']:.2f}"
    assert shown["mBER ↓"] == f"{100 * means['mber']:.2f}"
    assert [shown[f"IoU ↑ class {label}"] for label in range(3)] == [f"{100 * v:.2f}" for v in means["iou"][:3]]
    assert shown["IoU ↑ class 3"] == "-"


CELL = ("--as-cell", "method=segformer", "dataset=trans10k_v1", "test_set=easy")


def enter(folders, results: Path, *words: str, classes: int = 3) -> Path:
    """Enters the samples and returns the cell's folder."""
    assert run(folders, "--results", str(results), *(words or CELL), classes=classes) == 0
    (path,) = (path for path in (results / "cells").iterdir() if "segformer" in path.name)
    return path


def test_an_imported_cell_stands_in_tables_and_in_mlflow(folders, tmp_path, capsys) -> None:
    results = tmp_path / "results"
    folder = Results(results).cell(enter(folders(palette=True), results).name)
    printed = " ".join(capsys.readouterr().out.split())
    assert "IoU ↑ things" in printed, "a dataset of ours names its classes"
    result = folder.result()
    assert result["classes"] == ["background", "things", "stuff"]
    assert result["dataset_metrics"] == list(datasets.load("trans10k_v1").metrics)
    assert list(result["metrics"]) == list(result["scores"]["easy"]["paper"]) == list(metrics_of(3))
    assert len(result["scores"]["easy"]["paper"]["iou"]) == 3
    assert result["imported"]["easy"]["paper"]["ignored"] == [255]
    assert tables.main(["--results", str(results)]) == 0
    value = 100 * result["scores"]["easy"]["paper"]["miou_foreground"]
    printed = " ".join(capsys.readouterr().out.split())
    assert "segformer (imported)" in printed and f"{value:.1f} ‡" in printed
    record = read_record(folder, settled_digest(folder))
    assert {"easy/paper/miou_all", "easy/paper/iou/stuff"} <= {point.key for point in record.metrics}


def test_test_sets_and_protocols_gather_in_one_cell(folders, tmp_path) -> None:
    results, written = tmp_path / "results", folders()
    enter(written, results)
    enter(written, results, *CELL, "--protocol", "literature")
    path = enter(written, results, *CELL[:-1], "test_set=hard")
    result = json.loads((path / "result.json").read_text())
    assert {name: set(found) for name, found in result["scores"].items()} == {
        "easy": {"paper", "literature"},
        "hard": {"paper"},
    }
    assert len(read_results(results).cells) == 1


@pytest.mark.parametrize(
    ("dataset", "test_set"),
    [("trans10k_v1", "hard"), ("trans10k_v2", "test"), ("camvid", "test"), ("elsewhere", "test")],
)
def test_every_test_set_can_be_a_target(folders, tmp_path, dataset: str, test_set: str) -> None:
    ours = datasets.load(dataset).classes if dataset in datasets.registry else None
    words = ["--as-cell", "method=segformer", f"dataset={dataset}", f"test_set={test_set}"]
    path = enter(folders(), tmp_path / "results", *words, classes=len(ours or range(5)))
    result = json.loads((path / "result.json").read_text())
    assert result["classes"] == list(ours or [f"class {label}" for label in range(5)])
    assert result["dataset_metrics"] and set(result["dataset_metrics"]) <= set(metrics_of(3))


@pytest.mark.parametrize(
    ("target", "classes", "said"),
    [
        ("trans10k_v2", 3, ["12 classes, not 3 classes", "--gt DIR --classes 12 --as-cell method=segformer dataset="]),
        ("trans10k_v2", None, ["12 classes, not binary masks", "--classes 12 --as-cell"]),
        ("camvid", 12, ["11 classes, not 12 classes", "--classes 11"]),
        ("sbu", 2, ["binary masks, not 2 classes", "--gt DIR --as-cell"]),
    ],
)
def test_another_number_of_classes_is_refused_before_scoring(
    tmp_path, capsys, target: str, classes: int | None, said: list[str]
) -> None:
    nowhere = (tmp_path / "pred", tmp_path / "gt")
    words = ["--as-cell", "method=segformer", f"dataset={target}", "test_set=test"]
    assert run(nowhere, *words, "--results", str(tmp_path / "results"), classes=classes) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in said)
    assert not (tmp_path / "results").exists()


def test_a_cell_keeps_its_number_of_classes(folders, tmp_path, capsys) -> None:
    results, written = tmp_path / "results", folders()
    words = ["--as-cell", "method=segformer", "dataset=elsewhere", "test_set=test"]
    path = enter(written, results, *words, classes=5)
    before = (path / "result.json").read_bytes()
    assert run(written, "--results", str(results), *words, classes=4) == 2
    error = capsys.readouterr().err
    assert f"{path} has scores of 5 classes, and these are of 4 classes" in error
    assert (path / "result.json").read_bytes() == before
    enter(written, results, *words, classes=5)


def test_the_real_masks_of_camvid_score_as_themselves(test_data, tmp_path, capsys) -> None:
    predictions, masks = tmp_path / "pred", tmp_path / "gt"
    for folder in (predictions, masks):
        folder.mkdir()
    for path in sorted((test_data / "camvid_val_101").rglob("valannot/*.png"))[:3]:
        labels = np.array(Image.open(path))
        save(masks / path.name, labels, palette=False)
        save(predictions / path.name, np.where(labels == 11, 0, labels).astype(np.uint8), palette=True)
    report = run_json(capsys, (predictions, masks), "--protocol", "literature", classes=11, ignore="11")
    assert report["images"] == 3 and report["mean"]["miou_all"] == report["mean"]["accuracy"] == 1.0
    assert run((predictions, masks), classes=11) == 2
    assert "no class: 11" in capsys.readouterr().err
