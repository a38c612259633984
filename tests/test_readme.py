"""The README's examples are code that works."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import datasets
import methods

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(autouse=True)
def unregistered_again(monkeypatch):
    """What an example registers is gone after its test."""
    for registry in (methods.registry, datasets.registry):
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))


def example(title: str) -> str:
    """The Python block in the section ``title``."""
    section = README.read_text(encoding="utf-8").split(f"## {title}\n")[1].split("\n## ")[0]
    return re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]


@pytest.mark.parametrize("title", ["Add a method", "Add a dataset"])
def test_an_example_has_at_most_20_lines_of_its_own(title):
    body = example(title).split("import ")[-1].split("\n", 1)[1]
    assert len([line for line in body.splitlines() if line.strip()]) <= 20


def test_the_method_example_trains_what_it_says():
    exec(compile(example("Add a method"), "README.md", "exec"), {"__name__": "readme_method"})
    context = methods.Context(backbone="tiny", checkpoint="none", image_size=64)
    model = methods.create("layer_norm").build(context)
    plain = methods.create("decoder_only").build(context)
    assert model.count()["trainable"] - plain.count()["trainable"] == 12 * 2 * 2 * 192


def test_the_dataset_example_opens_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    mask = np.zeros((20, 30), np.uint8)
    mask[5:, 10:] = 255
    for split in ("train", "validation", "test"):
        for kind, array in (("images", np.stack([mask] * 3, -1)), ("masks", mask)):
            folder = tmp_path / "lungs" / split / kind
            folder.mkdir(parents=True)
            Image.fromarray(array).save(folder / "a.png")
    exec(compile(example("Add a dataset"), "README.md", "exec"), {"__name__": "readme_dataset"})
    splits = datasets.load("lungs").open(tmp_path)
    assert {name: split.identifiers for name, split in splits.items()} == dict.fromkeys(splits, ("a",))
    assert np.array_equal(splits["test"].mask(0), mask // 255)


def test_every_bundled_matrix_is_in_the_readme():
    from bench import matrix

    assert all(f"`{name}`" in README.read_text(encoding="utf-8") for name in matrix.names())
