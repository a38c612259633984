"""What metrics take of a model's probabilities, at either of the two sizes at which they are compared.

Of binary masks (``num_classes`` 1) that is the probability itself, and of several classes the index of the largest
score, decided at the size at which it is compared. This module imports nothing of the project, so that every room may
import it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def at_image_size(probabilities: Tensor, num_classes: int) -> Tensor:
    """A batch at the cell's image size: (B, S, S), float32 probabilities or uint8 class indices, on its device.

    Args:
        probabilities: as ``Model.probabilities`` gives them, (B, S, S) or scores (B, K, S, S).
        num_classes: as in ``methods.Context``.
    """
    return probabilities if num_classes == 1 else probabilities.argmax(1).to(torch.uint8)


def resized(probabilities: Tensor, size: tuple[int, int], num_classes: int) -> Tensor:
    """One image's probabilities, or scores of each class, bilinearly at another size: (K, H, W), K = ``num_classes``.

    Args:
        probabilities: of this image alone, (S, S) or scores (K, S, S).
        size: (H, W).
        num_classes: as in ``methods.Context``.
    """
    channels = probabilities.reshape(1, num_classes, *probabilities.shape[-2:])
    return F.interpolate(channels, size, mode="bilinear", align_corners=False)[0]


def at_mask_size(probabilities: Tensor, size: tuple[int, int], num_classes: int) -> Tensor:
    """One image at its mask's own size: uint8 of that size, probabilities in 8 bits or class indices, on its device.

    Takes what :func:`resized` does.
    """
    large = resized(probabilities, size, num_classes)
    taken = (large[0] * 255).round() if num_classes == 1 else large.argmax(0)
    return taken.to(torch.uint8)


def class_areas(predictions: np.ndarray, num_classes: int) -> list[list[int]]:
    """Pixels of each class in every image of :func:`at_image_size`; of binary masks background and foreground."""
    labels = predictions > 0.5 if num_classes == 1 else predictions
    return [np.bincount(image.ravel(), minlength=max(2, num_classes)).tolist() for image in labels]
