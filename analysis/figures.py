"""``python -m analysis.figures``: every run of every method as a dot, beside the mean and its standard error.

Like a table, a figure is a pure function of the files in ``results/cells``, to the byte.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

from analysis.building import plain_tables
from analysis.layout import Column, Table
from analysis.render import heading
from analysis.results import NoResults, Results, read_results
from analysis.source import Source, sources
from analysis.tables import PROTOCOLS

DOTS, MEAN = "#4c72b0", "#222222"


def draw(table: Table, column: Column, source: Source, path: Path) -> None:
    """One metric of a plain table: a row a method, in the table's order, as an SVG file.

    Args:
        table: with ``column`` among its columns.
        source: what the table was made from; it holds the single runs.
    """
    import matplotlib

    matplotlib.use("svg")
    # Text stays text; names inside the file depend on nothing but the figure.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": table.name, "font.size": 9})
    from matplotlib import pyplot

    rows = [row.label for row in table.rows if table.entries[row.label, column].ours][::-1]
    figure, axes = pyplot.subplots(figsize=(6.4, 0.9 + 0.28 * len(rows)), layout="constrained")
    scores = source.scores[column.test_set, column.metric]
    for place, label in enumerate(rows):
        entry = table.entries[label, column]
        values = [scores[cell] * column.scale for cell in entry.cells]
        axes.plot(values, [place] * len(values), "o", color=DOTS, alpha=0.6, markersize=5, markeredgewidth=0)
        error = entry.ours.standard_error
        axes.errorbar(entry.ours.mean, place, xerr=error, fmt="|", color=MEAN, markersize=11, capsize=3, linewidth=1.2)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel(f"{heading(column)}   (dots: runs; bars: mean ± standard error)")
    axes.set_title("\n".join([column.group, *wrap(table.setting, 90)]), fontsize=8, loc="left")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(figure)


def write_figures(results: Results, folder: Path, *, protocol: str = "paper") -> list[Path]:
    """A figure of the leading metric for each setting, dataset and test set with two methods or more."""
    written = []
    for source in sources(results, protocol):
        for table in [] if source.setting.is_imported else plain_tables(source):
            for column in _leading(table):
                if sum(table.entries[row.label, column].ours is not None for row in table.rows) > 1:
                    folder.mkdir(parents=True, exist_ok=True)
                    path = folder / f"{table.name}-{column.test_set}-{column.metric}.svg"
                    draw(table, column, source, path)
                    written.append(path)
    return written


def _leading(table: Table) -> list[Column]:
    """The first metric of each test set."""
    first: dict[tuple[str, str], Column] = {}
    for column in table.columns:
        first.setdefault((column.data, column.test_set), column)
    return list(first.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the figures; the exit code is 2 where there is nothing to draw."""
    parser = argparse.ArgumentParser(prog="python -m analysis.figures", description="Draw the runs of every method.")
    parser.add_argument("--results", type=Path, default=Path("results"), help="the results folder (default: results)")
    parser.add_argument("--out", type=Path, help="where the figures are written (default: RESULTS/figures)")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="paper", help="how it was scored (default: paper)")
    options = parser.parse_args(arguments)
    try:
        results = read_results(options.results)
        written = write_figures(results, options.out or options.results / "figures", protocol=options.protocol)
        if not written:
            raise NoResults(f"no two methods of {options.results} share a dataset and a setting: nothing to compare")
    except (NoResults, OSError) as error:
        print(f"analysis.figures: {error}", file=sys.stderr)
        return 2
    print(*(f"wrote {path}" for path in written), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
