"""BitFit (Ben Zaken et al. 2022, arXiv:2106.10199): the encoder's biases are trained, nothing is added.

Every ``*.bias`` of the image encoder: normalisations, attention and MLP of each block, the patch embedding, the
neck's normalisations (its convolutions have none). SAM's relative positions are tables, not biases, and stay
frozen. Unfrozen on vit_h: 32 * 14,080 + 1,280 + 512 = 452,352 parameters.
"""

from __future__ import annotations

from typing import ClassVar

from methods.base import Context, register
from methods.blockwise import BlockwiseMethod
from methods.sam.model import SamSegmenter
from methods.sam.sizes import size_of


@register("bitfit")
class BitFit(BlockwiseMethod):
    """Trains every bias of the image encoder; starts as the frozen SAM.

    With ``last_k`` those of the last k blocks and of the neck, which comes after them.
    """

    title: ClassVar[str] = "BitFit"
    evidence: ClassVar[str] = "released code"
    paper_trainable_m: ClassVar[float | None] = 3.96
    starts_as_sam: ClassVar[bool] = True

    def added_parameters(self, context: Context) -> int:
        size = size_of(context.backbone)
        patches = 1 if self.last_k is None else 0
        return (11 * self.num_blocks(context) + patches) * size.width + 2 * size.decoder_width

    def adapt(self, sam: SamSegmenter, context: Context) -> None:
        encoder = sam.image_encoder
        patches = [encoder.patch_embed] if self.last_k is None else []
        for part in (*patches, *self.blocks(sam, context), encoder.neck):
            for name, parameter in part.named_parameters():
                if name.endswith(".bias"):
                    parameter.requires_grad_(True)
