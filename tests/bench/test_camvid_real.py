"""LoRA and Conv-LoRA learn eleven classes on real images: CamVid's validation frames, split by time."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bench.run import main
from bench.store import Results

PARTS = {"train": slice(61), "val": slice(61, 81), "test": slice(81, None)}


@pytest.fixture
def by_time(test_data: Path, tmp_path: Path) -> Path:
    """The sample's 101 frames in SegNet's folders: the first 61 to train on, the last 20 to test."""
    source, copy = test_data / "camvid_val_101" / "CamVid", tmp_path / "camvid"
    names = sorted(path.name for path in (source / "val").iterdir())
    for split, part in PARTS.items():
        for kind in ("", "annot"):
            (copy / f"{split}{kind}").mkdir(parents=True)
            for name in names[part]:
                shutil.copy(source / f"val{kind}" / name, copy / f"{split}{kind}")
    return copy


def test_lora_and_conv_lora_learn_eleven_classes(
    by_time: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    words = ["--matrix", "camvid_small", "--only", "method=lora,conv_lora", "--only", "seed=0", "--devices", "cpu:2"]
    words += ["--set", "max_steps=200", "--results", str(tmp_path / "results"), "--data-root", str(by_time)]
    assert main(words) == 0
    reached = {cell.id: cell.result() for cell in Results(tmp_path / "results").cells()}
    assert len(reached) == 2
    with capsys.disabled():
        for name, result in reached.items():
            score, constant = result["scores"]["test"]["paper"]["miou_all"], result["constants"]["test"]["miou_all"]
            print(f"\n{name}: mean IoU {score:.4f} on 20 frames, the best constant prediction {constant:.4f}")
            assert score > 1.5 * constant and not result["degenerate"]
