"""``python -m analysis.compare``: which differences between methods are more than luck.

Every method is compared with one of them on the same seeds and images (:mod:`analysis.comparison.comparing`), and all
are ranked over datasets (:mod:`analysis.comparison.ranking`). Both are pure functions of the files in ``results/cells``
and of ``--seed`` and ``--rounds``. ``docs/statistics.md`` says what the numbers mean.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from analysis.comparison import render, terminal
from analysis.comparison.comparing import ROUNDS, compare
from analysis.comparison.layout import Comparison, Ranking
from analysis.comparison.ranking import rank
from analysis.results import NoResults, next_command, read_results
from analysis.tables import PROTOCOLS

FEWEST_ROUNDS = 100


def write(comparisons: Sequence[Comparison], rankings: Sequence[Ranking], folder: Path) -> list[Path]:
    """Writes each as Markdown and csv; returns the paths without their endings."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {one.name: (render.markdown(one), render.long_csv(one)) for one in comparisons}
    texts |= {one.name: (render.ranking_markdown(one), render.ranking_csv(one)) for one in rankings}
    for name, both in texts.items():
        for ending, text in zip(("md", "csv"), both, strict=True):
            (folder / f"{name}.{ending}").write_text(text, encoding="utf-8", newline="\n")
    return [folder / name for name in texts]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints comparisons and rankings and writes them; the exit code is 2 where nothing can be compared."""
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an ASCII terminal shows "?" for an arrow rather than a traceback
    console = Console(highlight=False)
    try:
        comparisons, rankings = _made(options)
        written = write(comparisons, rankings, options.out or options.results / "comparisons")
    except (NoResults, OSError) as error:
        print(f"analysis.compare: {error}", file=sys.stderr)
        return 2
    for comparison in comparisons:
        terminal.show(comparison, console)
    for ranking in rankings:
        terminal.show_ranking(ranking, console)
    for path in written:
        console.print(f"wrote {path}.{{md,csv}}", soft_wrap=True, markup=False)
    return 0


def _made(options: argparse.Namespace) -> tuple[list[Comparison], list[Ranking]]:
    """What the options ask for.

    Raises:
        NoResults: nothing can be compared; the message says why.
    """
    results = read_results(options.results)
    for line in results.skipped:
        print(f"skipped {line}", file=sys.stderr)
    comparisons = compare(
        results, options.results, protocol=options.protocol, against=options.against, dataset=options.dataset,
        metric=options.metric, rounds=options.rounds, seed=options.seed,
    )  # fmt: skip
    if not comparisons:
        told = f"no done cell below {options.results / 'cells'} has such a score under the protocol {options.protocol}"
        raise NoResults(f"{told}. {next_command(options.results)}")
    if not any(comparison.differences for comparison in comparisons):
        why = [
            f"{one.data}/{one.test_set}: {line}" for one in comparisons for line in one.warnings if "COMPARED" in line
        ]
        raise NoResults("\n  ".join(why))
    return comparisons, rank(results, protocol=options.protocol)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.compare", description="Compare methods on the same seeds and images, and rank them."
    )
    parser.add_argument("--results", type=Path, default=Path("results"), help="the results folder (default: results)")
    parser.add_argument("--out", type=Path, help="where they are written (default: RESULTS/comparisons)")
    parser.add_argument("--dataset", help="compare on this dataset only (default: on all)")
    parser.add_argument("--metric", help="compare by this metric (default: the leading one of each dataset)")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="paper", help="how it was scored (default: paper)")
    parser.add_argument("--against", metavar="ROW", help="compare with this row (default: the best one of each place)")
    parser.add_argument(
        "--rounds", type=_at_least(FEWEST_ROUNDS), default=ROUNDS, help="of the bootstrap (default: %(default)s)"
    )
    parser.add_argument("--seed", type=_at_least(0), default=0, help="of the bootstrap (default: %(default)s)")
    return parser


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is too small; it must be {least} at least")
        return int(text)

    return number


if __name__ == "__main__":
    sys.exit(main())
