"""``python -m methods``: what methods there are and what they train; ``python -m methods check NAME`` tries one.

Counts come from models on torch's meta device: nothing is allocated or drawn, so any backbone is counted at once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import torch

from bench.registry import assignments
from methods import Context, create, registry
from methods.sam import SIZES, size_of


def count(name: str, backbone: str, classes: int = 1) -> dict[str, Any]:
    """One method's parameters on a backbone at its native image size, and what the paper prints for vit_h."""
    method = create(name)
    side = size_of(backbone).native
    with torch.device("meta"):
        model = method.build(Context(num_classes=classes, backbone=backbone, checkpoint="none", image_size=side))
    found = model.count()
    return {
        "name": name,
        **found,
        "share_percent": round(100 * found["trainable"] / found["total"], 4),
        "paper_trainable_m": method.paper_trainable_m,
        "evidence": method.evidence,
    }


def show(rows: Sequence[dict[str, Any]], backbone: str, classes: int) -> None:
    """The list for people."""
    from rich.console import Console
    from rich.table import Table

    several = f", {classes} classes, {Context().mask_tokens} queries" if classes > 1 else ""
    title = f"methods on {backbone}{several}; the paper's counts are for vit_h"
    table = Table(box=None, header_style="bold", title=title, title_justify="left", padding=(0, 2, 0, 0))
    for column, side in [("method", "left"), ("trainable", "right"), ("total", "right"), ("%", "right")]:
        table.add_column(column, justify=side, no_wrap=True)
    table.add_column("paper M", justify="right", no_wrap=True)
    table.add_column("structure", no_wrap=True)
    for row in rows:
        paper = "" if row["paper_trainable_m"] is None else f"{row['paper_trainable_m']:.2f}"
        numbers = f"{row['trainable']:,}", f"{row['total']:,}", f"{row['share_percent']:.2f}"
        table.add_row(row["name"], *numbers, paper, row["evidence"])
    Console(highlight=False).print(table)


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
    options = parser.parse_args(words)
    if options.classes < 1:
        parser.error(f"--classes {options.classes}: 1 for binary masks, or the number of classes with the background")
    try:
        if options.command == "check":
            from methods.check import check_method

            example = 'check "conv_lora+vpt" vpt.num_tokens=5'
            parameters = assignments(options.parameters, name="check", form="KEY=VALUE", example=example)
            return check_method(options.name, parameters, backbone=options.check_backbone)
        names = [name for name in registry.names() if options.classes == 1 or create(name).several_classes]
        rows = [count(name, options.backbone, options.classes) for name in names]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        show(rows, options.backbone, options.classes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
