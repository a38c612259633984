"""What the bridge to peft does where peft is absent or broken, and beside Hugging Face's package ``datasets``."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path

import pytest

from bench.matrix import entries
from methods import create, registry
from methods.compose import ParameterError
from methods.hf_peft import INSTALL, PeftUnusable
from methods.trial import Subject

PROJECT = Path(__file__).parents[2]
NAMES = [name for name in registry.names() if name.startswith("peft:")]
installed = pytest.mark.skipif(util.find_spec("peft") is None, reason="the extra [peft] is not installed")


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """peft is not installed."""
    find_spec, version = util.find_spec, metadata.version

    def missing(package: str) -> str:
        if package == "peft":
            raise metadata.PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(util, "find_spec", lambda name, *rest: None if name == "peft" else find_spec(name, *rest))
    monkeypatch.setattr(metadata, "version", missing)
    monkeypatch.setitem(sys.modules, "peft", None)


@pytest.mark.parametrize("name", [*NAMES, "peft:lora+vpt"], ids=lambda name: name.removeprefix("peft:"))
def test_without_peft_a_method_is_known_and_its_creation_says_what_to_install(name: str, absent: None) -> None:
    assert all(registry[part].title for part in name.split("+"))
    with pytest.raises(ParameterError, match="peft is not installed") as caught:
        create(name)
    assert INSTALL in str(caught.value)


def test_without_peft_a_star_stands_for_the_other_methods(absent: None) -> None:
    found = [name for name, _, _ in entries(["*"], registry)]
    assert "lora" in found and not set(found).intersection(NAMES)


@installed
def test_an_import_that_fails_is_explained(monkeypatch: pytest.MonkeyPatch, mini: str) -> None:
    def broken(name: str) -> None:
        raise ImportError("cannot import name 'x' from 'transformers'")

    method = create("peft:lora")
    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(PeftUnusable, match=r"`import peft` fails: cannot import name 'x'.*docs/peft.md"):
        method.build(Subject("lora", backbone=mini).context)


def run(program: str, *, folder: Path = PROJECT, path: str = "") -> subprocess.CompletedProcess[str]:
    """A fresh interpreter, in which the project's folder is on the path, before or after ``path``."""
    places = [str(PROJECT), path] if folder == PROJECT else [path, str(PROJECT)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places)), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-W", "ignore", "-c", program]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def hugging_face(tmp_path: Path) -> str:
    """A folder of installed packages that holds what others take for Hugging Face's ``datasets``."""
    place = tmp_path / "site"
    (place / "datasets").mkdir(parents=True)
    (place / "datasets" / "__init__.py").write_text("__version__ = '4.0.0'\nclass Dataset: ...\nHERS = True\n")
    (place / "datasets-4.0.0.dist-info").mkdir()
    (place / "datasets-4.0.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: datasets\nVersion: 4.0.0\n"
    )
    return str(place)


USE = """
import sys, tempfile
from importlib import metadata
from pathlib import Path
import torch
import methods
from bench.guard import check_packages
assert {version!r} == "none" or metadata.version("datasets") == {version!r}
check_packages()
for name in (name for name in methods.registry.names() if name.startswith("peft:")):
    methods.create(name).added_parameters(methods.Context())
assert not {{"peft", "transformers"}} & sys.modules.keys(), "imported before anyone built a model"
method = methods.create("peft:lora")
context = methods.Context(backbone="tiny", checkpoint="none", image_size=64)
model = method.build(context)
model(torch.zeros(1, 3, 64, 64)).masks.sum().backward()
with tempfile.TemporaryDirectory() as folder:
    files = method.export_extras(model, Path(folder))
    from peft import PeftModel
    from methods.sam.build import build_segmenter
    PeftModel.from_pretrained(build_segmenter(context).image_encoder, files[0].parent)
import datasets
assert not hasattr(datasets, "HERS") and "isic2017" in datasets.registry
"""


@installed
@pytest.mark.parametrize("beside", [True, False])
def test_it_works_beside_hugging_faces_datasets_and_without(beside: bool, hugging_face: str) -> None:
    version, path = ("4.0.0", hugging_face) if beside else ("none", "")
    done = run(USE.format(version=version), path=path)
    assert done.returncode == 0, done.stderr


def test_hugging_faces_datasets_before_ours_is_said(hugging_face: str, tmp_path: Path) -> None:
    done = run("from bench.guard import check_packages; check_packages()", folder=tmp_path, path=hugging_face)
    assert done.returncode == 1
    assert "`import datasets` finds" in done.stderr and f"cd {PROJECT}" in done.stderr
