"""Scoring folders of prediction maps, and entering the scores among the results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import py_sod_metrics
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from analysis import tables
from analysis.results import read_results
from bench import imported, maps, score
from bench.metrics import PROTOCOLS, Scores, metrics_of
from bench.store import Results
from bench.tracking_record import read_record, settled_digest
from datasets import squash_mask

ROOT = Path(__file__).parents[2]
SHAPES = {"a": (40, 56), "b": (33, 30), "c": (48, 48), "d": (20, 64)}


def samples() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Float probabilities and masks of 0 and 1 by name; one mask is empty."""
    rng, made = np.random.default_rng(3), {}
    for number, (name, (height, width)) in enumerate(SHAPES.items()):
        mask = np.zeros((height, width), np.uint8)
        if name != "d":
            mask[5 : height - 6, 3 + number : width // 2] = 1
        soft = gaussian_filter(mask.astype(np.float64), 2) + rng.normal(0, 0.1, mask.shape)
        made[name] = soft.clip(0, 1).astype(np.float32), mask
    return made


SAMPLES = samples()


def grey(values: np.ndarray) -> np.ndarray:
    return (values * 255).round().astype(np.uint8)


def save_map(path: Path, values: np.ndarray) -> None:
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        Image.fromarray(grey(values) if path.suffix == ".png" else values).save(path)


@pytest.fixture
def folders(tmp_path: Path):
    """Writes the samples' maps with some ending, and their masks; returns both folders."""

    def write(ending: str = ".npy") -> tuple[Path, Path]:
        predictions, masks = tmp_path / f"pred{ending}", tmp_path / "gt"
        for folder in (predictions, masks):
            folder.mkdir(exist_ok=True)
        for name, (values, mask) in SAMPLES.items():
            save_map(predictions / f"{name}{ending}", values)
            Image.fromarray(mask * np.uint8(255)).save(masks / f"{name}.png")
        return predictions, masks

    return write


def run(folders: tuple[Path, Path], *words: str) -> int:
    predictions, masks = folders
    return score.main(["--pred", str(predictions), "--gt", str(masks), "--workers", "1", *words])


def run_json(capsys: pytest.CaptureFixture[str], folders: tuple[Path, Path], *words: str) -> dict:
    assert run(folders, "--json", *words) == 0
    return json.loads(capsys.readouterr().out)


def direct(protocol: str, change=lambda values: values) -> Scores:
    """The samples scored without files; ``change`` is applied to their probabilities."""
    scores = Scores(protocol)
    for name, (values, mask) in SAMPLES.items():
        values = change(values)
        scores.add(name, values if protocol == "paper" else grey(values), mask)
    return scores


@pytest.mark.parametrize("ending", [".npy", ".tif", ".tiff"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_float_maps_score_as_in_memory(folders, capsys, ending: str, protocol: str) -> None:
    report = run_json(capsys, folders(ending), "--protocol", protocol)
    expected = direct(protocol)
    assert report["mean"] == expected.mean() and list(report["mean"]) == list(metrics_of(1))
    assert (report["protocol"], report["images"], report["quantised"]) == (protocol, 4, False)
    for found, row in zip(report["per_image"], expected.rows, strict=True):
        assert found.pop("id") == row["image"]
        assert set(found) == set(metrics_of(1)) - {"ber_pooled"}
        found.pop("e_measure_max")
        assert found == {key: row[key] for key in found}


def test_eight_bit_maps_are_marked_under_paper_alone(folders, capsys) -> None:
    written = folders(".png")
    paper, literature = (run_json(capsys, written, "--protocol", protocol) for protocol in PROTOCOLS)
    assert paper["quantised"] and not literature["quantised"]
    assert paper["mean"] == direct("paper", lambda values: grey(values) / np.float32(255)).mean()
    assert paper["mean"] != direct("paper").mean()
    assert literature["mean"] == direct("literature").mean()


def test_eight_bit_npy_is_quantised_and_one_such_map_marks_the_set(folders, capsys) -> None:
    predictions, masks = folders(".npy")
    assert not run_json(capsys, (predictions, masks))["quantised"]
    np.save(predictions / "b.npy", grey(SAMPLES["b"][0]))
    assert run_json(capsys, (predictions, masks))["quantised"]


def test_equals_pysodmetrics(folders, capsys) -> None:
    report = run_json(capsys, folders(".png"), "--protocol", "literature")
    measures = [py_sod_metrics.Smeasure(), py_sod_metrics.Emeasure(), py_sod_metrics.WeightedFmeasure()]
    measures.append(py_sod_metrics.MAE())
    curves = []
    for values, mask in SAMPLES.values():
        for measure in measures:
            measure.step(pred=grey(values), gt=mask * np.uint8(255))
        curves.append(measures[1].changeable_ems[-1])
    s, e, f, mae = (measure.get_results() for measure in measures)
    expected = {
        "s_measure": s["sm"],
        "e_measure_mean": e["em"]["curve"].mean(),
        "e_measure_max": e["em"]["curve"].max(),
        "e_measure_adaptive": e["em"]["adp"],
        "weighted_f_measure_b1": f["wfm"],
        "mae": mae["mae"],
    }
    assert {key: report["mean"][key] for key in expected} == pytest.approx(expected, rel=0, abs=1e-12)
    maxima = [row["e_measure_max"] for row in report["per_image"]]
    assert maxima == pytest.approx([curve.max() for curve in curves], rel=0, abs=1e-12)
    assert np.mean(maxima) > report["mean"]["e_measure_max"] + 1e-6, "the set's maximum is of the averaged curve"


def test_leftovers_are_named_and_left_out(folders, capsys) -> None:
    predictions, masks = folders(".npy")
    (predictions / "a.npy").rename(predictions / "extra.npy")
    (masks / "b.png").rename(masks / "B.png")
    assert run((predictions, masks), "--json") == 0
    out, error = capsys.readouterr()
    report = json.loads(out)
    assert report["unpaired"] == {"predictions": ["extra.npy"], "masks": ["a.png"]}
    assert [row["id"] for row in report["per_image"]] == ["b", "c", "d"], "names pair in whatever case"
    assert "extra.npy" in error and "a.png" in error


def test_another_size_is_an_error_that_says_what_to_do(folders, capsys) -> None:
    predictions, masks = folders(".npy")
    np.save(predictions / "c.npy", SAMPLES["c"][0][:24, :32])
    assert run((predictions, masks)) == 2
    error = capsys.readouterr().err
    assert "c.npy: 32x24, its mask 48x48" in error and "--size" in error and "a.npy" not in error
    assert run_json(capsys, (predictions, masks), "--size", "16")["images"] == 4


@pytest.mark.parametrize("ending", [".npy", ".png"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_size_squashes_both_sides_first(folders, capsys, protocol: str, ending: str) -> None:
    report = run_json(capsys, folders(ending), "--size", "24", "--protocol", protocol)
    expected = Scores(protocol)
    for name, (values, mask) in SAMPLES.items():
        values = grey(values) / np.float32(255) if ending == ".png" else values
        small = np.array(Image.fromarray(values).resize((24, 24), Image.Resampling.BILINEAR)).clip(0, 1)
        expected.add(name, small if protocol == "paper" else grey(small), squash_mask(mask, 24))
    assert report["mean"] == expected.mean() and report["size"] == 24
    assert report["quantised"] == (ending == ".png" and protocol == "paper")


def test_the_number_of_processes_changes_nothing(folders, capsys) -> None:
    written = folders(".npy")
    one = run_json(capsys, written)
    assert run_json(capsys, written, "--workers", "2") == one


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("b.npy", b"no array", "b.npy"),
        ("b.npy", b"", "b.npy"),
        ("b.npy", np.zeros((33, 30), np.int64), "int64"),
        ("b.npy", np.full((33, 30), 3.0), "take the sigmoid"),
        ("b.npy", np.full((33, 30), np.nan), "take the sigmoid"),
        ("b.npy", np.zeros((33, 30, 3), np.float32), "(33, 30, 3)"),
        ("../gt/b.png", b"\x89PNG\r\n\x1a\nbroken", "gt/b.png"),
        ("../gt/b.png", np.ones((33, 30), np.uint8), "Multiply masks of 0 and 1 by 255"),
    ],
)
def test_a_bad_file_is_named(folders, capsys, name: str, content, said: str) -> None:
    predictions, masks = folders(".npy")
    path = predictions / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif path.suffix == ".npy":
        np.save(path, content)
    else:
        Image.fromarray(content).save(path)
    assert run((predictions, masks)) == 2
    error = capsys.readouterr().err
    assert said in error and Path(name).name in error and "1 of 4 images" in error


def test_maps_that_are_silently_misread_elsewhere_are_refused(folders, tmp_path, capsys) -> None:
    predictions, masks = folders(".png")
    Image.fromarray(SAMPLES["a"][0].astype(np.uint16)).save(predictions / "a.png")
    assert run((predictions, masks)) == 2
    assert "more than 8 bits" in capsys.readouterr().err
    for name, (_, mask) in SAMPLES.items():
        Image.fromarray(mask).save(predictions / f"{name}.png")
    assert run((predictions, masks)) == 2
    assert "multiply by 255" in capsys.readouterr().err


NOISE = {"one side": [0, 1, 2, 255], "both sides": [0, 2, 250, 255], "outlines": [0, 90, 180, 255], "none": [0, 255]}


@pytest.mark.parametrize("held", NOISE.values(), ids=NOISE)
@pytest.mark.parametrize("brightest", [4, 30, 31, 255])
def test_dark_maps_and_noisy_masks_are_refused_together_alone(folders, capsys, held: list[int], brightest: int) -> None:
    predictions, masks = folders(".png")
    rng = np.random.default_rng(0)
    for name, (values, mask) in SAMPLES.items():
        Image.fromarray((values * brightest).astype(np.uint8)).save(predictions / f"{name}.png")
        low, high = ([value for value in held if (value > 127) == side] for side in (False, True))
        noisy = np.where(mask, rng.choice(high, mask.shape), rng.choice(low, mask.shape) if mask.any() else 0)
        Image.fromarray(noisy.astype(np.uint8)).save(masks / f"{name}.png")
    indices = held == NOISE["one side"] and brightest <= maps.DARK
    assert run((predictions, masks), "--json") == (2 if indices else 0)
    assert ("--classes K --ignore 255" in capsys.readouterr().err) == indices


def test_wrong_folders_end_with_a_message(folders, tmp_path, capsys) -> None:
    predictions, masks = folders(".npy")
    (tmp_path / "empty").mkdir()
    for pair, said in [
        ((tmp_path / "empty", masks), "no predictions in"),
        ((predictions, tmp_path / "empty"), "no masks in"),
        ((tmp_path / "nowhere", masks), "nowhere"),
    ]:
        assert run(pair) == 2
        assert said in capsys.readouterr().err
    save_map(predictions / "A.png", SAMPLES["a"][0])
    assert run((predictions, masks)) == 2
    assert "several files of one name" in capsys.readouterr().err
    for path in masks.iterdir():
        path.rename(path.with_stem(f"{path.stem}_segmentation"))
    (predictions / "A.png").unlink()
    assert run((predictions, masks)) == 2
    assert "rename one side" in capsys.readouterr().err


def test_as_a_command_it_prints_a_table(folders) -> None:
    predictions, masks = folders(".png")
    command = [sys.executable, "-m", "bench.score", "--pred", str(predictions), "--gt", str(masks), "--workers", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    assert "4 images, protocol paper, at the masks' size, quantised" in " ".join(done.stdout.split())
    value = maps.score_folders(predictions, masks, workers=1).mean["s_measure"]
    assert f"{100 * value:.2f}" in done.stdout and "S-measure" in done.stdout


CELL = ("--as-cell", "method=pranet", "dataset=polyps", "test_set=kvasir")


def enter(folders, results: Path, *words: str) -> Path:
    """Enters the samples and returns the cell's folder."""
    assert run(folders, "--results", str(results), *(words or CELL)) == 0
    (path,) = (path for path in (results / "cells").iterdir() if "pranet" in path.name)
    return path


def test_an_imported_cell_stands_in_tables(folders, tmp_path, capsys) -> None:
    results = tmp_path / "results"
    folder = Results(results).cell(enter(folders(".png"), results).name)
    assert folder.status()["state"] == "done" and folder.read()["spec"]["imported"] is True
    capsys.readouterr()
    assert tables.main(["--results", str(results)]) == 0
    value = 100 * folder.result()["scores"]["kvasir"]["paper"]["s_measure"]
    printed = " ".join(capsys.readouterr().out.split())
    assert "pranet (imported)" in printed and f"{value:.1f} ‡" in printed
    assert "at the masks' own size, from 8-bit maps: pranet (imported) (polyps/kvasir)" in printed
    assert (results / "tables" / "polyps-imported.md").exists()


def test_entering_again_replaces(folders, tmp_path) -> None:
    results, (predictions, masks) = tmp_path / "results", folders(".npy")
    path = enter((predictions, masks), results)
    first = json.loads((path / "result.json").read_text())
    np.save(predictions / "a.npy", 1 - SAMPLES["a"][0])
    assert enter((predictions, masks), results) == path
    second = json.loads((path / "result.json").read_text())
    made = [result["imported"]["kvasir"]["paper"] for result in (first, second)]
    assert made[0]["predictions"] != made[1]["predictions"] and made[0]["masks"] == made[1]["masks"]
    assert second["scores"] != first["scores"]
    assert len(read_results(results).cells) == 1


def test_test_sets_and_protocols_gather_in_one_cell(folders, tmp_path) -> None:
    results, written = tmp_path / "results", folders(".npy")
    enter(written, results)
    enter(written, results, *CELL, "--protocol", "literature", "--size", "24")
    path = enter(written, results, *CELL[:-1], "test_set=cvc_612")
    result = json.loads((path / "result.json").read_text())
    assert {name: set(found) for name, found in result["scores"].items()} == {
        "kvasir": {"paper", "literature"},
        "cvc_612": {"paper"},
    }
    assert result["images"] == {"kvasir": 4, "cvc_612": 4}
    sizes = {p: made["size"] for p, made in result["imported"]["kvasir"].items()}
    assert sizes == {"paper": None, "literature": 24}


def test_mlflow_takes_an_imported_cell(folders, tmp_path) -> None:
    results = tmp_path / "results"
    cell = Results(results).cell(enter(folders(), results).name)
    record = read_record(cell, settled_digest(cell))
    assert record.tags["method"] == "pranet" and record.tags["imported"] == "true" and "backbone" not in record.tags
    assert any(point.key == "kvasir/paper/s_measure" for point in record.metrics)


def test_an_imported_cell_cannot_be_trained(folders, tmp_path, capsys) -> None:
    from bench import cell

    results = tmp_path / "results"
    name = enter(folders(), results).name
    assert cell.main([name, "--results", str(results), "--again"]) == 2
    assert "imported" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method=pranet", "dataset=polyps"], "lacks test_set"),
        (["methods=pranet"], "Did you mean 'method'?"),
        (["method=pra/net", "dataset=polyps", "test_set=kvasir"], "method=pra/net"),
        (["method=pranet", "dataset=isic2017", "test_set=validation"], "Known: test"),
        (["method=pranet", "dataset=polyps", "test_set=test"], "Known: cvc_612, cvc_colondb, cvc_t, etis, kvasir"),
        (["method=pranet", "dataset=polyps", "test_set=kvasir", "seed=x"], "seed=x"),
    ],
)
def test_a_wrong_target_is_refused_before_scoring(tmp_path, capsys, words: list[str], said: str) -> None:
    nowhere = (tmp_path / "pred", tmp_path / "gt")
    assert run(nowhere, "--as-cell", *words, "--results", str(tmp_path / "results")) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


BINARY_TEST_SETS = {
    "polyps": ["kvasir", "cvc_612", "cvc_colondb", "etis", "cvc_t"],
    "camouflage": ["chameleon", "camo", "cod10k", "nc4k"],
    **{name: ["test"] for name in ("isic2017", "sbu", "leaf", "road", "folder")},
}


@pytest.mark.parametrize(
    ("dataset", "test_set"), [(name, test_set) for name, sets in BINARY_TEST_SETS.items() for test_set in sets]
)
def test_every_binary_test_set_can_be_a_target(folders, tmp_path, dataset: str, test_set: str) -> None:
    words = ["--as-cell", "method=pranet", f"dataset={dataset}", f"test_set={test_set}"]
    result = json.loads((enter(folders(), tmp_path / "results", *words) / "result.json").read_text())
    assert set(result["scores"]) == {test_set}
    assert result["resolved"]["dataset"]["title"] and result["dataset_metrics"] and result["classes"] == []
    assert list(result["metrics"]) == list(metrics_of(1))
    assert len(read_results(tmp_path / "results").cells) == 1


def test_a_target_of_ours_takes_the_datasets_words() -> None:
    target = imported.read_target(["method=x", "dataset=isic2017", "test_set=test", "seed=2"])
    assert target.cell.id.startswith("isic2017-x-s2-")
