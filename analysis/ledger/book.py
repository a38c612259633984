"""The ledger as a whole: all checks over all lines, as text for a terminal and as Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from analysis import paper
from analysis.ledger import bounds, claims, counts, repeats
from analysis.ledger.finding import Check, Finding, lines_of
from analysis.render import escape, pipes

TITLE = "What the numbers of Convolution Meets LoRA disagree about"
NAME = "ledger.md"
MOST_UNBROKEN = 15  # characters of a column that is not broken, however narrow the terminal
CHECKS: tuple[Check, ...] = (
    repeats.repeated, repeats.variants, bounds.means, counts.decoders, counts.ratios, counts.whole_models,
    claims.iterations, claims.few_shots, claims.scales, claims.leads, claims.spreads, claims.corrected,
    bounds.label_mae, bounds.zero_errors, bounds.ranges, bounds.twins, bounds.dice, bounds.thresholded, bounds.e_and_s,
)  # fmt: skip
ERRORS = (
    "Errors are the printed standard errors of means of three runs, two of them together where both are printed; a "
    "single run lies within twice that of such a mean in two of three cases."
)


def ledger(frame: pd.DataFrame | None = None) -> list[Finding]:
    """What the checks find in the paper's lines.

    Args:
        frame: other lines than those of ``paper.csv``.
    """
    lines = lines_of(paper.read_paper() if frame is None else frame)
    return [finding for check in CHECKS for finding in check(lines)]


def markdown(findings: Sequence[Finding]) -> str:
    """The ledger as a Markdown document."""
    found, agreed = _divided(findings)
    parts = [f"# {TITLE}", _introduction(found, agreed)]
    for number, finding in enumerate(found, 1):
        parts += [f"## {number}. {escape(finding.title)}", f"Compared: {finding.checked}."]
        parts += [pipes([list(map(escape, row)) for row in (finding.headings, *finding.rows)]), escape(finding.meaning)]
    parts += ["## Checked, and found to agree", "\n".join(f"* {escape(_agreement(finding))}" for finding in agreed)]
    return "\n\n".join(parts) + "\n"


def show(findings: Sequence[Finding], console: Console) -> None:
    """Prints the ledger."""
    found, agreed = _divided(findings)
    console.print(Text(TITLE, style="bold"))
    console.print(Padding(Text(_introduction(found, agreed), style="dim"), (0, 0, 0, 2)))
    for number, finding in enumerate(found, 1):
        console.print()
        console.print(Text(f"{number}. {finding.title}", style="bold"))
        grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="")
        for heading, texts in zip(finding.headings, zip(*finding.rows, strict=True), strict=True):
            width = max(map(len, [*texts, *heading.split()]))
            grid.add_column("\n".join(textwrap.wrap(heading, width)), no_wrap=width <= MOST_UNBROKEN, overflow="fold")
        for row in finding.rows:
            grid.add_row(*map(Text, row))
        console.print(Padding(grid, (0, 0, 0, 2)))
        console.print(Padding(Text(f"Compared: {finding.checked}. {finding.meaning}"), (0, 0, 0, 2)))
    console.print()
    console.print(Text("Checked, and found to agree", style="bold"))
    for finding in agreed:
        console.print(Padding(Text(_agreement(finding)), (0, 0, 0, 2)))


def write(findings: Sequence[Finding], folder: Path) -> Path:
    """Writes ``folder / "ledger.md"``; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    path.write_text(markdown(findings), encoding="utf-8", newline="\n")
    return path


def _divided(findings: Sequence[Finding]) -> tuple[list[Finding], list[Finding]]:
    return [one for one in findings if one.rows], [one for one in findings if not one.rows]


def _introduction(found: Sequence[Finding], agreed: Sequence[Finding]) -> str:
    return f"{len(found)} of {len(found) + len(agreed)} checks of the printed numbers find something. {ERRORS}"


def _agreement(finding: Finding) -> str:
    return f"{finding.title}: {finding.checked}."
