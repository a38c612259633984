"""Tables that the page's script sorts and filters; without it they are plain tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from analysis.reporting.html import Child, Markup, tag


@dataclass(frozen=True)
class Value:
    """A cell of a grid: what is shown, and the number it is sorted by (None sorts last)."""

    shown: Child = ""
    number: float | None = None


@dataclass(frozen=True)
class Head:
    """A column's heading; ``spoken`` is its name for those who do not see its neighbours.

    Attributes:
        first: how the first click sorts, "descending" for what is better when it is higher.
    """

    shown: str
    spoken: str = ""
    first: str = "ascending"


def grid(caption: str, heads: Sequence[Head], rows: Iterable[tuple[str, Sequence[Value]]]) -> Markup:
    """A table whose rows begin with a name, in a box of its own that scrolls when the table is wider than the page.

    Args:
        heads: of all columns, that of the names first.
        rows: name and the other columns.
    """
    body = [
        tag("tr", tag("th", name, scope="row"), [tag("td", one.shown, data_value=_plain(one.number)) for one in values])
        for name, values in rows
    ]
    table = tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", [_heading(head) for head in heads])),
        tag("tbody", body),
        data_sorts=True,
    )
    return tag("div", table, class_="scroll", role="region", aria_label=caption, tabindex="0")


def filter_box(label: str) -> Markup:
    """A box whose text the rows of all tables in the same section must hold."""
    box = tag("input", type="search", data_filter=True, autocomplete="off", placeholder="a method, a parameter")
    return tag("p", tag("label", "Filter rows ", box, aria_label=label), " ", tag("output"), class_="filter")


def _heading(head: Head) -> Markup:
    shown = head.shown.replace(" ↑", "\N{NO-BREAK SPACE}↑").replace(" ↓", "\N{NO-BREAK SPACE}↓")
    button = tag("button", shown, type="button", aria_label=head.spoken or None, data_first=head.first)
    return tag("th", button, scope="col", aria_sort="none")


def _plain(number: float | None) -> str | None:
    return None if number is None else f"{number:.9g}"
