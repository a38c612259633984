"""The example package, installed as a user would, beside packages that are broken; all in processes of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from analysis.results import read_results
from analysis.tables import make_tables

PROJECT = Path(__file__).resolve().parents[2]
MATRIX = """
name = "published"
backbone = "tiny"
checkpoint = "none"
image_size = 64

[[cells]]
datasets = [{ name = "rings", train_images = 4 }]
methods = ["decoder_only"]
regime = { epochs = 1 }
"""
BROKEN = {"gone": "no_such_module:Gone", "typo": "typo:Typo", "plain": "plain:Plain"}
FILES = {"typo.py": "class Typo(:\n", "plain.py": "class Plain: ...\n"}


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pip has put the example package in; building leaves files in its source, which is a copy."""
    folder = tmp_path_factory.mktemp("example")
    shutil.copytree(Path(__file__).parent / "example", folder / "source")
    words = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *words, "--target", folder / "site", folder / "source"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "site"


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def command(example: Path) -> Command:
    """command(module, words, path=more folders): runs ``python -m module`` where the example is installed."""

    def run(module: str, *words: str | Path, path: tuple[Path, ...] = ()) -> subprocess.CompletedProcess[str]:
        folders = os.pathsep.join(map(str, (example, *path)))
        return subprocess.run(
            [sys.executable, "-m", module, *map(str, words)],
            cwd=PROJECT,
            env=os.environ | {"PYTHONPATH": folders, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
            capture_output=True,
            text=True,
        )

    return run


@pytest.fixture
def broken(package: Callable[..., Path]) -> Path:
    """A package whose plugins cannot be used, and which wants a name of ours."""
    named = {"methods": {**BROKEN, "lora": "plain:Plain"}, "datasets": {**BROKEN, "shapes": "plain:Plain"}}
    return package("blunt-things", "0.3", FILES, **named)


REASONS = {
    "gone": "of blunt-things 0.3 (no_such_module:Gone) cannot be used: ModuleNotFoundError: No module named",
    "typo": "of blunt-things 0.3 (typo:Typo) cannot be used: SyntaxError: invalid syntax (typo.py, line 1)",
    "plain": "of blunt-things 0.3 (plain:Plain) cannot be used: plain.Plain is no ",
}


def test_methods_are_listed_with_those_of_packages_and_what_is_wrong_with_them(command, broken):
    done = command("methods", "--backbone", "tiny", path=(broken,))
    lines = done.stdout.splitlines()
    assert done.returncode == 0
    assert "of other packages: ia3 (sam-peft-bench-example 0.1.0)" in lines
    assert {"lora", "ia3"} <= {line.split()[0] for line in lines if line}
    for name, reason in REASONS.items():
        assert [line for line in lines if line.startswith(f"{name}: the method {name!r} {reason}")]
    assert done.stderr.count("\n") == 1
    assert "the method 'lora' of blunt-things 0.3 (plain:Plain) is passed over: that is the name of" in done.stderr


def test_datasets_are_listed_with_those_of_packages_and_what_is_wrong_with_them(command, broken):
    done = command("datasets", "list", "--json", path=(broken,))
    found = {entry["name"]: entry for entry in json.loads(done.stdout)}
    assert done.returncode == 0
    assert (found["rings"]["state"], found["rings"]["package"]) == ("generated", "sam-peft-bench-example 0.1.0")
    assert found["shapes"]["state"] == "generated" and found["shapes"]["package"] is None
    for name, reason in REASONS.items():
        assert found[name]["state"] == "error" and found[name]["error"].startswith(f"the dataset {name!r} {reason}")
    assert "the dataset 'shapes' of blunt-things 0.3 (plain:Plain) is passed over" in done.stderr
    shown = command("datasets", "list", path=(broken,)).stdout
    assert all(f"\n{name}: the dataset {name!r} {reason}" in shown for name, reason in REASONS.items())
    assert "of sam-peft-bench-example 0.1.0" in shown


def test_a_matrix_with_a_broken_one_is_refused_with_its_package_and_error(command, broken, tmp_path):
    (tmp_path / "matrix.toml").write_text(MATRIX)
    words = ["--matrix", tmp_path / "matrix.toml", "--results", tmp_path / "results", "--devices", "cpu:2"]
    done = command("bench.run", *words, "--set", "methods=ia3,gone", path=(broken,))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"error: matrix 'published': the method 'gone' {REASONS['gone']}" in done.stderr
    assert not (tmp_path / "results").exists()


def test_the_example_keeps_what_the_harness_relies_on(command):
    done = command("methods", "check", "ia3")
    assert done.returncode == 0 and done.stdout.endswith("ia3: conforms\n")


def published(results: Path, folder: Path) -> Path:
    """What a repository holds of a cell that was trained elsewhere, with code of another day; returns its folder."""
    (cell,) = (results / "cells").iterdir()
    there = folder / "cells" / cell.name
    there.mkdir(parents=True)
    for name in ("cell.json", "status.json", "result.json"):
        shutil.copyfile(cell / name, there / name)
    card = json.loads((there / "cell.json").read_text())
    card["evidence"]["source"] = dict.fromkeys(card["evidence"]["source"], "0" * 64)
    (there / "cell.json").write_text(json.dumps(card))
    return there


def test_a_row_beside_published_ones_and_what_becomes_of_it_when_the_package_changes(command, example, tmp_path):
    (tmp_path / "matrix.toml").write_text(MATRIX)

    def run(results: Path, *words: str) -> subprocess.CompletedProcess[str]:
        given = ["--matrix", tmp_path / "matrix.toml", "--results", results, "--devices", "cpu:2", "--no-tracking"]
        return command("bench.run", *given, *words)

    done = run(tmp_path / "theirs")
    assert done.returncode == 0, done.stdout + done.stderr
    there = published(tmp_path / "theirs", tmp_path / "published")
    files = {path.name: path.read_bytes() for path in there.iterdir()}

    mine = tmp_path / "mine"
    shutil.copytree(tmp_path / "published" / "cells", mine / "cells")
    done = run(mine, "--set", "methods=ia3")
    assert done.returncode == 0 and "executed 1 cells: 1 done" in done.stdout, done.stdout + done.stderr
    assert {path.name: path.read_bytes() for path in (mine / "cells" / there.name).iterdir()} == files

    (table,) = make_tables(read_results(mine))
    assert [row.label for row in table.rows] == ["decoder_only", "ia3"]
    assert all(entry.ours and not entry.stale for entry in table.entries.values())

    (cell,) = (mine / "cells").glob("rings-ia3-*")
    made_with = json.loads((cell / "result.json").read_text())["environment"]["plugins"]
    assert made_with == dict.fromkeys(("ia3", "rings"), "sam-peft-bench-example 0.1.0")

    module = example / "example_ia3.py"
    before = module.read_text()
    module.write_text(before.replace("torch.ones", "0.5 + torch.ones"))
    try:
        done = run(mine, "--set", "methods=ia3", "--dry-run")
    finally:
        module.write_text(before)
    assert f"stale       {cell.name}  differs in source.method\n" in done.stdout
