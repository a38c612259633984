"""The README's examples are code that works."""

from __future__ import annotations

import json
import math
import re
import statistics
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import datasets
import methods

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(autouse=True)
def unregistered_again(monkeypatch):
    """What an example registers is gone after its test, and nothing else: a module registers itself once."""
    for registry in (methods.registry, datasets.registry):
        for name in registry.names():
            _ = registry[name]
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


PUBLISHED = README.parent / "results" / "published" / "isic_small"


def test_the_quoted_scores_are_the_published_ones():
    from analysis.render import paper_pieces, pieces
    from analysis.results import read_results
    from analysis.tables import make_tables

    (table,) = make_tables(read_results(PUBLISHED), wanted=["1"])
    columns = [column for column in table.columns if column.data == "isic2017"]
    text = README.read_text(encoding="utf-8")
    rows = [row.label for row in table.rows if table.entries[row.label, columns[0]].ours]
    assert len(rows) == 10
    for row in rows:
        entries = [(table.entries[row, column], column) for column in columns]
        numbers = ["".join(pieces(*entry)) for entry in entries] + [
            "".join(paper_pieces(entry)) for entry, _ in entries
        ]
        assert f"| {row} | {' | '.join(numbers)} |" in text


def test_the_quoted_pairs_are_the_published_ones():
    scores: dict[str, dict[int, float]] = {}
    for path in PUBLISHED.glob("cells/*/result.json"):
        result = json.loads(path.read_text())
        own = scores.setdefault(result["resolved"]["method"]["title"], {})
        own[result["resolved"]["seed"]] = 100 * result["scores"]["test"]["paper"]["iou"]
    base = scores.pop("Decoder-only")
    text = " ".join(README.read_text(encoding="utf-8").split())
    assert len(scores) == 9
    for method, own in scores.items():
        pairs = [own[seed] - base[seed] for seed in base]
        error = statistics.stdev(pairs) / math.sqrt(len(pairs))
        words = "from scratch" if method == "scratch" else method
        assert f"{words} {statistics.mean(pairs):.2f} ± {error:.2f}" in text, method
