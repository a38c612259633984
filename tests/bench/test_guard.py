"""Another package named ``datasets`` in the way is found out at once, with the file and the remedy."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bench.guard import PROJECT, WrongPackage, check_packages


@pytest.fixture
def fake(tmp_path) -> Path:
    """A folder with a package like Hugging Face's."""
    package = tmp_path / "datasets"
    package.mkdir()
    (package / "__init__.py").write_text("def load_dataset(path): ...\n")
    return tmp_path


def start(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(PROJECT)} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


COMMANDS = {
    "run": ["-m", "bench.run", "--matrix", "smoke", "--dry-run", "--devices", "cpu"],
    "cell": ["-m", "bench.cell", "shapes-lora-s0-00000000"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_wrong_package_stops_a_command(fake, command):
    done = start(fake, *COMMANDS[command])
    assert done.returncode == 2
    assert str(fake / "datasets" / "__init__.py") in done.stderr
    assert str(PROJECT) in done.stderr
    assert "Traceback" not in done.stderr
    assert not (fake / "results").exists()


def test_the_remedies_work(fake):
    """The message is followed to the letter, from the folder with the wrong package, as far as the next error."""
    remedies = [part for part in start(fake, *COMMANDS["run"]).stderr.split("`") if "bench.run ..." in part]
    assert remedies
    for remedy in remedies:
        command = remedy.replace("python", shlex.quote(sys.executable)).replace("...", "--matrix no_such")
        done = subprocess.run(["bash", "-c", command], cwd=fake, capture_output=True, text=True, timeout=60)
        assert "unknown matrix 'no_such'" in done.stderr, f"{remedy}: {done.stderr}"


def test_a_folder_of_data_named_datasets_is_not_in_the_way(tmp_path):
    (tmp_path / "datasets").mkdir()
    assert start(tmp_path, "-c", "from bench.guard import check_packages; check_packages()").returncode == 0


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(WrongPackage, match="finds nothing"):
        check_packages()


def test_here_all_is_well():
    check_packages()
