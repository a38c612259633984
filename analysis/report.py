"""``python -m analysis.report``: everything the results say on one page, which opens from disk without a network.

Tables, comparisons, rankings and figures are those of the other commands; the figures of ``analysis.figures`` are drawn
first. Like a table, the page is a pure function of the files in the results folder: it holds no time of its making.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis import figures, probe, speed_tables
from analysis.comparison.comparing import compare
from analysis.comparison.places import places
from analysis.comparison.ranking import rank
from analysis.drawing.figure import read_cards
from analysis.layout import Table
from analysis.reporting import about, compared
from analysis.reporting.behind import Behind, behind
from analysis.reporting.gallery import Gallery, missing
from analysis.reporting.html import Markup, join, tag
from analysis.reporting.page import Section, page
from analysis.reporting.provenance import read_made
from analysis.reporting.scores import score_tables
from analysis.results import NoResults, Results, read_results
from analysis.speed import read_measurements
from analysis.tables import PROTOCOLS, make_tables

TITLE = "Parameter-efficient fine-tuning of Segment Anything"
PAPER = "https://arxiv.org/abs/2401.17868"

MOST_CHARACTERS = 13_000_000
"""Of a page, as far as its figures decide."""


@dataclass(frozen=True)
class Contents:
    """What a results folder gives a report; ``unread`` has a line for each thing that could not be used."""

    folder: Path
    protocol: str
    results: Results
    tables: Sequence[Table]
    cells: Behind
    unread: Sequence[str]

    @property
    def options(self) -> str:
        """What follows a command for it to be about these results."""
        return "" if self.folder == Path("results") else f" --results {shlex.quote(self.folder.as_posix())}"


def read(folder: Path, *, protocol: str = "paper") -> Contents:
    """The results and all tables of all kinds.

    Raises:
        NoResults: nothing is done; the message names the next command.
    """
    probes, unread_probes = probe.read_probes(folder)
    measured, unread_speeds = read_measurements(folder)
    results = read_results(folder, needed=not (measured or probes))
    table0 = probe.probe_table(probes)
    tables = [
        *make_tables(results, protocol=protocol),
        *speed_tables.speed_tables(measured),
        *([table0] if table0 else []),
    ]
    cells = behind(read_made(folder, probes), results, protocol)
    return Contents(folder, protocol, results, tables, cells, (*results.skipped, *unread_speeds, *unread_probes))


def html(contents: Contents, out: Path, *, not_drawn: Sequence[str] = ()) -> str:
    """The page, with the figures that lie in ``figures`` of the results folder.

    Args:
        out: where it will lie, from where it links to the figures' files.
        not_drawn: a line on each figure that could not be drawn.
    """
    folder, protocol, results, cells = contents.folder, contents.protocol, contents.results, contents.cells
    comparisons = compare(results, folder, protocol=protocol)
    rankings = rank(results, protocol=protocol)
    runs = compared.Runs(places(results, protocol=protocol), cells)
    numbers = [
        Section("verdict", "Verdict", compared.verdicts(comparisons, rankings, runs)),
        Section("tables", "Tables", score_tables(contents.tables, cells, contents.options)),
        Section("comparisons", "Comparisons", compared.comparisons_in_full(comparisons, runs)),
        Section("ranks", "Ranks", compared.rankings_in_full(rankings, cells)),
    ]
    facts = [
        Section("cells", "Cells", join(about.broken(cells.made, contents.options), about.all_cells(cells.made))),
        Section("commands", "Commands", _commands(contents.options)),
    ]
    cards, unread = read_cards(folder / "figures")
    room = MOST_CHARACTERS - sum(len(section.body) for section in numbers)
    gallery = Gallery(folder / "figures", out.parent, cards, cells, room=room)
    pictures = Section("figures", "Figures", join(gallery.shown(), missing(cards, not_drawn, contents.options)))
    lead = join(
        _introduction(protocol),
        about.warnings(results, cells.made, (*contents.unread, *unread)),
        about.facts(results, cells.made, folder.as_posix()),
    )
    sections = [section for section in (*numbers, pictures, *facts) if section.body]
    return page(TITLE, lead, sections, cells.listed(), contents.options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws the figures and writes the page, whose path is printed last; the exit code is 2 without any result."""
    parser = argparse.ArgumentParser(prog="python -m analysis.report", description="Write all results as one page.")
    parser.add_argument("--results", type=Path, default=Path("results"), help="the results folder (default: results)")
    parser.add_argument("--out", type=Path, help="the page (default: RESULTS/report.html)")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="paper", help="how it was scored (default: paper)")
    parser.add_argument(
        "--keep-figures",
        action="store_true",
        help="draw none, and show those that are there (thousands of cells: minutes)",
    )
    options = parser.parse_args(arguments)
    out, not_drawn = options.out or options.results / "report.html", []
    try:
        contents = read(options.results, protocol=options.protocol)
        if not options.keep_figures:
            folder = options.results / "figures"
            figures.write_figures(contents.results, folder, protocol=options.protocol, tell=not_drawn.append)
        text = html(contents, out, not_drawn=not_drawn)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8", newline="\n")
    except (NoResults, OSError) as error:
        print(f"analysis.report: {error}", file=sys.stderr)
        return 2
    for line in contents.unread:
        print(f"skipped {line}", file=sys.stderr)
    print(f"wrote {out} ({len(text.encode()) / 1e6:.1f} MB); it opens in any browser, without a network:")
    print(out.resolve().as_uri())
    return 0


def _introduction(protocol: str) -> Markup:
    paper = tag("a", "Convolution Meets LoRA (ICLR 2024)", href=PAPER)
    return tag(
        "p",
        "Methods of parameter-efficient fine-tuning, run by run, beside the numbers of ",
        paper,
        f". Protocol {protocol}. A number with a dotted line shows the runs behind it when it is chosen.",
    )


def _commands(options: str) -> Markup:
    lines = {
        "analysis.tables": "these tables in a terminal, and as Markdown, csv and LaTeX",
        "analysis.compare": "these comparisons; --against METHOD chooses what all are compared with",
        "analysis.figures": "the figures that need no images",
        "analysis.report": "this page; --protocol literature for scores at the masks' own size",
    }
    items = [tag("li", tag("code", f"python -m {module}{options}"), f": {said}") for module, said in lines.items()]
    ledger = tag(
        "li", tag("code", "python -m analysis.tables --ledger"), ": what the paper's own numbers disagree about"
    )
    return tag("ul", items, ledger)


if __name__ == "__main__":
    sys.exit(main())
