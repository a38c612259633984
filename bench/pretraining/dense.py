"""The dense stage: what each place of an image belongs to, read linearly from the neck's output.

Prompts alone are a sparse signal: an encoder trained on them from scratch is worse to fine-tune than a random one.
Dense targets teach it first what holds together; they stay as an auxiliary loss while prompts are trained.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS = 8
WEIGHTS = {"foreground": 1.0, "contour": 1.0, "offset": 4.0, "size": 0.5, "colour": 1.0}


class DenseHead(nn.Module):
    """Each token (C channels) to a patch of ``side`` by ``side`` predictions, by one linear layer."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.linear = nn.Conv2d(channels, CHANNELS * side**2, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 8, h * side, w * side), the channels of :func:`bench.pretraining.batch.dense_targets`."""
        return F.pixel_shuffle(self.linear(features), self.side)


def dense_losses(predicted: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """The mean loss of each kind of target: cross-entropies of logits, and absolute differences on objects.

    Args:
        predicted, targets: (B, 8, s, s).
    """
    predicted = predicted.float()
    known = ~targets[:, 2:3].isnan()
    count = known.sum().clamp(min=1)
    apart = torch.where(known, predicted[:, 2:] - targets[:, 2:], 0.0).abs()
    return {
        "foreground": F.binary_cross_entropy_with_logits(predicted[:, 0], targets[:, 0]),
        "contour": F.binary_cross_entropy_with_logits(predicted[:, 1], targets[:, 1]),
        "offset": apart[:, :2].sum() / (2 * count),
        "size": apart[:, 2].sum() / count,
        "colour": apart[:, 3:].sum() / (3 * count),
    }
