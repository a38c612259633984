"""What a cell will need: bytes of device memory, seconds, bytes on disk, from cells that are done.

The nearest cells are asked: those of its *kind* (method with parameters, backbone, image size, precision, classes,
micro-batch), else those of its method with another micro-batch, else those of its setting, else those of its precision,
all on the same model of device. Times are kept per image and unit of work (parameters of the encoder times tokens), so
that one rule serves them all: images times work times the median. A training is taken to need all of its epochs.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from bench import environment
from bench.data import MEMORY_BUDGET
from bench.regime import Regime
from bench.spec import Cell, SpeedCell, canonical
from bench.store import Results, read_json
from methods.sam import size_of

MARGIN = 1.15
"""On a measured peak: what the allocator holds beyond what it handed out, at another order of images."""
PROCESS = 1 << 30
"""Bytes beside what is allocated: on a GPU the context and libraries of the process, on a CPU Python and torch."""
ACTIVATION = 100
"""Bytes for every token, channel, block and image. What a CPU kept for the backward pass were 26 to 88 in float32 and
17 to 63 in bfloat16, over the methods that train in the encoder (SSF the most), tiny at 256 and vit_b at 512 pixels."""
TRAINED = 20
"""Bytes a parameter: weight, gradient, two moments and the best state, as if all of them were trained."""
FORWARD = 1 / 3
"""Of a training image's time, what an image of the validation costs: it has no backward pass."""


@dataclass(frozen=True)
class Demand:
    """What a cell is expected to need.

    Attributes:
        memory: bytes on its device; erring upwards where nothing was measured.
        seconds: wall-clock time.
        measured: both are from earlier cells of its kind.
    """

    memory: int | None
    seconds: float | None
    measured: bool


class _Kind(NamedTuple):
    """What decides about a cell's demand, but for the number of its images."""

    method: str
    backbone: str
    image_size: int
    precision: str
    classes: int
    micro_batch: int
    threads: int

    def levels(self) -> tuple[tuple, ...]:
        """From its own kind to all that it can be compared with."""
        return self, self[:5], (*self[1:4], self.classes > 1), (self.precision,)


def _kind(spec: Mapping[str, Any], classes: int, micro_batch: int, threads: int) -> _Kind:
    method = canonical([spec["method"]["name"], spec["method"].get("parameters", {})])
    return _Kind(method, spec["backbone"], spec["image_size"], spec["precision"], classes, micro_batch, threads)


@dataclass(frozen=True)
class _Measured:
    """A cell that is done; its times are for one image and unit of work, None where there was no image."""

    train: float | None
    test: float | None
    peak: int
    micro_batch: int
    folder: Path


def _read(folder: Path, device: str, threads: int) -> tuple[_Kind, _Measured] | None:
    """What a cell's result says, None if it has none of this device; ``threads`` as for :class:`Estimates`.

    Raises:
        OSError, ValueError, KeyError, TypeError: the result cannot be read.
    """
    result = json.loads((folder / "result.json").read_bytes())
    training, made_on = result.get("training"), result.get("environment", {})
    # Imported scores and measurements of speed have no training; one to save memory takes more time and less memory.
    if training is None or made_on["device"] != device or training.get("checkpointing", "none") != "none":
        return None
    spec, threads = json.loads((folder / "cell.json").read_bytes())["spec"], threads and made_on["threads"]
    trained = _trained(
        training["train_images"],
        training["validation_images"],
        epochs=training["epochs"],
        steps=training["steps"],
        batch_size=result["resolved"]["regime"]["batch_size"],
    )
    tested = sum(result["images"].values())
    work = _work(spec["backbone"], spec["image_size"])
    kind = _kind(spec, len(result.get("classes", ())), training["micro_batch"], threads)
    return kind, _Measured(
        training["seconds"] / trained / work if trained else None,
        result["evaluation"]["seconds"] / tested / work if tested else None,
        training["peak_memory_bytes"],
        training["micro_batch"],
        folder,
    )


def _trained(train: int, validation: int, *, epochs: int, steps: int, batch_size: int) -> float:
    """Training images of a whole training, those of the validations counted as parts of one.

    Args:
        train, validation: images of the splits.
        epochs: passes.
        steps: optimiser steps at most, 0 for no limit.
        batch_size: images a step.
    """
    if steps and train:
        epochs = min(epochs, math.ceil(steps / math.ceil(train / batch_size)))
    images = min(train * epochs, steps * batch_size) if steps else train * epochs
    return images + FORWARD * validation * epochs


@cache
def _work(backbone: str, image_size: int) -> int:
    """What an encoder does for an image: its parameters times its tokens."""
    size = size_of(backbone)
    return size.encoder_parameters(image_size) * size.grid(image_size) ** 2


class Estimates:
    """What cells will need on one model of device. Not safe for several threads at once.

    Args:
        results: whose ``result.json`` files are read, once, at the first question.
        device: "cpu" for this machine's processor, or the model's name as results have it.
        threads: of a cell on the CPU; cells with others are not of its kind. 0 for any.
    """

    def __init__(self, results: Results, *, device: str, threads: int = 0) -> None:
        self._results, self._threads = results, threads
        self._device = environment.device_name(device) if device == "cpu" else device
        self._on_cpu = self._device == environment.device_name("cpu")
        self._found: dict[tuple, dict[str, _Measured]] | None = None
        self._answers: dict[tuple, Demand] = {}
        self._asked: dict[str, tuple[_Kind, Regime]] = {}
        self._sizes: dict[Path, int] = {}

    def of(self, cell: Cell, *, micro_batch: int = 0, images: Mapping[str, int] | None = None) -> Demand:
        """What the cell will need; nothing is known of one that measures speed.

        Args:
            cell: the cell.
            micro_batch: images a forward pass, 0 for the whole batch.
            images: how many each split has; where it is not given, what the cell's ``cell.json`` says.
        """
        if isinstance(cell, SpeedCell):
            return Demand(None, None, measured=False)
        kind, regime = self._describe(cell, micro_batch)
        images = images or self._images(cell) or {}
        asked = kind, regime, tuple(images.items())
        if asked not in self._answers:
            self._answers[asked] = self._answer(kind, regime, images)
        return self._answers[asked]

    def _answer(self, kind: _Kind, regime: Regime, images: Mapping[str, int]) -> Demand:
        level = self._nearest(kind)
        seconds = self._seconds(level, kind, regime, images) if level and images else None
        of_method = self._all().get(kind.levels()[1], {}).values()
        memory = self._from_peaks(of_method, kind) if of_method else self._by_formula(kind, images)
        return Demand(memory, seconds, measured=level == kind and seconds is not None)

    def disk(self, cell: Cell) -> int | None:
        """Bytes of its committed files: those of a cell of its kind, else of its setting; None if there is none."""
        level = self._nearest(self._describe(cell, 0)[0])
        if level is None or len(level) == 1:
            return None
        folder = next(iter(self._all()[level].values())).folder
        if folder not in self._sizes:
            with os.scandir(folder) as entries:
                self._sizes[folder] = sum(entry.stat().st_size for entry in entries if entry.is_file())
        return self._sizes[folder]

    def learn(self, cell_id: str) -> None:
        """Take in a cell that has been done since."""
        if self._found is not None:
            self._take(self._results.cell(cell_id).path)
            self._answers.clear()

    def _all(self) -> dict[tuple, dict[str, _Measured]]:
        """The measured cells at each level, by id."""
        if self._found is None:
            self._found = {}
            with suppress(FileNotFoundError), os.scandir(self._results.path / "cells") as entries:
                for entry in entries:
                    self._take(Path(entry.path))
        return self._found

    def _take(self, folder: Path) -> None:
        try:
            read = _read(folder, self._device, self._threads)
        except (OSError, ValueError, KeyError, TypeError):
            return  # planned, or not to be read: status and tables say so
        if read:
            kind, measured = read
            # What trains nothing says nothing of others.
            for key in kind.levels() if measured.train else kind.levels()[:2]:
                self._found.setdefault(key, {})[folder.name] = measured

    def _nearest(self, kind: _Kind) -> tuple | None:
        return next((key for key in kind.levels() if key in self._all()), None)

    def _describe(self, cell: Cell, micro_batch: int) -> tuple[_Kind, Regime]:
        """The cell's kind and regime, which are the same for all seeds."""
        name = canonical([{key: value for key, value in cell.spec.items() if key != "seed"}, micro_batch])
        if name not in self._asked:
            regime, classes = cell.regime(), len(cell.dataset().classes)
            kind = _kind(cell.spec, classes, micro_batch or regime.batch_size, self._threads)
            self._asked[name] = kind, regime
        return self._asked[name]

    def _images(self, cell: Cell) -> Mapping[str, int] | None:
        card = read_json(self._results.cell(cell.id).path / "cell.json") or {}
        return card.get("evidence", {}).get("images")

    def _seconds(self, level: tuple, kind: _Kind, regime: Regime, images: Mapping[str, int]) -> float:
        limits = {"train": regime.max_train_images, "validation": regime.max_validation_images}
        train, validation = (min(images[split], limit or images[split]) for split, limit in limits.items())
        trained = _trained(
            train, validation, epochs=regime.epochs, steps=regime.max_steps, batch_size=regime.batch_size
        )
        tested = sum(count for split, count in images.items() if split not in limits)
        found = self._all()[level].values()
        a_train = median([one.train for one in found if one.train] or [0.0])
        a_test = median([one.test for one in found if one.test] or [0.0])
        return (a_train * trained + a_test * tested) * _work(kind.backbone, kind.image_size)

    def _from_peaks(self, measured: Iterable[_Measured], kind: _Kind) -> int:
        """From the highest peak of its method, those with its micro-batch before others.

        A larger micro-batch needs more than a smaller one and less than in proportion.
        """
        same = [one for one in measured if one.micro_batch == kind.micro_batch] or measured
        peak = max(one.peak * max(1.0, kind.micro_batch / one.micro_batch) for one in same)
        return int(MARGIN * peak) + (0 if self._on_cpu else PROCESS)

    def _by_formula(self, kind: _Kind, images: Mapping[str, int]) -> int:
        """Parameters as if all were trained, and what every block keeps; on a CPU also the images that are kept."""
        size = size_of(kind.backbone)
        activations = ACTIVATION * size.grid(kind.image_size) ** 2 * size.width * size.depth * kind.micro_batch
        kept = min(MEMORY_BUDGET, 4 * kind.image_size**2 * sum(images.values())) if self._on_cpu else 0
        return PROCESS + TRAINED * size.encoder_parameters(kind.image_size) + activations + kept
