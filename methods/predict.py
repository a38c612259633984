"""A trained model on pictures of any size.

A picture is squashed as in training and decided at its own size, as scoring under the protocol ``literature`` does. A
list goes through the model in the batches of scoring, and images are embedded alone where they are there: on the same
kind of device and given a test set in its order, an adapter repeats its cell's scores to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.prediction import at_mask_size, resized
from bench.squash import squash_picture
from methods.base import Embedding, Model

Picture = np.ndarray | Image.Image | str | Path
"""(H, W, 3) uint8 in RGB, or grey (H, W), or with transparency (H, W, 4), which is dropped; a picture of Pillow; or the
path of one. Pixels are taken as they are stored, whatever a camera's tag says of turning them."""

BATCH = 4
_HALF = 127.5  # in 8 bits: foreground is what is brighter


def masks(model: Model, picture: Picture | Sequence[Picture]) -> np.ndarray | list[np.ndarray]:
    """Class indices of each picture at its own size, (H, W) uint8; of binary masks 0 and 1.

    Raises:
        ValueError: a picture of another kind, or an oracle, which cannot answer without the true masks.
    """

    def decide(one: Tensor, size: tuple[int, int]) -> np.ndarray:
        taken = at_mask_size(one, size, model.num_classes)
        return ((taken > _HALF).to(torch.uint8) if model.num_classes == 1 else taken).cpu().numpy()

    return _each(model, picture, decide)


def probabilities(
    model: Model, picture: Picture | Sequence[Picture], size: tuple[int, int] | None = None
) -> np.ndarray | list[np.ndarray]:
    """Foreground probabilities (H, W) of each picture, float32; of several classes scores (K, H, W).

    Args:
        size: (H, W) for all; each picture's own where none is given.

    Raises:
        ValueError: as :func:`masks`.
    """

    def resize(one: Tensor, own: tuple[int, int]) -> np.ndarray:
        large = resized(one, size or own, model.num_classes)
        return (large[0] if model.num_classes == 1 else large).cpu().numpy()

    return _each(model, picture, resize)


def _each(
    model: Model, picture: Picture | Sequence[Picture], take: Callable[[Tensor, tuple[int, int]], np.ndarray]
) -> np.ndarray | list[np.ndarray]:
    """What is taken of the answer to a picture, or to each one of a list."""
    several = isinstance(picture, list | tuple)
    found = [take(*answer) for answer in _answers(model, picture if several else [picture])]
    return found if several else found[0]


@torch.no_grad()
def _answers(model: Model, pictures: Sequence[Picture]) -> Iterator[tuple[Tensor, tuple[int, int]]]:
    """The model's probabilities (S, S), or scores (K, S, S), and the picture's size (H, W)."""
    if type(model).answer is not Model.answer:
        raise ValueError(
            f"{type(model).__name__} is scored by what it answers to images and true masks; without these it predicts "
            "nothing. Train a method: python -m methods lists them"
        )
    if model.image_size is None:
        raise ValueError("the side of this model's input is not known: set model.image_size, in pixels")
    model.eval()
    device = next(model.parameters()).device
    for start in range(0, len(pictures), BATCH):
        opened = [open_picture(picture) for picture in pictures[start : start + BATCH]]
        images = torch.stack([_pixels(picture, model.image_size) for picture in opened]).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=model.precision == "bf16"):
            output = model.decode(_embed(model, images))
        for one, picture in zip(model.probabilities(output), opened, strict=True):
            yield one, (picture.height, picture.width)


def _pixels(picture: Image.Image, side: int) -> Tensor:
    """(3, S, S), contiguous, since layouts in memory differ in rounding."""
    return torch.from_numpy(squash_picture(picture, side).transpose(2, 0, 1).copy())


def _embed(model: Model, images: Tensor) -> Embedding:
    """Embed a batch; alone, as :mod:`bench.embeddings` does and for its reason, where that gives features only."""
    if not model.encoder_constant:
        return model.encode(images)
    alone = [model.encode(image[None]) for image in images]
    if any(one.aux_losses or one.expert_counts is not None or one.taps for one in alone):
        return model.encode(images)
    return Embedding(torch.cat([one.features for one in alone]), {})


def open_picture(picture: Picture) -> Image.Image:
    """A picture in memory, with 8 bits a channel.

    Raises:
        FileNotFoundError: no file of that name.
        ValueError: something else than a :data:`Picture`.
    """
    if isinstance(picture, str | Path):
        with Image.open(picture) as file:
            file.load()
            return _checked(file, f"{picture} ")
    if isinstance(picture, np.ndarray):
        channels = picture.shape[2:]
        if picture.dtype != np.uint8 or channels not in ((), (3,), (4,)) or picture.size == 0:
            raise ValueError(
                f"an array of {picture.dtype} {picture.shape} is no picture: (H, W, 3) uint8 in RGB, or grey (H, W). "
                "Values in 0..1: (255 * array).round().astype(numpy.uint8)"
            )
        return Image.fromarray(picture)
    if not isinstance(picture, Image.Image):
        raise ValueError(f"{type(picture).__name__} is no picture: a numpy array, a picture of Pillow, or a path")
    return _checked(picture, "")


def _checked(picture: Image.Image, name: str) -> Image.Image:
    if picture.mode.startswith(("I", "F")):  # which Pillow would cut off at 255
        raise ValueError(f"{name}has more than 8 bits a channel (Pillow's mode {picture.mode}): convert it to 8")
    return picture
