"""``python -m methods``: what methods there are and what they train.

``python -m methods check NAME`` tries one, ``python -m methods export ID --out DIR`` writes down what one has learned.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.registry import assignments
from methods import listing, registry
from methods.sam import SIZES


def main(words: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m methods``."""
    parser = argparse.ArgumentParser(prog="python -m methods", description=__doc__.split("\n\n")[0])
    parser.add_argument("--backbone", default="vit_h", help=f"{', '.join(SIZES)} (default: vit_h)")
    parser.add_argument("--classes", type=int, default=1, help="classes with the background (default: 1, binary masks)")
    parser.add_argument("--json", action="store_true", help="a list of objects instead of a table")
    commands = parser.add_subparsers(dest="command")
    check = commands.add_parser("check", help="run the conformance suite on a method")
    check.add_argument("name", help="a method, or several joined by +")
    check.add_argument(
        "parameters", nargs="*", metavar="KEY=VALUE", help="its parameters, e.g. rank=6 or vpt.num_tokens=5"
    )
    check.add_argument("--backbone", dest="check_backbone", default="tiny", help="default: tiny")
    export = commands.add_parser("export", help="write what a done cell has learned into a folder of its own")
    export.add_argument("id", help="the cell's id, or the beginning of it")
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    export.add_argument("--results", type=Path, default=Path("results"), help="results folder (default: results)")
    export.add_argument("--merged", action="store_true", help="add a checkpoint for segment_anything")
    export.add_argument("--checkpoint", metavar="PATH", help="the backbone's weights, where they are not found by name")
    options = parser.parse_args(words)
    if options.classes < 1:
        parser.error(f"--classes {options.classes}: 1 for binary masks, or the number of classes with the background")
    try:
        if options.command == "check":
            from methods.check import check_method

            example = 'check "conv_lora+vpt" vpt.num_tokens=5'
            parameters = assignments(options.parameters, name="check", form="KEY=VALUE", example=example)
            return check_method(options.name, parameters, backbone=options.check_backbone)
        if options.command == "export":
            return _export(options)
        return _list(options)
    except ValueError as error:
        if os.environ.get("BENCH_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2


def _export(options: argparse.Namespace) -> int:
    from methods.export import export, find

    cell = find(options.results, options.id)
    for path in export(cell, options.out, merged=options.merged, checkpoint=options.checkpoint):
        print(f"{path}  {path.stat().st_size:,} bytes")
    return 0


def _list(options: argparse.Namespace) -> int:
    rows = listing.entries(options.backbone, options.classes)
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        listing.show(rows, options.backbone, options.classes)
    registry.tell()
    return 0


if __name__ == "__main__":
    sys.exit(main())
