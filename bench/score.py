"""Score a folder of prediction maps: ``python -m bench.score --pred DIR --gt DIR``.

The same metrics and protocols as every cell's, for whatever model made the maps. ``--as-cell`` enters the
scores among the results, where tables show them, marked as imported.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bench.guard import WrongPackage, check_packages
from bench.metrics import METRICS, PROTOCOLS
from bench.store import AlreadyRunning

if TYPE_CHECKING:
    from bench.maps import MapScores

ARROWS = {"higher": "↑", "lower": "↓"}


def parse(words: list[str] | None) -> argparse.Namespace:
    """The command line of ``python -m bench.score``."""
    parser = argparse.ArgumentParser(prog="python -m bench.score", description=__doc__.split("\n\n")[0])
    parser.add_argument("--pred", type=Path, required=True, help="folder of maps: 8-bit PNG, or float .npy or TIFF")
    parser.add_argument("--gt", type=Path, required=True, help="folder of masks of the same names: 0 and 255")
    parser.add_argument(
        "--protocol", choices=PROTOCOLS, default="paper", help="float probabilities or 8 bits (default: paper)"
    )
    parser.add_argument("--size", type=_positive, help="squash both sides to N x N first (default: the masks' size)")
    parser.add_argument("--workers", type=_positive, help="processes; changes no result (default: one a core)")
    parser.add_argument("--json", action="store_true", help="print means and every image as JSON")
    parser.add_argument(
        "--as-cell", nargs="+", action="extend", metavar="KEY=VALUE",
        help="enter the scores among the results: method=pranet dataset=polyps test_set=kvasir (and seed=0)",
    )  # fmt: skip
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="results folder of --as-cell (default: results)"
    )
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Entry point of ``python -m bench.score``."""
    options = parse(words)
    try:
        check_packages()
        from bench import imported
        from bench.maps import score_folders

        target = imported.read_target(options.as_cell) if options.as_cell else None
        scores = score_folders(
            options.pred, options.gt, protocol=options.protocol, size=options.size, workers=options.workers
        )
        folder = imported.enter(target, scores, options.results) if target else None
    except (WrongPackage, OSError, ValueError, AlreadyRunning) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for what, names in scores.unpaired.items():
        if names:
            print(f"{what} without a partner, left out ({len(names)}): {', '.join(names)}", file=sys.stderr)
    if options.json:
        print(json.dumps(scores.report(), indent=1, allow_nan=False))
    else:
        _print_table(scores)
    if folder:
        print(f"entered in {folder}; python -m analysis.tables --results {options.results} shows it", file=sys.stderr)
    return 0


def _print_table(scores: MapScores) -> None:
    """The means, for people."""
    from rich.console import Console
    from rich.table import Table

    size = f"squashed to {scores.size} px" if scores.size else "at the masks' size"
    quantised = ", quantised: maps came in 8 bits" if scores.quantised else ""
    title = f"{len(scores.rows)} images, protocol {scores.protocol}, {size}{quantised}"
    table = Table("metric", "times 100", title=title, title_justify="left")
    table.columns[1].justify = "right"
    for key, value in scores.mean.items():
        table.add_row(f"{METRICS[key].label} {ARROWS[METRICS[key].better]}", f"{100 * value:.2f}")
    Console(highlight=False).print(table)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: a whole number of 1 or more")
    return number


if __name__ == "__main__":
    sys.exit(main())
