"""Each row of the paper's ablations trains a step on real skin lesions and stands with a score of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bench.cell import main
from bench.matrix import Block, Entered, Entry, Matrix, expand, names, override, read
from bench.store import Results

KEPT = {"Training": 4, "Validation": 2, "Test_v2": 2}
SMALL = {"backbone": "tiny", "image_size": 64, "seeds": 0, "max_steps": 1}
METHODS = {"table3": 2, "table4": 4, "table11": 4, "table12": 3, "table13": 2, "beside the tables": 2}
VARIANTS = [Entry(name="conv_lora", gate="image"), Entry(name="conv_lora", variant="paper")]


@pytest.fixture(scope="module")
def few_lesions(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the first images of each split of the real sample."""
    root = tmp_path_factory.mktemp("lesions")
    for split, count in KEPT.items():
        images, masks = f"ISIC-2017_{split}_Data", f"ISIC-2017_{split}_Part1_GroundTruth"
        for folder in (images, masks):
            (root / folder).mkdir()
        for image in sorted((test_data / "isic2017_512" / images).glob("ISIC_???????.jpg"))[:count]:
            shutil.copy(image, root / images)
            shutil.copy(test_data / "isic2017_512" / masks / f"{image.stem}_segmentation.png", root / masks)
    return root


def rows(table: str) -> list[Entered]:
    """The methods of a table as small cells on skin lesions, whatever the table has them on."""
    blocks = [Block(datasets=[], methods=VARIANTS)] if table not in names() else read(table).cells
    cells = [Block(datasets=["isic2017"], methods=block.methods) for block in blocks if block.kind == "accuracy"]
    return expand(override(Matrix(name=table, cells=cells), SMALL), precision="fp32")


@pytest.mark.parametrize("table", METHODS)
def test_each_method_of_a_table_trains_on_real_images(
    table: str, few_lesions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    results = Results(tmp_path / "results")
    found = rows(table)
    assert len(found) == METHODS[table]
    for entered in found:
        folder = results.cell(entered.cell.id)
        folder.create(entered.cell, {})
        words = ["--results", str(results.path), "--data-root", str(few_lesions), "--threads", "1", "--allow-broken"]
        assert main([folder.id, *words]) == 0
        result = folder.result()
        assert result["training"]["steps"] == 1 and result["training"]["train_images"] == 4
        assert set(result["scores"]["test"]["paper"]) >= {"iou", "t_jaccard", "dice", "accuracy"}
        assert (folder.path / "adapter.safetensors").stat().st_size > 0
