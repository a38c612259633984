"""Why a cell will or will not run: states, evidence, attempts, and the command that comes next."""

from __future__ import annotations

import subprocess
import sys

import pytest

import datasets
import methods
from bench import evidence, plan, why
from bench.matrix import Entered
from bench.spec import Cell, make_cell, make_speed_cell
from bench.store import CellFolder, Results, write_json


def tiny_cell(dataset: str = "shapes", seed: int = 0, method: str = "lora") -> Cell:
    small = {"train_images": 8, "validation_images": 4, "test_images": 4, "size": 64} if dataset == "shapes" else {}
    return make_cell(
        method=methods.create(method),
        dataset=datasets.load(dataset, **small),
        seed=seed,
        backbone="tiny",
        checkpoint="none",
        image_size=64,
        precision="fp32",
    )


@pytest.fixture(autouse=True)
def empty_data_root(data_root):
    """No test reads what the machine has."""


@pytest.fixture
def results(tmp_path) -> Results:
    return Results(tmp_path / "results")


def planned(results: Results, cell: Cell | None = None) -> CellFolder:
    cell = cell or tiny_cell()
    plan.write(plan.make([Entered(cell)], results), results)
    return results.cell(cell.id)


def told(results: Results, folder: CellFolder) -> str:
    return "\n".join(why.explain(results, folder, why.Given(results.path)))


def test_a_planned_cell_will_run(results):
    folder = planned(results)
    text = told(results, folder)
    assert text.startswith(f"{folder.id}: planned\nnothing that could be compared differs")
    assert text.endswith(f"alone: python -m bench.cell {folder.id} --results {results.path}")


@pytest.mark.parametrize("state", ["failed", "oom", "timeout"])
def test_a_failure_runs_on_request_only_and_says_what_it_was(results, state):
    folder = planned(results)
    folder.claim(device="gpu 1").revoke()
    (folder.path / "log.txt").write_text("...")
    folder.set_state(state, reason="RuntimeError: why", attempt=1)
    text = told(results, folder)
    assert f"{state}; RuntimeError: why\n  attempt 1: 20" in text
    assert "gpu 1, ended without a result after 0s" in text and f"log: {folder.path / 'log.txt'}" in text
    assert f"--rerun {state} --results {results.path}" in text and "--again" not in text


def test_a_stale_result_names_the_pieces_with_old_and_new_digests(results, monkeypatch):
    folder = planned(results)
    folder.set_state("done", attempt=1)
    assert "it is done and nothing has changed" in told(results, folder)
    old = folder.read()["evidence"]["source"]
    monkeypatch.setattr(evidence, "_files_digest", lambda patterns: "changed-since")
    text = told(results, folder)
    assert f"  source.training      {old['training'][:8]} -> changed-\n" in text
    assert f"  source.evaluation    {old['evaluation'][:8]} -> changed-\n" in text
    assert "source.method" not in text
    assert "--rerun stale" in text and text.endswith("--again")


def test_what_only_lacks_scores_needs_no_training(results, data_root):
    data_root.polyps("Kvasir", "CVC-300")
    folder = planned(results, tiny_cell("polyps"))
    folder.set_state("done", attempt=1)
    data_root.polyps("ETIS-LaribPolypDB")
    text = told(results, folder)
    assert "it needs no training, only new scores (has no scores of etis)" in text and text.endswith("--evaluate")


def test_without_its_data_a_cell_cannot_run_and_the_rest_is_compared(results, data_root):
    data_root.polyps("Kvasir")
    folder = planned(results, tiny_cell("polyps"))
    folder.set_state("done", attempt=1)
    (data_root.path / "polyps").rename(data_root.path / "elsewhere")
    text = told(results, folder)
    assert "the dataset 'polyps' was not found" in text and "python -m datasets list polyps" in text
    assert "nothing that could be compared differs" in text
    record = folder.read()
    write_json(folder.path / "cell.json", record | {"evidence": record["evidence"] | {"checkpoint": "f" * 64}})
    assert "  checkpoint           ffffffff -> " in told(results, folder)


def test_broken_data_are_reported(results, data_root):
    data_root.polyps("Kvasir")
    folder = planned(results, tiny_cell("polyps"))
    next((data_root.path / "polyps" / "TrainDataset" / "mask").iterdir()).unlink()
    text = told(results, folder)
    assert "images without a mask (1)" in text and "its dataset cannot be used here" in text


def test_a_running_cell_and_one_whose_process_is_gone(results):
    folder = planned(results)
    attempt = folder.claim(device="cpu")
    folder.set_state("running", attempt=1)
    text = told(results, folder)
    assert "cpu, is running" in text and "it runs now: python -m bench.status" in text
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    write_json(attempt.path / "claim.json", {"host": "h", "pid": gone.pid, "started": 0.0, "at": "then"})
    assert "h, is running" in told(results, folder), "of another host nobody can tell so soon"
    (attempt.path / "claim.json").unlink()
    attempt.revoke()
    folder.set_state("interrupted", reason="stopped by a signal", attempt=1)
    text = told(results, folder)
    assert "interrupted; stopped by a signal" in text and "an unknown host, ended without a result" in text
    assert "the next bench.run whose matrix holds it runs it" in text


def test_what_no_run_looks_at(results, monkeypatch):
    folder = planned(results)
    with monkeypatch.context() as patch:
        patch.setattr(type(methods.create("lora")), "version", 99)
        newer = tiny_cell().id
        assert newer != folder.id and f"makes another cell: {newer}" in told(results, folder)
    record = folder.read()
    for change, expected in [
        ({"spec": {**record["spec"], "seed": 5}}, "was renamed or its cell.json edited"),
        ({"spec": {**record["spec"], "method": {"name": "nobodys", "version": 1}}}, "renamed"),
    ]:
        write_json(folder.path / "cell.json", record | change)
        assert expected in told(results, folder)


def test_a_method_that_is_gone_is_said_to_be(results):
    cell = Cell({**tiny_cell().spec, "method": {"name": "nobodys", "version": 1}})
    results.cell(cell.id).create(cell, {})
    text = told(results, results.cell(cell.id))
    assert "it cannot run here: " in text and "'nobodys'" in text


def test_other_kinds_of_cells_are_told_from_those_that_train(results):
    speed = make_speed_cell(
        method=methods.create("lora"), backbone="tiny", checkpoint="none", image_size=64, precision="fp32",
        device="a card", machine={"micro_batch": 1},
    )  # fmt: skip
    imported = Cell(
        {"kind": "accuracy", "imported": True, "seed": 0, "method": {"name": "m"}, "dataset": {"name": "shapes"}}
    )
    for cell, expected in ((speed, "python -m bench.speed"), (imported, "python -m bench.score --as-cell")):
        results.cell(cell.id).create(cell, {})
        assert expected in told(results, results.cell(cell.id))


def test_the_beginning_of_an_id_is_enough_where_only_one_begins_so(results, capsys):
    first, second = planned(results), planned(results, tiny_cell(seed=1))
    assert why.find(results, first.id) == why.find(results, "shapes-lora-s0") == first
    with pytest.raises(why.NoSuchCell, match=f"2 cells begin with 'shapes-lora-s': {first.id}, {second.id}"):
        why.find(results, "shapes-lora-s")
    with pytest.raises(why.NoSuchCell, match=rf"no cell 'shape-lora-s1'.*nearest: .*{second.id}"):
        why.find(results, "shape-lora-s1")
    with pytest.raises(why.NoSuchCell, match="--dry-run"):
        why.find(results, "zzz")
    assert why.main(["zzz", "--results", str(results.path)]) == 2
    assert "no cell 'zzz'" in capsys.readouterr().err
    assert why.main(["shapes-lora-s1", "--results", str(results.path)]) == 0
    assert capsys.readouterr().out.startswith(second.id)


def test_the_next_command_repeats_the_options_that_were_given(tmp_path):
    assert str(why.Given(why.Path("results"))) == ""
    given = why.Given(tmp_path, tmp_path / "data")
    assert str(given) == f" --results {tmp_path} --data-root {tmp_path / 'data'}"
