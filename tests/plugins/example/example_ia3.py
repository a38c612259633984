"""(IA)³ (Liu et al. 2022, arXiv:2205.05638) on SAM's attention: keys and values are scaled, channel by channel.

The paper also scales inside the MLP, which is left out here. Added parameters: 2 * width a block.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from methods import Context, SamMethod
from methods.sam import size_of
from methods.sam.model import SamSegmenter


class ScaledProjection(nn.Module):
    """A fused qkv projection whose keys and values are multiplied by learned numbers that start at one."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.in_features, self.out_features = base.in_features, base.out_features
        self.width = base.out_features // 3
        self.scale = nn.Parameter(torch.ones(2 * self.width))

    def forward(self, x: Tensor) -> Tensor:
        query, others = self.base(x).split([self.width, 2 * self.width], dim=-1)
        return torch.cat([query, others * self.scale], dim=-1)


class IA3(SamMethod):
    """Scales keys and values of every block."""

    title: ClassVar[str] = "(IA)³"
    starts_as_sam: ClassVar[bool] = True

    def added_parameters(self, context: Context) -> int:
        size = size_of(context.backbone)
        return size.depth * 2 * size.width

    def adapt(self, sam: SamSegmenter, context: Context) -> None:
        for block in sam.image_encoder.blocks:
            block.attn.qkv = ScaledProjection(block.attn.qkv)
