"""The report of ``python -m datasets verify`` for people; :mod:`datasets.verify` says what it is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

LISTED = 20


def show(report: Mapping[str, Any], console: Console) -> None:
    """Print all of it, of long lists the first entries."""
    parameters = "".join(f" {key}={value}" for key, value in report["parameters"].items())
    console.print(f"{report['title']} ({report['dataset']}{parameters})", style="bold", soft_wrap=True)
    console.print(f"{report['layout']}" + (f", in {report['base']}" if report["base"] else ""), soft_wrap=True)
    console.print()
    _show_pairs(report, console)
    _show_contents(report, console)
    _show_classes(report, console)
    for part in ("problems", "leftovers"):
        for kind in report[part]:
            words = f"{kind['kind']}{', as published' if part == 'leftovers' else ''}"
            lines = [file["path"] + (f": {file['detail']}" if file["detail"] else "") for file in kind["files"]]
            _show_list(words, lines, console)
    _show_duplicates(report, console)
    for key, words in (("blank", "blank masks"), ("all_foreground", "masks of foreground alone")):
        _show_list(words, [f"{split} {name}" for split, names in report[key].items() for name in names], console)
    digests = "  ".join(f"{split} {digest[:12]}" for split, digest in report["digests"].items())
    console.print(f"digests of names and contents: {digests}", soft_wrap=True)
    console.print()
    for error in report["errors"]:
        console.print(f"error: {error}", style="red", soft_wrap=True)
    for warning in report["warnings"]:
        console.print(f"warning: {warning}", style="yellow", soft_wrap=True)
    _show_verdict(report, console)


def _table(*columns: str, left: Iterable[str] = ()) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if not place or column in left else "right", no_wrap=True)
    return table


def _show_pairs(report: Mapping[str, Any], console: Console) -> None:
    columns = {key: report[key] for key in ("usable", "published", "paper") if report[key]}
    table = _table("split", "pairs", *columns, "", left=("",))
    for split, pairs in report["splits"].items():
        numbers = [pairs, *(column.get(split) for column in columns.values())]
        lacks, more = report["missing"].get(split, 0), report["more"].get(split, 0)
        words = f"{lacks:,} missing" if lacks else f"{more:,} more" if more else ""
        table.add_row(split, *("" if number is None else f"{number:,}" for number in numbers), Text(words, "yellow"))
    console.print(table)
    console.print()


def _show_contents(report: Mapping[str, Any], console: Console) -> None:
    table = _table("split", "smallest", "median", "largest image", "least", "median", "most foreground")
    modes: Counter[str] = Counter()
    for split, found in report["images"].items():
        modes.update(found["modes"])
        sizes = [f"{width}x{height}" for width, height in found["sizes"].values()]
        shares = [f"{100 * share:.1f} %" for share in report["foreground"].get(split, {}).values()]
        table.add_row(split, *sizes, *shares)
    console.print(table)
    masks = report["masks"]
    console.print(f"images   {_modes(modes)}")
    console.print(
        f"masks    {_modes(masks['modes'])}; values {ranges(masks['levels'])}; {masks['rule']}", soft_wrap=True
    )
    console.print()


def _modes(modes: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} in mode {mode}" for mode, count in modes.items())


def ranges(levels: Sequence[int]) -> str:
    """Numbers in ascending order, neighbours joined: ``0-8, 247-255``."""
    runs = [[level for _, level in run] for _, run in groupby(enumerate(levels), key=lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _show_classes(report: Mapping[str, Any], console: Console) -> None:
    splits = [split for split, classes in report["classes"].items() if classes]
    if not splits:
        return
    table = _table("class", *(f"{split} images, pixels" for split in splits))
    for name in report["classes"][splits[0]]:
        found = [report["classes"][split][name] for split in splits]
        table.add_row(name, *(f"{one['images']:,}  {100 * one['pixels']:5.1f} %" for one in found))
    console.print(table)
    console.print()


def _show_duplicates(report: Mapping[str, Any], console: Console) -> None:
    groups = [" = ".join(f"{split} {name}" for split, name in group) for group in report["duplicates"]]
    _show_list("the same image file", groups, console)
    pairs = [
        f"{entry['similarity']:.3f}  {' '.join(entry['image'])} ~ {' '.join(entry['nearest'])}"
        + (f" and {entry['alike'] - 1:,} more" if entry["alike"] > 1 else "")
        for entry in report["near_duplicates"]
    ]
    _show_list("test images that resemble images for training or validation", pairs, console)


def _show_list(words: str, lines: Sequence[str], console: Console) -> None:
    if not lines:
        return
    console.print(f"{words} ({len(lines):,})", style="bold", soft_wrap=True)
    for line in lines[:LISTED]:
        console.print(f"  {line}", soft_wrap=True)
    if len(lines) > LISTED:
        console.print(f"  and {len(lines) - LISTED:,} more (--json names all)")
    console.print()


def _show_verdict(report: Mapping[str, Any], console: Console) -> None:
    pairs = sum(report["usable"].values())
    if not report["whole"]:
        console.print(f"not whole; {pairs:,} pairs are usable", style="bold red")
        if report["missing"]:
            console.print(f"How to get all of it: python -m datasets list {report['dataset']}")
        if report["problems"]:
            console.print("Fetch or repair these files, or train without them: --allow-broken")
    elif report["warnings"]:
        console.print(f"whole, with warnings: {pairs:,} pairs, every file usable", style="bold yellow")
    else:
        console.print(f"whole: {pairs:,} pairs, every file usable", style="bold green")
