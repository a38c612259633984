"""The page around the sections: head, navigation, styles and script, all in one file that loads nothing.

A content security policy in the file itself forbids every load and every script but ours, so that a name that got
through as markup could still do nothing.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from analysis.reporting.html import Markup, raw, tag

_HERE = Path(__file__).parent
NO_SCRIPT = "Without JavaScript, tables do not sort or filter, and numbers do not show the cells behind them."


@dataclass(frozen=True)
class Section:
    """A part of the page with its place in the navigation; ``name`` is its address in the page."""

    name: str
    title: str
    body: Markup


def page(title: str, lead: Markup, sections: Sequence[Section], cells: Markup, options: str) -> str:
    """The whole document.

    Args:
        lead: what stands below the title.
        options: what follows commands that the script writes, " --results FOLDER" or nothing.
        cells: what :meth:`analysis.reporting.behind.Behind.listed` gives.
    """
    style, script = ((_HERE / f"report.{ending}").read_text(encoding="utf-8") for ending in ("css", "js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {_digest(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        raw("style", style),
    )
    links = [tag("li", tag("a", section.title, href=f"#{section.name}")) for section in sections]
    body = tag(
        "body",
        tag("a", "Skip to the results", href=f"#{sections[0].name}", class_="skip"),
        tag("nav", tag("ul", links), aria_label="Sections"),
        tag("header", tag("h1", title), lead, tag("noscript", tag("p", NO_SCRIPT, class_="warning"))),
        tag("main", [_section(section) for section in sections]),
        tag(
            "aside", id="behind", hidden=True, tabindex="-1", aria_live="polite", aria_label="The cells behind a number"
        ),
        cells,
        raw("script", script),
        data_options=options,
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _section(section: Section) -> Markup:
    return tag("section", tag("h2", section.title), section.body, id=section.name)


def _digest(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
