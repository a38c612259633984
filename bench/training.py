"""Train one model by a regime: the released recipe, with statistics that no micro-batch can change."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.data import SquashedSplit, batches, shuffled
from bench.embeddings import Encoder
from bench.environment import peak_memory
from bench.losses import task_loss
from bench.machine import Machine
from bench.metrics import metrics_of, validation_of
from bench.prediction import at_image_size
from bench.regime import Regime
from methods.base import Model
from methods.randomness import image_keys

if TYPE_CHECKING:
    from bench.saved import SavedStates

CHECK_EVERY = 16  # steps between looks at the losses: each look waits for the device


class NonFiniteLoss(RuntimeError):
    """A loss or a gradient became infinite or not a number; the message names the step and the images."""


@dataclass
class Progress:
    """How far a training is, for whoever watches."""

    stage: str = "starting"
    epoch: int = 0
    epochs: int = 0
    step: int = 0
    steps: int = 0
    loss: float | None = None
    images_per_second: float | None = None
    seconds_left: float | None = None


@dataclass
class Training:
    """The record of a training; the model then holds its best state.

    Attributes:
        seconds: of all attempts, each up to the last epoch that counts.
        resumed: a training that was interrupted: after which ``epoch`` it went on each time, and what of the
            surroundings had ``changed`` meanwhile.
    """

    steps: int = 0
    epochs: int = 0
    best_epoch: int = 0
    best_validation: float | None = None
    stopped_early: bool = False
    seconds: float = 0.0
    images_per_second: float = 0.0
    first_step_at: float | None = None
    first_loss: float | None = None
    last_loss: float | None = None
    train_images: int = 0
    validation_images: int = 0
    peak_memory_bytes: int = 0
    resumed: list[dict[str, Any]] = field(default_factory=list)


class Step(NamedTuple):
    """One optimiser step that was not looked at yet: its images' indices, their losses, the gradient's norm."""

    number: int
    images: list[int]
    losses: Tensor
    norm: Tensor


class Validation(NamedTuple):
    """The validation metric, NaN where no pixel counts, and how often each layer chose each of its experts, if any."""

    score: float
    experts: list[list[int]] | None


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters with and without decay: biases and LayerNorm weights are spared, as released."""
    spared_modules = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
    norms = {id(p) for module in model.modules() if isinstance(module, spared_modules) for p in module.parameters()}
    decayed, spared = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (spared if "bias" in name or id(parameter) in norms else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]


def total_steps(images: int, regime: Regime) -> int:
    """Optimiser steps of a full run."""
    steps = math.ceil(images / regime.batch_size) * regime.epochs
    return min(steps, regime.max_steps) if regime.max_steps else steps


class Trainer:
    """One training run.

    Args:
        model: the model, already on its device.
        regime: the recipe.
        machine: device, precision, micro-batch.
        seed: from it, the epoch and the image's index derive order, flips and noise.
        encoder: embeds the images, see :func:`bench.embeddings.encoder_of`; the model itself where none is given.
        watch: called with the progress at every look at the losses and at every change of stage.
        history: file that gets one JSON line an epoch; None writes none.
    """

    def __init__(
        self,
        model: Model,
        regime: Regime,
        machine: Machine,
        *,
        seed: int,
        encoder: Encoder | None = None,
        watch: Callable[[Progress], None] = lambda progress: None,
        history: Path | None = None,
    ) -> None:
        self.model, self.regime, self.machine, self.seed = model, regime, machine, seed
        self.encoder = encoder or Encoder(model, machine)
        self.watch, self.history = watch, history
        self.progress, self.record = Progress(), Training()
        self.lines: list[dict[str, Any]] = []
        self.task_loss = task_loss(regime)
        make = torch.optim.AdamW if regime.optimizer == "adamw" else torch.optim.Adam
        groups = parameter_groups(model, regime.weight_decay)
        self.optimiser = make(groups, lr=regime.lr, betas=regime.betas, eps=regime.eps, fused=True)

    def fit(self, train: SquashedSplit, validation: SquashedSplit, *, saved: SavedStates | None = None) -> Training:
        """Train, validate every epoch, and leave the model at its best epoch.

        Args:
            train, validation: the splits.
            saved: where the state after each epoch is kept; training goes on from the newest that is there.

        Raises:
            NonFiniteLoss: with the step and the identifiers of its images.
        """
        progress, metric = self.progress, metrics_of(self.model.num_classes)[self.regime.validation_metric]
        progress.steps, progress.epochs = total_steps(len(train), self.regime), self.regime.epochs
        best = saved.resume(self) if saved else {}
        record, earlier, started = self.record, self.record.seconds, time.perf_counter()
        record.train_images, record.validation_images = len(train), len(validation)
        while not self.over:
            epoch = record.epochs + 1
            progress.epoch, progress.stage = epoch, "training"
            line = {"epoch": epoch, **self._train_epoch(train, epoch)}
            progress.stage = "validating"
            self.watch(progress)
            score, experts = self.validate(validation)
            shown = score if math.isfinite(score) else None  # JSON has no NaN
            line |= {"step": progress.step, "validation": {self.regime.validation_metric: shown}}
            self.note(line if experts is None else line | {"experts": experts})
            record.epochs, record.steps, record.last_loss = epoch, progress.step, line["loss"]
            record.first_loss = line["loss"] if epoch == 1 else record.first_loss
            if metric.improves(score, record.best_validation):
                record.best_epoch, record.best_validation = epoch, score
                best = {name: value.detach().clone() for name, value in self.model.state().items()}
            # Where no pixel of a validation counts there is nothing to lose patience with.
            waited = 0 if record.best_validation is None else epoch - record.best_epoch
            record.stopped_early = 0 < self.regime.patience <= waited
            record.peak_memory_bytes = max(record.peak_memory_bytes, peak_memory(self.machine.device))
            record.seconds = earlier + time.perf_counter() - started
            if saved:
                saved.offer(self, best)
        self.put(best)
        record.seconds = earlier + time.perf_counter() - started
        return record

    @property
    def over(self) -> bool:
        """Whether nothing is left to train."""
        return self.record.stopped_early or 0 < self.progress.steps <= self.record.steps

    @torch.no_grad()
    def put(self, values: dict[str, Tensor]) -> None:
        """Set what training changes by name; what is not named stays."""
        for name, value in self.model.state().items():
            value.copy_(values.get(name, value))

    def _train_epoch(self, train: SquashedSplit, epoch: int) -> dict[str, Any]:
        self.model.train()
        regime, progress, started, seen = self.regime, self.progress, time.perf_counter(), 0
        losses: list[float] = []
        pending: list[Step] = []
        flips = (self.seed, epoch) if regime.flip else None
        order, find = shuffled(len(train), self.seed, epoch), self.encoder.find
        for batch in batches(train, order, regime.batch_size, flips=flips, find=find):
            if progress.step >= progress.steps:
                break
            rate = self._set_rate()
            pending.append(Step(progress.step + 1, batch.indices, *self.step(*batch)))
            progress.step += 1
            seen += len(batch.indices)
            if self.record.first_step_at is None:
                self.record.first_step_at = time.time()
            if len(pending) == CHECK_EVERY or progress.step == 1:
                losses += self._look(pending, train)
                progress.loss, progress.images_per_second = losses[-1], seen / (time.perf_counter() - started)
                progress.seconds_left = (
                    (progress.steps - progress.step) * regime.batch_size / progress.images_per_second
                )
                self.watch(progress)
        losses += self._look(pending, train)
        seconds = time.perf_counter() - started
        self.record.images_per_second = progress.images_per_second = seen / seconds
        mean = sum(losses) / len(losses)
        return {"loss": mean, "lr": rate, "seconds": seconds, "images_per_second": seen / seconds}

    def _set_rate(self) -> float:
        decay = 1 - self.progress.step / self.progress.steps if self.regime.schedule == "linear" else 1.0
        for group in self.optimiser.param_groups:
            group["lr"] = self.regime.lr * decay
        return self.regime.lr * decay

    def step(
        self, images: Tensor, masks: Tensor, indices: list[int], found: Sequence[Tensor | None] = ()
    ) -> tuple[Tensor, Tensor]:
        """One optimiser step on a batch, in micro-batches if the model allows them, at the rate that was last set.

        Args:
            images: (B, 3, S, S) uint8.
            masks: (B, S, S) uint8.
            indices: of the images in their split; from them, the seed and the number of the step derives all noise.
            found: embeddings that need not be computed, one an image or None.

        Returns:
            The loss of each image, (B,), and the gradient's norm before it was clipped, still on the device.
        """
        count, device = len(indices), self.machine.device
        keys = image_keys(self.seed, self.progress.step, indices)
        whole = self.model.batch_statistics or not self.machine.micro_batch
        size, losses = count if whole else self.machine.micro_batch, []
        self.optimiser.zero_grad(set_to_none=True)
        for start in range(0, count, size):
            part = slice(start, start + size)
            own = keys[part].to(device)
            with self.machine.autocast():
                output = self.model.decode(self.encoder(images[part], own, found[part] or None))
            target = self.model.targets(masks[part].to(device, non_blocking=True))
            loss = self.model.loss(output, target, partial(self.task_loss, keys=own))
            (loss.sum() / count).backward()
            losses.append(loss.detach())
        trained = list(self.model.trainable().values())
        norm = nn.utils.clip_grad_norm_(trained, self.regime.clip_norm or math.inf)
        self.optimiser.step()
        return torch.cat(losses), norm

    def _look(self, pending: list[Step], data: SquashedSplit) -> list[float]:
        """The mean loss of each pending step; empties ``pending``."""
        means = []
        for step in pending:
            values = step.losses.tolist()
            odd = [index for index, value in zip(step.images, values, strict=True) if not math.isfinite(value)]
            if odd or not math.isfinite(step.norm.item()):
                what = "loss" if odd else "gradient of a finite loss"
                names = ", ".join(data.split.identifiers[index] for index in odd or step.images)
                raise NonFiniteLoss(f"non-finite {what} at step {step.number}, images {names}")
            means.append(sum(values) / len(values))
        pending.clear()
        return means

    @torch.no_grad()
    def validate(self, data: SquashedSplit) -> Validation:
        """Predict all of a split at the cell's image size."""
        self.model.eval()
        num_classes = self.model.num_classes
        scores = validation_of(self.regime.validation_metric, num_classes)
        chosen: list[Tensor] = []
        for batch in batches(data, range(len(data)), self.regime.batch_size, find=self.encoder.find):
            with self.machine.autocast():
                output = self.model.decode(self.encoder(batch.images, found=batch.found))
            if output.expert_counts is not None:
                chosen.append(output.expert_counts.sum(0))
            predictions = at_image_size(self.model.probabilities(output), num_classes).cpu().numpy()
            for prediction, mask in zip(predictions, batch.masks.numpy(), strict=True):
                scores.add(prediction, mask)
        experts = torch.stack(chosen).sum(0).long().tolist() if chosen else None
        return Validation(scores.value(), experts)

    def note(self, line: dict[str, Any]) -> None:
        """Add an epoch to the history."""
        self.lines.append(line)
        if self.history is not None:
            with self.history.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
