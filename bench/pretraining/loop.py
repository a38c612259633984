"""The pre-training loop: a budget in steps or minutes, two stages, and a state that can be gone on from.

What a step sees derives from (seed, step) alone, so a run that was stopped and resumed equals one that was not:
bit for bit on a CPU where the budget is one of steps.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.pretraining.batch import Batch, Steps, stream
from bench.pretraining.dense import WEIGHTS, dense_losses
from bench.pretraining.model import Pretrained
from bench.pretraining.prompts import ROUNDS, prompt_losses
from methods.randomness import key

Report = Callable[[dict[str, Any]], None]

STATE, LOG = "state.pt", "log.jsonl"
SAVE_EVERY = 180.0  # seconds
LOG_EVERY = 20  # steps
DECAY = 0.4
"""Share of the budget, at its end, over which the learning rate falls to 0."""


@dataclass(frozen=True)
class Recipe:
    """What defines a run but for its length; kept in its state, and the same for all that continue it.

    Attributes:
        backbone: a size of SAM.
        image_size: side of most images; every eighth step has twice that.
        seed: of weights, scenes and prompts.
        batch: images a step.
        lr: highest learning rate.
        weight_decay: of weights with more than one dimension.
        warmup: steps over which the learning rate rises.
        clip: largest norm of the gradient.
    """

    backbone: str = "tiny"
    image_size: int = 128
    seed: int = 0
    batch: int = 16
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: int = 300
    clip: float = 1.0


@dataclass(frozen=True)
class Budget:
    """How long a run is, over all that it is resumed; one of the two.

    Attributes:
        steps: optimiser steps.
        minutes: of training.
        dense: share of it that trains dense predictions alone.
    """

    steps: int | None = None
    minutes: float | None = None
    dense: float = 0.4

    def spent(self, step: int, seconds: float) -> float:
        """The share that is used up, 1 at the end."""
        share = step / self.steps if self.steps else seconds / (60 * self.minutes)
        return min(1.0, share)


class Run:
    """A pre-training in its folder.

    Args:
        recipe: of a new run, or None to go on with the folder's state.
        folder: where state and log are kept.
        budget: how long.
        device: "cpu", "cuda", "cuda:1".
        precision: "fp32" or "bf16" (autocast; weights stay float32).
        workers: processes that make scenes; 0 makes them between the steps.
        origin: command, machine and code of this start, kept in the state for the checkpoint's card.

    Raises:
        FileNotFoundError, FileExistsError: the folder has no state to resume, or one that a new run would overwrite.
    """

    def __init__(
        self,
        recipe: Recipe | None,
        folder: Path,
        budget: Budget,
        *,
        device: str = "cpu",
        precision: str = "fp32",
        workers: int = 0,
        origin: Mapping[str, Any] | None = None,
    ) -> None:
        state = load_state(folder) if recipe is None else None
        if recipe is not None and (folder / STATE).exists():
            raise FileExistsError(f"{folder / STATE} exists: go on with --resume, or choose another --out")
        self.recipe = recipe or Recipe(**state["recipe"])
        self.folder, self.budget, self.device, self.workers = folder, budget, device, workers
        self.autocast = torch.autocast(device.split(":")[0], torch.bfloat16, enabled=precision == "bf16")
        self.stopped = False
        self.model = Pretrained(self.recipe.backbone, self.recipe.seed).to(device)
        self.optimiser = torch.optim.AdamW(_groups(self.model, self.recipe.weight_decay), betas=(0.9, 0.98))
        self.step, self.seconds, self.starts = 0, 0.0, []
        if state:
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self.seconds, self.starts = state["step"], state["seconds"], state.get("starts", [])
        self.starts = [*self.starts, {"step": self.step, "device": device, "precision": precision, **(origin or {})}]

    def train(self, report: Report = lambda line: None) -> None:
        """Train until the budget is spent or :meth:`stop` is called; ``report`` gets what the log gets."""
        self.folder.mkdir(parents=True, exist_ok=True)
        began, before, saved = time.perf_counter(), self.seconds, time.perf_counter()
        steps = Steps(self.recipe.seed, self.recipe.batch, self.recipe.image_size)
        sums: dict[str, list[Tensor]] = {}
        spent = self.budget.spent(self.step, self.seconds)
        batches = stream(steps, self.step, workers=self.workers) if spent < 1 else iter(())
        for batch in batches:
            prompted = spent >= self.budget.dense
            rate = self._set_rate(spent)
            for name, value in self._learn(batch.to(self.device), prompted).items():
                sums.setdefault(name, []).append(value)
            self.step += 1
            self.seconds = before + time.perf_counter() - began
            spent = self.budget.spent(self.step, self.seconds)
            last = spent >= 1 or self.stopped
            if self.step % LOG_EVERY == 0 or last:
                line = {name: torch.stack(values).mean().item() for name, values in sums.items()}
                self._log({"step": self.step, "seconds": self.seconds, "spent": spent, "lr": rate, **line}, report)
                sums.clear()
            if time.perf_counter() - saved > SAVE_EVERY or last:
                self.save()
                saved = time.perf_counter()
            if last:
                break

    def stop(self) -> None:
        """End after the step that is being computed, with its state saved."""
        self.stopped = True

    def save(self) -> None:
        """Write the state; a run that is killed meanwhile keeps the one before."""
        state = {
            "recipe": asdict(self.recipe),
            "budget": asdict(self.budget),
            "step": self.step,
            "seconds": self.seconds,
            "starts": self.starts,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        fresh = self.folder / f"{STATE}.{os.getpid()}"
        torch.save(state, fresh)
        os.replace(fresh, self.folder / STATE)

    def _learn(self, batch: Batch, prompted: bool) -> dict[str, Tensor]:
        """One optimiser step; its losses, still on the device."""
        model = self.model
        with self.autocast:
            features = model(batch.images)
            losses = dense_losses(model.head(features), batch.dense)
        total = sum(WEIGHTS[name] * loss for name, loss in losses.items())
        if prompted:
            generator = torch.Generator().manual_seed(key(self.recipe.seed, self.step))
            noise = torch.rand((ROUNDS - 1, *batch.masks.shape), generator=generator).to(self.device)
            prompt_encoder = model.prompt_encoder(batch.images.shape[-1])
            with self.autocast:
                answers = prompt_losses(prompt_encoder, model.sam["mask_decoder"], features, batch, noise)
            total = total + answers["mask"] + answers["iou"]
            losses |= answers
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), self.recipe.clip, error_if_nonfinite=True)
        self.optimiser.step()
        return {name: loss.detach() for name, loss in losses.items()} | {"norm": norm}

    def _set_rate(self, spent: float) -> float:
        """The learning rate: a rise by steps, then level, then down to 0 at the end of the budget."""
        rise = min(1.0, (self.step + 1) / self.recipe.warmup)
        rate = self.recipe.lr * rise * min(1.0, (1 - spent) / DECAY)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        return rate

    def _log(self, line: dict[str, Any], report: Report) -> None:
        odd = [name for name, value in line.items() if not math.isfinite(value)]
        if odd:
            raise FloatingPointError(f"step {self.step}: {', '.join(odd)} not finite")
        with (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        report(line)


def load_state(folder: Path) -> dict[str, Any]:
    """What :meth:`Run.save` wrote, on the CPU.

    Raises:
        FileNotFoundError: there is none.
    """
    file = folder / STATE if folder.is_dir() else folder
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no state. Start a run with python -m bench.pretrain --out {folder}")
    return torch.load(file, map_location="cpu", weights_only=True)


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters with and without decay: vectors and position tables are spared."""
    decayed, spared = [], []
    for name, parameter in model.named_parameters():
        vector = parameter.squeeze().ndim < 2 or "pos_embed" in name or "rel_pos" in name
        (spared if vector else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
