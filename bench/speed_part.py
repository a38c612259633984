"""The cells of a mixed matrix that measure speed, for ``bench.run``: whether they are asked for, and who measures them.

What measures speed wants its device for itself. It is left to ``bench.speed``, in a process of its own, when all
trainings have ended; ``bench.run`` does not know how it is done.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import matrix as matrices
from bench.devices import Slot, precision_for
from bench.matrix import Entered, Matrix, MatrixError
from bench.registry import UnknownName
from bench.spec import SPEED
from bench.speed import device_of, place
from bench.store import Results
from bench.timing import cells, surroundings

TRAINS = "accuracy"
CHANGEABLE = ("backbone", "image_size", "precision")


def kinds(matrix: Matrix, filters: Mapping[str, Sequence[str]]) -> set[str]:
    """The kinds of cells that a run is about; what measures speed is chosen by its kind alone, or not at all.

    Raises:
        MatrixError: a kind that the matrix has no cells of, or speed together with another filter.
    """
    present = {block.kind for block in matrix.cells}
    wanted = set(filters.get("kind", present))
    if unknown := sorted(wanted - present):
        raise MatrixError(str(UnknownName("kind in this matrix", unknown[0], present)))
    if len(filters) == ("kind" in filters):
        return wanted
    if "kind" in filters and SPEED in wanted:
        command = f"python -m bench.speed --matrix {matrix.name} --methods NAME"
        raise MatrixError(f"--only kind=speed goes with no other filter; some methods alone: {command}")
    return wanted - {SPEED}


@dataclass(frozen=True)
class SpeedPart:
    """What of a matrix measures speed.

    Attributes:
        matrix: the matrix, its settings changed as the command line says.
        words: the command that measures it.
        slot: the device.
        runs: whether this run measures it: on a GPU, or where it was asked for.
    """

    matrix: Matrix
    words: tuple[str, ...]
    slot: Slot
    runs: bool

    def cells(self, device: str = "") -> list[Entered]:
        """The cells, for a model of device."""
        return cells.expand(self.matrix, precision=precision_for([self.slot]), device=device)

    def device_model(self) -> str:
        """The device's, which a process that leaves it to another had better not ask."""
        return surroundings.device_model(device_of(self.slot), self.slot.threads)

    def states(self, results: Results) -> dict[str, str]:
        """What is measured, will be, or is left out, by the cell's id."""
        otherwise = "planned" if self.runs else "skipped"
        found = self.cells(self.device_model())
        return {item.cell.id: otherwise if cells.reason_to_measure(item, results) else "done" for item in found}

    def __str__(self) -> str:
        when = "after all trainings" if self.runs else "on a CPU only when asked for with --only kind=speed"
        return f"{len(self.cells())} cells measure speed, {when}: {' '.join(('python', *self.words[1:]))}"

    def measure(self) -> int:
        """Have them measured; returns the process's exit code. A signal to stop is handed on."""
        process = subprocess.Popen(self.words, start_new_session=True)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: process.send_signal(number))
        return process.wait()


def changed(matrix: Matrix, settings: Mapping[str, Any]) -> Matrix:
    """The matrix with those changes from the command line that measurements of speed know."""
    return cells.changed(matrix, {key: settings[key] for key in CHANGEABLE if key in settings}, [], {})


def part(name: str, settings: Mapping[str, Any], places: Sequence[Slot], results: Path, *, asked: bool) -> SpeedPart:
    """What of a matrix measures speed, on the first of these places.

    Args:
        name: of the matrix, or its file.
        settings: changes from the command line; those that no measurement has are left out.
        places: where cells can run.
        results: the results folder.
        asked: whether it was asked for by name.

    Raises:
        MatrixError: several values of a setting, of which a measurement has one.
    """
    given = {key: settings[key] for key in CHANGEABLE if key in settings}
    for key, value in given.items():
        if isinstance(value, list):
            raise MatrixError(
                f"--set {key}={value}: speed is measured with one {key}; leave it out: --only kind={TRAINS}"
            )
    device = device_of(places[0])
    words = [sys.executable, "-m", "bench.speed", "--matrix", name, "--device", device, "--results", str(results)]
    for key, value in given.items():
        words += [f"--{key.replace('_', '-')}", str(value)]
    matrix = changed(matrices.read(name), given)
    return SpeedPart(matrix, tuple(words), place(device, None), asked or device != "cpu")
