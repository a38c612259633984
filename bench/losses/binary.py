"""Losses of binary segmentation, one value per image.

The released code (AutoGluon) trains with micro-batches of one image and accumulates gradients. Each loss
here takes its statistics (means, sums, class balance) within an image, so that the mean over a batch of B
equals B accumulated micro-batches of one, and the micro-batch size changes speed and memory only.

* ``structure``: PraNet's structure loss as released. Its BCE was meant to be weighted, but the deprecated
  ``reduce="none"`` is a true value that makes PyTorch take the plain mean, and a weighted mean of that
  constant is the constant. The printed results come from this form, hence the default.
* ``structure_weighted``: the formula as published (F3Net, PraNet), with the weighted BCE.
* ``balanced_bce``: class-balanced BCE for shadows (Explicit Visual Prompting, in AutoGluon for SBU).

All take logits (B, 1, H, W) and a float target of the same shape with values in [0, 1], compute in float32
also for half-precision logits and under autocast, and return (B,).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

_PIXELS = (1, 2, 3)
_WINDOW = 31


def structure(logits: Tensor, target: Tensor) -> Tensor:
    """Mean BCE plus boundary-weighted IoU loss, as AutoGluon, PraNet and SINet ran it.

    Raises:
        ValueError: the shapes differ or are not (B, 1, H, W).
    """
    logits, target = _in_float32(logits, target)
    return _pixel_bce(logits, target).mean(_PIXELS) + _weighted_iou(logits, target, boundary_weight(target))


def structure_weighted(logits: Tensor, target: Tensor) -> Tensor:
    """Boundary-weighted BCE plus boundary-weighted IoU loss, as published (errors as :func:`structure`)."""
    logits, target = _in_float32(logits, target)
    weight = boundary_weight(target)
    bce = (weight * _pixel_bce(logits, target)).sum(_PIXELS) / weight.sum(_PIXELS)
    return bce + _weighted_iou(logits, target, weight)


def balanced_bce(logits: Tensor, target: Tensor) -> Tensor:
    """BCE in which each class weighs as much as the other one is frequent in the image.

    An image without foreground gives about 0: its background weighs nothing. Errors as :func:`structure`.
    """
    logits, target = _in_float32(logits, target)
    positives = target.sum(_PIXELS, keepdim=True) + 1e-10
    negatives = (1 - target).sum(_PIXELS, keepdim=True)
    total = positives + negatives
    on_positives = negatives / total * target * F.logsigmoid(logits)
    on_negatives = positives / total * (1 - target) * F.logsigmoid(-logits)
    return -(on_positives + on_negatives).mean(_PIXELS)


def boundary_weight(target: Tensor) -> Tensor:
    """1 + 5 |mean of the 31 x 31 window - target|: up to 6 near outlines and in thin parts (F3Net).

    The window counts the zeros beyond the border. On masks of 0 and 1 the result equals ``avg_pool2d(target,
    31, stride=1, padding=15)`` bit for bit, 90 times faster on a CPU: its partial sums are whole numbers.
    """
    local_mean = _window_sum(_window_sum(target, -1), -2) / _WINDOW**2
    return 1 + 5 * (local_mean - target).abs()


def _window_sum(values: Tensor, dim: int) -> Tensor:
    """Sums over the 31 neighbours along the last (-1) or last but one (-2) dimension, zeros outside.

    Windows of 32 are built by doubling and lose their last element. Unlike cumulative sums this keeps the
    precision of values that are not whole, and is deterministic on CUDA.
    """
    margin = (_WINDOW // 2, _WINDOW // 2 + 1)
    padded = F.pad(values, margin if dim == -1 else (0, 0, *margin))
    sums = padded
    for width in (1, 2, 4, 8, 16):
        size = sums.shape[dim] - width
        sums = sums.narrow(dim, 0, size) + sums.narrow(dim, width, size)
    return sums - padded.narrow(dim, _WINDOW, values.shape[dim])


def _weighted_iou(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    probability = logits.sigmoid()
    intersection = (probability * target * weight).sum(_PIXELS)
    total = ((probability + target) * weight).sum(_PIXELS)
    return 1 - (intersection + 1) / (total - intersection + 1)


def _pixel_bce(logits: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none")


def _in_float32(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The pair in float32. Shapes are checked because (B, H, W) against (B, 1, H, W) broadcasts silently."""
    if logits.shape != target.shape or logits.ndim != 4 or logits.shape[1] != 1:
        raise ValueError(
            f"logits are {tuple(logits.shape)} and target {tuple(target.shape)}; both must be the same (B, 1, H, W)"
        )
    return logits.float(), target.float()
