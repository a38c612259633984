"""Full fine-tuning: every weight of SAM that the segmentation uses is trained, from the pre-trained checkpoint.

The paper has no such row; it is the upper end that parameter-efficient methods are measured against. Trainable on
vit_h: 640,531,840, which is the encoder, the reduced decoder without its IoU head, and the prompt encoder's one
embedding for "no mask"; nothing else of SAM takes part.
"""

from __future__ import annotations

from typing import ClassVar

from methods.base import Context, SamMethod, register
from methods.sam.model import SamSegmenter
from methods.sam.sizes import size_of


def train_everything(sam: SamSegmenter) -> None:
    """Mark as trainable all that takes part in a prediction without prompts."""
    sam.image_encoder.requires_grad_(True)
    sam.prompt_encoder.no_mask_embed.requires_grad_(True)


@register("full_finetune")
class FullFinetune(SamMethod):
    """Trains all of SAM, starting from its checkpoint."""

    title: ClassVar[str] = "Full fine-tuning"
    evidence: ClassVar[str] = "not in the paper"
    starts_as_sam: ClassVar[bool] = True

    def added_parameters(self, context: Context) -> int:
        size = size_of(context.backbone)
        return size.encoder_parameters(context.image_size) + size.decoder_width

    def adapt(self, sam: SamSegmenter, context: Context) -> None:
        train_everything(sam)
