"""``python -m analysis.publish NAME``: the small part of a results folder that belongs into the repository.

Copies what tables are made from (``cell.json``, ``status.json``, ``result.json`` of done cells, and the manifests), so
that anyone can make them again from the copy, and beside the tables puts figures, comparisons and a page of facts,
which need all of the results.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from analysis.compare import write as write_comparisons
from analysis.comparison.comparing import compare
from analysis.comparison.ranking import rank
from analysis.figures import write_figures
from analysis.reporting.provenance import began
from analysis.results import DONE, NoResults, read_results
from analysis.tables import FORMATS, make_tables, write_tables

CARDS = ("cell.json", "status.json", "result.json")


def publish(results: Path, folder: Path, *, command: str) -> Path:
    """Replace ``folder`` by the published part of ``results``; returns it. Imported scores are left out.

    Args:
        command: what made the results, for the page of facts.

    Raises:
        NoResults: ``results`` holds no done cell.
    """
    cells = read_results(results).cells
    shutil.rmtree(folder, ignore_errors=True)
    for cell in cells.itertuples():
        if cell.state == DONE and not cell.imported:
            (folder / "cells" / cell.id).mkdir(parents=True)
            for name in CARDS:
                shutil.copyfile(results / "cells" / cell.id / name, folder / "cells" / cell.id / name)
    if (results / "manifests").is_dir():
        shutil.copytree(results / "manifests", folder / "manifests")
    copied = read_results(folder)
    write_tables(make_tables(copied), folder / "tables", list(FORMATS))
    write_figures(copied, folder / "figures", source=results, formats=("svg",))
    write_comparisons(compare(copied, results), rank(copied), folder / "comparisons")
    states = Counter(cells["state"][~cells["imported"].astype(bool)])
    (folder / "README.md").write_text(_facts(folder, command, states), encoding="utf-8")
    return folder


def _facts(folder: Path, command: str, states: Counter[str]) -> str:
    """Where the results come from: only what the files say."""
    made = [_cards(path) for path in sorted((folder / "cells").iterdir())]
    results = [result for result, _ in made]
    dates = sorted((began(result) or status["updated"])[:10] for result, status in made)
    hours = sum(result["training"]["seconds"] + result["evaluation"]["seconds"] for result in results) / 3600
    keys = ("device", "threads", "torch", "python")
    about = {key: _each(result["environment"][key] for result in results) for key in keys}
    commits = _each(_commit(result["environment"]) for result in results)
    return f"""# {folder.name}

* made by `{command}`
* cells: {", ".join(f"{count} {state}" for state, count in sorted(states.items()))}
* from {dates[0]} to {dates[-1]}, {hours:.1f} hours of training and scoring, added up over cells
* device: {about["device"]}; threads a cell: {about["threads"]}
* commit: {commits}
* torch {about["torch"]}, Python {about["python"]}

Written by `python -m analysis.publish {folder.name}`. From `cells` the tables are made again by
`python -m analysis.tables --results {folder.as_posix()}`; figures and comparisons need the scores of each image, which
are not here.
"""


def _commit(environment: dict[str, Any]) -> str:
    commit = environment.get("commit")
    return f"{commit[:12]}{', changed' if environment['dirty'] else ''}" if commit else "not known"


def _cards(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    result, status = (json.loads((path / name).read_text(encoding="utf-8")) for name in ("result.json", "status.json"))
    return result, status


def _each(values: Iterable[Any]) -> str:
    """The different values, with how often each occurs where there are several."""
    counts = Counter(map(str, values))
    return next(iter(counts)) if len(counts) == 1 else ", ".join(f"{v} ({n} cells)" for v, n in sorted(counts.items()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the folder; the exit code is 2 where there is nothing to publish."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.publish", description="Copy the small part of results into results/published/NAME."
    )
    parser.add_argument("name", help="names the folder; that of the matrix")
    parser.add_argument("--results", type=Path, help="the results folder (default: results/NAME)")
    parser.add_argument("--to", type=Path, default=Path("results/published"), help="(default: results/published)")
    parser.add_argument("--command", help="what made the results (default: python -m bench.run --matrix NAME)")
    options = parser.parse_args(arguments)
    command = options.command or f"python -m bench.run --matrix {options.name}"
    try:
        folder = publish(options.results or Path("results") / options.name, options.to / options.name, command=command)
    except (NoResults, OSError) as error:
        print(f"analysis.publish: {error}", file=sys.stderr)
        return 2
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"wrote {folder} ({size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
