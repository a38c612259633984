"""How a cell is trained: the recipe of the authors' release, or the one the paper's text describes.

A dataset states what differs from the defaults for it (epochs, loss, validation metric); a matrix may
override anything. Only the overrides enter a cell's identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

VERSION = 1
SET_PREDICTION = ("mask_tokens", "loss_weights", "match_weights", "points")
"""What only the loss of several classes reads, and what is therefore no part of other cells' identity."""


class Regime(BaseModel):
    """A training recipe; the defaults are AutoGluon's preset for Conv-LoRA.

    Attributes:
        preset: which set of defaults the other values start from.
        epochs: passes over the training images.
        lr, schedule: peak learning rate; "linear" falls to 0 at the last step, "constant" does not.
        optimizer, betas, eps, weight_decay: decay spares biases and LayerNorm weights.
        clip_norm: largest gradient norm, 0 for none.
        batch_size: images an optimiser step; the micro-batch is a matter of memory and no part of the recipe.
        flip: random horizontal flips.
        loss: one of ``bench.losses``: "set_prediction" for several classes, the others for binary masks.
        mask_tokens: mask queries N of a model for several classes; an image with more classes loses some.
        loss_weights: of set prediction's class cross-entropy, mask cross-entropy and Dice. 1/1/1 is what the release
            trains with: the 10/5/5 of its configuration reach no code.
        match_weights: of the same three in the cost by which segments are matched to queries.
        points: sampled points an image and mask, where set prediction compares masks.
        validation_metric: decides the best epoch; a key of ``bench.metrics.metrics_of``.
        patience: epochs without a better validation before training stops, 0 for never.
        max_steps: stop after so many optimiser steps although epochs are left, 0 for no limit.
        max_train_images, max_validation_images: use a fixed random subset of so many images, 0 for all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    preset: Literal["released", "paper_text"] = "released"
    epochs: PositiveInt = 30
    lr: PositiveFloat = 1e-4
    schedule: Literal["linear", "constant"] = "linear"
    optimizer: Literal["adamw", "adam"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: PositiveFloat = 1e-6
    weight_decay: NonNegativeFloat = 1e-4
    clip_norm: NonNegativeFloat = 1.0
    batch_size: PositiveInt = 4
    flip: bool = True
    loss: Literal["structure", "structure_weighted", "balanced_bce", "set_prediction"] = "structure"
    mask_tokens: int = Field(10, ge=1, le=1000)
    loss_weights: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] = (1.0, 1.0, 1.0)
    match_weights: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] = (1.0, 5.0, 5.0)
    points: int = Field(12_544, ge=4)
    validation_metric: str = "iou"
    patience: NonNegativeInt = Field(10)
    max_steps: NonNegativeInt = 0
    max_train_images: NonNegativeInt = 0
    max_validation_images: NonNegativeInt = 0


# Where the paper's text and the release differ: plain Adam, one rate throughout, no clipping, no early stop,
# and the structure loss with the weighted cross-entropy of its published formula.
PAPER_TEXT: dict[str, Any] = {
    "preset": "paper_text",
    "optimizer": "adam",
    "eps": 1e-8,
    "schedule": "constant",
    "clip_norm": 0.0,
    "patience": 0,
    "loss": "structure_weighted",
}


def resolve(dataset_regime: Mapping[str, Any], overrides: Mapping[str, Any]) -> tuple[Regime, dict[str, Any]]:
    """The recipe of a cell, and the overrides that make a difference to the dataset's own.

    A loss that the dataset names (SBU: balanced BCE) wins over the preset's.

    Raises:
        pydantic.ValidationError: an unknown key or a value out of range.
    """
    overrides = {k: tuple(v) if isinstance(v, list) else v for k, v in overrides.items()}
    preset = PAPER_TEXT if overrides.get("preset") == "paper_text" else {}
    default = Regime(**{**preset, **dataset_regime})
    regime = Regime(**{**preset, **dataset_regime, **overrides})
    before, after = default.model_dump(mode="json"), regime.model_dump(mode="json")
    unread = () if regime.loss == "set_prediction" else SET_PREDICTION
    changed = {key: value for key, value in after.items() if value != before[key] and key not in unread}
    return regime, ({"preset": "paper_text"} | changed if preset else changed)
