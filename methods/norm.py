"""LayerNorm tuning (LN-Tune, Basu et al. 2023, arXiv:2304.01917): the encoder's normalisations are trained.

Weight and bias of both LayerNorms of every block and, in place of a vision transformer's last one, of the two in SAM's
neck, which the paper does not know (inferred). Unfrozen on vit_h: 32 * 4 * 1280 + 4 * 256 = 164,864 parameters.
"""

from __future__ import annotations

from typing import ClassVar

from methods.base import Context, register
from methods.blockwise import BlockwiseMethod
from methods.sam.model import SamSegmenter
from methods.sam.sizes import size_of


@register("norm")
class Norm(BlockwiseMethod):
    """Trains the normalisations of the adapted blocks and of the neck; starts as the frozen SAM."""

    title: ClassVar[str] = "LayerNorm"
    evidence: ClassVar[str] = "inferred"
    starts_as_sam: ClassVar[bool] = True

    def added_parameters(self, context: Context) -> int:
        size = size_of(context.backbone)
        return 4 * (self.num_blocks(context) * size.width + size.decoder_width)

    def adapt(self, sam: SamSegmenter, context: Context) -> None:
        _, first, _, second = sam.image_encoder.neck
        for layer in (first, second):
            layer.requires_grad_(True)
        for block in self.blocks(sam, context):
            block.norm1.requires_grad_(True)
            block.norm2.requires_grad_(True)
