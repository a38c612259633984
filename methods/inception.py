"""Inception inside LoRA, which the paper's table 13 sets against its mixture of experts.

Between LoRA's two matrices all of an inception module's branches (Szegedy et al. 2015, arXiv:1409.4842) work on the map
of rank-r features: 1x1, 3x3 and 5x5 convolutions and a 3x3 max pooling, the last three with a 1x1 convolution before or
after them. The paper gives no more than the name and a count, 4.01 M, which is that of Conv-LoRA with four experts.
Reductions from r to r channels give exactly that count, and summed branches keep B as it is: concatenated they would
need one of 4 r columns, 1.1 M more. What neither says is taken from released Conv-LoRA, against which it is to be
compared (all inferred): the scaling alpha / r, the residual z in y = base(x) + (alpha / r) B (z + sum of branches(z)),
biases that start at zero, GELU in place of GoogLeNet's ReLU, after every convolution as there, and windows that see
zeros beyond their borders. Added parameters on vit_h: 503,040.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Context, register
from methods.blockwise import BlockwiseMethod
from methods.lora import LoRALinear
from methods.sam.model import SamSegmenter
from methods.sam.sizes import size_of


class InceptionBranches(nn.Module):
    """The sum of GoogLeNet's four branches on maps (n, r, H, W), same shape; 38 r^2 + 6 r parameters.

    Args:
        rank: channels r of the map, and of everything within.
    """

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.point = _convolution(rank, 1)
        self.reduce_3x3, self.conv_3x3 = _convolution(rank, 1), _convolution(rank, 3)
        self.reduce_5x5, self.conv_5x5 = _convolution(rank, 1), _convolution(rank, 5)
        self.project_pool = _convolution(rank, 1)

    def forward(self, maps: Tensor) -> Tensor:
        narrow = F.gelu(self.conv_3x3(F.gelu(self.reduce_3x3(maps))))
        wide = F.gelu(self.conv_5x5(F.gelu(self.reduce_5x5(maps))))
        pooled = F.gelu(self.project_pool(F.max_pool2d(maps, kernel_size=3, stride=1, padding=1)))
        return F.gelu(self.point(maps)) + narrow + wide + pooled


def _convolution(rank: int, kernel: int) -> nn.Conv2d:
    layer = nn.Conv2d(rank, rank, kernel, padding=kernel // 2)
    nn.init.zeros_(layer.bias)
    return layer


class InceptionLinear(LoRALinear):
    """A linear layer on feature maps with a low-rank update that passes through an inception module.

    Usable alone like :class:`methods.conv_lora.ConvLoRALinear`: input (..., H, W, C), where all axes before H count
    maps (attention windows) that do not reach each other. Arguments are those of :class:`methods.lora.LoRALinear`;
    tokens off the grid have no neighbours and take plain LoRA's path (``forward_tokens``).
    """

    def __init__(self, base: nn.Module, *, rank: int = 3, alpha: float = 32.0) -> None:
        super().__init__(base, rank=rank, alpha=alpha)
        self.branches = InceptionBranches(rank)

    def forward(self, x: Tensor) -> Tensor:
        """(..., H, W, in) -> (..., H, W, out).

        Raises:
            ValueError: ``x`` has no grid.
        """
        if x.dim() < 3:
            raise ValueError(f"InceptionLinear takes maps (..., H, W, C), not {tuple(x.shape)}")
        low = F.linear(x, self.lora_A)
        maps = low.reshape(-1, *low.shape[-3:]).movedim(-1, 1)
        mixed = (maps + self.branches(maps)).movedim(1, -1).reshape(low.shape)
        return self._updated(self.base(x), mixed)


@register("inception")
class Inception(BlockwiseMethod):
    """LoRA on the fused qkv projection of every block, with an inception module inside."""

    title: ClassVar[str] = "Inception"
    evidence: ClassVar[str] = "inferred"
    paper_trainable_m: ClassVar[float | None] = 4.01
    starts_as_sam: ClassVar[bool] = True
    rank: PositiveInt = 3
    alpha: PositiveFloat = 32.0

    def added_parameters(self, context: Context) -> int:
        width, r = size_of(context.backbone).width, self.rank
        return self.num_blocks(context) * (4 * width * r + 38 * r**2 + 6 * r)

    def adapt(self, sam: SamSegmenter, context: Context) -> None:
        for block in self.blocks(sam, context):
            block.attn.qkv = InceptionLinear(block.attn.qkv, rank=self.rank, alpha=self.alpha)
