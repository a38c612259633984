"""Maps read at points instead of at every pixel: logits bilinearly, and all segments' masks out of one map of labels.

Comparing N masks with K segments on 1024 x 1024 pixels takes gigabytes; ten thousand points are enough (PointRend,
Kirillov et al. 2020; Mask2Former, Cheng et al. 2022, section 3.3). Points are (x, y) in [0, 1], from the upper left
corner of the map to the lower right one. Pixel centres lie half a pixel inside (``align_corners=False``); between the
outermost centres and the border a map keeps its outermost values.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def sample(maps: Tensor, points: Tensor) -> Tensor:
    """Values (B, C, P) of ``maps`` (B, C, H, W) at ``points`` (B, P, 2)."""
    grid = 2 * points[:, None] - 1
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)[:, :, 0]


def sample_labels(target: Tensor, points: Tensor, num_classes: int) -> Tensor:
    """(B, K, P): how much of each label there is at each point, the bilinear weight of its neighbours of that label.

    Ignored neighbours are nobody's. The sum over the labels, 1 where all four neighbours count, is therefore the weight
    v of a point, and a label's share of the sum is the value t of its mask there: what is returned is v * t.

    Args:
        target: (B, H, W) uint8, labels below K and :data:`datasets.IGNORE`.
        points: (B, P, 2).
        num_classes: K.
    """
    height, width = target.shape[1:]
    left, right, x = _between(points[..., 0], width)
    upper, lower, y = _between(points[..., 1], height)
    upper, lower = upper * width, lower * width
    places = torch.cat([upper + left, upper + right, lower + left, lower + right], dim=1)
    weights = torch.stack([(1 - y) * (1 - x), (1 - y) * x, y * (1 - x), y * x], dim=1)
    labels = target.flatten(1).gather(1, places).view(weights.shape).long()
    sums = weights.new_zeros(len(points), num_classes + 1, points.shape[1])
    return sums.scatter_add_(1, labels.clamp(max=num_classes), weights)[:, :num_classes]


def most_uncertain(logits: Tensor, weights: Tensor, count: int) -> Tensor:
    """(B, N, count): which of P points lie nearest to a mask's outline, by its logits (B, N, P).

    Points without weight, (B, P), come last. A NaN comes first, so that it reaches the loss.
    """
    uncertainty = (-logits.abs()).masked_fill(weights[:, None] == 0, -torch.inf)
    return uncertainty.topk(count, sorted=False).indices


def _between(position: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pixels before and after each position along an axis, and how far it is from the first to the second."""
    place = (position * size - 0.5).clamp(0, size - 1)
    before = place.floor()
    return before.long(), (before + 1).clamp(max=size - 1).long(), place - before
