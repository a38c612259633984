"""``python -m analysis.figures``: every figure that results alone give, without torch.

Like a table, a figure is a pure function of the files in the results folder, to the byte. What only some of its files
can tell (curves, single images, experts) is drawn of the cells that have them; a line says what is missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from analysis.drawing import differences, experts, learning, pareto, ranks, runs
from analysis.drawing.differences import Pair
from analysis.drawing.figure import FORMATS, Figure, write
from analysis.results import NoResults, Results, next_command, read_results
from analysis.tables import PROTOCOLS

KINDS: dict[str, Callable[..., list[Figure]]] = {
    module.KIND: module.figures for module in (runs, pareto, learning, differences, ranks, experts)
}


def make_figures(
    results: Results,
    folder: Path,
    *,
    protocol: str = "paper",
    kinds: Sequence[str] = tuple(KINDS),
    pair: Pair | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Figure]:
    """The figures of some kinds, kind by kind.

    Args:
        folder: the results folder, in which ``results`` were read.
        pair: the two rows of the figures of differences; by default the two best.
        tell: takes a line on each thing that cannot be drawn, with the command that makes what is missing.

    Raises:
        NoResults: a row of ``pair`` is not among the results.
    """
    made = []
    for kind in kinds:
        draw = partial(KINDS[kind], pair=pair) if kind == differences.KIND else KINDS[kind]
        made += draw(results, folder, protocol=protocol, tell=tell)
    return made


def write_figures(
    results: Results,
    out: Path,
    *,
    protocol: str = "paper",
    source: Path | None = None,
    formats: Sequence[str] = FORMATS,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Write all figures into ``out``; returns their files.

    Args:
        source: the results folder; the one that ``out`` lies in where none is given.
    """
    made = make_figures(results, source or out.parent, protocol=protocol, tell=tell)
    return [path for figure in made for path in write(figure, out, formats=formats)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the figures; the exit code is 2 where there is nothing to draw."""
    options = _parser().parse_args(arguments)
    folder, told = options.out or options.results / "figures", []
    kinds = list(dict.fromkeys(options.kind)) or ([differences.KIND] if options.pair else list(KINDS))
    pair = tuple(options.pair) if options.pair else None
    try:
        results = read_results(options.results)
        for line in results.skipped:
            print(f"skipped {line}", file=sys.stderr)
        made = make_figures(
            results, options.results, protocol=options.protocol, kinds=kinds, pair=pair, tell=told.append
        )
        for line in told:
            print(f"not drawn: {line}", file=sys.stderr)
        if not made:
            raise NoResults(f"nothing to draw of {', '.join(kinds)}. {next_command(options.results)}")
        for figure in made:
            write(figure, folder)
            print(f"wrote {folder / figure.card.name}.{{{','.join((*FORMATS, 'csv', 'json'))}}}")
    except (NoResults, OSError) as error:
        print(f"analysis.figures: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m analysis.figures", description="Draw figures from the results.")
    parser.add_argument("--results", type=Path, default=Path("results"), help="the results folder (default: results)")
    parser.add_argument("--out", type=Path, help="where the figures are written (default: RESULTS/figures)")
    parser.add_argument(
        "--kind", action="append", choices=list(KINDS), default=[], help="may be repeated (default: all)"
    )
    parser.add_argument("--protocol", choices=PROTOCOLS, default="paper", help="how it was scored (default: paper)")
    parser.add_argument(
        "--pair", nargs=2, metavar=("ROW", "ROW"),
        help="the two rows whose differences are drawn, as in tables (default: the two best)",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
