"""A lazy registry: plugins are found by name without importing them.

A plugin is one class in one file. The file declares itself with a decorator at the left margin,
``@register("name")``, which :class:`Registry` finds by reading the text of the package's files; the
module is imported only when the plugin is asked for. Installed packages add theirs through an
entry-point group. One that cannot be imported is an error where it is asked for, and nowhere else.
This module imports nothing of the project, so that every room may import it.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import logging
import re
import tomllib
from collections.abc import Iterable
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")
log = logging.getLogger("bench.registry")
_DECLARATION = re.compile(r"""^@register\(\s*["']([^"']+)["']""", re.MULTILINE)
_NAME = re.compile(r"[\w.:-]+")


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


class PluginError(ValueError):
    """A plugin that cannot be used; the message says which, where it comes from and why, in one line."""


class Registry(Generic[T]):
    """Plugins of one kind: those of our own files, and after them those of installed packages.

    A name of our own is ours: a package that has an entry point of that name is passed over, and a name that two
    packages claim belongs to neither.

    Args:
        kind: what the plugins are, in the singular, for messages ("method").
        contract: the class they derive from.
        package: the package whose files are searched, one level deep.
        folder: where that package lies.
        entry_points: the entry-point group through which other packages add plugins.
    """

    def __init__(self, kind: str, *, contract: type[T], package: str, folder: Path, entry_points: str) -> None:
        self.kind = kind
        self._contract = contract
        self._package = package
        self._folder = folder
        self._group = entry_points
        self._classes: dict[str, type[T]] = {}
        self._told: set[str] = set()

    def register(self, name: str):
        """Class decorator that enters a plugin under ``name``, which the class then carries.

        Raises:
            PluginError: from the decorator, if the name is another plugin's or the class does not keep the contract.
        """

        def enter(cls: type[T]) -> type[T]:
            label = f"{cls.__module__}.{cls.__qualname__}"
            if wrong := self._broken_promise(cls):
                raise PluginError(f"{label} {wrong}")
            if self._modules.get(name, cls.__module__) != cls.__module__:
                raise PluginError(f"{label} cannot be the {self.kind} {name!r}, which is that of {self._modules[name]}")
            if vars(cls).get("name", name) != name:
                raise PluginError(f"{label} is the {self.kind} {cls.name!r}, and cannot be {name!r} as well")
            taken = self._classes.get(name)
            if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
                other = f"{taken.__module__}.{taken.__qualname__}"
                raise PluginError(f"two classes register the {self.kind} {name!r}: {other} and {label}")
            cls.name = name
            self._classes[name] = cls
            return cls

        return enter

    def _broken_promise(self, cls: type) -> str:
        """What the contract asks for and a class does not have."""
        contract = self._contract
        if not issubclass(cls, contract):
            return f"is no {contract.__name__}: it does not derive from {contract.__module__}.{contract.__name__}"
        wanted = inspect.get_annotations(contract).keys() - {"name"}
        lacking = [*(f"{method}()" for method in cls.__abstractmethods__), *(n for n in wanted if not hasattr(cls, n))]
        return f"does not define {', '.join(sorted(lacking))}" if lacking else ""

    @cached_property
    def _modules(self) -> dict[str, str]:
        """Name -> module of the plugins declared by the package's own files."""
        found: dict[str, str] = {}
        for path in sorted(self._folder.glob("*.py")):
            for name in _DECLARATION.findall(path.read_text(encoding="utf-8")):
                found[name] = f"{self._package}.{path.stem}"
        return found

    @cached_property
    def _entry_points(self) -> dict[str, list[metadata.EntryPoint]]:
        found: dict[str, list[metadata.EntryPoint]] = {}
        for point in metadata.entry_points(group=self._group):
            found.setdefault(point.name, []).append(point)
        return found

    @cached_property
    def passed_over(self) -> dict[str, str]:
        """Name -> why, of the entry points that are left aside for their names."""
        found = {}
        for name, points in self._entry_points.items():
            if name in self._modules:
                reason = f"that is the name of {self._modules[name]}"
            elif not _NAME.fullmatch(name):
                reason = "a name has letters, digits and _ - . : only"
            else:
                continue
            found[name] = f"the {self.kind} {name!r} of {_listed(points)} is passed over: {reason}"
        return found

    def tell(self, *names: str) -> None:
        """Log which of these names other packages have in vain, each once; without names all of them."""
        for name in names or self.passed_over:
            if name in self.passed_over and name not in self._told:
                self._told.add(name)
                log.warning("%s", self.passed_over[name])

    def names(self) -> list[str]:
        """All plugins' names, sorted; imports none of them."""
        return sorted({*self._classes, *self._modules, *(self._entry_points.keys() - self.passed_over.keys())})

    def package(self, name: str) -> str | None:
        """The distribution that a plugin comes from, and its version; None for one of ours."""
        points = () if name in self._modules else self._entry_points.get(name, ())
        return " and ".join(map(_distribution, points)) or None

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __getitem__(self, name: str) -> type[T]:
        """The plugin's class, imported now if it was not yet.

        Raises:
            UnknownName: nobody registered ``name``.
            PluginError: importing it failed, or brought no plugin of that name.
        """
        if name in self._modules:
            self.tell(name)
        if name not in self._classes:
            if name not in self.names():
                raise UnknownName(self.kind, name, self.names())
            self._import(name)
        return self._classes[name]

    def _import(self, name: str) -> None:
        points = [] if name in self._modules else self._entry_points[name]
        try:
            if len(points) > 1:
                raise PluginError("two packages have one of that name; uninstall one of them")
            loaded = points[0].load() if points else importlib.import_module(self._modules[name])
            if inspect.isclass(loaded):
                self.register(name)(loaded)
            if name not in self._classes:
                raise PluginError(f"it is no class, and its module registers nothing with @register({name!r})")
        except (Exception, SystemExit) as error:  # of an import that is not ours, which may do anything
            kind = "" if isinstance(error, PluginError) else f"{type(error).__name__}: "
            reason = " ".join(f"{kind}{error}".split())
            origin = _listed(points) if points else self._modules[name]
            raise PluginError(f"the {self.kind} {name!r} of {origin} cannot be used: {reason}") from error


def _distribution(point: metadata.EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}"


def _listed(points: Iterable[metadata.EntryPoint]) -> str:
    """Where entry points come from: "their-package 1.0 (their_module:Class)"."""
    return " and ".join(f"{_distribution(point)} ({point.value})" for point in points)
