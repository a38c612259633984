"""How well a SAM answers clicks: on generated scenes held out from pre-training, and zero-shot on real images.

The first click is the object's innermost point; each further one the innermost point of what is wrong, on the side,
missed or spilt, that reaches deeper. A single click is answered by tokens 1-3, several by token 0 with the mask
before. Beside the SAM stand one with random weights and a disc about the first click.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.metrics.overlap import count, iou
from bench.pretraining.prompts import decode
from datasets import Split, squash_image, squash_mask
from datasets.scenes import paint_scene
from methods.base import Context
from methods.sam.build import build_parts
from methods.sam.model import PIXEL_MEAN, PIXEL_STD
from methods.sam_zero_shot import innermost_point

HELD_OUT, RADIUS_SCENES = 3, 4
"""First of the keys of scenes to score on and of scenes to choose the disc's radius on; training has others."""

SCENES, SCENES_IN_TEST = 400, 50
CLICKS = 3
RADII = np.arange(2, 60) / 100
"""Of discs to choose from, as shares of the image's side."""


class Target(NamedTuple):
    """An image (S, S, 3) uint8 and the masks (S, S) bool of what is clicked on in it."""

    image: np.ndarray
    masks: list[np.ndarray]


def scenes(first_key: int, number: int, size: int) -> Iterator[Target]:
    """Generated scenes with all their objects and parts."""
    for index in range(number):
        scene = paint_scene(size, first_key, index)
        yield Target(scene.image, [scene.mask(one) for one in scene.objects()])


def real_images(split: Split, size: int) -> Iterator[Target]:
    """A split's images, squashed, each with its foreground as the one object, if it has any."""
    for image, mask, _ in split:
        squashed = squash_mask(mask, size) == 1
        yield Target(squash_image(image, size), [squashed] if squashed.any() else [])


class Clicked(NamedTuple):
    """The IoU of the answers to clicks on one object.

    Attributes:
        chosen: one click, the mask that the model itself rates highest.
        best: one click, the best of its three.
        refined: after two more clicks.
    """

    chosen: float
    best: float
    refined: float


class Clicker:
    """A SAM that answers clicks on one image after the other.

    Args:
        backbone, checkpoint: as in a matrix file.
        image_size: side of the images.
    """

    def __init__(self, backbone: str, checkpoint: str, image_size: int) -> None:
        context = Context(backbone=backbone, checkpoint=checkpoint, image_size=image_size)
        self.parts: nn.ModuleDict = build_parts(context).requires_grad_(False).eval()
        self.image_size = image_size

    def scores(self, target: Target) -> list[Clicked]:
        """For each mask."""
        if not target.masks:
            return []
        pixels = torch.from_numpy(target.image).permute(2, 0, 1)[None]
        mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
        features = self.parts["image_encoder"]((pixels - mean) / deviation).features
        return [self._clicked(features, mask) for mask in target.masks]

    def _clicked(self, features: Tensor, mask: np.ndarray) -> Clicked:
        clicks, labels = [np.array(innermost_point(mask))], [1.0]
        low, promised = self._answer(features, clicks, labels, None)
        three = [_iou(answer, mask) for answer in self._full(low[:, 1:])]
        chosen = int(promised[0, 1:].argmax())
        shown = low[:, 1 + chosen]
        for _ in range(CLICKS - 1):
            click, label = correction(self._full(shown[:, None])[0], mask)
            clicks, labels = [*clicks, click], [*labels, label]
            low, _ = self._answer(features, clicks, labels, shown)
            shown = low[:, 0]
        return Clicked(three[chosen], max(three), _iou(self._full(shown[:, None])[0], mask))

    def _answer(self, features: Tensor, clicks: list, labels: list[float], shown: Tensor | None) -> tuple:
        encoder = self.parts["prompt_encoder"]
        points = torch.tensor(np.array([clicks]), dtype=torch.float32), torch.tensor([labels])
        before = None if shown is None else shown[:, None].clamp(-32, 32)
        sparse, dense = encoder(points=points, boxes=None, masks=before)
        return decode(self.parts["mask_decoder"], features, encoder.get_dense_pe(), sparse, dense)

    def _full(self, low: Tensor) -> np.ndarray:
        """Answers (1, M, s, s) at the image's size, (M, S, S) bool."""
        size = (self.image_size, self.image_size)
        return (F.interpolate(low, size, mode="bilinear", align_corners=False)[0] > 0).numpy()


def correction(answer: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, float]:
    """The pixel (x, y) to click on next and its label: 1 where the object was missed, 0 where the answer spilt."""
    missed, spilt = mask & ~answer, answer & ~mask
    if not missed.any() and not spilt.any():
        return np.array(innermost_point(mask)), 1.0
    depth = {1.0: _depth(missed), 0.0: _depth(spilt)}
    label = max(depth, key=depth.get)
    return np.array(innermost_point(missed if label else spilt)), label


def _depth(region: np.ndarray) -> float:
    from scipy.ndimage import distance_transform_edt

    return float(distance_transform_edt(np.pad(region, 1)).max())


def _iou(answer: np.ndarray, mask: np.ndarray) -> float:
    return iou(count(answer.astype(np.uint8) * 255, mask, 127.5))


def disc_ious(mask: np.ndarray) -> np.ndarray:
    """The IoU of discs about the first click, one for each of RADII."""
    size = mask.shape[0]
    x, y = innermost_point(mask)
    ruler = np.arange(size)
    distance = np.sqrt((ruler[None, :] - x) ** 2 + (ruler[:, None] - y) ** 2) / size
    smallest = np.searchsorted(RADII, distance)  # index of the first radius that reaches the pixel
    inside = np.bincount(smallest[mask], minlength=len(RADII) + 1)[:-1].cumsum()
    disc = np.bincount(smallest.ravel(), minlength=len(RADII) + 1)[:-1].cumsum()
    return inside / (disc + np.count_nonzero(mask) - inside)


def best_radius(targets: Iterable[Target]) -> int:
    """The index of the radius with which discs about first clicks have the highest mean IoU."""
    return int(np.mean([disc_ious(mask) for target in targets for mask in target.masks], axis=0).argmax())


def score(
    backbone: str, checkpoint: str, *, image_size: int, number: int = SCENES, isic: dict[str, Split] | None = None
) -> dict[str, Any]:
    """All scores of a checkpoint, as fractions.

    Args:
        backbone, checkpoint: as in a matrix file.
        image_size: side of scenes and squashed images in pixels.
        number: held-out scenes.
        isic: ISIC 2017's splits, None where it is not at hand.

    Returns:
        For each test set the number of objects and mean IoUs: ``models[name][answer]`` with the name "checkpoint"
        or "random", ``standard_error`` likewise; ``disc`` and ``disc_radius`` by where the radius was chosen. For
        scenes also ``first_chosen``, what :func:`first_scenes` gives.
    """
    names = {"checkpoint": checkpoint, "random": "none"}
    clickers = {name: Clicker(backbone, file, image_size) for name, file in names.items()}
    radii = {"scenes": best_radius(scenes(RADIUS_SCENES, number, image_size))}
    result = {"image_size": image_size, "scenes": _scored(scenes(HELD_OUT, number, image_size), clickers, radii)}
    result["scenes"]["first_chosen"] = first_scenes(clickers["checkpoint"])
    if isic:
        some = isic["train"].subset(range(0, len(isic["train"]), 10))
        radii["isic2017 training images"] = best_radius(real_images(some, image_size))
        result["isic2017_test"] = _scored(real_images(isic["test"], image_size), clickers, radii)
    return result


def first_scenes(clicker: Clicker) -> float:
    """The mean IoU of one click on the first few held-out scenes: what the test of the shipped checkpoint repeats."""
    targets = scenes(HELD_OUT, SCENES_IN_TEST, clicker.image_size)
    return float(np.mean([clicked.chosen for target in targets for clicked in clicker.scores(target)]))


def _scored(targets: Iterable[Target], clickers: dict[str, Clicker], radii: dict[str, int]) -> dict[str, Any]:
    answers: dict[str, list[Clicked]] = {name: [] for name in clickers}
    discs: list[np.ndarray] = []
    for target in targets:
        for name, clicker in clickers.items():
            answers[name] += clicker.scores(target)
        discs += [disc_ious(mask) for mask in target.masks]
    means = {name: np.mean(values, axis=0) for name, values in answers.items()}
    errors = {name: np.std(values, axis=0, ddof=1) / len(values) ** 0.5 for name, values in answers.items()}
    return {
        "objects": len(discs),
        "models": {name: Clicked(*values.tolist())._asdict() for name, values in means.items()},
        "standard_error": {name: Clicked(*values.tolist())._asdict() for name, values in errors.items()},
        "disc": {name: float(np.mean(discs, axis=0)[index]) for name, index in radii.items()},
        "disc_radius": {name: float(RADII[index]) for name, index in radii.items()},
    }
