"""BitFit (Ben Zaken et al. 2022, arXiv:2106.10199): the encoder's biases are trained, nothing is added.

Every ``*.bias`` of the image encoder: normalisations, attention and MLP of each block, the patch embedding, the
neck's normalisations (its convolutions have none). SAM's relative positions are tables, not biases, and stay
frozen. Unfrozen on vit_h: 32 * 14,080 + 1,280 + 512 = 452,352 parameters.
"""

from __future__ import annotations

from typing import ClassVar

from methods.base import Context, SamMethod, register
from methods.sam.model import SamSegmenter
from methods.sam.sizes import size_of


@register("bitfit")
class BitFit(SamMethod):
    """Trains every bias of the image encoder; starts as the frozen SAM."""

    title: ClassVar[str] = "BitFit"
    evidence: ClassVar[str] = "released code"
    paper_trainable_m: ClassVar[float | None] = 3.96
    starts_as_sam: ClassVar[bool] = True

    def added_parameters(self, context: Context) -> int:
        size = size_of(context.backbone)
        return (11 * size.depth + 1) * size.width + 2 * size.decoder_width

    def adapt(self, sam: SamSegmenter, context: Context) -> None:
        for name, parameter in sam.image_encoder.named_parameters():
            if name.endswith(".bias"):
                parameter.requires_grad_(True)
