"""``python -m analysis.tables``: the tables of the paper, and plain ones, made again from the results.

A table is a pure function of the files in ``results/cells`` and ``results/probe``: no time, no host and no order of
folders enters it. ``--check`` writes nothing and tells whether the tables of a folder are still those that the results
give. ``--ledger`` needs no results: it shows what the paper's own numbers disagree about.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from analysis import committed, probe, speed_tables, terminal
from analysis.building import paper_table, plain_tables
from analysis.latex import latex
from analysis.layout import Table
from analysis.ledger import book
from analysis.paper import TITLES, own_rows
from analysis.render import long_csv, markdown
from analysis.results import NoResults, Results, next_command, read_results
from analysis.setting import PAPER_PROTOCOL
from analysis.source import sources
from analysis.speed import read_measurements

FORMATS: dict[str, Callable[[Table], str]] = {"md": markdown, "csv": long_csv, "tex": latex}
SPEED_TABLES = {str(number) for number in speed_tables.TITLES}
PROBE_TABLE = str(probe.NUMBER)
_NUMBERS = sorted({PROBE_TABLE, *map(str, TITLES), *SPEED_TABLES}, key=int)
PROTOCOLS = (PAPER_PROTOCOL, "literature")


def make_tables(results: Results, *, protocol: str = "paper", wanted: Sequence[str] = ()) -> list[Table]:
    """All tables, setting by setting, the setting with most done cells first.

    Args:
        wanted: numbers of the paper's tables and names of datasets; nothing means every table of the paper with
            a row that was run and that no earlier one has, and a plain one for each dataset with other results.
    """
    tables: list[Table] = []
    for source in sources(results, protocol):
        numbers = [number for number in TITLES if not wanted or str(number) in wanted]
        made = {number: table for number in numbers if (table := paper_table(number, source))}
        papers = [table for number, table in made.items() if wanted or any(map(table.was_run, own_rows(number)))]
        tables += papers
        if not wanted:
            tables += plain_tables(source, without=papers)
        for name in dict.fromkeys(wanted):
            tables += plain_tables(source, only=name)
    return tables


def texts(tables: Sequence[Table], formats: Sequence[str]) -> dict[str, str]:
    """Each table in each format, by the name of its file: ``<name>.<format>``."""
    return {f"{table.name}.{ending}": FORMATS[ending](table) for table in tables for ending in formats}


def write_tables(tables: Sequence[Table], folder: Path, formats: Sequence[str]) -> None:
    """Writes each table in each format into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts(tables, formats).items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables and writes them; the exit code is 2 where there is nothing to show.

    With ``--check`` it is 1 where a table of the folder is not what the results give.
    """
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an ASCII terminal shows "?" for "±" rather than a traceback
    console = Console(highlight=False)
    folder, formats = _folder(options), options.format or list(FORMATS)
    try:
        if options.ledger:
            findings = book.ledger()
            book.show(findings, console)
            console.print(f"wrote {book.write(findings, folder)}", soft_wrap=True, markup=False)
            return 0
        tables = _tables(options)
        if options.check:
            return _check(options, tables, formats)
        for table in tables:
            terminal.show(table, console)
        write_tables(tables, folder, formats)
    except (NoResults, OSError) as error:
        print(f"analysis.tables: {error}", file=sys.stderr)
        return 2
    endings = formats[0] if len(formats) == 1 else f"{{{','.join(formats)}}}"
    for table in tables:
        console.print(f"wrote {folder / table.name}.{endings}", soft_wrap=True, markup=False)
    return 0


def _tables(options: argparse.Namespace) -> list[Table]:
    """All wanted tables of all kinds; what could not be read, and what is wanted in vain, is said.

    Raises:
        NoResults: an unknown table, or no table at all.
    """
    probes, unread_probes = probe.read_probes(options.results)
    measured, unread = read_measurements(options.results)
    results = read_results(options.results, needed=not (measured or probes))
    for line in (*results.skipped, *unread, *unread_probes):
        print(f"skipped {line}", file=sys.stderr)
    wanted = _wanted(options, results)
    table0 = probe.probe_table(probes) if not wanted or PROBE_TABLE in wanted else None
    tables = [table0] if table0 else []
    tables += make_tables(results, protocol=options.protocol, wanted=wanted)
    tables += speed_tables.speed_tables(measured, wanted) if not wanted or set(wanted) & SPEED_TABLES else []
    absent = [name for name in wanted if name not in {table.subject for table in tables}]
    if not tables:
        raise NoResults(_nothing(options, wanted))
    if absent:
        print(_nothing(options, absent), file=sys.stderr)
    return tables


def _folder(options: argparse.Namespace) -> Path:
    """Where the tables are written, or lie to be checked."""
    asked = options.check if isinstance(options.check, Path) else options.out
    return asked or options.results / "tables"


def _check(options: argparse.Namespace, tables: Sequence[Table], formats: Sequence[str]) -> int:
    """Prints what in the folder is not as ``tables``; 1 if anything is not.

    A superfluous file is found where all tables were asked for, among those of the protocol.
    """
    folder, expected = _folder(options), texts(tables, formats)
    others = tuple(f"-{other}" for other in PROTOCOLS if other not in (PAPER_PROTOCOL, options.protocol))

    def belongs(name: str) -> bool:
        stem, _, ending = name.rpartition(".")
        of_protocol = options.protocol == PAPER_PROTOCOL or stem.endswith(f"-{options.protocol}")
        known = ending in formats and of_protocol and not stem.endswith(others)
        return known and name != book.NAME and not options.table

    found = committed.disagreements(expected, folder, belongs)
    for line in found:
        print(line)
    files = f"{len(expected)} file{'' if len(expected) == 1 else 's'} of tables"
    if not found:
        print(f"{files} in {folder} are what {options.results} gives")
        return 0
    protocol = "" if options.protocol == PAPER_PROTOCOL else f" --protocol {options.protocol}"
    print(
        f"{len(found)} in {folder} not as {options.results} gives them ({files}). "
        f"Next: python -m analysis.tables --results {options.results} --out {folder}{protocol}"
    )
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m analysis.tables", description="Make the tables from the results.")
    parser.add_argument("--results", type=Path, default=Path("results"), help="the results folder (default: results)")
    parser.add_argument("--out", type=Path, help="where the tables are written (default: RESULTS/tables)")
    parser.add_argument(
        "--table", action="append", default=[], metavar="NUMBER|DATASET",
        help=f"a table of the paper ({', '.join(_NUMBERS)}) or a dataset; may be repeated (default: all)",
    )  # fmt: skip
    parser.add_argument("--protocol", choices=PROTOCOLS, default="paper", help="how it was scored (default: paper)")
    parser.add_argument("--format", action="append", choices=list(FORMATS), help="may be repeated (default: all)")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--check", nargs="?", type=Path, const=True, metavar="FOLDER",
        help="write nothing; exit with 1 if the tables in FOLDER (default: OUT) are not what the results give",
    )  # fmt: skip
    instead.add_argument(
        "--ledger", action="store_true", help="show what the paper's own numbers disagree about, and write ledger.md"
    )
    return parser


def _wanted(options: argparse.Namespace, results: Results) -> list[str]:
    known = [*_NUMBERS, *sorted(set(results.cells["dataset"]))]
    for name in options.table:
        if name not in known:
            usual = next(iter(TITLES))
            raise NoResults(
                f"unknown table {name!r}. Known: {', '.join(known)}. Next: python -m analysis.tables --table {usual}"
            )
    return options.table


def _nothing(options: argparse.Namespace, names: Sequence[str]) -> str:
    subject = f"table {', '.join(names)}" if names else "any table"
    told = f"no done cell below {options.results / 'cells'} belongs to {subject}"
    if names == [PROBE_TABLE]:
        return f"no probe is below {options.results / 'probe'}. Next: python -m bench.probe --help"
    matrix = next((f"table{name}" for name in names if name.isdecimal() and name != PROBE_TABLE), "table1")
    if names and set(names) <= SPEED_TABLES - set(map(str, TITLES)):
        return f"{told}. {next_command(options.results, matrix, 'bench.speed')}"
    return f"{told} under the protocol {options.protocol}. {next_command(options.results, matrix)}"


if __name__ == "__main__":
    sys.exit(main())
