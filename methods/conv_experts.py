"""Conv-LoRA's experts: convolutions that work at several scales of a low-rank feature map.

Expert i enlarges the map by its scale, convolves it 3x3 and shrinks it again (paper eq. 3):
E(x) = Down(act(Conv(Up(x)))), bicubic, align_corners False, no antialiasing; act is the GELU of AutoGluon's
release, or nothing as in the paper's equation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ScaledConvolutions(nn.Module):
    """One 3x3 convolution for each scale; parameters ``weight`` (E, r, r, 3, 3) and ``bias`` (E, r).

    Args:
        rank: channels r of the map.
        scales: the factor by which each of the E experts enlarges the map.
        gelu: apply a GELU between convolution and shrinking.
    """

    def __init__(self, rank: int, scales: tuple[int, ...], *, gelu: bool = True) -> None:
        super().__init__()
        self.scales = scales
        self.gelu = gelu
        bound = 1 / math.sqrt(9 * rank)  # torch's default for a convolution with this fan-in
        self.weight = nn.Parameter(torch.empty(len(scales), rank, rank, 3, 3).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(len(scales), rank))

    def expert(self, index: int, maps: Tensor) -> Tensor:
        """Apply one expert to maps (n, r, H, W)."""
        scale, size = self.scales[index], maps.shape[-2:]
        if scale > 1:
            maps = F.interpolate(maps, scale_factor=scale, mode="bicubic", align_corners=False)
        maps = F.conv2d(maps, self.weight[index], self.bias[index], padding=1)
        if self.gelu:
            maps = F.gelu(maps)
        return F.interpolate(maps, size, mode="bicubic", align_corners=False) if scale > 1 else maps

    def summed(self, maps: Tensor) -> Tensor:
        """The sum of all experts' outputs, (n, r, H, W): the paper's multi-scale variant (table 3)."""
        return sum(self.expert(index, maps) for index in range(len(self.scales)))

    def routed(self, maps: Tensor, chosen: Tensor, weights: Tensor | None = None) -> Tensor:
        """For each map the weighted sum of its chosen experts, (n, r, H, W).

        Args:
            maps: (n, r, H, W).
            chosen: indices of experts, (n, k).
            weights: their weights, (n, k); None where they are all 1.
        """
        out = torch.zeros_like(maps)
        for index in range(len(self.scales)):
            sample, place = torch.where(chosen == index)
            if len(sample):
                made = self.expert(index, maps[sample])
                if weights is not None:
                    made = weights[sample, place].to(made.dtype)[:, None, None, None] * made
                out = out.index_add(0, sample, made.to(out.dtype))
        return out
