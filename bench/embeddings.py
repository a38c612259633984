"""Embeddings that need not be computed twice: where nothing in the encoder is trained, an image has one embedding.

They lie on disk, a file for each image, found by the SHA-256 of the pixels that were encoded: a flipped image is
another image, and one whose file, decoding or squashing changed is simply not there. A folder holds those of one
encoder, which is known by the source of its modules and by what it makes, here and now, of a fixed picture. So
other weights, another size, precision, device or library, whatever changes one bit, begins a folder of its own,
and a training from stored embeddings is bit for bit the one that computes them.

A file is written aside and renamed, so that any number of cells can share a folder; one that is damaged is made
anew. The folders can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bench.evidence import module_digest
from methods.base import Embedding, Model
from methods.sam.checkpoints import cache_folder

if TYPE_CHECKING:
    from bench.machine import Machine

log = logging.getLogger(__name__)
KEPT_FREE = 0.1
"""The share of a disk that embeddings leave free."""

_CHECKSUM = 4  # bytes at a file's end


class Encoder:
    """Embeds images for training and scoring.

    Args:
        model: on its device.
        machine: says which that is.
    """

    def __init__(self, model: Model, machine: Machine) -> None:
        self.model, self.device = model, machine.device

    def find(self, image: Tensor) -> Tensor | None:
        """The features (C, h, w) of an image (3, S, S), uint8, if they need not be computed. Threads may call it."""
        return None

    def __call__(
        self, images: Tensor, keys: Tensor | None = None, found: Sequence[Tensor | None] | None = None
    ) -> Embedding:
        """Embed images (B, 3, S, S), under the caller's autocast.

        Args:
            images: uint8, in host memory.
            keys: as for :meth:`methods.base.Model.encode`.
            found: what :meth:`find` gave for each of them; None where nobody has looked.
        """
        return self.model.encode(images.to(self.device, non_blocking=True), keys)


class ConstantEncoder(Encoder):
    """Embeds images with an encoder that nothing trains.

    Each image is encoded alone, stored or not: in a batch the rounding depends on the other images, and an embedding
    would be another one each time it is made.

    Args:
        model, machine: as for :class:`Encoder`.
        folder: where embeddings are kept; None keeps none.
        like: the features of one image, which tell shape and type.
    """

    def __init__(self, model: Model, machine: Machine, folder: Path | None, like: Tensor) -> None:
        super().__init__(model, machine)
        self.folder, self.bytes = folder, like.nbytes
        self._shape, self._dtype = like.shape, like.dtype
        self._writes = folder is not None
        self._sound: set[Path] = set()

    def find(self, image: Tensor) -> Tensor | None:
        if self.folder is None:
            return None
        path = self._path(image)
        try:
            content = np.fromfile(path, np.uint8)
        except OSError:
            return None
        values = content[: self.bytes]
        whole = len(content) == self.bytes + _CHECKSUM
        if not whole or (path not in self._sound and content[self.bytes :].tobytes() != _checksum(values)):
            log.warning("%s is damaged and is made anew", path)
            return None
        self._sound.add(path)
        return torch.from_numpy(values).view(self._dtype).view(self._shape)

    def __call__(
        self, images: Tensor, keys: Tensor | None = None, found: Sequence[Tensor | None] | None = None
    ) -> Embedding:
        known = [self.find(image) for image in images] if found is None else found
        features = [
            self._compute(image) if one is None else one.to(self.device, non_blocking=True)
            for image, one in zip(images, known, strict=True)
        ]
        return Embedding(torch.stack(features), {})

    @torch.no_grad()
    def _compute(self, image: Tensor) -> Tensor:
        # Layouts in memory differ in rounding: it has the one that is read again later.
        features = self.model.encode(image[None].to(self.device)).features[0].contiguous()
        if self._writes:
            self._write(self._path(image), features)
        return features

    def _write(self, path: Path, features: Tensor) -> None:
        """Keep an embedding; from the first time that this cannot be, none any more."""
        part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            disk = shutil.disk_usage(path.parent)
            if disk.free - self.bytes < KEPT_FREE * disk.total:
                raise OSError(f"less than {KEPT_FREE:.0%} of the disk would stay free")
            values = features.cpu().view(torch.uint8).numpy().ravel()
            with part.open("wb") as file:
                file.write(values)
                file.write(_checksum(values))
            os.replace(part, path)
        except OSError as error:
            self._writes = False
            log.warning("%s: %s. What is not there is computed each time", self.folder, error)
        finally:
            with suppress(OSError):  # it is gone where all went well
                part.unlink()

    def _path(self, image: Tensor) -> Path:
        name = hashlib.sha256(image.contiguous().numpy()).hexdigest()
        return self.folder / name[:2] / name[2:]


def answers_from_images(model: Model) -> bool:
    """Whether what is scored is the model's own ``answer`` to images and true masks: an oracle's."""
    return type(model).answer is not Model.answer


def folder_of(backbone: str, checkpoint: str) -> Path:
    """Where embeddings by a backbone with these weights are kept, below BENCH_CACHE.

    Args:
        backbone: a size of SAM.
        checkpoint: the digest of its weights.
    """
    return cache_folder() / "embeddings" / f"{backbone}-{checkpoint[:12]}"


def encoder_of(
    model: Model, machine: Machine, *, image_size: int, folder: Path | None = None, images: int = 0
) -> Encoder:
    """What embeds images for a model: from ``folder`` where its encoder is constant.

    Args:
        model: on its device.
        machine: device and precision.
        image_size: side of the images.
        folder: holds a folder for each encoder; None keeps nothing.
        images: how many embeddings there may be, flipped images counted twice; for the log alone.
    """
    if not model.encoder_constant or answers_from_images(model):
        return Encoder(model, machine)
    generator = np.random.Generator(np.random.PCG64(0))
    picture = generator.integers(0, 256, (1, 3, image_size, image_size), dtype=np.uint8)
    with torch.no_grad(), machine.autocast():
        embedding = model.encode(torch.from_numpy(picture).to(machine.device))
    if embedding.aux_losses or embedding.expert_counts is not None or embedding.taps:
        log.info("computes embeddings each time: they hold more than features")
        return Encoder(model, machine)
    like = embedding.features[0].cpu().contiguous()
    if folder is None:
        return ConstantEncoder(model, machine, None, like)
    modules = sorted({type(part).__module__ for part in model.modules()})
    sources = [module_digest(name) for name in modules if not name.startswith("torch.")]
    made = hashlib.sha256(like.view(torch.uint8).numpy()).hexdigest()
    identity = [sources, str(like.dtype), list(like.shape), made]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]
    kind = machine.device.partition(":")[0]
    encoder = ConstantEncoder(model, machine, folder / f"{image_size}-{machine.precision}-{kind}-{key}", like)
    there = sum(1 for path in encoder.folder.glob("??/*") if not path.suffix)
    needed = f"up to {images:,} are needed, {images * encoder.bytes / 1e6:,.0f} MB"
    log.info("keeps embeddings in %s: %s are there, %s", encoder.folder, f"{there:,}", needed)
    return encoder


def _checksum(values: np.ndarray) -> bytes:
    return zlib.crc32(values).to_bytes(_CHECKSUM, "little")
