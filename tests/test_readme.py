"""The README's examples are code that works."""

from __future__ import annotations

import csv
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
    plain = methods.create("decoder_only").build(context).count()["trainable"]
    in_windows, global_ = 2 * (2 * 8 - 1) * 64, 2 * (2 * 4 - 1) * 64  # rows and columns of 8 and of all 4 tokens
    for parameters, tables in [({}, 8 * in_windows + 4 * global_), ({"last_k": 2}, in_windows + global_)]:
        model = methods.create("positions", parameters).build(context)
        assert model.count()["trainable"] - plain == tables


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
    from analysis.caption import DAGGER
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
        numbers = ["".join(pieces(*entry)).removesuffix(f" {DAGGER}") for entry in entries] + [
            "".join(paper_pieces(entry)) for entry, _ in entries
        ]
        assert f"| {row} | {' | '.join(numbers)} |" in text
    (own,) = make_tables(read_results(PUBLISHED), wanted=["isic2017"])
    entries = {
        column.metric: "".join(pieces(entry, column))
        for (row, column), entry in own.entries.items()
        if row == "transfuse (side = 128)"
    }
    assert (
        f"| TransFuse at 128 px, **from random weights** | {entries['iou']} | {entries['dice']} | 80.1 | 87.5 |" in text
    )


def test_the_quoted_differences_are_the_published_ones():
    """What the README says of the comparison with the best stands in the published one."""
    (path,) = (PUBLISHED / "comparisons").glob("*-iou.csv")
    with path.open(encoding="utf-8") as file:
        reference, *others = csv.DictReader(file)
    assert reference["row"] == "transfuse (side = 128)" and not any(row["verdict"] for row in others)
    assert [row["row"] for row in others if float(row["p"]) < 0.05] == ["decoder_only", "scratch"]
    text = " ".join(README.read_text(encoding="utf-8").split())
    for row, words in (("decoder_only", "points behind, 95 % interval "), ("scratch", "behind, ")):
        (own,) = (one for one in others if one["row"] == row)
        mean, low, high = (-float(own[key]) for key in ("difference", "high", "low"))
        assert f"({mean:.1f} {words}{low:.1f} to {high:.1f})" in text, row
    assert f"find a true difference of {float(reference['detectable']):.1f} points or more" in text
