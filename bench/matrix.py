"""A matrix file: which cells a benchmark consists of.

TOML with settings at the top and ``[[cells]]`` tables, each the product of its datasets, methods, seeds and of
every setting or parameter that is given as a list. ``docs/matrix.md`` shows the whole schema.
"""

from __future__ import annotations

import difflib
import itertools
import logging
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, NonNegativeInt, ValidationError, model_validator

from bench.backends.section import Section, section
from bench.fit import fits
from bench.regime import Regime
from bench.registry import PluginError, UnknownName
from bench.spec import SPEED, Cell, make_cell

log = logging.getLogger("bench.matrix")
FOLDER = Path(__file__).resolve().parent / "matrices"
SETTINGS = ("backbone", "checkpoint", "image_size", "precision")
LISTED = frozenset(key for key, info in Regime.model_fields.items() if get_origin(info.annotation) is tuple)
FILTERS = ("dataset", "method", "seed", "backbone", "kind")


class MatrixError(ValueError):
    """A matrix that cannot be read; the message names the file, the key and what is allowed."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Entry(_Table):
    """A method or dataset with parameters; a list is an axis unless the parameter itself takes a list."""

    model_config = ConfigDict(extra="allow", strict=True)
    name: str | list[str]


class Block(_Table):
    """One ``[[cells]]`` table; what it leaves out is taken from the top of the file.

    ``machine`` holds values of :class:`bench.machine.Machine` for cells that measure speed; a list is an axis.
    """

    kind: Literal["accuracy", "speed"] = "accuracy"
    datasets: list[str | Entry] = Field(default_factory=list)
    methods: list[str | Entry]
    regime: str | dict[str, Any] = Field(default_factory=dict)
    seeds: list[NonNegativeInt] | None = None
    backbone: str | list[str] | None = None
    checkpoint: str | list[str] | None = None
    image_size: int | list[int] | None = None
    precision: str | list[str] | None = None
    machine: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        foreign = {"datasets", "seeds", "regime"} if self.kind == SPEED else {"machine"}
        if given := sorted(foreign & self.model_fields_set):
            raise ValueError(f"cells of kind {self.kind!r} take no {', '.join(given)}")
        if self.kind != SPEED and "datasets" not in self.model_fields_set:
            raise ValueError("key 'datasets' is missing")
        return self


class Matrix(_Table):
    """A whole matrix file."""

    name: str
    backbone: str | list[str] = "vit_h"
    checkpoint: str | list[str] = "auto"
    image_size: int | list[int] = 1024
    precision: str | list[str] = "auto"
    seeds: list[NonNegativeInt] = Field(default_factory=lambda: [0])
    backend: Annotated[Section, BeforeValidator(section)] | None = None
    cells: list[Block]


@dataclass(frozen=True)
class Entered:
    """A cell of a matrix, with what is no part of its identity.

    Attributes:
        cell: the cell.
        checkpoint: the absolute path of its checkpoint where the matrix names one by path.
    """

    cell: Cell
    checkpoint: str | None = None


def names() -> list[str]:
    """The matrices that come with the project."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read(name: str) -> Matrix:
    """A matrix by name, or from a ``.toml`` file.

    Raises:
        MatrixError: no such file, no TOML, an unknown key, or a value of the wrong type.
    """
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file():
        if name.endswith(".toml"):
            raise MatrixError(f"there is no matrix file {path.absolute()}")
        raise MatrixError(f"{UnknownName('matrix', name, names())} A file of your own ends in .toml.")
    try:
        return Matrix(**tomllib.loads(path.read_text(encoding="utf-8")))
    except tomllib.TOMLDecodeError as error:
        raise MatrixError(f"{path}: no valid TOML: {error}") from None
    except ValidationError as error:
        raise MatrixError("\n".join(f"{path}: {line}" for line in _describe(error))) from None


def _describe(error: ValidationError) -> Iterator[str]:
    for item in error.errors():
        where = [str(part) for part in item["loc"] if part not in ("str", "Entry", "list[str]", "list[int]", "int")]
        table = Block if "cells" in where[:-1] else Matrix
        key = ".".join(where)
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(where[-1], table.model_fields, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            yield f"unknown key {key!r}.{hint} Allowed here: {', '.join(table.model_fields)}"
        elif item["type"] == "missing":
            yield f"key {key!r} is missing"
        elif item["type"] == "value_error":
            yield f"{key}: {item['ctx']['error']}"
        else:
            yield f"key {key!r} = {item['input']!r}: {item['msg']}"


def override(matrix: Matrix, settings: Mapping[str, Any]) -> Matrix:
    """The matrix with settings (``backbone``, ``seeds`` ...) or regime values (``epochs`` ...) changed in every cell.

    ``methods`` puts others in the place of those of every block that trains, and leaves the other blocks out.

    Raises:
        MatrixError: a key that is none of these.
    """
    top = {*SETTINGS, "seeds", "methods"}
    for key in settings:
        if key not in top and key not in Regime.model_fields:
            raise MatrixError(str(UnknownName("--set key", key, [*top, *Regime.model_fields])))
    fixed = {k: v for k, v in settings.items() if k in top}
    if isinstance(fixed.get("seeds"), int):
        fixed["seeds"] = [fixed["seeds"]]
    methods = fixed.pop("methods", None)
    others = {} if methods is None else {"methods": methods.split(",") if isinstance(methods, str) else methods}
    regime = {k: v for k, v in settings.items() if k not in top}
    blocks = []
    for block in matrix.cells:
        changed = block.model_dump(exclude_unset=True) | fixed | others
        if block.kind != SPEED:
            blocks.append(changed | {"regime": _regime(block.regime) | regime})
        elif methods is None:
            blocks.append({key: value for key, value in changed.items() if key != "seeds"})
    try:
        return Matrix(**{**matrix.model_dump(), **fixed, "cells": blocks})
    except ValidationError as error:
        raise MatrixError("\n".join(f"--set: {line}" for line in _describe(error))) from None


def _regime(given: str | Mapping[str, Any]) -> dict[str, Any]:
    return {"preset": given} if isinstance(given, str) else dict(given)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def axes(values: Mapping[str, Any], listed: frozenset[str] = frozenset()) -> Iterator[dict[str, Any]]:
    """All combinations of values; a list is an axis, except where the key takes a list: there a list of lists is."""
    choices = {
        key: value
        if isinstance(value, list) and (key not in listed or any(isinstance(v, list) for v in value))
        else [value]
        for key, value in values.items()
    }
    for combination in itertools.product(*choices.values()):
        yield dict(zip(choices, combination, strict=True))


def entries(given: list[str | Entry], registry: Any) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """(name, parameters, whether it was not named) of each entry.

    ``"*"`` names nothing and stands for every registered plugin that needs no parameters, can be imported and does not
    say that it wants to be asked for by name (``starred``).
    """
    for entry in given:
        fields = {"name": entry} if isinstance(entry, str) else entry.model_dump()
        parameters = {k: v for k, v in fields.items() if k != "name"}
        for name in _as_list(fields["name"]):
            every = [one for one in registry.names() if _starred(one, registry)] if name == "*" else [name]
            for one in every:
                for combination in axes(parameters, _list_fields(one, registry)):
                    yield one, combination, name == "*"


def _starred(name: str, registry: Any) -> bool:
    """Whether "*" stands for it; of one that cannot even be imported the log tells."""
    try:
        if not getattr(registry[name], "starred", True):
            return False
        registry[name]()
    except ValidationError:
        return False
    except PluginError as error:
        log.warning('"*" goes without one: %s', error)
        return False
    return True


def _list_fields(name: str, registry: Any) -> frozenset[str]:
    """Parameters that take several values at once, as they are written for a plugin or a composition."""
    first, *rest = name.split("+")
    parts = [("", first), *((f"{part}.", part) for part in (first, *rest))]
    return frozenset(
        prefix + field
        for prefix, part in parts
        for field, info in registry[part].model_fields.items()
        if "tuple" in str(info.annotation)
    )


def expand(matrix: Matrix, *, precision: str) -> list[Entered]:
    """All cells of a matrix that train, seeds outermost so that a whole table with one seed exists early; each once.

    Args:
        matrix: the matrix; blocks of kind "speed" are left to :func:`bench.timing.cells.expand`.
        precision: what "auto" means on the devices at hand.

    Raises:
        MatrixError: a name that nobody registered, a value that a plugin does not take, or no cell that trains.
    """
    try:
        return _expand(matrix, precision)
    except ValueError as error:
        raise MatrixError(f"matrix {matrix.name!r}: {error}") from error


def _expand(matrix: Matrix, precision: str) -> list[Entered]:
    import datasets
    import methods

    found: dict[str, tuple[int, Entered]] = {}
    training = [block for block in matrix.cells if block.kind != SPEED]
    if matrix.cells and not training:
        raise MatrixError(f"cells of kind 'speed' are for python -m bench.speed --matrix {matrix.name}")
    for block in training:
        seeds = matrix.seeds if block.seeds is None else block.seeds
        product = itertools.product(
            entries(block.datasets, datasets.registry),
            entries(block.methods, methods.registry),
            settings_of(matrix, block, precision),
            [_checked_regime(regime) for regime in axes(_regime(block.regime), LISTED)],
            seeds,
        )
        for (dataset, data_parameters, _), (method, parameters, unnamed), (setting, path), regime, seed in product:
            data_parameters = dict(data_parameters)
            cell = make_cell(
                kind=block.kind,
                seed=seed,
                shots=data_parameters.pop("shots", None),
                dataset=datasets.load(dataset, **data_parameters),
                method=methods.create(method, parameters),
                regime=regime,
                **setting,
            )
            if not unnamed or fits(cell):
                found.setdefault(cell.id, (seeds.index(seed), Entered(cell, path)))
    if not found:
        raise MatrixError("no cells: is one of its lists empty?")
    return [entered for _, entered in sorted(found.values(), key=lambda item: item[0])]


def settings_of(matrix: Matrix, block: Block, precision: str) -> Iterator[tuple[dict[str, Any], str | None]]:
    """Each setting of a block as it enters a cell, and the absolute path of its checkpoint where that is given by path.

    Args:
        precision: what "auto" means.
    """
    from methods.sam import size_of
    from methods.sam.checkpoints import resolve

    given = {key: getattr(matrix, key) if getattr(block, key) is None else getattr(block, key) for key in SETTINGS}
    for setting in axes(given):
        if setting["precision"] not in ("auto", "fp32", "bf16"):
            raise MatrixError(f"precision {setting['precision']!r} is unknown; allowed: auto, fp32, bf16")
        if setting["precision"] == "auto":
            setting["precision"] = precision
        checkpoint, path = resolve(setting["backbone"], setting["checkpoint"]), Path(setting["checkpoint"]).expanduser()
        size_of(setting["backbone"]).grid(setting["image_size"])
        by_path = str(path.resolve()) if checkpoint.path == path else None
        yield setting | {"checkpoint": checkpoint.name}, by_path


def _checked_regime(regime: dict[str, Any]) -> dict[str, Any]:
    for key in regime:
        if key not in Regime.model_fields:
            raise MatrixError(str(UnknownName("regime key", key, Regime.model_fields)))
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in regime.items()}
    try:
        Regime(**values)
    except ValidationError as error:
        raise MatrixError("\n".join(f"regime: {line}" for line in _describe(error))) from None
    return regime


def select(entered: list[Entered], filters: Mapping[str, list[str]]) -> list[Entered]:
    """The cells that match all filters, e.g. {"method": ["lora", "conv_lora"]}.

    Raises:
        MatrixError: an unknown filter, or a value that no cell of the matrix has.
    """
    for key, wanted in filters.items():
        if key not in FILTERS:
            raise MatrixError(str(UnknownName("--only key", key, FILTERS)))
        present = {_property(item.cell, key) for item in entered}
        for value in wanted:
            if value not in present:
                hint = f" In place of its methods: --set methods={value}" if key == "method" else ""
                raise MatrixError(f"{UnknownName(f'{key} in this matrix', value, present)}{hint}")
    return [item for item in entered if all(_property(item.cell, key) in wanted for key, wanted in filters.items())]


def _property(cell: Cell, key: str) -> str:
    value = cell.spec[key]
    return str(value["name"] if isinstance(value, Mapping) else value)
