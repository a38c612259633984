"""Maps brought to each other's size, both ways in which the released systems do that."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def resize_as(x: Tensor, other: Tensor, *, align_corners: bool = True) -> Tensor:
    """``x`` at the height and width of ``other``, bilinearly.

    Args:
        align_corners: whether corner pixels come to lie on corner pixels, else corners of the image on corners.
    """
    return F.interpolate(x, other.shape[-2:], mode="bilinear", align_corners=align_corners)
