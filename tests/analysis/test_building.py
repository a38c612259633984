"""Tables as values: rows, numbers, marks, differences, captions."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from analysis.layout import Entry, Table
from analysis.results import read_results
from analysis.tables import make_tables

TINY = {"backbone": "tiny", "checkpoint": "none", "image_size": 128, "precision": "fp32"}


def tables(folder, **options) -> dict[str, Table]:
    """All tables of a folder, by name."""
    return {table.name: table for table in make_tables(read_results(folder.path), **options)}


def only(folder, **options) -> Table:
    """The only table of a folder."""
    (table,) = tables(folder, **options).values()
    return table


def entry(table: Table, row: str, metric: str, test_set: str = "test", data: str = "isic2017") -> Entry:
    """The entry of a row and a metric; the columns of table 1 with the same metric differ in their dataset."""
    (column,) = {c for c in table.columns if (c.data, c.metric, c.test_set) == (data, metric, test_set)}
    return table.entries[row, column]


def test_mean_and_standard_error_over_seeds(folder) -> None:
    values = [0.771, 0.779, 0.784]
    for seed, value in enumerate(values):
        folder.add(seed=seed, scores={"iou": value})
    found = entry(only(folder, wanted=["6"]), "Conv-LoRA", "iou")
    assert found.ours.mean == pytest.approx(100 * np.mean(values))
    assert found.ours.standard_error == pytest.approx(100 * scipy.stats.sem(values))
    assert (found.ours.n, found.seeds, found.below_plan) == (3, (0, 1, 2), False)
    assert (found.paper.value, found.paper.standard_error) == ("77.6", "0.57")
    assert found.difference == pytest.approx(100 * np.mean(values) - 77.6)


def test_rows_and_columns_are_the_papers(folder) -> None:
    folder.add()
    table = only(folder, wanted=["6"])
    assert [row.label for row in table.rows] == [
        "TransFuse", "decoder-only", "BitFit", "Adapter", "VPT", "LST", "SAM-Adapter", "SSF", "LoRA", "Conv-LoRA",
    ]  # fmt: skip
    assert [column.label for column in table.columns] == ["Jac", "T-Jac", "Dice", "Acc"]
    sizes = {row.label: (row.size, row.paper_size) for row in table.rows}
    assert sizes["Conv-LoRA"] == ("4.02 / 0.63", "4.02 / 0.63")
    assert sizes["LoRA"] == ("", "4.00 / 0.62")
    assert entry(table, "LoRA", "iou") == Entry(paper=entry(table, "LoRA", "iou").paper)


def test_both_paper_tables_come_from_the_same_cells(folder) -> None:
    folder.add(scores={"iou": 0.7, "dice": 0.8})
    folder.add(dataset="sbu", scores={"ber_image": 0.03})
    found = tables(folder)
    assert set(found) == {f"table{number}-vit_h-1024-bf16" for number in (1, 6, 8)}
    table = found["table1-vit_h-1024-bf16"]
    assert entry(table, "Conv-LoRA", "iou").ours.mean == pytest.approx(70)
    assert entry(table, "Conv-LoRA", "ber_image", data="sbu").ours.mean == pytest.approx(3)
    assert {row.label: row.paper_size for row in table.rows}["domain-specific"] == "* / 100"


def test_fewer_runs_than_the_paper_or_the_plan(folder) -> None:
    folder.add(method="conv_lora", seed=0)
    folder.add(method="decoder_only", seed=0)
    alone = only(folder, wanted=["6"])
    assert entry(alone, "Conv-LoRA", "iou").below_plan, "the paper has three runs"
    assert not entry(alone, "decoder-only", "iou").below_plan, "the paper has one run"
    folder.add(method="decoder_only", seed=1, state="failed")
    table = only(folder, wanted=["6"])
    assert entry(table, "decoder-only", "iou").below_plan, "two were planned"
    assert "Not complete: 1 of 2 done, 1 failed: decoder-only (isic2017)." in table.caption.notes


def test_settings_are_never_mixed_and_the_largest_comes_first(folder) -> None:
    for seed in range(3):
        folder.add(seed=seed, scores={"iou": 0.5}, **TINY)
    folder.add(seed=0, scores={"iou": 0.9})
    folder.add(seed=0, scores={"iou": 0.7}, regime={"epochs": 5})
    folder.add(seed=0, scores={"iou": 0.6}, precision="fp32")
    found = make_tables(read_results(folder.path), wanted=["6"])
    means = [entry(table, "Conv-LoRA", "iou").ours.mean for table in found]
    assert means[0] == pytest.approx(50)
    assert sorted(means[1:]) == pytest.approx([60, 70, 90])
    assert len({table.name for table in found}) == 4
    assert found[0].name == "table6-tiny-128-fp32-random"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"backbone": "vit_b", "checkpoint": "sam_vit_b_01ec64.pth"}, "backbone vit_b (the paper: vit_h)"),
        ({"checkpoint": "mine.pth"}, "checkpoint mine.pth"),
        ({"image_size": 512}, "image size 512 (the paper: 1024)"),
        ({"regime": {"epochs": 5}}, "epochs = 5"),
    ],
)
def test_no_difference_outside_the_papers_setting(folder, change, reason: str) -> None:
    folder.add(**change)
    table = only(folder, wanted=["6"])
    found = entry(table, "Conv-LoRA", "iou")
    assert found.difference is None and not table.has_difference
    assert found.paper.value == "77.6"
    assert "No difference to the paper is printed" in table.caption.text and reason in table.caption.text


def test_precision_alone_does_not_forbid_the_difference(folder) -> None:
    folder.add(precision="fp32", scores={"iou": 0.786})
    assert entry(only(folder, wanted=["6"]), "Conv-LoRA", "iou").difference == pytest.approx(1.0)


def test_no_difference_under_another_protocol(folder) -> None:
    folder.add(protocol="literature")
    table = only(folder, wanted=["6"], protocol="literature")
    assert table.name.endswith("-literature")
    assert not table.has_difference and "protocol literature (the paper: paper)" in table.caption.text
    assert tables(folder) == {}


def test_no_difference_and_a_warning_for_partial_data(folder) -> None:
    folder.add(train_images=1990)
    table = only(folder, wanted=["6"])
    assert not table.has_difference
    assert table.caption.warnings == ("PARTIAL DATA: isic2017 trained on 1990 of 2000 images.",)
    assert "not printed for partial data" in table.caption.text


def test_limits_on_images_are_partial_data_but_limits_on_steps_are_not(folder) -> None:
    folder.add(regime={"max_validation_images": 10, "max_steps": 3})
    assert only(folder, wanted=["6"]).caption.warnings == ("PARTIAL DATA: max_validation_images = 10.",)


def test_best_and_second_best_follow_the_direction_and_share_ties(folder) -> None:
    scores = {"decoder_only": (0.70, 0.10), "lora": (0.8001, 0.05), "conv_lora": (0.8004, 0.07), "bitfit": (0.75, 0.2)}
    for method, (iou, ber) in scores.items():
        folder.add(method=method, dataset="leaf", scores={"iou": iou})
        folder.add(method=method, dataset="sbu", scores={"ber_image": ber})
    table = only(folder, wanted=["1"])
    rows = ("decoder-only", "LoRA", "Conv-LoRA", "BitFit")
    assert [entry(table, row, "iou", data="leaf").rank for row in rows] == [0, 1, 1, 2]
    assert [entry(table, row, "ber_image", data="sbu").rank for row in rows] == [0, 1, 2, 0]
    assert entry(table, "VPT", "iou", data="leaf").rank == 0


def test_stale_cells_are_marked_and_explained(folder) -> None:
    folder.add(method="lora", seed=0, stale=("dataset", "checkpoint"))
    folder.add(method="lora", seed=1)
    folder.add(method="conv_lora", seed=0)
    table = only(folder, wanted=["6"])
    assert entry(table, "LoRA", "iou").stale and not entry(table, "Conv-LoRA", "iou").stale
    (note,) = [note for note in table.caption.notes if note.startswith("†")]
    assert "change of checkpoint, dataset: seed 0: LoRA (isic2017)" in note and "--rerun stale" in note


def test_a_random_backbone_is_said_loudly(folder) -> None:
    folder.add(dataset="shapes", **TINY)
    table = only(folder)
    assert table.caption.warnings[0].startswith("RANDOM BACKBONE:")
    assert "tiny, random weights, 128 px, fp32" in table.caption.text


def test_a_random_backbone_of_single_rows_names_them(folder) -> None:
    folder.add(method="scratch", random_backbone=True)
    folder.add(method="lora")
    (warning,) = only(folder, wanted=["1"]).caption.warnings
    assert warning.startswith("RANDOM BACKBONE") and warning.endswith(": scratch.")


def test_the_caption_names_the_setting(folder) -> None:
    for seed in (0, 2):
        folder.add(seed=seed, regime={"epochs": 5, "lr": 0.001})
    text = only(folder, wanted=["6"]).caption.text
    assert "Backbone vit_h, checkpoint sam_vit_h_4b8939.pth, 1024 px, bf16; protocol paper; seeds 0, 2." in text
    assert "Regime: the default but epochs = 5, lr = 0.001." in text
    assert "isic2017/test 600" in text


def test_a_plain_table_for_a_dataset_the_paper_does_not_have(folder) -> None:
    for method in ("zebra", "lora", "aardvark", "decoder_only"):
        folder.add(method=method, dataset="shapes", scores={"iou": 0.5, "mae": 0.1})
    folder.add(method="lora", dataset="shapes", parameters={"rank": 6, "alpha": 8}, scores={"iou": 0.6, "mae": 0.2})
    table = only(folder)
    assert (table.name, table.title) == ("shapes-vit_h-1024-bf16", "Results on SHAPES")
    labels = [row.label for row in table.rows]
    assert labels == ["decoder_only", "lora", "lora (alpha = 8, rank = 6)", "aardvark", "zebra"]
    assert [(c.label, c.better) for c in table.columns] == [("IoU", "higher"), ("MAE", "lower")]
    best = entry(table, "lora (alpha = 8, rank = 6)", "iou", data="shapes")
    assert best.rank == 1 and best.paper is None and not table.has_paper
    assert entry(table, "lora", "mae", data="shapes").ours.mean == pytest.approx(10)


def test_a_variant_of_a_method_gets_a_plain_table_beside_the_papers(folder) -> None:
    folder.add(method="lora")
    assert set(tables(folder)) == {"table1-vit_h-1024-bf16", "table6-vit_h-1024-bf16"}
    folder.add(method="lora", parameters={"rank": 6})
    plain = tables(folder)["isic2017-vit_h-1024-bf16"]
    assert [row.label for row in plain.rows] == ["lora", "lora (rank = 6)"]


def test_a_test_set_the_paper_does_not_print_gets_a_plain_table(folder) -> None:
    folder.add(dataset="camouflage", test_sets=("camo", "nc4k"), scores={"s_measure": 0.9})
    found = tables(folder)
    assert set(found) == {f"{name}-vit_h-1024-bf16" for name in ("table1", "table7", "camouflage")}
    assert entry(found["camouflage-vit_h-1024-bf16"], "conv_lora", "s_measure", "nc4k", "camouflage").ours.mean == 90


def test_a_test_set_that_was_missing_reads_as_not_run(folder) -> None:
    """One copy of the polyps had all five test sets, another three, and the third has scored two of them yet."""
    scores = {"s_measure": 0.9, "mae": 0.02}
    folder.add(dataset="polyps", seed=0, test_sets=("kvasir", "cvc_612", "etis"), scores=scores)
    folder.add(dataset="polyps", seed=1, test_sets=("kvasir", "cvc_612"), scores=scores)
    folder.add(dataset="polyps", seed=2, test_sets=("kvasir",), scores=scores)
    found = tables(folder)
    table = found["table5-vit_h-1024-bf16"]
    counts = {}
    for test_set in ("kvasir", "cvc_612", "etis", "cvc_t", "cvc_colondb"):
        ours = entry(table, "Conv-LoRA", "s_measure", test_set, "polyps")
        counts[test_set] = ours.ours and ours.ours.n
        assert ours.below_plan == (test_set in ("cvc_612", "etis")) and ours.paper
    assert counts == {"kvasir": 3, "cvc_612": 2, "etis": 1, "cvc_t": None, "cvc_colondb": None}
    assert entry(table, "Conv-LoRA", "mae", "etis", "polyps").ours.mean == pytest.approx(2)
    assert entry(table, "Conv-LoRA", "e_measure_mean", "kvasir", "polyps").ours is None
    assert "Test images: polyps/kvasir 100, polyps/cvc_612 62, polyps/etis 196." in table.caption.text
    assert entry(found["table1-vit_h-1024-bf16"], "Conv-LoRA", "s_measure", "cvc_612", "polyps").ours.n == 2


def test_datasets_with_parameters_or_shots_stand_apart(folder) -> None:
    folder.add(dataset="shapes")
    folder.add(dataset="shapes", dataset_parameters={"style": "thin"})
    folder.add(dataset="shapes", shots=4, train_images=4)
    found = tables(folder)
    assert [t.title for t in found.values()] == [
        "Results on SHAPES", "Results on SHAPES (4 shots)", "Results on SHAPES (style = thin)",
    ]  # fmt: skip
    assert len(found) == 3
    assert all(not table.caption.warnings for table in found.values()), "few-shot data is whole"


def test_an_old_version_of_a_method_stays_out_of_the_papers_table(folder) -> None:
    folder.add(method="lora", version=1, scores={"iou": 0.1})
    folder.add(method="lora", version=2, scores={"iou": 0.2})
    found = tables(folder)
    assert entry(found["table6-vit_h-1024-bf16"], "LoRA", "iou").ours.mean == pytest.approx(20)
    assert [row.label for row in found["isic2017-vit_h-1024-bf16"].rows] == ["lora", "lora (version 1)"]


def test_an_old_version_of_a_dataset_stands_apart(folder) -> None:
    folder.add(method="lora", dataset_version=1, scores={"iou": 0.1})
    folder.add(method="conv_lora", dataset_version=2, scores={"iou": 0.2})
    found = {table.title: table for table in tables(folder).values()}
    table6 = found["Table 6 of Convolution Meets LoRA: Skin lesion segmentation"]
    assert entry(table6, "LoRA", "iou").ours is None
    assert entry(table6, "Conv-LoRA", "iou").ours.mean == pytest.approx(20)
    assert [row.label for row in found["Results on ISIC2017 (version 1)"].rows] == ["lora"]


def test_other_kinds_of_cells_are_left_out(folder) -> None:
    folder.add(seed=0)
    folder.add(seed=1, kind="speed")
    assert entry(only(folder, wanted=["6"]), "Conv-LoRA", "iou").ours.n == 1
