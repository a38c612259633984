"""One linear probe from images to scores: encode, train a head for each learning rate, choose one, score it."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.environment import describe
from bench.probing.backbones import Backbone
from bench.probing.fit import Recipe, augmented, fit
from bench.probing.heads import Scores, best_head, evaluate
from bench.probing.images import Folder, Images, hold_out
from bench.probing.store import features_of
from methods.sam.checkpoints import cache_folder

Progress = Callable[[str, int, str], Callable[..., None]]
"""From what is done, how much of it there is and its unit to what is called with how much is done, and a remark."""


def measure(
    backbone: Backbone, folder: Folder, recipe: Recipe, *, augment: bool, workers: int, progress: Progress
) -> dict[str, Any]:
    """Probe a backbone on a folder; returns the fields of :mod:`bench.probing.record` that depend on the folder.

    Args:
        backbone: on its device.
        folder: the images.
        recipe: of the heads; its batch is cut down to the images there are.
        augment: train on random crops of each epoch, rather than on stored features of the centres.
        workers: threads that read images; they change no result.
        progress: told how far each stage is.

    Raises:
        bench.probing.images.DataError: an image cannot be read, or a class has too few.
        FloatingPointError: no learning rate gave a finite loss.
    """
    began = time.monotonic()
    training, held = hold_out(folder.train, recipe.held_out)
    recipe = recipe.fitted(len(training))
    held_images, labels = folder.train.subset(held), torch.from_numpy(folder.train.labels)
    parts = {"train": folder.train.subset(training), "held_out": held_images, "val": folder.val}
    data = {name: {"images": len(images), "digest": images.digest} for name, images in parts.items()}

    def features(name: str, images: Images) -> Tensor:
        told = progress(f"features of {name}", len(images), "images")
        return features_of(images, backbone, workers=workers, told=told)

    def trained(epoch: int, losses: list[float]) -> None:
        line(epoch, f", lowest loss {min(filter(math.isfinite, losses), default=math.nan):.4f}")

    of_val = features("val", folder.val)
    if augment:
        of_held = features("held out", held_images)
        source = augmented(folder.train, backbone, seed=recipe.seed, workers=workers)
    else:
        of_train = features("train", folder.train)
        of_held = of_train[held]

        def source(wanted: Sequence[int], epoch: int) -> Tensor:
            return of_train[wanted]

    encoded = time.monotonic()
    state = _state_file([backbone.mark(), backbone.pool, augment, repr(recipe), data])
    line = progress("training", recipe.epochs, "epochs")
    heads = fit(
        source,
        labels,
        training,
        recipe,
        classes=len(folder.classes),
        width=of_val.shape[1],
        device=backbone.machine.device,
        state=state,
        told=trained,
    )
    choosing = evaluate(heads, of_held, labels[held])
    best = best_head(choosing)
    scores = evaluate(heads, of_val, torch.from_numpy(folder.val.labels))
    state.unlink(missing_ok=True)
    ended = time.monotonic()
    return {
        **_of_folder(folder),
        "data": data,
        "recipe": recipe.described(),
        **_choice(recipe.rates, choosing, best),
        "top1": scores.top1[best],
        "top5": scores.top5[best] if scores.top5 else None,
        "seconds": {"features": encoded - began, "training": ended - encoded, "total": ended - began},
        "environment": describe(backbone.machine.device),
    }


def _of_folder(folder: Folder) -> dict[str, Any]:
    """What is said of a folder; ``chance`` is the share of its most frequent class."""
    chance = float(np.bincount(folder.val.labels).max() / len(folder.val))
    return {"dataset": folder.name, "classes": len(folder.classes), "images": len(folder.val), "chance": chance}


def _state_file(identity: list[Any]) -> Path:
    """Where a training of heads that may be interrupted is kept."""
    return cache_folder() / "probes" / f"{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]}.pt"


def _choice(rates: tuple[float, ...], choosing: Scores, best: int) -> dict[str, Any]:
    """The grid with what held-out images say of each rate, and the best."""
    losses = [loss if math.isfinite(loss) else None for loss in choosing.loss]
    grid = [
        {"base_lr": rate, "held_out_top1": top1, "held_out_loss": loss}
        for rate, top1, loss in zip(rates, choosing.top1, losses, strict=True)
    ]
    return {"rates": grid, "base_lr": rates[best], "edge": len(rates) > 1 and rates[best] in (min(rates), max(rates))}
