"""VPT-deep (Jia et al. 2022, arXiv:2203.12119): learned tokens beside the image's in every encoder block.

Deep prompts are replaced before every block, so what a block makes of them is thrown away: all they do is be
attended to. They therefore enter as extra keys and values alone, which gives the image tokens exactly what
prepending them gives. As in the Swin variant of the paper every attention window sees all prompts of its block,
and their scores carry no position term. Written from the paper. Added parameters on vit_h: 12 x 32 x 1280.

The softmax's mass is shared with the prompts from the start, so the adapted model never equals the frozen one.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from methods.base import Context, register
from methods.blockwise import BlockwiseMethod
from methods.sam.model import SamSegmenter
from methods.sam.sizes import size_of


class Prompts(nn.Module):
    """The prompts of one block, (num_tokens, width).

    Args:
        bound: initial values are uniform between ``-bound`` and ``bound``.
    """

    def __init__(self, num_tokens: int, width: int, *, bound: float) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(num_tokens, width).uniform_(-bound, bound))

    def forward(self) -> Tensor:
        return self.tokens


@register("vpt")
class VPT(BlockwiseMethod):
    """Prompts of its own for every block; 12 tokens is the only number that gives the printed count."""

    title: ClassVar[str] = "VPT"
    evidence: ClassVar[str] = "forced by count"
    paper_trainable_m: ClassVar[float | None] = 4.00
    num_tokens: PositiveInt = 12

    def added_parameters(self, context: Context) -> int:
        return self.num_blocks(context) * self.num_tokens * size_of(context.backbone).width

    def adapt(self, sam: SamSegmenter, context: Context) -> None:
        size = size_of(context.backbone)
        bound = math.sqrt(6 / (3 * size.patch**2 + size.width))  # Xavier's, for the patch embedding: the paper's code
        for block in self.blocks(sam, context):
            block.extra_kv = Prompts(self.num_tokens, size.width, bound=bound)
