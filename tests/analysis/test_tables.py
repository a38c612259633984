"""``python -m analysis.tables`` as a command."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from analysis.results import read_results
from analysis.tables import FORMATS, main, make_tables, write_tables

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = {"backbone": "tiny", "checkpoint": "none", "image_size": 128, "precision": "fp32"}


def fill(folder) -> None:
    """Cells of two settings and two datasets."""
    for seed in range(2):
        for method in ("lora", "conv_lora"):
            folder.add(method=method, seed=seed, scores={"iou": 0.7 + seed / 10, "dice": 0.8})
            folder.add(method=method, seed=seed, dataset="shapes", **TINY)


def written(folder: Path) -> dict[str, bytes]:
    """Name and bytes of each file."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_end_to_end(folder) -> None:
    fill(folder)
    run = subprocess.run(
        [sys.executable, "-m", "analysis.tables", "--results", str(folder.path)],
        cwd=REPOSITORY,
        env={**os.environ, "COLUMNS": "100", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    assert "Table 6 of Convolution Meets LoRA" in run.stdout and "RANDOM BACKBONE" in run.stdout
    assert "77.6 ± 0.57" in run.stdout
    assert f"wrote {folder.path}/tables/table6-vit_h-1024-bf16.{{md,csv,tex}}" in run.stdout
    names = ["shapes-tiny-128-fp32-random", "table1-vit_h-1024-bf16", "table6-vit_h-1024-bf16"]
    files = {f"{name}.{ending}" for name in names for ending in ("md", "csv", "tex")}
    assert set(written(folder.path / "tables")) == files


def test_a_terminal_without_unicode_is_no_error(folder) -> None:
    fill(folder)
    run = subprocess.run(
        [sys.executable, "-m", "analysis.tables", "--results", str(folder.path)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    assert "77.6 ? 0.57" in run.stdout
    assert "77.6 ± 0.57" in (folder.path / "tables" / "table6-vit_h-1024-bf16.md").read_text(encoding="utf-8")


def test_neither_torch_nor_bench_is_imported() -> None:
    heavy = "{'torch', 'bench', 'mlflow', 'scipy', 'matplotlib'}"
    code = f"import sys, analysis.tables; print({{name.split('.')[0] for name in sys.modules}} & {heavy})"
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert run.stdout.strip() == "set()", run.stderr


def test_tables_are_a_pure_function_of_the_results(folder, tmp_path: Path) -> None:
    fill(folder)
    copy = tmp_path / "copy"
    cells = sorted((folder.path / "cells").iterdir())
    random.Random(0).shuffle(cells)
    for cell in cells:
        shutil.copytree(cell, copy / "cells" / cell.name)
    assert main(["--results", str(folder.path)]) == main(["--results", str(copy)]) == 0
    first = written(folder.path / "tables")
    assert len(first) == 9 and first == written(copy / "tables")
    assert main(["--results", str(folder.path)]) == 0
    assert first == written(folder.path / "tables")
    assert not any(b"\r" in text for text in first.values()), "the same bytes on every system"


def test_options_choose_tables_formats_and_folder(folder, tmp_path: Path) -> None:
    fill(folder)
    options = ["--results", str(folder.path), "--out", str(tmp_path / "out")]
    assert main([*options, "--table", "6", "--table", "shapes", "--format", "md", "--format", "csv"]) == 0
    assert set(written(tmp_path / "out")) == {
        "shapes-tiny-128-fp32-random.md", "shapes-tiny-128-fp32-random.csv",
        "table6-vit_h-1024-bf16.md", "table6-vit_h-1024-bf16.csv",
    }  # fmt: skip
    assert not (folder.path / "tables").exists()


def test_corrupt_cells_are_named_and_the_rest_is_used(folder, capsys: pytest.CaptureFixture[str]) -> None:
    fill(folder)
    broken = folder.add(seed=7)
    (broken / "result.json").write_text("{")
    assert main(["--results", str(folder.path)]) == 0
    assert str(broken) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--table", "99"], f"unknown table '99'. Known: {', '.join(map(str, range(16)))}, isic2017, shapes"),
        (["--protocol", "literature"], "no done cell"),
    ],
)
def test_wrong_requests_end_with_a_message(folder, capsys, options: list[str], said: str) -> None:
    fill(folder)
    assert main(["--results", str(folder.path), *options]) == 2
    error = capsys.readouterr().err
    assert said in error and "Next: python -m " in error
    assert not (folder.path / "tables").exists()


def test_no_results_end_with_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--results", str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "none") in error and "python -m bench.run --matrix smoke" in error


def test_a_requested_table_without_results_is_named(folder, capsys: pytest.CaptureFixture[str]) -> None:
    folder.add(dataset="shapes")
    assert main(["--results", str(folder.path), "--table", "6"]) == 2
    assert "belongs to table 6" in capsys.readouterr().err
    assert main(["--results", str(folder.path), "--table", "6", "--table", "shapes"]) == 0
    assert "belongs to table 6" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_ends_with_a_message(folder, tmp_path: Path, capsys) -> None:
    fill(folder)
    (tmp_path / "file").write_text("")
    assert main(["--results", str(folder.path), "--out", str(tmp_path / "file")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_ten_thousand_cells_in_five_seconds(folder) -> None:
    """Measured: 10,000 cells of 20 settings in 4.2 s of processor time; the test has a tenth, and as long."""
    methods = ("decoder_only", "lora", "conv_lora", "vpt", "bitfit")
    sets = {"isic2017": ("test",), "leaf": ("test",), "polyps": ("kvasir", "cvc_612", "cvc_colondb", "etis", "cvc_t")}
    metrics = ("iou", "dice", "s_measure", "e_measure_mean", "weighted_f_measure_b03", "mae", "accuracy", "t_jaccard")
    for number in range(1000):
        rest, seed = divmod(number, 10)
        rest, method = divmod(rest, 5)
        size, dataset = divmod(rest, 3)
        name = list(sets)[dataset]
        folder.add(
            method=methods[method], dataset=name, seed=seed, image_size=128 * (1 + size), test_sets=sets[name],
            scores=dict.fromkeys(metrics, 0.5 + seed / 100),
            evidence={"data": {"train": name, "test": name}, "checkpoint": "0", "source": {"method": methods[method]}},
        )  # fmt: skip
    started = time.process_time()
    tables = make_tables(read_results(folder.path))
    write_tables(tables, folder.path / "tables", list(FORMATS))
    assert time.process_time() - started < 5
    assert len({table.setting for table in tables}) == 7
