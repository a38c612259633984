"""AdaptFormer (Chen et al. 2022, arXiv:2205.13535): a bottleneck beside the MLP of every block.

Structure and initial values are those of the authors' code (ShoufaChen/AdaptFormer), which runs it with 64 channels, a
scale of 0.1 and no normalisation of its own: the bottleneck reads the residual stream after attention, before the
normalisation that the MLP has. Their dropout of 0.1 stands between the two layers.
Added parameters on vit_h: 32 * (2 * 1280 * bottleneck + bottleneck + 1280).
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Context, register
from methods.blockwise import BlockwiseMethod
from methods.dropout import KeyedDropout
from methods.sam.model import SamSegmenter
from methods.sam.sizes import size_of

SALT = 0xADA00


class ParallelBottleneck(nn.Module):
    """scale * up(dropout(relu(down(x)))), which joins the MLP's output; nothing at first, as ``up`` starts at zero.

    Args:
        width: channels of the tokens.
        bottleneck: channels within.
        scale: what the result is multiplied by.
        drop: what is left of the bottleneck in training.
    """

    def __init__(self, width: int, *, bottleneck: int, scale: float, drop: KeyedDropout) -> None:
        super().__init__()
        self.scale, self.drop = scale, drop
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """From the residual stream (..., width) alone, same shape."""
        return self.scale * self.up(self.drop(F.relu(self.down(x))))


@register("adaptformer")
class AdaptFormer(BlockwiseMethod):
    """A bottleneck beside the MLP of every block; starts as the frozen SAM."""

    title: ClassVar[str] = "AdaptFormer"
    evidence: ClassVar[str] = "official code"
    starts_as_sam: ClassVar[bool] = True
    bottleneck: PositiveInt = 64
    scale: PositiveFloat = 0.1
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1

    def added_parameters(self, context: Context) -> int:
        width, channels = size_of(context.backbone).width, self.bottleneck
        return self.num_blocks(context) * (2 * width * channels + channels + width)

    def adapt(self, sam: SamSegmenter, context: Context) -> None:
        width = size_of(context.backbone).width
        for index, block in enumerate(self.blocks(sam, context)):
            drop = KeyedDropout(self.dropout, salt=SALT + index)
            block.beside_mlp = ParallelBottleneck(width, bottleneck=self.bottleneck, scale=self.scale, drop=drop)
