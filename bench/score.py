"""Score a folder of prediction maps: ``python -m bench.score --pred DIR --gt DIR``.

The same metrics and protocols as every cell's, for whatever model made the maps. Maps and masks are binary, or
with ``--classes`` hold class indices. ``--as-cell`` enters the scores among the results, where tables show them,
marked as imported.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bench.guard import WrongPackage, check_packages
from bench.metrics import PROTOCOLS, metrics_of
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
        "--classes", type=_whole(2, 255), metavar="K",
        help="maps and masks are instead palette or grey PNG of class indices 0 to K-1, 0 being the background",
    )  # fmt: skip
    parser.add_argument(
        "--ignore", type=_whole(0, 255), nargs="+", action="extend", metavar="VALUE",
        help="with --classes: pixels where the mask has this value do not count, such as 255 (default: none)",
    )  # fmt: skip
    parser.add_argument(
        "--protocol", choices=PROTOCOLS, default="paper",
        help="float probabilities or 8 bits; a class that is nowhere has IoU 0 or none (default: paper)",
    )  # fmt: skip
    parser.add_argument("--size", type=_whole(1), help="squash both sides to N x N first (default: the masks' size)")
    parser.add_argument("--workers", type=_whole(1), help="processes; changes no result (default: one a core)")
    parser.add_argument("--json", action="store_true", help="print means and every image as JSON")
    parser.add_argument(
        "--as-cell", nargs="+", action="extend", metavar="KEY=VALUE",
        help="enter the scores among the results: method=pranet dataset=polyps test_set=kvasir (and seed=0)",
    )  # fmt: skip
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="results folder of --as-cell (default: results)"
    )
    options = parser.parse_args(words)
    if options.ignore and not options.classes:
        parser.error("--ignore: every pixel of a binary mask counts; of how many classes are these? --classes K")
    return options


def main(words: list[str] | None = None) -> int:
    """Entry point of ``python -m bench.score``."""
    options = parse(words)
    try:
        check_packages()
        from bench import imported

        target = imported.read_target(options.as_cell, options.classes or 1) if options.as_cell else None
        scores = _score(options)
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
        _print_table(scores, imported.class_names(target, scores.num_classes))
    if folder:
        print(f"entered in {folder}; python -m analysis.tables --results {options.results} shows it", file=sys.stderr)
    return 0


def _score(options: argparse.Namespace) -> MapScores:
    from bench import label_maps, maps

    settings = {"protocol": options.protocol, "size": options.size, "workers": options.workers}
    if not options.classes:
        return maps.score_folders(options.pred, options.gt, **settings)
    settings |= {"num_classes": options.classes, "ignore": options.ignore or ()}
    return label_maps.score_folders(options.pred, options.gt, **settings)


def _print_table(scores: MapScores, classes: list[str]) -> None:
    """The means, for people."""
    from rich.console import Console
    from rich.table import Table

    size = f"squashed to {scores.size} px" if scores.size else "at the masks' size"
    quantised = ", quantised: maps came in 8 bits" if scores.quantised else ""
    title = f"{len(scores.rows)} images, protocol {scores.protocol}, {size}{quantised}"
    table = Table("metric", "times 100", title=title, title_justify="left")
    table.columns[1].justify = "right"
    for key, metric in metrics_of(scores.num_classes).items():
        value, label = scores.mean[key], f"{metric.label} {ARROWS[metric.better]}"
        if metric.aggregate == "classes":
            for name, of_class in zip(classes, value, strict=True):
                table.add_row(f"{label} {name}", _shown(of_class))
        else:
            table.add_row(label, _shown(value))
    Console(highlight=False).print(table)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """The type of an option that takes a whole number in these bounds."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < low or (high is not None and int(text) > high):
            bounds = f"of {low} or more" if high is None else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"{text}: a whole number {bounds}")
        return int(text)

    return read


if __name__ == "__main__":
    sys.exit(main())
