"""``python -m datasets list``: which datasets there are, which of them lie here, and how to get the others.

Everything is known from names of folders and files, so that a list of large datasets takes no time; whether
their files are sound is what :mod:`datasets.verify` finds out.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.registry import PluginError
from datasets.base import Dataset, DatasetMissing, load, registry
from datasets.files import FileDataset
from datasets.verify import by_split

STATES = {"there": "green", "generated": "green", "missing": "yellow", "needs --set": "yellow", "error": "red"}


def entry(name: str, root: Path | None, parameters: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What the list says about one dataset; whatever is wrong with it is its ``error``.

    ``state`` is one of :data:`STATES`. ``splits`` counts the pairs that are there by their names.
    """
    found: dict[str, Any] = {"name": name, "title": name, "state": "error", "layout": None, "base": None, "splits": {}}
    found |= {"published": {}, "problems": 0, "package": registry.package(name), "error": ""}
    try:
        dataset = load(name, **(parameters or {}))
    except PluginError as error:
        return found | {"error": str(error)}
    except ValueError as error:
        return found | {"state": "error" if parameters else "needs --set", "error": str(error)}
    except Exception as error:  # one plugin that fails must not hide the others
        return found | {"error": f"{type(error).__name__}: {error}"}
    try:
        found["title"] = dataset.title
        found["published"] = by_split(getattr(dataset, "published", {}))
        return found | _place(dataset, root)
    except DatasetMissing as error:
        return found | {"state": "missing", "error": str(error)}
    except Exception as error:
        return found | {"error": f"{type(error).__name__}: {error}"}


def _place(dataset: Dataset, root: Path | None) -> dict[str, Any]:
    place = dataset.find(root)
    if place is None:
        counts = {split: len(samples) for split, samples in dataset.open(root).items()}
        return {"state": "generated", "layout": "generated", "splits": by_split(counts)}
    return {
        "state": "there",
        "layout": place.layout.name,
        "base": str(place.base),
        "splits": by_split({split: len(pairs) for split, pairs in place.splits.items()}),
        "problems": len(place.problems),
    }


def details(name: str, root: Path | None, parameters: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All that a dataset says about itself, beside its entry in the list.

    Raises:
        UnknownName: no dataset has that name.
        PluginError: it cannot be used.
    """
    kind = registry[name]
    found = entry(name, root, parameters)
    try:
        dataset = load(name, **(parameters or {}))
    except ValueError:
        return found | {"about": inspect.getdoc(kind)}
    found |= {
        "about": inspect.getdoc(kind),
        "parameters": dataset.model_dump(mode="json"),
        "classes": list(dataset.classes),
        "test_sets": list(dataset.test_sets),
        "metrics": list(dataset.metrics),
        "regime": dict(dataset.regime),
    }
    if not isinstance(dataset, FileDataset):
        return found
    return found | {
        "paper": by_split(dataset.paper or dataset.published),
        "masks": dataset.encoding.rule,
        "layouts": [
            {
                "name": layout.name,
                "needs": layout.required,
                "optional": sorted(layout.optional),
                "note": layout.note,
            }
            for layout in dataset.layouts
        ],
        "archives": [
            {"url": archive.url, "size": archive.size, "sha256": archive.sha256, "into": archive.into}
            for archive in dataset.archives
        ],
        "steps": dataset.steps,
        "terms": dataset.terms,
    }


def show_list(entries: Sequence[Mapping[str, Any]], root: Path | None, console: Console) -> None:
    """The list for people: of each dataset what is there, and where it is or what to do next; then all errors."""
    console.print(_header(root), style="bold", soft_wrap=True)
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column, side in [("dataset", "left"), ("", "left"), ("train", "right"), ("val", "right")]:
        table.add_column(column, justify=side, no_wrap=True)
    table.add_column("title, test sets, and where they are", overflow="fold")
    for found in entries:
        splits = dict(found["splits"])
        numbers = [f"{splits.pop(split):,}" if split in splits else "" for split in ("train", "val")]
        words = Text(", ".join([found["title"], *(f"{split} {count:,}" for split, count in splits.items())]))
        if found["package"]:
            words.append(f"\nof {found['package']}", "dim")
        for line in _lines(found):
            words.append(f"\n{line}", "dim")
        table.add_row(found["name"], Text(found["state"], STATES[found["state"]]), *numbers, words)
    console.print(table)
    for found in entries:
        if found["state"] == "error":
            console.print(f"{found['name']}: {_in_a_line(found['error'])}", style=STATES["error"], soft_wrap=True)
    console.print("one of them in full: python -m datasets list NAME", style="dim")
    if root:
        console.print(f"to each of these commands belongs --data-root {root}", style="dim", soft_wrap=True)


_NAMING = "--data-root DIR or BENCH_DATA_ROOT=DIR"


def _header(root: Path | None) -> str:
    named = root or os.environ.get("BENCH_DATA_ROOT")
    if not named:
        return f"no data folder is named: {_NAMING}"
    absent = "" if Path(named).expanduser().is_dir() else ", which is no folder"
    return f"datasets in {named}{absent}: each was looked for in {Path(named) / 'NAME'} and in the folder itself"


def _lines(found: Mapping[str, Any]) -> list[str]:
    """What stands below a dataset's counts."""
    name, published = found["name"], found["published"]
    if found["state"] == "there":
        lines = [f"{found['layout']}, in {found['base']}"]
        fewer = [f"{count:,} {split}" for split, count in published.items() if found["splits"].get(split, 0) < count]
        facts = [f"published are {', '.join(fewer)}"] if fewer else []
        facts += [f"files that do not fit: {found['problems']:,}"] if found["problems"] else []
        return [*lines, "; ".join(facts), f"python -m datasets verify {name}"] if facts else lines
    if found["state"] == "missing":
        return [f"python -m datasets fetch {name}"]
    if found["state"] == "needs --set":
        return [f"python -m datasets list {name}"]
    return []


def _in_a_line(text: str) -> str:
    return " ".join(text.split())


def show_details(found: Mapping[str, Any], console: Console) -> None:
    """One dataset in full for people."""
    console.print(f"{found['title']} ({found['name']})", style="bold", soft_wrap=True)
    console.print(found["about"], soft_wrap=True)
    console.print()
    rows: list[tuple[str, str]] = [("here", found["state"] + (f", in {found['base']}" if found["base"] else ""))]
    for key, words in _ROWS.items():
        value = found.get(key)
        if value:
            rows.append((words, value if isinstance(value, str) else _in_words(value)))
    for layout in found.get("layouts", ()):
        paths = [*layout["needs"], *(f"(if it is there) {name}" for name in layout["optional"])]
        rows.append(("layout", "\n".join([layout["name"], *(f"  {path}" for path in paths)])))
    for archive in found.get("archives", ()):
        rows.append(("archive", archive["url"]))
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for words, value in rows:
        table.add_row(words, value)
    console.print(table)
    if found["error"]:
        # The layouts and how to get it stand above.
        looked = found["error"].partition("\nExpected in its folder")[0]
        console.print(f"\n{looked}", style=STATES[found["state"]], soft_wrap=True)
    if found["state"] == "missing":
        console.print(f"Name the folder that holds {found['name']}/, or that folder itself: {_NAMING}", soft_wrap=True)


_ROWS = {
    "package": "package",
    "splits": "pairs here",
    "published": "published",
    "paper": "the paper",
    "classes": "classes",
    "masks": "masks",
    "metrics": "metrics",
    "regime": "training",
    "parameters": "parameters",
    "steps": "get it",
    "terms": "terms",
}


def _in_words(value: Any) -> str:
    words = [f"{key} {one}" for key, one in value.items()] if isinstance(value, Mapping) else map(str, value)
    return ", ".join(words)
