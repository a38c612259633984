"""Results of the same names and different making: copies apart, twins once, other source code named."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import mixing
from analysis.layout import Entry, Table
from analysis.results import read_results
from analysis.source import sources
from analysis.tables import make_tables

COUNTS = {"train": 2000, "validation": 150, "test": 600}
OTHER_COPY = {"train": "b" * 64}


def evidence(data: dict[str, str] | None = None, *, checkpoint: str = "c" * 64, **source: str) -> dict:
    """What a cell was made from, the same for all but what is said."""
    usual = {"method": "m" * 64, "dataset": "d" * 64, "training": "t" * 64, "evaluation": "e" * 64}
    splits = {split: "a" * 64 for split in COUNTS} | (data or {})
    return {"data": splits, "images": COUNTS, "checkpoint": checkpoint, "source": usual | source}


def tables(folder, *wanted: str) -> list[Table]:
    return make_tables(read_results(folder.path), wanted=wanted)


def jaccard(table: Table) -> dict[str, Entry]:
    """The entries of the rows that were run."""
    return {row: entry for (row, column), entry in table.entries.items() if column.metric == "iou" and entry.ours}


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_copies_of_the_data_are_never_in_one_table(folder, split: str) -> None:
    for seed in range(3):
        folder.add(method="conv_lora", seed=seed, scores={"iou": 0.75}, evidence=evidence())
        folder.add(method="lora", seed=seed, scores={"iou": 0.74}, evidence=evidence())
    folder.add(method="vpt", seed=0, scores={"iou": 0.9}, evidence=evidence({split: "b" * 64}))
    first, second = tables(folder, "6")
    assert [list(jaccard(table)) for table in (first, second)] == [["LoRA", "Conv-LoRA"], ["VPT"]]
    assert first.name != second.name and first.setting != second.setting
    assert jaccard(first)["Conv-LoRA"].rank == 1, "not second to a score from other images"
    assert not (first.has_difference or second.has_difference), "nobody knows which copy is the paper's"
    there, here = (f"{split} {letter * 6} ({COUNTS[split]} images)" for letter in "ab")
    for table, own, other in ((first, there, here), (second, here, there)):
        (warning,) = table.caption.warnings
        assert warning.startswith(
            "MIXED DATA: the results are of several copies of isic2017, each in tables of its own."
        )
        assert f"Here: {own}. Elsewhere: {other}: " in warning
        assert f"isic2017 of {own}, one of several" in table.caption.text
    assert first.caption.warnings[0].endswith("vpt seed 0.")
    assert second.caption.warnings[0].endswith("conv_lora seed 0, 1, 2, lora seed 0, 1, 2.")


def test_seeds_from_different_copies_are_no_mean(folder) -> None:
    folder.add(seed=0, scores={"iou": 0.7}, evidence=evidence())
    folder.add(seed=1, scores={"iou": 0.9}, evidence=evidence(OTHER_COPY))
    means = [jaccard(table)["Conv-LoRA"].ours for table in tables(folder, "6")]
    assert [(ours.n, round(ours.mean)) for ours in means] == [(1, 70), (1, 90)]


def test_other_datasets_stay_as_they_are_and_are_told_where_the_rest_is(folder) -> None:
    folder.add(dataset="leaf", scores={"iou": 0.7}, evidence=evidence())
    folder.add(seed=0, evidence=evidence())
    folder.add(seed=1, evidence=evidence(OTHER_COPY))
    made = {table.name: table for table in tables(folder)}
    assert {"table9-vit_h-1024-bf16", "table1-vit_h-1024-bf16"} < set(made) and len(made) == 6
    assert made["table9-vit_h-1024-bf16"].has_difference and not made["table9-vit_h-1024-bf16"].caption.warnings
    (warning,) = made["table1-vit_h-1024-bf16"].caption.warnings
    assert "several copies of isic2017" in warning and "Here: none." in warning


def test_checkpoints_of_one_name_are_kept_apart(folder) -> None:
    folder.add(method="lora", evidence=evidence())
    folder.add(method="conv_lora", evidence=evidence(checkpoint="f" * 64))
    first, second = tables(folder, "6")
    for table, own, other in ((first, "c", "f"), (second, "f", "c")):
        (warning,) = table.caption.warnings
        assert "MIXED CHECKPOINT: the results are of several copies of sam_vit_h_4b8939.pth" in warning
        assert f"Here: {own * 6}. Elsewhere: {other * 6}: " in warning
    assert list(jaccard(first)) != list(jaccard(second))


def test_a_copy_that_lacks_a_test_set_is_no_other_copy(folder) -> None:
    folder.add(seed=0, evidence=evidence())
    one = evidence()
    del one["data"]["test"]
    folder.add(seed=1, evidence=one)
    folder.add(seed=2, evidence=None)
    (table,) = tables(folder, "6")
    assert jaccard(table)["Conv-LoRA"].ours.n == 3 and table.caption.warnings == ()


def test_few_shot_sets_differ_by_their_seed_alone(folder) -> None:
    for seed, letter in enumerate("xyz"):
        few = evidence({"train": letter * 64})
        folder.add(dataset="shapes", shots=4, seed=seed, evidence=few)
        folder.add(dataset="shapes", shots=4, seed=seed, method="lora", evidence=few)
    (table,) = tables(folder)
    assert {row: entry.ours.n for row, entry in jaccard(table).items()} == {"lora": 3, "conv_lora": 3}
    folder.add(dataset="shapes", shots=4, seed=0, method="vpt", evidence=evidence({"train": "w" * 64}))
    assert len(tables(folder)) > 1


def test_what_is_not_done_makes_no_copy(folder) -> None:
    folder.add(seed=0, evidence=evidence())
    folder.add(seed=1, state="planned", evidence=evidence(OTHER_COPY))
    (table,) = tables(folder, "6")
    assert "Not complete: 1 of 2 done, 1 planned: Conv-LoRA (isic2017)." in table.caption.notes


def test_results_of_before_the_digests_by_split(folder) -> None:
    for seed, letter in enumerate("aab"):
        folder.add(seed=seed, evidence={"data": letter * 64, "images": COUNTS})
    first, second = tables(folder, "6")
    assert "Here: all splits aaaaaa." in first.caption.warnings[0]
    assert [jaccard(table)["Conv-LoRA"].ours.n for table in (first, second)] == [2, 1]


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.sampled_from("12"), min_size=1), min_size=1, max_size=12))
def test_no_two_cells_of_a_copy_disagree_in_any_split(data: list[dict[str, str]]) -> None:
    cells = [
        SimpleNamespace(
            id=str(i), imported=False, setting="{}", data="x", state="done", shots="", seed=0, evidence={"data": splits}
        )
        for i, splits in enumerate(data)
    ]
    groups: dict[str, list[dict[str, str]]] = {}
    for cell, setting in zip(cells, mixing.settings(cells), strict=True):
        groups.setdefault(setting, []).append(cell.evidence["data"])
    for own in groups.values():
        for split in "abc":
            assert len({splits[split] for splits in own if split in splits}) <= 1
    alike = all(len({splits[split] for splits in data if split in splits}) <= 1 for split in "abc")
    assert (len(groups) == 1 and "{}" in groups) == alike


def test_the_same_training_twice_counts_once_and_is_named(folder) -> None:
    used = folder.add(method="lora", seed=0, dataset="trans10k_v2", scores={"miou_foreground": 0.6})
    twin = folder.add(
        method="lora", seed=0, dataset="trans10k_v2", scores={"miou_foreground": 0.5}, parameters={"rank": 3}
    )
    folder.add(method="lora", seed=1, dataset="trans10k_v2", scores={"miou_foreground": 0.62})
    (table,) = tables(folder, "11")
    (entry,) = {entry for (row, _), entry in table.entries.items() if entry.ours}
    assert entry.ours.mean == pytest.approx(61) and (entry.ours.n, entry.seeds) == (2, (0, 1))
    assert f"Duplicates, the same training a second time and in no number: {twin.name} (as {used.name})." in (
        table.caption.notes
    )
    assert "lora (rank = 3)" not in {row.label for table in tables(folder) for row in table.rows}


def test_of_twins_the_one_that_is_not_stale_is_used(folder) -> None:
    """The same specification in other words, as another version of the harness may have written it."""
    stale = folder.add(seed=0, scores={"iou": 0.9}, stale=("source.method",))
    moved = stale.with_name(stale.name[:-8] + "00000000")
    shutil.move(stale, moved)
    (moved / "cell.json").write_text((moved / "cell.json").read_text().replace(stale.name, moved.name))
    fresh = folder.add(seed=0, scores={"iou": 0.7})
    (table,) = tables(folder, "6")
    entry = jaccard(table)["Conv-LoRA"]
    assert entry.cells == (fresh.name,) and entry.ours.mean == pytest.approx(70) and not entry.stale
    assert f"{moved.name} (as {fresh.name})" in table.caption.notes[0]


def test_a_twin_keeps_the_test_sets_that_the_other_lacks(folder) -> None:
    folder.add(method="lora", dataset="polyps", test_sets=("kvasir",), scores={"s_measure": 0.9})
    folder.add(
        method="lora", dataset="polyps", test_sets=("kvasir", "etis"), scores={"s_measure": 0.8}, parameters={"rank": 3}
    )
    (source,) = sources(read_results(folder.path), "paper")
    assert sorted((test_set, *scores.values()) for (test_set, _), scores in source.scores.items()) == [
        ("etis", 0.8),
        ("kvasir", 0.9),
    ]


def test_versions_and_seeds_are_no_twins(folder) -> None:
    for seed in (0, 1):
        folder.add(seed=seed)
        folder.add(seed=seed, version=2)
    (source,) = sources(read_results(folder.path), "paper")
    assert source.twins == () and len(source.cells) == 4


def test_other_source_code_is_named_beside_the_number(folder) -> None:
    for seed in range(3):
        other = {"method": "n" * 64, "training": "u" * 64} if seed == 1 else {}
        folder.add(seed=seed, evidence=evidence(**other))
        folder.add(method="lora", seed=seed, evidence=evidence(method="l" * 64))
    (table,) = tables(folder, "6")
    said = "not made by the source code of the other cells: method, training of seed 1: Conv-LoRA (isic2017)."
    assert table.caption.warnings == (f"MIXED CODE: {said}",)
    assert jaccard(table)["Conv-LoRA"].ours.n == 3


def test_methods_and_datasets_have_code_of_their_own(folder) -> None:
    folder.add(evidence=evidence())
    folder.add(method="lora", evidence=evidence(method="l" * 64))
    folder.add(dataset="leaf", evidence=evidence(dataset="k" * 64, training="s" * 64))
    assert all(table.caption.warnings == () for table in tables(folder))


def test_stale_beside_fresh_has_no_place_and_no_difference(folder) -> None:
    folder.add(method="lora", scores={"iou": 0.9}, stale=("source.method",))
    folder.add(method="conv_lora", scores={"iou": 0.7})
    folder.add(method="vpt", scores={"iou": 0.6})
    (table,) = tables(folder, "6")
    found = jaccard(table)
    assert {row: entry.rank for row, entry in found.items()} == {"VPT": 2, "LoRA": 0, "Conv-LoRA": 1}
    assert {row for row, entry in found.items() if entry.difference is None and not entry.spread} == {"LoRA"}
    assert "they have no place and no difference to the paper" in table.caption.notes[-2]


def test_a_mean_of_stale_and_fresh_seeds_has_no_place(folder) -> None:
    for method, score in {"lora": 0.7, "conv_lora": 0.8}.items():
        folder.add(method=method, seed=0, scores={"iou": score}, stale=("source.training",))
        folder.add(method=method, seed=1, scores={"iou": score})
    (table,) = tables(folder, "6")
    assert {row: (entry.rank, entry.ours.n) for row, entry in jaccard(table).items()} == {
        "LoRA": (0, 2),
        "Conv-LoRA": (0, 2),
    }


def test_where_all_are_stale_they_are_compared_with_each_other(folder) -> None:
    for method, score in {"lora": 0.7, "conv_lora": 0.8}.items():
        folder.add(method=method, scores={"iou": score}, stale=("source.training",))
    (table,) = tables(folder, "6")
    assert {row: entry.rank for row, entry in jaccard(table).items()} == {"LoRA": 2, "Conv-LoRA": 1}


@pytest.mark.parametrize("wrong", [{"evidence": ["a"]}, {"evidence": {"images": 3}}, {"evidence": {"source": "x"}}])
def test_evidence_of_another_shape_is_a_damaged_cell(folder, wrong: dict) -> None:
    folder.add(seed=0)
    path = folder.add(seed=1)
    cell = json.loads((path / "cell.json").read_text())
    (path / "cell.json").write_text(json.dumps(cell | wrong))
    results = read_results(folder.path)
    assert len(results.cells) == 1 and "that is no object" in results.skipped[0]
