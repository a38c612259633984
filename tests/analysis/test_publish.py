"""Publishing: facts of the files alone, the same to the byte; and what the repository publishes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from analysis import publish
from analysis.results import read_results
from analysis.tables import FORMATS, make_tables, write_tables

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "results" / "published"


@pytest.fixture
def filled(folder):
    for seed in range(3):
        for method, score in {"decoder_only": 0.70, "lora": 0.75, "conv_lora": 0.76}.items():
            folder.add(method=method, seed=seed, scores={"iou": score + seed / 100, "dice": 0.8})
    folder.add(method="lst", state="failed")
    folder.add_imported(scores={"iou": 0.5})
    return folder.path


def contents(place: Path) -> dict[str, bytes]:
    return {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def test_the_small_part_is_copied_and_the_rest_made_from_it(filled, tmp_path, capsys):
    (filled / "manifests").mkdir()
    (filled / "manifests" / "isic2017-0.json").write_text("{}")
    (filled / "cells" / next(iter((filled / "cells").iterdir())).name / "adapter.safetensors").write_bytes(b"large")
    assert publish.main(["mine", "--results", str(filled), "--to", str(tmp_path / "to"), "--command", "make it"]) == 0
    found = contents(tmp_path / "to" / "mine")
    assert {Path(name).name for name in found if name.startswith("cells/")} == set(publish.CARDS)
    assert len([name for name in found if name.startswith("cells/")]) == 9 * 3
    assert "manifests/isic2017-0.json" in found and any(name.startswith("figures/") for name in found)
    page = found["README.md"].decode()
    for words in ("`make it`", "9 done, 1 failed", "abacus", "2026-01-02", "0123456789ab", "0.0 hours", "torch 2.11"):
        assert words in page
    assert "wrote" in capsys.readouterr().out
    publish.main(["mine", "--results", str(filled), "--to", str(tmp_path / "to"), "--command", "make it"])
    assert contents(tmp_path / "to" / "mine") == found, "the same results give the same bytes"


def test_nothing_to_publish(tmp_path, capsys):
    assert publish.main(["mine", "--results", str(tmp_path), "--to", str(tmp_path / "to")]) == 2
    assert "no cell has run yet" in capsys.readouterr().err
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("name", sorted(path.name for path in PUBLISHED.iterdir()) if PUBLISHED.is_dir() else [])
def test_what_is_published_is_made_from_what_is_published(name, tmp_path):
    published = PUBLISHED / name
    write_tables(make_tables(read_results(published)), tmp_path / "tables", list(FORMATS))
    assert contents(tmp_path / "tables") == contents(published / "tables")
    for path in (published / "cells").iterdir():
        result = json.loads((path / "result.json").read_text())
        assert result["id"] == path.name and not result["environment"]["dirty"] and not result["degenerate"]
