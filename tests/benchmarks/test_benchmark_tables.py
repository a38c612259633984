"""How long tables take to be made, beside reading their cells' files and nothing else.

The cells are those published in results/published, copied with other seeds.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest

from analysis.results import read_results
from analysis.tables import FORMATS, make_tables, write_tables

PUBLISHED = Path(__file__).parents[2] / "results" / "published" / "isic_small" / "cells"
FILES = ("cell.json", "status.json", "result.json")


@pytest.fixture(scope="module")
def copies(measuring: bool, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """copies(count): a results folder of so many cells, and of one copy of each where nothing is measured."""
    originals = [{name: json.loads((path / name).read_text()) for name in FILES} for path in PUBLISHED.iterdir()]
    originals.sort(key=lambda files: files["cell.json"]["id"])
    made: dict[int, Path] = {}

    def make(count: int) -> Path:
        if count not in made:
            made[count] = tmp_path_factory.mktemp("results")
            for seed, files in enumerate(islice(cycle(originals), count if measuring else len(originals))):
                add(made[count], files, seed)
        return made[count]

    return make


def add(results: Path, files: dict[str, dict[str, Any]], seed: int) -> None:
    """One cell of another seed, for which only the file with its identity need differ."""
    record = json.loads(json.dumps(files["cell.json"]))
    record["id"] += f"-{seed}"
    record["spec"]["seed"] = seed
    folder = results / "cells" / record["id"]
    folder.mkdir(parents=True)
    for name, content in (files | {"cell.json": record}).items():
        (folder / name).write_text(json.dumps(content))


def read_files(results: Path, out: Path) -> int:
    """How many cells there are, all of their files read."""
    return len([json.loads(path.read_bytes()) for path in sorted(results.glob("cells/*/*.json"))]) // len(FILES)


def tables(results: Path, out: Path) -> int:
    """All tables, made and written in all formats; how many cells stand in them."""
    made = make_tables(read_results(results))
    write_tables(made, out, list(FORMATS))
    return len({cell for table in made for entry in table.entries.values() for cell in entry.cells})


@pytest.mark.parametrize("form", [read_files, tables])
@pytest.mark.parametrize(("count", "rounds"), [(300, 3), (2_000, 2)])
def test_tables(compare, copies, tmp_path, count: int, rounds: int, form: Callable[[Path, Path], int]) -> None:
    results, name = copies(count), form.__name__.replace("_", " ")
    call = partial(form, results, tmp_path)
    found = compare(call, group=f"tables of {count:,} cells", candidate=name, reference="read files", rounds=rounds)
    assert found == len(list(results.glob("cells/*")))
    assert bool(list(tmp_path.glob("table1-*.md"))) == (form is tables)
