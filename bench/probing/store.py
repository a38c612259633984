"""Features that need not be computed twice: those of the centre of each image, by one backbone, in one file.

The file is found by the list of images with their sizes and times of change, by what the backbone makes, here and now,
of a fixed picture, and by the source that cuts the square out; whatever changes one bit of a feature begins another
file. It is raw float32, a row an image, appended batch by batch: what a stopped run left is continued at its last
whole batch. It can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import torch
from torch import Tensor

from bench.download import locked
from bench.evidence import module_digest
from bench.probing import images as reading
from bench.probing.backbones import Backbone
from bench.probing.images import Images, centre, read_batches
from methods.sam.checkpoints import cache_folder

Told = Callable[[int], None]
"""Called with the number of images done so far."""


def file_of(images: Images, backbone: Backbone) -> Path:
    """Where the features of these images by this backbone are kept, below BENCH_CACHE."""
    identity = [images.fingerprint, backbone.mark(), backbone.pool, module_digest(reading.__name__), PIL.__version__]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    folder = cache_folder() / "features" / f"{backbone.name}-{backbone.digest[:12]}"
    return folder / f"{backbone.image_size}-{backbone.machine.precision}-{key}.f32"


def features_of(images: Images, backbone: Backbone, *, workers: int, told: Told = lambda done: None) -> Tensor:
    """The features (N, width), float32, memory-mapped; computed where they are not stored.

    Raises:
        bench.probing.images.DataError: an image cannot be read; what was computed before it stays.
        OSError: the disk is full.
    """
    path, width = file_of(images, backbone), _width(backbone)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path, doing="makes"):
        if not path.exists() or path.stat().st_size != 4 * width * len(images):
            _make(path, images, backbone, 4 * width, workers, told)
    rows = np.memmap(path, np.float32, mode="c", shape=(len(images), width))
    return torch.from_numpy(rows)


def _make(path: Path, images: Images, backbone: Backbone, row: int, workers: int, told: Told) -> None:
    part, batch = path.with_suffix(".part"), backbone.machine.micro_batch
    with part.open("ab") as file:
        # Batches begin where they would in one go: in another batch a feature may be rounded otherwise.
        done = min(file.tell() // (row * batch) * batch, len(images) // batch * batch)
        file.truncate(done * row)
        file.seek(done * row)
        order = range(done, len(images))
        for squares in read_batches(images, order, batch, centre(backbone.image_size), workers=workers):
            file.write(backbone(squares).cpu().numpy())
            file.flush()
            done += len(squares)
            told(done)
        os.fsync(file.fileno())
    os.replace(part, path)


def _width(backbone: Backbone) -> int:
    return backbone(torch.zeros(1, 3, backbone.image_size, backbone.image_size, dtype=torch.uint8)).shape[1]
