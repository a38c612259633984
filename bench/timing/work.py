"""What the process of a cell of kind "speed" does: build, time inference and training, commit.

A step is one of :class:`bench.training.Trainer`'s own: every image of a batch forward and backward in micro-batches,
then the optimiser. Inference is what an evaluation does to predict. Rates are in images: an iteration of the paper is
one image.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench import environment, evidence
from bench.machine import Machine
from bench.spec import WALL, Cell
from bench.store import SCHEMA, Attempt, now
from bench.timing import clock, operations
from bench.timing.clock import Pace
from bench.timing.surroundings import busy_elsewhere, device_model
from bench.training import Progress, Trainer
from methods.base import Model
from methods.sam.checkpoints import resolve
from methods.trial import shake

if TYPE_CHECKING:
    from bench.work import Watcher

EPOCH = 2000  # images: ISIC 2017's training split, on which the paper measured
GIB = 2**30
DEVIATION = 0.05  # of what is added to trained parameters: enough for experts to be chosen about evenly


def measure(cell: Cell, attempt: Attempt, options: argparse.Namespace, watcher: Watcher) -> None:
    """The whole work of a cell that measures speed, committed at its end.

    Args:
        cell: what to measure.
        attempt: this process's claim on it.
        options: of ``python -m bench.cell``.
        watcher: told about progress.

    Raises:
        ValueError: this is not the device that the cell is a measurement of.
        FloatingPointError: the loss became infinite or not a number, whose arithmetic may have another speed.
    """
    here = device_model(options.device, torch.get_num_threads())
    if here != cell.spec["device"]:
        raise ValueError(
            f"{cell.id} measures {cell.spec['device']}, and this is {here}; python -m bench.speed plans cells for it"
        )
    torch.manual_seed(0)
    context, pace = cell.context(), Pace(options.repeats, options.seconds)
    if options.checkpoint:
        context = replace(context, checkpoint=options.checkpoint)
    checkpoint = resolve(context.backbone, context.checkpoint)
    watcher.progress(Progress(stage="building"))
    model = cell.method().build(context)
    # As built, routers choose the first expert for every image and many updates are exactly zero.
    shake(model.trainable(), DEVIATION)
    made = evidence.of_speed(cell, checkpoint.digest())
    former = _former(attempt, made) if options.join else {}
    subject = _Subject(model.to(options.device), cell, options.device, pace, former)
    with busy_elsewhere() as others:
        watcher.progress(Progress(stage="timing matrix products"))
        speed = {"matrix_flop_per_s": subject.matrix_rate()}
        watcher.progress(Progress(stage="timing inference"))
        speed |= subject.figures("inference", subject.predict_all)
        if model.trainable():
            watcher.progress(Progress(stage="timing training"))
            speed |= subject.figures("train", subject.train_step())
            speed["train_min_per_epoch"] = EPOCH / speed["train_it_per_s"] / 60
    result = {
        "schema": SCHEMA,
        "id": cell.id,
        "attempt": attempt.number,
        "measured": now(),
        "resolved": cell.resolved(),
        "parameters": model.count(),
        "random_backbone": checkpoint.random,
        "speed": speed | others | {"memory": subject.memory},
        "environment": environment.describe(options.device, cell),
    }
    attempt.commit([], result, evidence=made)


def _former(attempt: Attempt, made: dict[str, Any]) -> dict[str, Any]:
    """What the same code was measured at before, if it was."""
    before = attempt.cell.result()
    return {} if before is None or evidence.differing(attempt.cell.read()["evidence"], made) else before["speed"]


def pictures(count: int, side: int) -> tuple[Tensor, Tensor]:
    """Made-up images (B, 3, S, S) and masks (B, S, S), uint8: large patches and fine noise, always the same."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    patches = F.interpolate(coarse, (side, side), mode="bilinear", align_corners=False)
    noise = torch.randint(0, 56, patches.shape, generator=generator)
    return (200 * patches + noise).to(torch.uint8), (patches.mean(1) > 0.5).to(torch.uint8)


class _Subject:
    """A model on its device with a batch in memory, and what is timed with them; ``former`` figures count in."""

    def __init__(self, model: Model, cell: Cell, device: str, pace: Pace, former: dict[str, Any]) -> None:
        self.model, self.regime, self.pace, self.former = model, cell.regime(), pace, former
        self.machine = Machine(device=device, precision=cell.spec["precision"], **cell.spec["machine"])
        model.set_execution(self.machine.execution)
        self.images, self.masks = pictures(self.regime.batch_size, cell.spec["image_size"])
        self.on_gpu = device.startswith("cuda")
        self.clocks = {
            "synchronise": partial(torch.cuda.synchronize, device) if self.on_gpu else lambda: None,
            "clock": time.perf_counter if cell.spec.get("clock", WALL) == WALL else time.process_time,
        }
        self.memory = "allocated on the device" if self.on_gpu else "resident memory of the whole process"
        self.rate = math.nan

    def matrix_rate(self) -> float:
        """What the device can do in matrix products of the cell's precision."""
        device, precision = self.machine.device, self.machine.precision
        self.rate = operations.matrix_rate(device, precision, self.pace, **self.clocks)
        return self.rate

    @torch.no_grad()
    def predict_all(self) -> None:
        """Predictions for the batch, in micro-batches, as an evaluation makes them."""
        self.model.eval()
        size, device = self.machine.micro_batch, self.machine.device
        for images, masks in zip(self.images.split(size), self.masks.split(size), strict=True):
            with self.machine.autocast():
                output = self.model.answer(images.to(device), masks.to(device))
            self.model.probabilities(output)

    def train_step(self) -> Callable[[], Tensor]:
        """An optimiser step on the batch; it returns the losses."""
        trainer = Trainer(self.model.train(), self.regime, self.machine, seed=0)
        indices = list(range(len(self.images)))
        return lambda: trainer.step(self.images, self.masks, indices)[0]

    def figures(self, name: str, call: Callable[[], Tensor | None]) -> dict[str, Any]:
        """What is said about one of the two, by keys that begin with ``name``; ``call`` has the whole batch."""
        images = len(self.images)
        flop = operations.flop(call) / images
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats(self.machine.device)
        found = [images * rate for rate in clock.rates(call, self.pace, **self.clocks)]
        memory = environment.peak_memory(self.machine.device)
        losses = call()
        if losses is not None and not losses.isfinite().all():
            raise FloatingPointError(f"losses {losses.tolist()} after timing {name}")
        before = self.former.get(f"{name}_it_per_s_repeats", [])
        median = statistics.median(before + found)
        drift = {f"{name}_drift": statistics.median(found) / statistics.median(before) - 1} if before else {}
        return drift | {
            f"{name}_it_per_s": median,
            f"{name}_it_per_s_repeats": before + found,
            f"{name}_memory_gb": memory / GIB,
            f"{name}_flop_per_image": flop,
            f"{name}_share": median * flop / self.rate,
        }
