"""Train the heads of a probe on features, wherever these come from, and go on where a stopped run was."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.data import shuffled
from bench.probing.backbones import Backbone
from bench.probing.heads import MOMENTUM, TRUST_COEFFICIENT, Heads, Optimiser, losses_of
from bench.probing.images import Images, random_crop, read_batches

SAVE_SECONDS = 60.0
RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""MAE's rate is 0.1; how far LARS gets is proportional to rate times images seen, so small folders need higher ones."""

Source = Callable[[Sequence[int], int], Tensor]
"""From indices of training images and the epoch to their features (B, width)."""


@dataclass(frozen=True)
class Recipe:
    """How heads are trained; the defaults are MAE's (He et al. 2022, table 10), with a grid around its rate.

    Attributes:
        rates: base learning rates, one for each head; the rate is ``base * batch / 256``.
        epochs: passes over the training images; the last incomplete batch of each is left out, as there.
        batch: images a step, or all there are where they are fewer.
        held_out: share of the training images that chooses the rate and is not trained on.
        seed: of initial weights, order and crops.
    """

    rates: tuple[float, ...] = RATES
    epochs: int = 90
    batch: int = 16384
    held_out: float = 0.05
    seed: int = 0

    def fitted(self, images: int) -> Recipe:
        """The recipe for this many training images."""
        return Recipe(**{**asdict(self), "batch": min(self.batch, images)})

    def described(self) -> dict[str, Any]:
        """What a record says of it."""
        words = {"optimiser": "lars", "momentum": MOMENTUM, "trust_coefficient": TRUST_COEFFICIENT, "weight_decay": 0}
        return {**words, "warmup": 1 / 9, **{key: value for key, value in asdict(self).items() if key != "rates"}}


def augmented(images: Images, backbone: Backbone, *, seed: int, workers: int) -> Source:
    """Features computed each time, of a random crop of each image, which is a function of (seed, epoch, index)."""

    def source(wanted: Sequence[int], epoch: int) -> Tensor:
        draw = random_crop(backbone.image_size, seed, epoch)
        squares = read_batches(images, wanted, backbone.machine.micro_batch, draw, workers=workers)
        return torch.cat([backbone(batch) for batch in squares])

    return source


def fit(
    source: Source,
    labels: Tensor,
    indices: Sequence[int],
    recipe: Recipe,
    *,
    classes: int,
    width: int,
    device: str,
    state: Path,
    told: Callable[[int, list[float]], None],
) -> Heads:
    """Train one head for each rate of the recipe, on a device, epoch by epoch.

    Args:
        source: gives the features.
        labels: (N,) of all images that ``indices`` counts.
        indices: images to train on.
        recipe: fitted to their number.
        state: where to keep the state now and then; what lies there is continued, and removed by the caller.
        told: called after each epoch with how many are done and the heads' losses on the last batch.

    Raises:
        ValueError: a batch of one image, of which a batch norm learns nothing.
    """
    if recipe.batch < 2:
        raise ValueError(f"batch {recipe.batch}: batch norm needs two images or more; --batch 2")
    heads = Heads(width, classes, len(recipe.rates), seed=recipe.seed).to(device)
    optimiser = Optimiser(heads, [rate * recipe.batch / 256 for rate in recipe.rates])
    begin, saved = _resume(state, heads, optimiser), time.monotonic()
    steps = len(indices) // recipe.batch
    for epoch in range(begin, recipe.epochs):
        order = [indices[place] for place in shuffled(len(indices), recipe.seed, epoch)]
        for step in range(steps):
            batch = order[step * recipe.batch : (step + 1) * recipe.batch]
            features = source(batch, epoch).to(device)
            losses = losses_of(heads(features), labels[batch].to(device))
            optimiser.step(losses, (epoch + step / steps) / recipe.epochs)
        if time.monotonic() - saved >= SAVE_SECONDS:
            _save(state, epoch + 1, heads, optimiser)
            saved = time.monotonic()
        told(epoch + 1, losses.detach().tolist())
    return heads


def _save(path: Path, epoch: int, heads: Heads, optimiser: Optimiser) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save({"epoch": epoch, "heads": heads.state_dict(), "optimiser": optimiser.lars.state_dict()}, part)
    os.replace(part, path)


def _resume(path: Path, heads: Heads, optimiser: Optimiser) -> int:
    """Take over what lies there; returns how many epochs are done. A damaged file begins anew."""
    if not path.exists():
        return 0
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # damaged bytes make the reader raise almost any type
        return 0
    heads.load_state_dict(found["heads"])
    optimiser.lars.load_state_dict(found["optimiser"])
    return found["epoch"]
