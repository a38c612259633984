"""How far it is: ``python -m bench.status --watch``, from any terminal, while cells run or not.

Reads files of the results folder and disturbs nobody.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from bench.durations import duration
from bench.overview import ERRORS, AtWork, Failure, Overview, overview
from bench.store import Results

SHOWN = 5
"""Errors, the newest ones."""
WATCH = 2.0
WIDE = 100
"""Columns of a terminal from which on there is room for more."""
INDENT = (0, 0, 0, 8)
COLOURS = {"done": "green", "running": "cyan", "interrupted": "yellow", **dict.fromkeys(ERRORS, "red")}


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line of ``python -m bench.status``."""
    parser = argparse.ArgumentParser(prog="python -m bench.status", description=__doc__.split("\n\n")[0])
    parser.add_argument("--results", type=Path, default=Path("results"), help="results folder (default: results)")
    parser.add_argument(
        "--watch",
        nargs="?",
        type=float,
        const=WATCH,
        metavar="SECONDS",
        help=f"look again every so many seconds until Ctrl-C (default: {WATCH:g})",
    )
    parser.add_argument("--json", action="store_true", help="everything as JSON, one line a look")
    return parser.parse_args(words)


def counted(seen: Overview) -> str:
    """All cells by state, in one line."""
    parts = [f"{count} {state}" for state, count in seen.counts.items()]
    total = sum(seen.counts.values())
    stale = f"; {seen.stale} of the done ones stale" if seen.stale else ""
    return f"{total} {'cell' if total == 1 else 'cells'}: {', '.join(parts) or 'nothing planned yet'}{stale}"


def _columns(one: AtWork) -> tuple[str, str, str, str]:
    """Epoch, rate, time since the start and time left."""
    return (
        f"{one.epoch}/{one.epochs}" if one.epochs else "",
        f"{one.images_per_second:.1f}" if one.images_per_second else "",
        duration(one.seconds),
        duration(one.seconds_left),
    )


def _place(one: AtWork, hosts: int) -> str:
    return f"{one.host} {one.device}" if hosts > 1 else one.device


def lines(seen: Overview) -> Iterator[str]:
    """Everything in plain lines."""
    yield counted(seen)
    for one in seen.at_work:
        epoch, rate, since, left = _columns(one)
        parts = [one.stage, epoch and f"epoch {epoch}", rate and f"{rate} images/s", f"for {since}"]
        parts += [f"{left} of training left" if left else ""]
        yield f"running {one.id} on {one.host} {one.device}: {', '.join(filter(None, parts))}"
    for failure in seen.failures[:SHOWN]:
        yield f"{failure.state} {failure.id}: {failure.reason}; {failure.log}"
    yield from _more(seen)


def _more(seen: Overview) -> Iterator[str]:
    """What to do about errors."""
    if seen.failures:
        rest = len(seen.failures) - SHOWN
        more = f"{rest} more such cells; " if rest > 0 else ""
        yield f"{more}why one of them will or will not run again: python -m bench.why ID"


def screen(seen: Overview, width: int) -> RenderableType:
    """Everything for a terminal of so many columns, 80 at least."""
    parts: list[RenderableType] = [_coloured(seen)]
    if seen.at_work:
        parts += [Text(), _at_work(seen.at_work, narrow=width < WIDE)]
    if seen.failures:
        parts += [Text(), *map(_failure, seen.failures[:SHOWN])]
    return Group(*parts, *(Text(line, style="dim") for line in _more(seen)))


def _coloured(seen: Overview) -> Text:
    text = Text(counted(seen), style="bold")
    for state, colour in COLOURS.items():
        text.highlight_regex(rf"\d+ {state}\b", colour)
    return text


def _at_work(running: Sequence[AtWork], *, narrow: bool) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("device", no_wrap=True)
    table.add_column("cell", no_wrap=True, min_width=20)
    table.add_column("stage", no_wrap=True, min_width=10, max_width=10 if narrow else None)
    numbers = {"epoch": 5, "images/s": 8, "for": 6, "ETA": 6}
    for name, least in numbers.items():
        if name != "for" or not narrow:
            table.add_column(name, no_wrap=True, justify="right", min_width=least)
    hosts = len({one.host for one in running})
    for one in running:
        epoch, rate, since, left = _columns(one)
        table.add_row(_place(one, hosts), one.id, one.stage, epoch, rate, *([] if narrow else [since]), left)
    return table


def _failure(failure: Failure) -> RenderableType:
    head = Text.assemble((f"{failure.state:<8}", COLOURS[failure.state]), failure.id)
    return Group(head, Padding(Text(failure.reason), INDENT), Padding(Text(failure.log, style="dim"), INDENT))


def look(results: Results, *, as_json: bool) -> None:
    """Print once what there is, for whatever reads it."""
    seen = overview(results)
    if as_json:
        print(json.dumps(asdict(seen)), flush=True)
    else:
        print(*lines(seen), sep="\n", flush=True)


def watch(results: Results, console: Console, seconds: float | None) -> None:
    """Show it in a terminal, once or every so many seconds."""
    if seconds is None:
        console.print(screen(overview(results), console.width))
        return
    with Live(screen(overview(results), console.width), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(seconds)
            live.update(screen(overview(results), console.width), refresh=True)


def main(words: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m bench.status``; 2 where there is no results folder."""
    options = parse(words)
    console, results = Console(markup=False, highlight=False, emoji=False), Results(options.results)
    if not (results.path / "cells").is_dir():
        next_step = "python -m bench.run --matrix NAME plans and runs cells; --results names another folder"
        print(f"error: {results.path / 'cells'} is no folder; {next_step}", file=sys.stderr)
        return 2
    try:
        if console.is_terminal and not options.json:
            watch(results, console, options.watch)
            return 0
        look(results, as_json=options.json)
        while options.watch is not None:
            time.sleep(options.watch)
            look(results, as_json=options.json)
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
