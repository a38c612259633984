"""What a run would do: states, stale results, missing data, and which cells run again when asked."""

from __future__ import annotations

from pathlib import Path

import pytest

import datasets
import methods
from bench import evidence, plan
from bench.matrix import Entered
from bench.plan import RERUN, Plan
from bench.spec import Cell, make_cell
from bench.store import STATES, CellFolder, Results, read_json

ENDS = ("done", "failed", "oom", "timeout", "interrupted")


def tiny_cell(dataset: str = "shapes", seed: int = 0, **choices) -> Cell:
    parameters = (
        {"train_images": 8, "validation_images": 4, "test_images": 4, "size": 64} if dataset == "shapes" else {}
    )
    choices = {"method": methods.create("lora"), "backbone": "tiny", "checkpoint": "none"} | choices
    return make_cell(
        dataset=datasets.load(dataset, **parameters), seed=seed, image_size=64, precision="fp32", **choices
    )


@pytest.fixture(autouse=True)
def no_data(monkeypatch, tmp_path):
    """An empty place for datasets."""
    monkeypatch.setenv("BENCH_DATA_ROOT", str(tmp_path / "data"))


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
    assert (only.state, only.runs) == (state, runs)


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
    assert make(results, cell).counts() == {"done": 1}
    with monkeypatch.context() as patch:
        patch.setattr(evidence, "_files_digest", lambda patterns: "changed")
        made = make(results, cell)
        assert made.cells[0].state == "stale"
        assert made.cells[0].note == "differs in source.evaluation, source.training"
        assert not made.todo()
        plan.write(made, results)
    assert folder.status()["stale"] == ["source.evaluation", "source.training"]
    assert folder.status()["state"] == "done"
    assert folder.status()["attempt"] == 1
    plan.write(make(results, cell), results)
    assert "stale" not in folder.status()


def test_other_images_make_a_result_stale(results, monkeypatch):
    cell = tiny_cell()
    ended(results, cell, "done")
    monkeypatch.setattr(type(cell.dataset()), "split_seed", 1)
    assert make(results, cell).cells[0].note == "differs in data"


def test_a_missing_dataset_is_skipped_with_what_was_looked_for(results, tmp_path):
    made = make(results, tiny_cell("isic2017"), tiny_cell())
    assert [cell.state for cell in made.cells] == ["skipped", "planned"]
    assert [cell.id for cell in made.todo()] == [tiny_cell().id]
    assert set(made.missing) == {"isic2017"}
    assert str(tmp_path / "data") in made.missing["isic2017"]
    plan.write(made, results)
    status = results.cell(tiny_cell("isic2017").id).status()
    assert (status["state"], status["reason"]) == ("skipped", "dataset isic2017 is missing")


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


def test_a_dataset_is_opened_once_for_all_its_cells_but_few_shot_sets_by_seed(results, monkeypatch):
    dataset, opened = type(tiny_cell().dataset()), []
    original = dataset.open
    monkeypatch.setattr(
        dataset, "open", lambda self, *args, **options: opened.append(1) or original(self, *args, **options)
    )
    make(results, *(tiny_cell(seed=seed) for seed in range(3)))
    assert len(opened) == 1
    made = make(results, *(tiny_cell(seed=seed, shots=2) for seed in range(3)))
    assert len(opened) == 4
    assert {cell.evidence["images"]["train"] for cell in made.cells} == {2}
    assert len({cell.evidence["split"] for cell in made.cells}) > 1


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
