"""Tables as LaTeX: one ``table`` environment with booktabs, each method's line above the paper's.

Needs the packages booktabs and graphicx; a table wider than the page is scaled down to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from analysis.layout import Column, Row, Table, cut
from analysis.render import (
    SIZE_HEADING,
    difference,
    emphasis,
    heading,
    paper_emphasis,
    paper_pieces,
    pieces,
    spread,
)

MOST_COLUMNS = 8
_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "±": r"$\pm$", "√": r"$\surd$", "†": r"\dag{}", "‡": r"\ddag{}", "↑": r"$\uparrow$", "↓": r"$\downarrow$",
    "α": r"$\alpha$", "β": r"$\beta$", "φ": r"$\phi$",  # noqa: RUF001
}  # fmt: skip


def escape(text: str) -> str:
    """Text as LaTeX prints it: its special characters, the symbols the tables use, and two hyphens as two."""
    return "".join(_SPECIAL.get(character, character) for character in text).replace("--", "-{}-")


def latex(table: Table) -> str:
    """A ``table*`` environment; more than ``MOST_COLUMNS`` columns are split, between groups where that is enough."""
    text = " ".join([*(f"\\textbf{{{escape(w)}}}" for w in table.caption.warnings), escape(table.caption.text)])
    lines = [
        "% Needs \\usepackage{booktabs,graphicx}",
        "\\begin{table*}[t]",
        "\\centering\\scriptsize",
        f"\\caption{{{escape(table.title)}. {text}}}",
        f"\\label{{tab:{table.name}}}",
    ]
    for number, groups in enumerate(_parts(table)):
        lines += ["\\par\\medskip"] if number else []
        lines += _tabular(table, groups)
    lines += [f"\\par\\smallskip\\raggedright {escape(note)}" for note in table.caption.notes]
    return "\n".join([*lines, "\\end{table*}", ""])


def _parts(table: Table) -> list[dict[str, Sequence[Column]]]:
    parts: list[dict[str, Sequence[Column]]] = [{}]
    pieces = [(name, piece) for name, columns in table.groups().items() for piece in cut(columns, MOST_COLUMNS)]
    for name, columns in pieces:
        if parts[-1] and sum(map(len, parts[-1].values())) + len(columns) > MOST_COLUMNS:
            parts.append({})
        parts[-1][name] = columns
    return parts


def _tabular(table: Table, groups: dict[str, Sequence[Column]]) -> Iterator[str]:
    columns = [column for group in groups.values() for column in group]
    first = ["Method", *_size(table, SIZE_HEADING)]
    yield "\\resizebox{\\ifdim\\width>\\textwidth\\textwidth\\else\\width\\fi}{!}{%"
    yield f"\\begin{{tabular}}{{l{'r' * (len(columns) + len(first) - 1)}}}"
    yield "\\toprule"
    names = [f"\\multicolumn{{{len(group)}}}{{c}}{{{escape(name)}}}" for name, group in groups.items()]
    yield " & ".join([*[""] * len(first), *names]) + r" \\"
    start = len(first) + 1
    for group in groups.values():
        yield f"\\cmidrule(lr){{{start}-{start + len(group) - 1}}}"
        start += len(group)
    yield " & ".join([*first, *(escape(heading(column)) for column in columns)]) + r" \\"
    yield "\\midrule"
    for row in table.rows_of(columns):
        yield from _lines(table, row, columns)
    yield "\\bottomrule"
    yield "\\end{tabular}}"


def _lines(table: Table, row: Row, columns: list[Column]) -> Iterator[str]:
    """Ours, and below it the paper's with the difference in brackets."""
    entries = [table.entries[row.label, column] for column in columns]
    own = []
    for entry, column in zip(entries, columns, strict=True):
        own.append(_emphasise("".join(pieces(entry, column)), emphasis(entry)))
    yield " & ".join([escape(row.label), *_size(table, row.size), *own]) + r" \\"
    if not table.has_paper:
        return
    theirs = []
    for entry, column in zip(entries, columns, strict=True):
        number = _emphasise("".join(paper_pieces(entry)), paper_emphasis(entry))
        told = [f"${delta}$" if (delta := difference(entry, column)) else "", spread(entry)]
        theirs.append(number + (f" ({', '.join(filter(None, told))})" if any(told) else ""))
    yield " & ".join([r"\quad\textit{paper}", *_size(table, row.paper_size), *theirs]) + r" \\"


def _emphasise(text: str, how: str) -> str:
    command = {"bold": "\\textbf", "underline": "\\underline", "": ""}[how]
    return f"{command}{{{escape(text)}}}" if command else escape(text)


def _size(table: Table, text: str) -> list[str]:
    """What stands in the column of sizes, if there is one."""
    return [escape(text)] if table.has_sizes else []
