"""Frozen encoders that turn an image into one vector: Segment Anything's, and the MAE that SAM's began as.

``mean`` is the average of the last block's patch tokens: for SAM before its neck, for MAE before its final norm, the
same place of the same architecture. ``token`` is the class token after the final norm, which MAE's released probe
reads and SAM does not have.

SAM's position tables are of 1024 px. At 224 px they are interpolated to 14 x 14 tokens, which is also the size of
its windows: every block then sees the whole image.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.machine import Machine
from bench.registry import UnknownName
from methods.base import Context
from methods.sam.build import build_parts
from methods.sam.checkpoints import file_digest, resolve
from methods.sam.encoder import ImageEncoder
from methods.sam.mae import mae_vit, random_vit
from methods.sam.model import PIXEL_MEAN, PIXEL_STD
from methods.sam.sizes import SIZES

MAE = "mae_vit_b"
BACKBONES = (*(f"sam_{size}" for size in SIZES), MAE)
POOLS = ("mean", "token")


class SamFeatures(nn.Module):
    """Normalised images (B, 3, S, S) -> (B, width): the average over the last block's tokens, before the neck."""

    def __init__(self, encoder: ImageEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        encoder.taps = (len(encoder.blocks) - 1,)

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder(images).taps[0].mean(dim=(1, 2))


class VitFeatures(nn.Module):
    """Normalised images (B, 3, S, S) -> (B, width), by a timm vision transformer with a class token."""

    def __init__(self, vit: nn.Module, pool: str) -> None:
        super().__init__()
        self.vit, self.pool = vit, pool

    def forward(self, images: Tensor) -> Tensor:
        if self.pool == "token":
            return self.vit.forward_features(images)[:, 0]
        (last,) = self.vit.forward_intermediates(images, indices=1, output_fmt="NLC", intermediates_only=True)
        return last.mean(dim=1)


@dataclass(frozen=True)
class Backbone:
    """A frozen encoder on its device.

    Attributes:
        name: one of :data:`BACKBONES`.
        checkpoint: the file's name, or "none".
        digest: SHA-256 of the file, or "random".
        model: normalised images -> features.
        machine: its device and precision; ``micro_batch`` images are encoded at once.
    """

    name: str
    checkpoint: str
    digest: str
    image_size: int
    pool: str
    model: nn.Module
    machine: Machine

    @property
    def random(self) -> bool:
        return self.digest == "random"

    def described(self) -> dict[str, Any]:
        """What a record says of it beside its name."""
        return {
            "checkpoint": self.checkpoint,
            "checkpoint_digest": self.digest,
            "random_backbone": self.random,
            "image_size": self.image_size,
            "pool": self.pool,
            "precision": self.machine.precision,
        }

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features (B, width), float32, of images (B, 3, S, S), uint8, on the encoder's device."""
        pixels = images.to(self.machine.device, non_blocking=True)
        # MAE was trained with the same mean and deviation, as shares of 255.
        mean, deviation = (
            torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD)
        )
        with self.machine.autocast():
            return self.model((pixels - mean) / deviation).float().contiguous()

    def mark(self) -> str:
        """A digest of what it makes, here and now, of a fixed picture: of whatever changes one bit of its features."""
        generator = np.random.Generator(np.random.PCG64(0))
        picture = generator.integers(0, 256, (1, 3, self.image_size, self.image_size), dtype=np.uint8)
        return hashlib.sha256(self(torch.from_numpy(picture)).cpu().numpy()).hexdigest()


def load(name: str, weights: str, *, image_size: int, pool: str, machine: Machine) -> Backbone:
    """A backbone with its weights, on the machine's device.

    Args:
        name: one of :data:`BACKBONES`.
        weights: "auto" (the published ones, downloaded on first use), "none" (random), or a path; for SAM also the
            name of a checkpoint.
        image_size: side of the square input, a multiple of 16.
        pool: "mean" or "token".

    Raises:
        bench.registry.UnknownName: no such backbone.
        methods.sam.checkpoints.CheckpointError: the weights are missing, damaged or another model's.
        ValueError: an image size that the patches do not divide, or a pool that the backbone does not have.
    """
    if name not in BACKBONES:
        raise UnknownName("backbone", name, BACKBONES)
    if name == MAE:
        checkpoint, digest, model = _mae(weights, image_size, pool)
    else:
        checkpoint, digest, model = _sam(name.removeprefix("sam_"), weights, image_size, pool)
    model = model.to(machine.device).eval().requires_grad_(False)
    return Backbone(name, checkpoint, digest, image_size, pool, model, machine)


def _sam(size: str, weights: str, image_size: int, pool: str) -> tuple[str, str, nn.Module]:
    if pool != "mean":
        raise ValueError(f"--pool {pool}: SAM has no class token. Allowed with sam_{size}: mean.")
    checkpoint = resolve(size, weights)
    sam = build_parts(Context(backbone=size, checkpoint=weights, image_size=image_size))
    return checkpoint.name, checkpoint.digest(), SamFeatures(sam["image_encoder"])


def _mae(weights: str, image_size: int, pool: str) -> tuple[str, str, nn.Module]:
    size = MAE.removeprefix("mae_")
    if weights == "none":
        return "none", "random", VitFeatures(random_vit(size, image_size), pool)
    vit, path = mae_vit(size, weights, image_size)
    return path.name, file_digest(path), VitFeatures(vit, pool)
