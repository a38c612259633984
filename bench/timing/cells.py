"""From a matrix file, or a command line, to cells that measure speed, and to what of them is to be measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from bench import evidence
from bench.matrix import Block, Entered, Entry, Matrix, MatrixError, axes, entries, settings_of
from bench.registry import UnknownName, assignments
from bench.spec import SPEED, WALL, canonical, make_speed_cell
from bench.store import Results

REFERENCE = "lora"
"""The method against which all others are measured."""

MACHINE = "attention=folded,bias"


def read_methods(text: str) -> list[Entry]:
    """``lora,conv_lora:implementation=explicit:rank=6`` as entries of a matrix.

    Raises:
        MatrixError: a parameter without a value.
    """
    found = []
    for word in text.split(","):
        name, *given = word.split(":")
        try:
            example = "conv_lora:implementation=explicit"
            parameters = assignments(given, name="--methods", form="METHOD:KEY=VALUE", example=example)
        except ValueError as error:
            raise MatrixError(f"{word!r}: {error}") from None
        found.append(Entry(name=name, **parameters))
    return found


def read_machine(words: Sequence[str]) -> dict[str, list[Any]]:
    """``attention=folded,bias`` words as lists of a matrix's ``machine``.

    Raises:
        MatrixError: a word without a value.
    """
    found: dict[str, list[Any]] = {}
    for word in words:
        key, _, values = word.partition("=")
        listed = [f"{key}={value}" for value in values.split(",")] if values else [key]
        try:
            given = [assignments([one], name="--machine", form="KEY=VALUE,...", example=MACHINE) for one in listed]
        except ValueError as error:
            raise MatrixError(str(error)) from None
        found[key] = [one[key] for one in given]
    return found


def changed(
    matrix: Matrix, settings: Mapping[str, Any], methods: list[Entry], machine: Mapping[str, list[Any]]
) -> Matrix:
    """The matrix with settings, methods or values of the machine in place of its own, where any are given."""
    blocks = []
    for block in matrix.cells:
        update: dict[str, Any] = {**settings, "machine": {**block.machine, **dict(machine)}}
        update |= {"methods": methods} if methods else {}
        blocks.append(block.model_copy(update=update))
    return matrix.model_copy(update={**settings, "cells": blocks})


def expand(matrix: Matrix, *, precision: str, device: str, clock: str = WALL) -> list[Entered]:
    """All cells of a matrix that measure speed, duplicates once.

    Args:
        matrix: the matrix; blocks that train are left to :func:`bench.matrix.expand`.
        precision: what "auto" means on the device.
        device: its model.
        clock: as for :func:`bench.spec.make_speed_cell`.

    Raises:
        MatrixError: a name that nobody registered, a value that is not allowed, or no cell that measures speed.
    """
    found: dict[str, Entered] = {}
    measuring = [block for block in matrix.cells if block.kind == SPEED]
    if matrix.cells and not measuring:
        raise MatrixError(f"no cell of it measures speed; python -m bench.run --matrix {matrix.name}")
    try:
        for block in measuring:
            for entered in _of_block(matrix, block, precision, device=device, clock=clock):
                found.setdefault(entered.cell.id, entered)
    except ValueError as error:
        raise MatrixError(f"matrix {matrix.name!r}: {error}") from error
    if not found:
        raise MatrixError(f"matrix {matrix.name!r}: no cells: is one of its lists empty?")
    return list(found.values())


def _of_block(matrix: Matrix, block: Block, precision: str, **conditions: str) -> list[Entered]:
    import methods

    machines = [_checked(machine) for machine in axes({"micro_batch": 1, **block.machine})]
    made = []
    for setting, path in settings_of(matrix, block, precision):
        for machine in machines:
            for name, parameters, _ in entries(block.methods, methods.registry):
                method = methods.create(name, parameters)
                cell = make_speed_cell(method=method, machine=machine, **conditions, **setting)
                made.append(Entered(cell, path))
    return made


def _checked(machine: dict[str, Any]) -> dict[str, Any]:
    """What of a machine enters a specification: the micro-batch, and what differs from the defaults."""
    from bench.machine import Machine

    allowed = [field.name for field in dataclasses.fields(Machine) if field.name not in ("device", "precision")]
    for key in machine:
        if key not in allowed:
            raise MatrixError(str(UnknownName("machine key", key, allowed)))
    size = machine["micro_batch"]
    if type(size) is not int or size < 1:
        raise MatrixError(f"micro_batch = {size!r}: a positive number of images")
    Machine(**machine)
    return {key: value for key, value in machine.items() if key == "micro_batch" or value != getattr(Machine, key)}


def reason_to_measure(entered: Entered, results: Results) -> str:
    """Why a cell is to be measured; empty where its result was made from what is here now."""
    from methods.sam.checkpoints import resolve

    cell, folder = entered.cell, results.cell(entered.cell.id)
    status = folder.status()
    if status["state"] != "done":
        return "new" if status["state"] == "planned" else f"was {status['state']}"
    digest = resolve(cell.spec["backbone"], entered.checkpoint or cell.spec["checkpoint"]).digest()
    differing = evidence.differing(folder.read()["evidence"], evidence.of_speed(cell, digest))
    return f"differs in {', '.join(differing)}" if differing else ""


def is_reference(entered: Entered) -> bool:
    """Whether others are measured against this cell."""
    method = entered.cell.spec["method"]
    return method["name"] == REFERENCE and not method.get("parameters")


def references(measured: Sequence[Entered], known: Sequence[Entered]) -> list[Entered]:
    """Those of ``known`` against which any of ``measured`` is compared, but for themselves."""

    def conditions(entered: Entered) -> str:
        return canonical({key: value for key, value in entered.cell.spec.items() if key != "method"})

    compared = {conditions(entered) for entered in measured if not is_reference(entered)}
    return [entered for entered in known if is_reference(entered) and conditions(entered) in compared]


def title(entered: Entered) -> str:
    """A cell in words."""
    spec = entered.cell.spec
    given = [f"{key} = {value}" for key, value in spec["method"].get("parameters", {}).items()]
    given += [f"{key.replace('_', '-')} {value}" for key, value in spec["machine"].items()]
    return f"{spec['method']['name']} ({', '.join(given)})"
