"""A lazy registry: plugins are found by name without importing them.

A plugin is one class in one file. The file declares itself with a decorator at the left margin,
``@register("name")``, which :class:`Registry` finds by reading the text of the package's files; the
module is imported only when the plugin is asked for. Installed packages add theirs through an
entry-point group. This module imports nothing of the project, so that every room may import it.
"""

from __future__ import annotations

import difflib
import importlib
import re
import tomllib
from collections.abc import Iterable
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_DECLARATION = re.compile(r"""^@register\(\s*["']([^"']+)["']""", re.MULTILINE)


def assignments(words: Iterable[str], *, name: str, form: str, example: str) -> dict[str, Any]:
    """``KEY=VALUE`` words of a command line; values are read as TOML, what is no TOML as text.

    Args:
        name, form, example: the option, what it takes and one such, for the message.

    Raises:
        ValueError: a word without ``=``.
    """
    found: dict[str, Any] = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign:
            raise ValueError(f"{name} {word!r}: write {form}, e.g. {example}")
        try:
            found[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[key] = value
    return found


class UnknownName(ValueError):
    """A name nobody registered; the message carries the nearest match and the whole list."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        super().__init__(f"unknown {kind} {name!r}.{hint} Known: {', '.join(known) or 'none'}.")


class Registry(Generic[T]):
    """Plugins of one kind.

    Args:
        kind: what the plugins are, in the singular, for messages ("method").
        package: the package whose files are searched, one level deep.
        folder: where that package lies.
        entry_points: the entry-point group through which other packages add plugins.
    """

    def __init__(self, kind: str, *, package: str, folder: Path, entry_points: str) -> None:
        self.kind = kind
        self._package = package
        self._folder = folder
        self._group = entry_points
        self._classes: dict[str, type[T]] = {}

    def register(self, name: str):
        """Class decorator that enters a plugin under ``name``, which the class then carries."""

        def enter(cls: type[T]) -> type[T]:
            taken = self._classes.get(name)
            if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
                raise ValueError(
                    f"two classes register the {self.kind} {name!r}: "
                    f"{taken.__module__}.{taken.__qualname__} and {cls.__module__}.{cls.__qualname__}"
                )
            cls.name = name
            self._classes[name] = cls
            return cls

        return enter

    @cached_property
    def _modules(self) -> dict[str, str]:
        """Name -> module of the plugins declared by the package's own files."""
        found: dict[str, str] = {}
        for path in sorted(self._folder.glob("*.py")):
            for name in _DECLARATION.findall(path.read_text(encoding="utf-8")):
                found[name] = f"{self._package}.{path.stem}"
        return found

    @cached_property
    def _entry_points(self) -> dict[str, metadata.EntryPoint]:
        return {point.name: point for point in metadata.entry_points(group=self._group)}

    def names(self) -> list[str]:
        """All plugins' names, sorted; imports none of them."""
        return sorted({*self._classes, *self._modules, *self._entry_points})

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __getitem__(self, name: str) -> type[T]:
        """The plugin's class, imported now if it was not yet.

        Raises:
            UnknownName: nobody registered ``name``.
            ValueError: the named module was imported and did not register it.
        """
        if name not in self._classes:
            if name in self._modules:
                importlib.import_module(self._modules[name])
            elif name in self._entry_points:
                loaded = self._entry_points[name].load()
                if isinstance(loaded, type) and name not in self._classes:
                    self.register(name)(loaded)
            else:
                raise UnknownName(self.kind, name, self.names())
        if name not in self._classes:
            raise ValueError(
                f"the {self.kind} {name!r} was imported but did not register itself with @register({name!r})"
            )
        return self._classes[name]
