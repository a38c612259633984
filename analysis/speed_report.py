"""``python -m analysis.speed_report``: what one device was measured to do, as tables 14 and 3 and as an export.

``python -m bench.speed`` runs it after measuring.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from analysis.speed import export, file_name, read_measurements
from analysis.speed_tables import speed_tables
from analysis.terminal import show


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes ``RESULTS/speed/<device>.json`` and prints it or the tables; does nothing where nothing was measured."""
    parser = argparse.ArgumentParser(prog="python -m analysis.speed_report", description="Show measurements of speed.")
    parser.add_argument("--results", type=Path, default=Path("results"), help="the results folder (default: results)")
    parser.add_argument("--device", required=True, help="the device's model, as cell.json names it")
    parser.add_argument("--cells", nargs="*", help="in the tables these cells alone (default: all of the device)")
    parser.add_argument("--json", action="store_true", help="print the export in place of the tables")
    options = parser.parse_args(arguments)
    measured, skipped = read_measurements(options.results)
    for line in skipped:
        print(f"skipped {line}", file=sys.stderr)
    here = [one for one in measured if one.device == options.device]
    if not here:
        return 0
    path = options.results / "speed" / f"{file_name(options.device)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(export(here), indent=1, sort_keys=True) + "\n"
    path.write_text(text, encoding="utf-8")
    # What a program reads alone goes to the standard output.
    console = Console(file=sys.stderr if options.json else sys.stdout, markup=False, highlight=False, emoji=False)
    if options.json:
        print(text, end="")
    else:
        for table in speed_tables([one for one in here if options.cells is None or one.id in options.cells]):
            show(table, console)
    console.print(f"wrote {path}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
