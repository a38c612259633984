"""Scores of maps made elsewhere in tables: where they stand, how they are marked, what is kept from them."""

from __future__ import annotations

import pytest

from analysis.latex import latex
from analysis.layout import Entry, Table
from analysis.render import long_csv, markdown
from analysis.results import read_results
from analysis.tables import make_tables

NOTE = "‡ Imported: scores of maps made elsewhere, in no ranking: "


def tables(folder, **options) -> dict[str, Table]:
    """All tables of a folder, by name."""
    return {table.name: table for table in make_tables(read_results(folder.path), **options)}


def entry(table: Table, row: str, metric: str) -> Entry:
    """The entry of a row and a metric in the only column with a number there."""
    (found,) = [e for (label, column), e in table.entries.items() if (label, column.metric) == (row, metric) and e.ours]
    return found


def fill(folder) -> None:
    """Runs of two methods on ISIC 2017, and TransFuse and a U-Net from elsewhere, better than both."""
    for method, value in (("lora", 0.7), ("conv_lora", 0.8)):
        for seed in (1, 2, 3):
            folder.add(method=method, seed=seed, scores={"iou": value})
    folder.add_imported(method="transfuse", dataset="isic2017", test_set="test", scores={"iou": 0.9}, quantised=True)
    folder.add_imported(method="unet", dataset="isic2017", test_set="test", scores={"iou": 0.95}, size=1024)


def test_the_papers_row_holds_it_marked_and_unranked(folder) -> None:
    fill(folder)
    table = tables(folder)["table6-vit_h-1024-bf16"]
    found = entry(table, "TransFuse", "iou")
    assert found.ours.mean == pytest.approx(90) and found.imported
    assert (found.rank, found.difference, found.below_plan) == (0, None, False)
    assert found.paper.value == "80.1"
    ours = {row: entry(table, row, "iou") for row in ("LoRA", "Conv-LoRA")}
    assert {row: (e.rank, e.below_plan) for row, e in ours.items()} == {"LoRA": (2, False), "Conv-LoRA": (1, False)}
    assert ours["LoRA"].difference is not None
    assert f"{NOTE}at the masks' own size, from 8-bit maps: TransFuse (isic2017/test)." in table.caption.notes
    assert "seeds 1, 2, 3." in table.caption.text and "isic2017/test 90-600" in table.caption.text
    assert {row.label: row.size for row in table.rows}["TransFuse"] == ""
    assert table.caption.warnings == ()


def test_all_formats_carry_the_mark(folder) -> None:
    fill(folder)
    table = tables(folder)["table6-vit_h-1024-bf16"]
    assert "90.0 ‡" in markdown(table) and r"90.0 \ddag{}" in latex(table)
    lines = [line for line in long_csv(table).splitlines() if line.endswith(",yes,")]
    assert len(lines) == 1 and ",TransFuse," in lines[0]


def test_a_method_without_a_row_stands_in_the_plain_table_of_its_dataset(folder) -> None:
    fill(folder)
    made = tables(folder)
    assert set(made) == {
        "table1-vit_h-1024-bf16",
        "table6-vit_h-1024-bf16",
        "isic2017-vit_h-1024-bf16",
        "isic2017-imported",
    }
    plain, own = made["isic2017-vit_h-1024-bf16"], made["isic2017-imported"]
    assert [row.label for row in plain.rows] == ["transfuse (imported)", "lora", "conv_lora", "unet (imported)"]
    assert entry(plain, "unet (imported)", "iou").rank == 0 and entry(plain, "conv_lora", "iou").rank == 1
    assert [row.label for row in own.rows] == ["transfuse (imported)", "unet (imported)"]
    assert not any(e.rank for e in own.entries.values())
    assert own.caption.text.startswith("Scores of prediction maps made elsewhere; protocol paper. Scores times 100")
    (note,) = own.caption.notes
    assert "at 1024 px: unet (imported) (isic2017/test)" in note


def test_every_setting_shows_it_where_something_of_ours_stands(folder) -> None:
    folder.add(scores={"iou": 0.7})
    folder.add(scores={"iou": 0.6}, image_size=512)
    folder.add(dataset="shapes", backbone="tiny", checkpoint="none", scores={"iou": 0.5})
    folder.add_imported(method="transfuse", dataset="isic2017", test_set="test", scores={"iou": 0.9})
    made = tables(folder)
    assert [name for name in made if name.startswith("table6")] == ["table6-vit_h-1024-bf16", "table6-vit_h-512-bf16"]
    assert [name for name in made if "tiny" in name] == ["shapes-tiny-1024-bf16-random"]
    assert list(made)[-1] == "isic2017-imported"
    assert made["shapes-tiny-1024-bf16-random"].caption.warnings[0].startswith("RANDOM BACKBONE:")


def test_alone_it_has_a_plain_table_and_none_of_the_papers(folder) -> None:
    folder.add_imported(scores={"s_measure": 0.9, "mae": 0.02})
    made = tables(folder)
    assert list(made) == ["polyps-imported"]
    assert entry(made["polyps-imported"], "pranet (imported)", "s_measure").ours.mean == pytest.approx(90)
    assert tables(folder, wanted=["1"]) == {}
    assert tables(folder, protocol="literature") == {}


def test_our_own_runs_come_before_imported_ones_of_the_same_method(folder) -> None:
    folder.add(method="lora", scores={"iou": 0.7}, version=2)
    folder.add_imported(method="lora", dataset="isic2017", test_set="test", scores={"iou": 0.9})
    made = tables(folder)
    found = entry(made["table6-vit_h-1024-bf16"], "LoRA", "iou")
    assert found.ours.mean == pytest.approx(70) and not found.imported
    assert not any(note.startswith("‡") for note in made["table6-vit_h-1024-bf16"].caption.notes)
    assert [row.label for row in made["isic2017-vit_h-1024-bf16"].rows] == ["lora", "lora (imported)"]


def test_protocols_stay_apart(folder) -> None:
    folder.add(scores={"iou": 0.7})
    folder.add_imported(
        method="transfuse", dataset="isic2017", test_set="test", scores={"iou": 0.9}, protocol="literature"
    )
    table = tables(folder)["table6-vit_h-1024-bf16"]
    assert not any(e.imported for e in table.entries.values())
    assert list(tables(folder, protocol="literature")) == ["isic2017-imported-literature"]
