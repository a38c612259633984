"""The squash to a square, the project's only resizing of images and masks.

The paper's protocol resizes both sides to the model's size and gives up the aspect. Pillow filters when
it shrinks (antialiasing) and other libraries do not, so numbers are comparable only if everything goes
through here: training, both scoring protocols, figures, and trained models that are used. This module imports nothing
of the project, so that every room may import it.
"""

from __future__ import annotations

import numpy as np
from PIL import Image


def squash_image(image: np.ndarray, size: int) -> np.ndarray:
    """An image (H, W, 3) in uint8 as (size, size, 3), bicubic."""
    return _squash(image, size, Image.Resampling.BICUBIC)


def squash_picture(picture: Image.Image, size: int) -> np.ndarray:
    """What :func:`squash_image` makes of a picture's pixels in RGB, without copying the large arrays to and fro."""
    rgb = picture if picture.mode == "RGB" else picture.convert("RGB")
    return np.array(rgb.resize((size, size), Image.Resampling.BICUBIC))


def squash_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """A mask (H, W) of uint8 class indices as (size, size), nearest, so that no new value appears."""
    return _squash(mask, size, Image.Resampling.NEAREST)


def squash_map(probability: np.ndarray, size: int) -> np.ndarray:
    """Probabilities (H, W) in float32 as (size, size), bilinear."""
    return _squash(probability, size, Image.Resampling.BILINEAR).clip(0, 1)


def _squash(array: np.ndarray, size: int, filter_: Image.Resampling) -> np.ndarray:
    return np.array(Image.fromarray(array).resize((size, size), filter_))
