"""Tables as text: how a number is written everywhere, and the formats Markdown and csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from analysis.agreement import OUTSIDE, WITHIN
from analysis.caption import DAGGER, DOUBLE_DAGGER
from analysis.layout import Column, Entry, Table, cut

ARROWS = {"higher": " ↑", "lower": " ↓", "": ""}
MOST_NUMBERS = 15
SIZE_HEADING = "Params (M) / %"
NOT_RUN = "not run"
_EMPHASIS = {"bold": "**{}**", "underline": "<u>{}</u>", "": "{}"}
CSV_COLUMNS = (
    "table", "setting", "protocol", "row", "dataset", "test_set", "metric", "mean", "standard_error", "n", "seeds",
    "paper_value", "paper_standard_error", "difference", "spread", "imported", "not_run",
)  # fmt: skip


def pieces(entry: Entry, column: Column) -> tuple[str, str, str]:
    """Our number in three parts: the mean, its error, and remarks: n where it is below plan, and the daggers.

    Without a number the first part is empty, or says that there will be none.
    """
    if entry.ours is None:
        return NOT_RUN if entry.not_run else "", "", ""
    error, n = entry.ours.standard_error, entry.ours.n
    remarks = {f"(n={n})": entry.below_plan, DAGGER: entry.stale, DOUBLE_DAGGER: entry.imported}
    return (
        f"{entry.ours.mean:.{column.decimals}f}",
        "" if error is None else f" ± {error:.{column.error_decimals}f}",
        "".join(f" {remark}" for remark, said in remarks.items() if said),
    )


def paper_pieces(entry: Entry) -> tuple[str, str]:
    """The paper's number and its error, as printed there."""
    if entry.paper is None:
        return "", ""
    error = entry.paper.standard_error
    return entry.paper.value, f" ± {error}" if error else ""


def difference(entry: Entry, column: Column) -> str:
    """Ours minus the paper's, always with its sign."""
    if entry.difference is None:
        return ""
    return f"{round(entry.difference, column.decimals) + 0.0:+.{column.decimals}f}"


def spread(entry: Entry) -> str:
    """Whether ours lies within or outside the paper's spread; empty where it prints none, which a note says."""
    return entry.spread if entry.spread in (WITHIN, OUTSIDE) else ""


def emphasis(entry: Entry) -> str:
    """How our number is printed: "bold", "underline" or plainly, ""."""
    return "bold" if entry.rank == 1 else "underline" if entry.rank == 2 or entry.above else ""


def paper_emphasis(entry: Entry) -> str:
    """How the paper's number is printed."""
    return "underline" if entry.paper_above else ""


def heading(column: Column) -> str:
    """The metric and the direction in which it is better."""
    return column.label + ARROWS[column.better]


def markdown(table: Table) -> str:
    """A Markdown document: the caption, a table for each group of columns, several for a wide one, the notes."""
    parts = [f"# {escape(table.title)}", *(f"**{escape(line)}**" for line in table.caption.warnings)]
    parts.append(escape(table.caption.text))
    groups = table.groups()
    most = MOST_NUMBERS // (1 + table.has_paper + table.has_difference)
    for name, columns in groups.items():
        parts += [f"## {escape(name)}"] if len(groups) > 1 else []
        parts += [pipes(_markdown_rows(table, piece)) for piece in cut(columns, most)]
    return "\n\n".join([*parts, *(escape(note) for note in table.caption.notes)]) + "\n"


def long_csv(table: Table) -> str:
    """One line per number, with full precision, in the printed scale."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in table.rows:
        for column in table.columns:
            entry = table.entries[row.label, column]
            run = entry.ours
            writer.writerow((
                table.name, table.setting, table.protocol, row.label, column.data, column.test_set, column.metric,
                *((run.mean, run.standard_error, run.n) if run else (None, None, None)),
                " ".join(str(seed) for seed in entry.seeds),
                *((entry.paper.value, entry.paper.standard_error) if entry.paper else (None, None)),
                entry.difference, entry.spread or None, "yes" if entry.imported else None, entry.not_run or None,
            ))  # fmt: skip
    return text.getvalue()


def _markdown_rows(table: Table, columns: Sequence[Column]) -> Iterable[list[str]]:
    """The heading and the rows of one group; the paper's number stands to the right of ours."""
    paper, diff, sizes = table.has_paper, table.has_difference, table.has_sizes
    yield ["Method", *([SIZE_HEADING, *(["paper"] if paper else [])] if sizes else [])] + [
        text
        for column in columns
        for text in [escape(heading(column)), *(["paper"] if paper else []), *(["difference"] if diff else [])]
    ]
    for row in table.rows_of(columns):
        cells = [escape(row.label), *([row.size, *([row.paper_size] if paper else [])] if sizes else [])]
        for column in columns:
            entry = table.entries[row.label, column]
            cells.append(_EMPHASIS[emphasis(entry)].format("".join(pieces(entry, column))))
            cells += [_EMPHASIS[paper_emphasis(entry)].format("".join(paper_pieces(entry)))] if paper else []
            cells += [f"{difference(entry, column)} {spread(entry)}".rstrip()] if diff else []
        yield cells


def escape(text: str) -> str:
    """Text in which Markdown sees no marks."""
    for character in "\\|*<[":
        text = text.replace(character, f"\\{character}")
    return text


def pipes(rows: Iterable[list[str]]) -> str:
    """Rows as a Markdown table, padded so that it can be read as plain text too."""
    rows = list(rows)
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(rows[0]))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    first, *rest = widths
    padded = [[row[0].ljust(first), *(cell.rjust(w) for cell, w in zip(row[1:], rest, strict=True))] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [padded[0], rule, *padded[1:]])
