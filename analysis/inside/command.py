"""The command line that ``analysis.predictions`` and ``analysis.features`` share; torch is loaded by :func:`run`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.drawing.figure import Figure, write
from analysis.inside.picks import RULES, Pick, differences, means, pick
from analysis.inside.subjects import Subject, rows_named, subjects
from analysis.results import NoResults, canonical, read_results
from analysis.setting import short_hash
from analysis.tables import PROTOCOLS

if TYPE_CHECKING:
    from analysis.inside.showing import View
    from datasets import Split

PROTOCOL, IMAGES = "literature", 6


@dataclass(frozen=True)
class Shown:
    """What one figure shows.

    Attributes:
        subject: the test set and the cells.
        picks: the images, in the order of the rows, and ``rule``, why these.
        views: what is seen of each, by its identifier.
        scores: row -> image -> the mean over seeds.
        draw: the seed of the draw of images.
        device: where the models were asked.
        command: what draws it again.
        variant: what tells its name from that of the figure with the usual images and seed.
    """

    subject: Subject
    picks: Sequence[Pick]
    rule: str
    views: dict[str, View]
    scores: dict[str, dict[str, float]]
    draw: int
    device: str
    command: str
    variant: str


def parser(kind: str, description: str, methods: Sequence[str]) -> argparse.ArgumentParser:
    """The options; ``methods`` are shown where none are named."""
    made = argparse.ArgumentParser(prog=f"python -m analysis.{kind}", description=description)
    made.set_defaults(kind=kind, usual=tuple(methods))
    add = made.add_argument
    add("--results", type=Path, default=Path("results"), help="the results folder (default: results)")
    add("--out", type=Path, help="where the figures are written (default: RESULTS/figures)")
    add("--data-root", type=Path, metavar="DIR", help="where datasets lie (default: $BENCH_DATA_ROOT)")
    add("--methods", metavar="A,B", help=f"rows of the tables (default: {','.join(methods)}, those that were run)")
    add("--dataset", action="append", default=[], metavar="NAME", help="may be repeated (default: all)")
    add("--test-set", action="append", default=[], metavar="NAME", help="may be repeated (default: all)")
    images = "which images: drawn, or where the last two methods differ most, half where either is ahead"
    add("--rule", action="append", choices=RULES, help=f"{images} (default: a figure for each)")
    add("--images", type=_count, default=IMAGES, metavar="N", help=f"images in a figure (default: {IMAGES})")
    add("--seed", type=int, default=0, help="of the draw of images (default: 0)")
    add("--seed-of-cells", type=int, default=0, metavar="SEED", help="which trained models are opened (default: 0)")
    sizes = f"literature: at the masks' own size; paper: squashed to the cell's (default: {PROTOCOL})"
    add("--protocol", choices=PROTOCOLS, default=PROTOCOL, help=sizes)
    add("--device", default="cpu", help="cpu, cuda, cuda:1 (default: cpu)")
    return made


def run(options: argparse.Namespace, figure: Callable[[Shown], Figure], *, fewest: int) -> int:
    """Write a figure for each test set and rule; the exit code is 2 where there is none to write.

    Args:
        options: as :func:`parser` reads them.
        figure: makes one.
        fewest: methods that it needs.
    """
    folder = options.out or options.results / "figures"
    try:
        results = read_results(options.results)
        methods = rows_named(options.methods, results, options.protocol) if options.methods else options.usual
        chosen = {"protocol": options.protocol, "seed": options.seed_of_cells}
        chosen |= {"datasets": options.dataset, "test_sets": options.test_set}
        found, lacking = subjects(results, options.results, methods=methods, fewest=fewest, **chosen)
    except (NoResults, OSError) as error:
        print(f"analysis.{options.kind}: {error}", file=sys.stderr)
        return 2
    written, opened = [], {}
    for subject in found:
        try:
            for shown in _shown(subject, options, opened, lacking):
                written += write(figure(shown), folder)[-1:]
        except (ValueError, OSError) as error:
            lacking.append(str(error))
    for line in lacking:
        print(f"analysis.{options.kind}: {line}", file=sys.stderr)
    for path in written:
        print(f"wrote {path.with_suffix('')}.{{svg,pdf,png,csv,json}}")
    return 0 if written else 2


def _shown(
    subject: Subject, options: argparse.Namespace, opened: dict[str, dict[str, Split]], lacking: list[str]
) -> Iterator[Shown]:
    """What each rule shows of a subject; a rule that shows nothing adds a line to ``lacking``.

    Args:
        opened: the splits of each dataset that was opened before.

    Raises:
        NoResults, OSError, ValueError: a file, a dataset or a model is not there, or not what was scored.
    """
    from analysis.inside.showing import look
    from analysis.inside.trained import open_splits

    place, recorded = subject.place, subject.recorded()
    scores = means(recorded, binary=not subject.classes)
    picks = {}
    for rule in options.rule or RULES:
        try:
            picks[rule] = pick(rule, differences(scores), subject.rows, count=options.images, seed=options.seed)
        except NoResults as error:
            lacking.append(f"{place.column.data}/{subject.test_set}: {error}")
    if not picks:
        return
    if place.column.data not in opened:
        opened[place.column.data] = open_splits(subject.path(place.cells[0]), options.data_root)
    images = list(dict.fromkeys(one.image for those in picks.values() for one in those))
    views = look(subject, images, opened[place.column.data][subject.test_set], recorded, device=options.device)
    usual = options.methods is None and (options.images, options.seed, subject.seed) == (IMAGES, 0, 0)
    variant = "" if usual else f"-{short_hash(canonical([subject.rows, options.images, options.seed, subject.seed]))}"
    for rule, those in picks.items():
        told = _command(subject, options, rule)
        yield Shown(subject, those, rule, views, scores, options.seed, options.device, told, variant)


def _command(subject: Subject, options: argparse.Namespace, rule: str) -> str:
    """What draws a figure again; where the images lie is told by no file."""
    values = {
        "results": (options.results.as_posix(), "results"),
        "data-root": ("DIR" if options.data_root else None, None),
        "methods": (options.methods, None),
        "dataset": (subject.place.cells[0].dataset, ""),
        "test-set": (subject.test_set, ""),
        "rule": (rule, ""),
        "images": (options.images, IMAGES),
        "seed": (options.seed, 0),
        "seed-of-cells": (options.seed_of_cells, 0),
        "protocol": (options.protocol, PROTOCOL),
    }
    words = [word for name, (value, usual) in values.items() if value != usual for word in (f"--{name}", str(value))]
    return shlex.join(["python", "-m", f"analysis.{options.kind}", *words])


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text}: a whole number of 1 or more")
    return int(text)
