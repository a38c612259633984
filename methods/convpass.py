"""Convpass (Jie and Deng 2022, arXiv:2207.07039): convolutional bypasses beside attention and MLP of every block.

Each brings what its branch reads, the normalised tokens, to h channels, convolves their map 3x3 and brings it back; s
times that joins the residual. It is Conv-LoRA's nearest relative, but outside of the projections and without experts:
y = s up(dropout(act(conv(act(down(x)))))) with act(x) = x sigmoid(1.702 x). Structure and initial values are those of
the authors' code (JieShibo/PETL-ViT), whose bypass sees the map of the whole image in models with attention windows
too. For each dataset they choose s among 0.01, 0.1, 1, 10 and 100, and whether the convolution starts as the identity
or at random; the defaults here are those of their code, s = 1, the identity and a dropout of 0.1. Added parameters on
vit_h: 32 * 2 * (2 * 1280 h + 9 h^2 + 2 h + 1280).
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from methods.base import Context, register
from methods.blockwise import BlockwiseMethod
from methods.dropout import KeyedDropout
from methods.sam.model import SamSegmenter
from methods.sam.sizes import size_of

SALT = 0xC0A55


class Bypass(nn.Module):
    """What a bypass adds to its branch's output, (B, H, W, width); nothing at first, as ``up`` starts at zero.

    Args:
        width: channels of the tokens.
        bottleneck: channels h within.
        scale: s.
        drop: what is left before ``up`` in training.
    """

    def __init__(self, width: int, *, bottleneck: int, scale: float, drop: KeyedDropout) -> None:
        super().__init__()
        self.scale, self.drop = scale, drop
        self.down = nn.Linear(width, bottleneck)
        self.conv = nn.Conv2d(bottleneck, bottleneck, kernel_size=3, padding=1)
        self.up = nn.Linear(bottleneck, width)
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.dirac_(self.conv.weight)
        for zero in (self.down.bias, self.conv.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """From the normalised tokens (B, H, W, width) alone."""
        maps = quick_gelu(self.down(tokens)).movedim(-1, 1)
        return self.scale * self.up(self.drop(quick_gelu(self.conv(maps)).movedim(1, -1)))


def quick_gelu(x: Tensor) -> Tensor:
    """The approximation of GELU that CLIP and the authors use."""
    return x * torch.sigmoid(1.702 * x)


@register("convpass")
class Convpass(BlockwiseMethod):
    """Convolutional bypasses beside attention and MLP of every block; starts as the frozen SAM."""

    title: ClassVar[str] = "Convpass"
    evidence: ClassVar[str] = "official code"
    starts_as_sam: ClassVar[bool] = True
    bottleneck: PositiveInt = 8
    scale: PositiveFloat = 1.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1

    def added_parameters(self, context: Context) -> int:
        width, h = size_of(context.backbone).width, self.bottleneck
        return self.num_blocks(context) * 2 * (2 * width * h + 9 * h**2 + 2 * h + width)

    def adapt(self, sam: SamSegmenter, context: Context) -> None:
        width = size_of(context.backbone).width
        for index, block in enumerate(self.blocks(sam, context)):
            block.beside_attention, block.beside_mlp = (
                Bypass(
                    width,
                    bottleneck=self.bottleneck,
                    scale=self.scale,
                    drop=KeyedDropout(self.dropout, salt=SALT + 2 * index + branch),
                )
                for branch in range(2)
            )
