"""Reading a results folder: what is used, what is named and left out, what stops with a message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from analysis.results import CELL_COLUMNS, NoResults, read_results


def test_frames_hold_what_was_written(folder) -> None:
    path = folder.add(seed=2, scores={"iou": 0.75, "mae": 0.1}, stale=("dataset",))
    folder.add(seed=3, state="failed")
    results = read_results(folder.path)
    done = results.cells.set_index("id").loc[path.name]
    assert set(CELL_COLUMNS) < set(results.cells.columns)
    assert (done["method"], done["dataset"], done["seed"], done["state"]) == ("conv_lora", "isic2017", 2, "done")
    assert done["stale"] == ("dataset",)
    assert done["resolved_parameters"]["num_experts"] == 8
    assert json.loads(done["setting"])["image_size"] == 1024
    assert results.scores[["test_set", "protocol", "metric", "value"]].to_numpy().tolist() == [
        ["test", "paper", "iou", 0.75],
        ["test", "paper", "mae", 0.1],
    ]
    assert results.metrics["mae"].better == "lower"
    assert sorted(results.cells["state"]) == ["done", "failed"]


def test_the_order_on_disk_does_not_matter(folder, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(4):
        folder.add(seed=seed)
    listed = {order: sorted((folder.path / "cells").iterdir(), reverse=order) for order in (False, True)}
    frames = []
    for order in (False, True):
        monkeypatch.setattr(Path, "iterdir", lambda _, order=order: iter(listed[order]))
        frames.append(read_results(folder.path).cells)
    assert frames[0]["id"].tolist() == frames[1]["id"].tolist() == [path.name for path in listed[False]]


def test_an_unknown_part_of_a_spec_is_a_setting_of_its_own(folder) -> None:
    folder.add(seed=0)
    folder.add(seed=1, decoder="other")
    assert read_results(folder.path).cells["setting"].nunique() == 2


def test_a_newer_version_supersedes(folder) -> None:
    folder.add(method="lora", version=1)
    folder.add(method="lora", version=2)
    folder.add(method="conv_lora", version=1)
    cells = read_results(folder.path).cells
    assert cells[cells["old_method"]][["method", "method_version"]].to_numpy().tolist() == [["lora", (1,)]]
    assert not cells["old_dataset"].any()


def _no_cell_json(path: Path) -> None:
    (path / "cell.json").unlink()


def _half_a_result(path: Path) -> None:
    text = (path / "result.json").read_text()
    (path / "result.json").write_text(text[: len(text) // 2])


def _no_result(path: Path) -> None:
    (path / "result.json").unlink()


def _not_an_object(path: Path) -> None:
    (path / "status.json").write_text("[]")


def _binary(path: Path) -> None:
    (path / "cell.json").write_bytes(b"\xff\xfe\x00")


def _other_schema(path: Path) -> None:
    cell = json.loads((path / "cell.json").read_text())
    (path / "cell.json").write_text(json.dumps({**cell, "schema": 2}))


def _no_scores_of_parameters(path: Path) -> None:
    result = json.loads((path / "result.json").read_text())
    del result["parameters"]
    (path / "result.json").write_text(json.dumps(result))


def _renamed(path: Path) -> None:
    path.rename(path.with_name("copy"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_no_cell_json, "cell.json is missing"),
        (_half_a_result, "result.json is no JSON"),
        (_no_result, "result.json is missing"),
        (_not_an_object, "schema 1"),
        (_binary, "cell.json is no JSON"),
        (_other_schema, "schema 1"),
        (_no_scores_of_parameters, "the key 'parameters' is missing"),
        (_renamed, "copied or renamed"),
    ],
)
def test_a_damaged_cell_is_named_and_left_out(folder, damage, said: str) -> None:
    kept = folder.add(seed=0)
    damage(folder.add(seed=1))
    results = read_results(folder.path)
    assert results.cells["id"].tolist() == [kept.name]
    assert set(results.scores["id"]) == {kept.name}
    assert len(results.skipped) == 1
    assert said in results.skipped[0] and str(folder.path / "cells") in results.skipped[0]


def test_a_metric_without_a_direction_is_refused(folder) -> None:
    folder.add(seed=0)
    path = folder.add(seed=1)
    result = json.loads((path / "result.json").read_text())
    result["metrics"]["iou"]["better"] = "max"
    (path / "result.json").write_text(json.dumps(result))
    assert "higher, lower" in read_results(folder.path).skipped[0]


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_scores_that_are_no_number_are_named_and_left_out(folder, value: float | None) -> None:
    folder.add(scores={"iou": 0.5, "dice": value})
    results = read_results(folder.path)
    assert results.scores["metric"].tolist() == ["iou"]
    assert "test/paper/dice" in results.skipped[0]


def test_an_entry_of_a_list_is_the_score_of_a_class(folder) -> None:
    folder.add(scores={"accuracy": 0.9, "iou": [0.1, None, 0.3]}, classes=("sky", "pole", "road"))
    folder.add(dataset="shapes", scores={"iou": 0.5})
    results = read_results(folder.path)
    assert results.skipped == (), "a class that occurs nowhere is no defect"
    found = results.scores.set_index(["id", "metric"])["value"]
    assert sorted((metric, value) for (_, metric), value in found.items()) == [
        ("accuracy", 0.9), ("iou", 0.5), ("iou:road", 0.3), ("iou:sky", 0.1),
    ]  # fmt: skip
    assert {key: results.metrics[key].label for key in ("iou", "iou:pole")} == {"iou": "IoU", "iou:pole": "IoU pole"}
    assert results.metrics["iou:pole"].better == "higher"
    assert results.cells["dataset_metrics"].tolist() == [
        ("accuracy", "iou:sky", "iou:pole", "iou:road"), ("iou",),
    ]  # fmt: skip


def test_a_list_of_another_length_than_the_classes_is_a_damaged_cell(folder) -> None:
    folder.add(seed=0)
    folder.add(seed=1, scores={"iou": [0.1, 0.2]}, classes=("sky", "pole", "road"))
    results = read_results(folder.path)
    assert len(results.cells) == 1
    assert "2 values of iou for 3 classes" in results.skipped[0]


def test_a_cell_that_is_not_done_has_the_defaults_of_a_done_one(folder) -> None:
    folder.add(method="lora", seed=0)
    folder.add(method="lora", seed=1, state="failed")
    folder.add(method="lora", seed=2, state="failed", parameters={"rank": 6})
    folder.add(method="lora", seed=3, state="failed", version=2)
    cells = read_results(folder.path).cells.set_index("seed")
    assert cells["resolved_parameters"].to_dict() == {0: {"rank": 3}, 1: {"rank": 3}, 2: {"rank": 6}, 3: {}}


def test_a_missing_folder_is_named_with_the_next_command(tmp_path: Path) -> None:
    with pytest.raises(NoResults, match=r"python -m bench\.run --matrix smoke --results") as caught:
        read_results(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in str(caught.value)


def test_nothing_done_says_what_there_is(folder) -> None:
    folder.add(seed=0, state="failed")
    folder.add(seed=1, state="planned")
    folder.add(seed=2, state="planned")
    _no_cell_json(folder.add(seed=3))
    with pytest.raises(NoResults, match="1 failed, 2 planned") as caught:
        read_results(folder.path)
    assert "cell.json is missing" in str(caught.value)


def test_an_empty_folder_holds_no_cell(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    with pytest.raises(NoResults, match="no cell that can be read"):
        read_results(tmp_path)
