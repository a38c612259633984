"""HTML from Python calls, in which text cannot become markup.

Whatever is put into an element is escaped unless :func:`tag` made it, so that no cell's name, caption or error can
break out of its place; there is no other way to make markup in this package.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape
from typing import Any

_VOID = frozenset({"meta", "img", "input", "br"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Child = Any
"""Markup, text (escaped), an iterable of these, or None for nothing; anything else is shown as ``str`` has it."""


def tag(element: str, *children: Child, **attributes: Any) -> Markup:
    """``<element attributes>children</element>``.

    Args:
        attributes: ``class_`` is written ``class``, ``aria_label`` ``aria-label``; None and False leave one out, True
            writes its name alone.
    """
    written = "".join(
        f" {name.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(str(value))}"')
        for name, value in attributes.items()
        if value is not None and value is not False
    )
    if element in _VOID:
        return Markup(f"<{element}{written}>")
    return Markup(f"<{element}{written}>{join(*children)}</{element}>")


def join(*children: Child) -> Markup:
    """The children one after the other."""
    return Markup("".join(_text(child) for child in children))


def raw(element: str, source: str, **attributes: Any) -> Markup:
    """A ``script`` or ``style`` element of our own, whose text is not escaped.

    Raises:
        ValueError: the text would end the element.
    """
    if f"</{element}" in source.lower():
        raise ValueError(f"the text of <{element}> holds </{element}, which would end it")
    return Markup(f"{tag(element, **attributes).removesuffix(f'</{element}>')}{source}</{element}>")


def data(name: str, value: Any) -> Markup:
    """Values for the page's script, as JSON in an element with the id ``name``; nothing in it can end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return raw("script", text, type="application/json", id=name)


def _text(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, Iterable) and not isinstance(child, str):
        return join(*child)
    return escape(str(child))
