"""LoRA (Hu et al. 2022, arXiv:2106.09685) on SAM's attention, as in AutoGluon's release.

One low-rank pair on the fused ``qkv`` projection of every encoder block, so query, key and value share A.
The released preset is rank 3 with alpha 32, scaling 10.67. Added parameters on vit_h: 163,840 a rank.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Context, register
from methods.blockwise import BlockwiseMethod
from methods.sam.model import SamSegmenter
from methods.sam.sizes import size_of


class LoRALinear(nn.Module):
    """A linear layer plus a low-rank update: y = base(x) + (alpha / rank) B A x.

    Args:
        base: the layer to adapt; its ``in_features`` and ``out_features`` are taken over.
        rank: rank of the update.
        alpha: numerator of the update's scaling.
    """

    def __init__(self, base: nn.Module, *, rank: int = 3, alpha: float = 32.0) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank = {rank}; allowed: positive integers")
        self.base = base
        self.in_features, self.out_features = base.in_features, base.out_features
        self.scaling = alpha / rank
        self.lora_A = nn.Parameter(torch.empty(rank, self.in_features))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return self._updated(self.base(x), F.linear(x, self.lora_A))

    def forward_tokens(self, x: Tensor) -> Tensor:
        """The same for tokens without a place on the grid (n, C)."""
        base = getattr(self.base, "forward_tokens", self.base)
        return self._updated(base(x), F.linear(x, self.lora_A))

    def fold(self) -> nn.Module:
        """The base with the update in its weight, see :mod:`methods.merge`."""
        self.base.weight.addmm_(self.lora_B, self.lora_A, alpha=self.scaling)
        return self.base

    def _updated(self, y: Tensor, low: Tensor) -> Tensor:
        """y + scaling * B low for y (..., out) and low (..., r), as one product: passes over y take longer than it."""
        flat = torch.addmm(
            y.reshape(-1, y.shape[-1]), low.reshape(-1, low.shape[-1]), self.lora_B.t(), alpha=self.scaling
        )
        return flat.view_as(y)


@register("lora")
class LoRA(BlockwiseMethod):
    """A low-rank update of the fused qkv projection in every block."""

    title: ClassVar[str] = "LoRA"
    evidence: ClassVar[str] = "released code"
    paper_trainable_m: ClassVar[float | None] = 4.00
    starts_as_sam: ClassVar[bool] = True
    rank: PositiveInt = 3
    alpha: PositiveFloat = 32.0

    def added_parameters(self, context: Context) -> int:
        return self.num_blocks(context) * 4 * size_of(context.backbone).width * self.rank

    def adapt(self, sam: SamSegmenter, context: Context) -> None:
        for block in self.blocks(sam, context):
            block.attn.qkv = LoRALinear(block.attn.qkv, rank=self.rank, alpha=self.alpha)
