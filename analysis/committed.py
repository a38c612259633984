"""Whether the tables that lie in a folder are those that the results give: ``python -m analysis.tables --check``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import unified_diff
from itertools import takewhile
from pathlib import Path

MOST_LINES, WIDEST, LEAD = 8, 120, 40
"""Of a file's diff, of a line, and of what stands before the first difference."""


def disagreements(expected: Mapping[str, str], folder: Path, belongs: Callable[[str], bool]) -> list[str]:
    """What is wrong with each file, in a line or with the beginning of a diff; nothing where all agree.

    Args:
        expected: the text of each file by its name.
        belongs: whether a file of some name, were it right, would be expected; others are passed over.
    """
    present = {path.name: path for path in sorted(folder.iterdir())} if folder.is_dir() else {}
    found = []
    for name in sorted(expected.keys() | {name for name in present if belongs(name)}):
        if name not in present:
            found.append(f"missing: {folder / name}")
        elif name not in expected:
            found.append(f"superfluous, to be removed: {folder / name}")
        elif (there := present[name].read_bytes()) != expected[name].encode("utf-8"):
            text = there.decode("utf-8", errors="replace")
            alike = text.replace("\r\n", "\n") == expected[name]
            how = ["its line ends are not \\n"] if alike else _diff(text, expected[name])
            found.append("\n".join([f"differs: {folder / name}", *how]))
    return found


def _diff(old: str, new: str) -> Iterator[str]:
    """The beginning of a unified diff without the names of its files, each hunk from where its lines differ."""
    lines = list(unified_diff(old.split("\n"), new.split("\n"), lineterm="", n=0))[2:]
    hunks: list[list[str]] = []
    for line in lines:
        if line.startswith("@@"):
            hunks.append([])
        hunks[-1].append(line)
    shown = [line for heading, *hunk in hunks for line in (heading, *_cut(hunk))]
    yield from shown[:MOST_LINES]
    if len(shown) > MOST_LINES:
        yield f"... and {len(shown) - MOST_LINES} lines more"


def _cut(hunk: Sequence[str]) -> Iterator[str]:
    """Lines of the width of a screen: rows of a table are alike over hundreds of characters."""
    alike = takewhile(lambda column: len(set(column)) == 1, zip(*(line[1:] for line in hunk), strict=False))
    same = len(list(alike)) if len(hunk) > 1 else 0
    start = max(1, 1 + same - LEAD)
    for line in hunk:
        end = start + WIDEST
        yield f"{line[0]}{'...' if start > 1 else ''}{line[start:end]}{'...' if len(line) > end else ''}"
