"""Adapters (Houlsby et al. 2019, arXiv:1902.00751): two bottlenecks in every encoder block.

One works on the attention's output after its projection, one on the MLP's, each before the residual sum. Only
rank 2 with biases gives the paper's count. Added parameters on vit_h: 32 * 2 * (2 * 1280 * rank + rank + 1280).
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Context, register
from methods.blockwise import BlockwiseMethod
from methods.sam.model import SamSegmenter
from methods.sam.sizes import size_of

INITIAL_DEVIATION = 1e-3  # as in google-research/adapter-bert, cut off at two deviations


class Bottleneck(nn.Module):
    """A residual bottleneck on a layer's output: with y = base(x), y + up(gelu(down(y))).

    ``up`` starts at zero, so that the first output is exactly ``base``'s; the authors draw it like ``down``, which
    makes theirs near the identity only. ``down`` must not be zero as well, or neither weight had a gradient.

    Args:
        base: the layer before it.
        width: channels of its output.
        rank: channels of the bottleneck.
    """

    def __init__(self, base: nn.Module, width: int, *, rank: int = 2) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(width, rank)
        self.up = nn.Linear(rank, width)
        cut = 2 * INITIAL_DEVIATION
        nn.init.trunc_normal_(self.down.weight, std=INITIAL_DEVIATION, a=-cut, b=cut)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        return y + self.up(F.gelu(self.down(y)))


@register("adapter")
class Adapter(BlockwiseMethod):
    """Houlsby's two adapters in every block; starts as the frozen SAM."""

    title: ClassVar[str] = "Adapter"
    evidence: ClassVar[str] = "forced by count"
    paper_trainable_m: ClassVar[float | None] = 3.92
    starts_as_sam: ClassVar[bool] = True
    rank: PositiveInt = 2

    def added_parameters(self, context: Context) -> int:
        width = size_of(context.backbone).width
        return self.num_blocks(context) * 2 * (2 * width * self.rank + self.rank + width)

    def adapt(self, sam: SamSegmenter, context: Context) -> None:
        width = sam.image_encoder.pos_embed.shape[-1]
        for block in self.blocks(sam, context):
            block.after_attention = Bottleneck(block.after_attention, width, rank=self.rank)
            block.after_mlp = Bottleneck(block.after_mlp, width, rank=self.rank)
