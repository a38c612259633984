"""What one pre-training step learns from, as a function of (seed, step): images, dense targets and prompts.

Everything is made in numpy by the loader's processes; the training process only computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datasets.painting import Draws
from datasets.scenes import Scene, paint_scene

STRIDE = 4
"""Pixels a side of a target: the mask decoder answers at a quarter of the image's side."""

OBJECTS = 4
"""Prompted objects an image."""

BOXES = 0.25
"""Share of the prompts that start with a box, not with a click."""

BARRED = 0.2
"""Share of the prompts for which one of the three masks may not be chosen as the best.

A mask that is never the best is never trained; so each gets its turns (Rupprecht et al. 2017, "Learning in an
uncertain world", drop hypotheses for the same reason).
"""

_SCENES, _PROMPTS = 1, 2  # tell apart what is drawn for the same step


class Batch(NamedTuple):
    """One step's material; N = B * OBJECTS prompts, those of an image one after the other; s = S / STRIDE.

    Attributes:
        images: (B, 3, S, S) uint8.
        dense: (B, 8, s, s) float32, see :func:`dense_targets`.
        masks: (N, s, s) float32, the share of each cell that the prompted object covers.
        clicks: (N, 2) float32, x and y of a pixel inside the object.
        boxes: (N, 4) float32, the corners of a box about the object.
        boxed: (N,) bool, whether the box is the prompt and not the click.
        barred: (N,) int64, the one of the tokens 1-3 that may not be the best one; mostly -1, none.
    """

    images: Tensor
    dense: Tensor
    masks: Tensor
    clicks: Tensor
    boxes: Tensor
    boxed: Tensor
    barred: Tensor

    def to(self, device: str) -> Batch:
        """The same on a device."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


class Steps(Dataset):
    """The batches of a run by the number of their step.

    Every eighth step has images of twice the side, a quarter as many.

    Args:
        seed: of the run.
        batch: images a step at ``size``.
        size: image side of most steps in pixels.
    """

    def __init__(self, seed: int, batch: int, size: int) -> None:
        self.seed, self.batch, self.size = seed, batch, size

    def __getitem__(self, step: int) -> Batch:
        large = step % 8 == 7
        size, count = (2 * self.size, max(1, self.batch // 4)) if large else (self.size, self.batch)
        return make_batch(size, count, self.seed, step)


def stream(steps: Steps, start: int, *, workers: int) -> Iterator[Batch]:
    """The batches from step ``start`` on, without end, read ahead by processes (0: none, made when asked for)."""
    return iter(DataLoader(steps, batch_size=None, sampler=range(start, 1 << 40), num_workers=workers))


def make_batch(size: int, count: int, seed: int, step: int) -> Batch:
    """``count`` scenes of ``size`` pixels with their targets and prompts."""
    draws = Draws(_PROMPTS, seed, step)
    scenes = [_scene_with_objects(size, seed, step, index) for index in range(count)]
    prompts = [_prompt(scene.mask(number), draws) for scene in scenes for number in _choose(scene.objects(), draws)]
    masks, clicks, boxes = (np.stack(parts) for parts in zip(*prompts, strict=True))
    boxed = np.array([draws.uniform(0, 1) < BOXES for _ in prompts])
    barred = np.array([draws.integer(1, 3) if draws.uniform(0, 1) < BARRED else -1 for _ in prompts])
    images = np.stack([scene.image.transpose(2, 0, 1) for scene in scenes])
    dense = np.stack([dense_targets(scene) for scene in scenes])
    return Batch(*(torch.from_numpy(part) for part in (images, dense, masks, clicks, boxes, boxed, barred)))


def dense_targets(scene: Scene) -> np.ndarray:
    """(8, s, s) float32: what each cell of STRIDE pixels a side belongs to.

    Channels: share of foreground; whether a contour passes; and, of the object (with its parts) at the cell's
    centre, the offset to its centre (x, y, in sides of the image), half the logarithm of its share of the image, and
    its mean colour (red, green, blue in -1..1). The last six are NaN on the background.
    """
    size = scene.instances.shape[0]
    wholes = scene.wholes[scene.instances]
    contour = np.zeros((size, size), dtype=np.float32)
    contour[:, 1:] = scene.instances[:, 1:] != scene.instances[:, :-1]
    contour[1:] = np.maximum(contour[1:], scene.instances[1:] != scene.instances[:-1])

    labels, count = wholes.ravel(), len(scene.wholes)
    area = np.maximum(np.bincount(labels, minlength=count), 1)
    ruler = (np.arange(size) + 0.5) / size
    places = [np.broadcast_to(ruler, (size, size)), np.broadcast_to(ruler[:, None], (size, size))]
    colours = scene.image.transpose(2, 0, 1) / 127.5 - 1
    means = [np.bincount(labels, weights=values.ravel(), minlength=count) / area for values in (*places, *colours)]

    cells = wholes[STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]
    centres = ruler.reshape(-1, STRIDE).mean(1)
    described = np.stack(
        [
            means[0][cells] - centres,
            means[1][cells] - centres[:, None],
            0.5 * np.log(area / size**2)[cells],
            *(mean[cells] for mean in means[2:]),
        ]
    )
    described[:, cells == 0] = np.nan
    seen = np.stack([_cells(wholes > 0).mean((1, 3)), _cells(contour).max((1, 3))])
    return np.concatenate([seen, described]).astype(np.float32)


def _cells(values: np.ndarray) -> np.ndarray:
    """(S, S) -> (s, STRIDE, s, STRIDE)."""
    side = values.shape[0] // STRIDE
    return values.reshape(side, STRIDE, side, STRIDE)


def _scene_with_objects(size: int, seed: int, step: int, index: int) -> Scene:
    """The first of the scenes for this place in the batch in which an object can be seen."""
    attempt = 0
    while not len((scene := paint_scene(size, _SCENES, seed, step, index, attempt)).objects()):
        attempt += 1
    return scene


def _choose(objects: np.ndarray, draws: Draws) -> np.ndarray:
    """OBJECTS of the objects; none twice before each had its turn."""
    order = objects[np.argsort(draws.values(len(objects)), kind="stable")]
    return np.resize(order, OBJECTS)


def _prompt(mask: np.ndarray, draws: Draws) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The target, a click anywhere inside, and a box that is off by up to a tenth of its sides."""
    inside = np.argwhere(mask)
    click = inside[draws.integer(0, len(inside) - 1), ::-1].astype(np.float32)
    low, high = inside.min(0)[::-1], inside.max(0)[::-1]
    sides = np.tile(high - low + 1, 2)
    box = np.concatenate([low, high]) + 0.1 * sides * draws.values(4)
    return _cells(mask).mean((1, 3), dtype=np.float32), click, box.astype(np.float32)
