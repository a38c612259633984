"""What a run would do: states, stale results, missing data, and which cells run again when asked."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

import datasets
import methods
from bench import evidence, plan
from bench.matrix import Entered
from bench.plan import RERUN, Plan
from bench.spec import Cell, canonical, make_cell
from bench.store import STATES, CellFolder, Results, read_json

ENDS = ("done", "failed", "oom", "timeout", "interrupted")


def tiny_cell(dataset: str | datasets.Dataset = "shapes", seed: int = 0, **choices) -> Cell:
    if isinstance(dataset, str):
        small = {"train_images": 8, "validation_images": 4, "test_images": 4, "size": 64}
        dataset = datasets.load(dataset, **(small if dataset == "shapes" else {}))
    choices = {"method": methods.create("lora"), "backbone": "tiny", "checkpoint": "none"} | choices
    return make_cell(dataset=dataset, seed=seed, image_size=64, precision="fp32", **choices)


@pytest.fixture(autouse=True)
def empty_data_root(data_root):
    """No test reads what the machine has."""


@pytest.fixture
def results(tmp_path) -> Results:
    return Results(tmp_path / "results")


def make(results: Results, *cells: Cell, **options) -> Plan:
    return plan.make(map(Entered, cells), results, **options)


def ended(results: Results, cell: Cell, state: str, **more) -> CellFolder:
    """A cell in some state, its evidence as of today."""
    plan.write(make(results, cell), results)
    folder = results.cell(cell.id)
    if state == "running":
        folder.claim()
    folder.set_state(state, attempt=1, **more)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_cell_is_planned_and_making_a_plan_writes_nothing(results):
    made = make(results, tiny_cell())
    (only,) = made.todo()
    assert (only.state, only.runs, only.note) == ("planned", True, "")
    assert only.evidence["images"] == {"train": 8, "validation": 4, "test": 4}
    assert made.counts() == {"planned": 1}
    assert not results.path.exists()
    plan.write(made, results)
    assert read_json(results.cell(only.id).path / "cell.json")["evidence"] == only.evidence
    assert results.cell(only.id).status()["state"] == "planned"


@pytest.mark.parametrize(
    ("state", "runs"), [(state, state in ("planned", "interrupted", "skipped")) for state in STATES]
)
def test_what_runs_unasked(results, state, runs):
    """Failures are not tried again, what another process runs is left to it."""
    ended(results, tiny_cell(), state)
    (only,) = make(results, tiny_cell()).cells
    assert (only.state, only.runs) == ("planned" if state == "skipped" else state, runs)


def test_a_reason_is_shown(results):
    ended(results, tiny_cell(), "failed", reason="RuntimeError: why")
    assert make(results, tiny_cell()).cells[0].note == "RuntimeError: why"


@pytest.mark.parametrize("rerun", [None, *RERUN])
def test_which_cells_run_again_on_request(results, rerun, monkeypatch):
    cells = [tiny_cell(seed=number) for number in range(len(ENDS) + 2)]
    for cell, state in zip(cells, (*ENDS, "running"), strict=False):
        ended(results, cell, state)
    ended(results, cells[-1], "done")
    card = results.cell(cells[-1].id)
    card.create(cells[-1], card.read()["evidence"] | {"checkpoint": "another"})
    made = make(results, *cells, rerun=rerun)
    states = [cell.state for cell in made.cells]
    assert states == [*ENDS, "running", "stale"]
    again = {None: set(), "all": {"done", "failed", "oom", "timeout", "stale"}}.get(rerun, {rerun})
    assert {cell.state for cell in made.todo()} == again | {"interrupted"}


def test_changed_evidence_makes_a_result_stale_and_the_mark_comes_and_goes(results, monkeypatch):
    cell = tiny_cell()
    folder = ended(results, cell, "done", reason=None)
    ended_at = folder.status()["updated"]
    assert make(results, cell).counts() == {"done": 1}
    with monkeypatch.context() as patch:
        patch.setattr("bench.store.now", lambda: "2031-01-01T00:00:00+00:00")
        patch.setattr(evidence, "_files_digest", lambda patterns: "changed")
        made = make(results, cell)
        assert made.cells[0].state == "stale"
        assert made.cells[0].stale == ["source.evaluation", "source.training"]
        assert made.cells[0].note == "differs in source.evaluation, source.training"
        assert not made.todo()
        plan.write(made, results)
    assert folder.status()["stale"] == ["source.evaluation", "source.training"]
    assert folder.status()["state"] == "done"
    assert folder.status()["attempt"] == 1
    assert folder.status()["updated"] == ended_at, "the mark is no new result"
    plan.write(make(results, cell), results)
    assert "stale" not in folder.status()


def test_other_images_make_a_result_stale(results, monkeypatch):
    cell = tiny_cell()
    ended(results, cell, "done")
    monkeypatch.setattr(type(cell.dataset()), "split_seed", 1)
    (only,) = make(results, cell).cells
    assert only.stale == ["data.test", "data.train", "data.validation"]
    assert only.note == "differs in data.test, data.train, data.validation" and not only.rescore


def test_a_missing_dataset_is_skipped_with_what_was_looked_for(results, tmp_path):
    made = make(results, tiny_cell("isic2017"), tiny_cell())
    assert [cell.state for cell in made.cells] == ["skipped", "planned"]
    assert [cell.id for cell in made.todo()] == [tiny_cell().id]
    assert set(made.missing) == {"isic2017"}
    assert str(tmp_path / "data") in made.missing["isic2017"]
    plan.write(made, results)
    status = results.cell(tiny_cell("isic2017").id).status()
    assert (status["state"], status["reason"]) == ("skipped", "dataset isic2017 is missing")
    assert {path.name.partition("-")[0] for path in (results.path / "manifests").iterdir()} == {"shapes"}


def test_a_dataset_that_came_later_is_no_longer_missing(results, data_root):
    cell = tiny_cell("isic2017")
    plan.write(make(results, cell), results)
    assert results.cell(cell.id).status()["state"] == "skipped"
    data_root.isic2017()
    made = make(results, cell)
    assert [(one.state, one.note, one.runs) for one in made.cells] == [("planned", "", True)] and not made.missing
    plan.write(made, results)
    status = results.cell(cell.id).status()
    assert (status["state"], status["reason"]) == ("planned", None)
    assert results.cell(cell.id).read()["evidence"] == made.cells[0].evidence


def test_all_that_is_missing_or_broken_is_told_at_once(results, data_root):
    """Two datasets are missing, two have broken files, one is sound."""
    isic, polyps = data_root.isic2017(), data_root.polyps("Kvasir")
    broken = isic / "ISIC-2017_Training_Data" / "ISIC_0000003.jpg"
    broken.write_bytes(broken.read_bytes()[:100])
    (polyps / "TestDataset" / "Kvasir" / "masks" / "1.png").unlink()
    names = ("isic2017", "sbu", "polyps", "leaf", "shapes")
    made = make(results, *(tiny_cell(name, seed=seed) for seed in range(2) for name in names))
    assert [cell.state for cell in made.cells] == ["skipped"] * 4 + ["planned"] + ["skipped"] * 4 + ["planned"]
    assert list(made.missing) == ["sbu", "leaf"] and list(made.broken) == ["isic2017", "polyps"]
    assert "ISIC_0000003.jpg" in made.broken["isic2017"]
    assert "images without a mask (1)" in made.broken["polyps"] and "1.png" in made.broken["polyps"]
    assert made.cells[0].note == "dataset isic2017 is broken"
    with pytest.warns(UserWarning, match="left out"):
        repaired = make(results, *map(tiny_cell, names), allow_broken=True)
    assert not repaired.broken and repaired.cells[0].evidence["images"]["train"] == 5


def test_datasets_of_one_name_are_told_apart_by_their_parameters(results):
    cells = [tiny_cell(dataset=datasets.load("folder", of=name)) for name in ("lungs", "hearts")]
    made = make(results, *cells)
    assert list(made.missing) == ["folder of=lungs", "folder of=hearts"]
    assert made.cells[1].note == "dataset folder of=hearts is missing"


@pytest.mark.parametrize("rerun", [None, "all"])
@pytest.mark.parametrize("state", ["done", "failed", "oom", "timeout", "running"])
def test_a_missing_dataset_takes_nothing_from_cells_that_ran(results, monkeypatch, state, rerun):
    """On a machine without the images the results of another one stay what they are."""
    cell = tiny_cell()
    folder = ended(results, cell, state)

    def missing(*_, **__):
        raise datasets.DatasetMissing("not here")

    monkeypatch.setattr(type(cell.dataset()), "open", missing)
    before = contents(folder.path)
    made = make(results, cell, rerun=rerun)
    assert not made.todo()
    plan.write(made, results)
    assert contents(folder.path) == before


@pytest.mark.parametrize("state", ["stale", "skipped"])
def test_a_cell_that_started_elsewhere_since_the_plan_was_made_is_left_alone(results, monkeypatch, state):
    """Between the two lie minutes where the images of large datasets are hashed."""
    cell = tiny_cell("isic2017" if state == "skipped" else "shapes")
    if state == "stale":
        ended(results, cell, "done")
        monkeypatch.setattr(evidence, "_files_digest", lambda patterns: "changed")
    made = make(results, cell)
    assert made.cells[0].state == state
    folder = results.cell(cell.id)
    folder.create(cell, {"data": "theirs"})
    folder.set_state("running", attempt=folder.claim().number)
    before = contents(folder.path)
    plan.write(made, results)
    assert contents(folder.path) == before


def test_a_dataset_is_opened_once_for_all_its_cells_and_few_shot_sets_are_cut_by_seed(results, monkeypatch):
    dataset, opened = type(tiny_cell().dataset()), []
    original = dataset.open
    monkeypatch.setattr(
        dataset, "open", lambda self, *args, **options: opened.append(1) or original(self, *args, **options)
    )
    make(results, *(tiny_cell(seed=seed) for seed in range(3)))
    assert len(opened) == 1
    made = make(results, *(tiny_cell(seed=seed, shots=2) for seed in range(3)))
    assert len(opened) == 2
    assert {cell.evidence["images"]["train"] for cell in made.cells} == {2}
    digests = [cell.evidence["data"] for cell in made.cells]
    assert len({digest["train"] for digest in digests}) == 3
    assert len({digest["test"] for digest in digests}) == 1


def test_many_cells_have_the_evidence_that_each_has_alone(results, tmp_path):
    (tmp_path / "mine.pth").write_bytes(b"weights")
    entered = [
        Entered(tiny_cell(seed=seed, shots=shots, method=methods.create(method), checkpoint=checkpoint), path)
        for method in ("lora", "vpt")
        for seed in range(2)
        for shots in (None, 2)
        for checkpoint, path in (("none", None), ("mine.pth", str(tmp_path / "mine.pth")))
    ]
    together = [cell.evidence for cell in plan.make(entered, results).cells]
    assert together == [plan.make([item], results).cells[0].evidence for item in entered]
    assert len({canonical(made) for made in together}) == 2 * 3 * 2, "whole training sets are the same for all seeds"


@pytest.mark.parametrize("state", ["planned", "done"])
def test_planning_thousands_of_cells_takes_seconds(results, state):
    """Measured: 10,000 cells in 0.6 s, done ones in 1.1 s of processor time; the test has ten times as long."""
    cells = [tiny_cell(seed=seed) for seed in range(1000)]
    if state == "done":
        plan.write(make(results, *cells), results)
        for cell in cells:
            results.cell(cell.id).set_state("done", attempt=1)
    else:
        make(results, cells[0])  # digests of sources are made once, however many cells there are
    began = time.process_time()
    assert make(results, *cells).counts() == {state: 1000}
    assert time.process_time() - began < 1.1


def test_backbones_without_weights_are_known(results):
    assert make(results, tiny_cell()).random_backbones() == {"tiny"}
    official = tiny_cell(backbone="vit_b", checkpoint="sam_vit_b_01ec64.pth")
    made = make(results, official)
    assert made.random_backbones() == set()
    assert made.cells[0].evidence["checkpoint"].startswith("ec2df627"), "its digest is known without the file"


def test_the_checkpoint_is_part_of_the_evidence_not_its_place(results, tmp_path):
    cell, seen = tiny_cell(checkpoint="mine.pth"), []
    for place, content in (("a", b"one"), ("b", b"one"), ("c", b"two")):
        file = tmp_path / place / "mine.pth"
        file.parent.mkdir()
        file.write_bytes(content)
        seen.append(plan.make([Entered(cell, str(file))], results).cells[0].evidence["checkpoint"])
    assert seen[0] == seen[1] != seen[2]


@pytest.fixture
def scored(results, data_root) -> CellFolder:
    """A done cell of the polyps, of which two test sets are here."""
    data_root.polyps("Kvasir", "CVC-300")
    return ended(results, tiny_cell("polyps"), "done")


def test_a_test_set_that_came_later_asks_for_scores_and_for_no_training(results, data_root, scored):
    data_root.polyps("ETIS-LaribPolypDB", "CVC-ColonDB")
    for rerun in (None, "stale"):
        (only,) = make(results, tiny_cell("polyps"), rerun=rerun).cells
        assert (only.state, only.runs, only.stale, only.rescore) == ("done", False, [], True)
        assert only.note == "has no scores of cvc_colondb, etis"
    plan.write(make(results, tiny_cell("polyps")), results)
    assert "stale" not in scored.status(), "what it says of the others is as good as before"


def test_a_copy_that_lacks_a_test_set_changes_nothing(results, data_root, scored):
    (data_root.path / "polyps" / "TestDataset" / "CVC-300").rename(data_root.path / "elsewhere")
    (only,) = make(results, tiny_cell("polyps")).cells
    assert (only.state, only.note, only.rescore) == ("done", "", False)
    assert set(only.evidence["data"]) == {"train", "validation", "kvasir"}


@pytest.mark.parametrize(
    ("folder", "piece", "rescore"),
    [("TestDataset/Kvasir/masks", "data.kvasir", True), ("TrainDataset/mask", "data.train", False)],
)
def test_the_split_that_changed_is_named(results, data_root, scored, folder, piece, rescore):
    files = sorted((data_root.path / "polyps" / folder).iterdir())
    for file in files if piece == "data.kvasir" else [in_training(data_root, files)]:
        Image.new("L", (32, 24), 255).save(file)
        os.utime(file, ns=(1, 1))
    (only,) = make(results, tiny_cell("polyps")).cells
    assert (only.state, only.stale, only.note, only.rescore) == ("stale", [piece], f"differs in {piece}", rescore)


def in_training(data_root, files: list[Path]) -> Path:
    """One of the files that were not drawn for validation."""
    names = datasets.load("polyps").open(data_root.path)["train"].identifiers
    return next(file for file in files if file.stem in names)


def test_results_of_before_the_digests_by_split_read_as_stale(results, scored):
    card = scored.read()
    scored.create(tiny_cell("polyps"), card["evidence"] | {"data": "d", "split": "s"})
    (only,) = make(results, tiny_cell("polyps")).cells
    assert (only.state, only.note, only.rescore) == ("stale", "differs in data, split", False)


def manifests(results: Results) -> dict[str, dict]:
    return {path.name: read_json(path) for path in (results.path / "manifests").glob("*")}


def test_a_plan_that_is_written_leaves_a_manifest_of_each_dataset(results, data_root):
    data_root.polyps("Kvasir")
    data_root.isic2017()
    cells = [tiny_cell(name, seed=seed) for name in ("polyps", "isic2017", "shapes") for seed in range(2)]
    made = make(results, *cells)
    assert not results.path.exists()
    plan.write(made, results)
    found = manifests(results)
    assert Counter(name.partition("-")[0] for name in found) == {"polyps": 1, "isic2017": 1, "shapes": 1}
    for name, content in found.items():
        assert name.removesuffix(".json").endswith(hashlib.sha256(canonical(content).encode()).hexdigest()[:12])
        for split, lines in content["samples"].items():
            assert len(lines) == content["images"][split]
            assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == content["data"][split]
    for cell in cells:
        made_from = results.cell(cell.id).read()["evidence"]["data"]
        (own,) = (content for content in found.values() if content["data"] == made_from)
        assert own["dataset"] == cell.spec["dataset"], "this is how a cell's manifest is found"
    (polyps,) = (content for name, content in found.items() if name.startswith("polyps"))
    assert polyps["dataset"] == {"name": "polyps", "version": 1} and polyps["split_seed"] == 1450
    assert polyps["layout"] == "PraNet's re-pack"
    assert polyps["images"] == {"train": 8, "validation": 2, "kvasir": 3}
    (shapes,) = (content for name, content in found.items() if name.startswith("shapes"))
    assert shapes["layout"] is None and shapes["dataset"]["parameters"]["train_images"] == 8


def test_a_manifest_is_the_same_wherever_the_files_lie_and_is_written_once(results, data_root, tmp_path):
    data_root.polyps("Kvasir")
    plan.write(make(results, tiny_cell("polyps")), results)
    (path,) = (results.path / "manifests").iterdir()
    before, content = path.stat().st_mtime_ns, path.read_text()
    assert str(tmp_path) not in content
    data_root.path.rename(tmp_path / "moved")
    plan.write(make(results, tiny_cell("polyps"), data_root=tmp_path / "moved"), results)
    assert [path] == list((results.path / "manifests").iterdir())
    assert path.stat().st_mtime_ns == before
    data_root.path.mkdir()
    (tmp_path / "moved" / "polyps").rename(data_root.path / "polyps")
    data_root.polyps("CVC-300")
    plan.write(make(results, tiny_cell("polyps")), results)
    assert len(manifests(results)) == 2, "the old one stays: results are made from it"
    assert path.read_text() == content


def test_few_shot_sets_are_stored(results, data_root):
    data_root.polyps("Kvasir", train=40)
    cells = [tiny_cell("polyps", seed=seed, shots=shots) for seed in range(2) for shots in (1, 2, 4)]
    plan.write(make(results, *cells), results)
    found = list(manifests(results).values())
    assert len(found) == 6
    for content in found:
        assert content["images"]["train"] == content["dataset"]["shots"] and content["images"]["validation"] == 8
    for seed in range(2):
        own = sorted((c for c in found if c["seed"] == seed), key=lambda c: c["dataset"]["shots"])
        one, two, four = (set(content["samples"]["train"]) for content in own)
        assert one < two < four
