"""Decoder-only tuning: the frozen SAM encoder with a trained mask decoder, the paper's simplest baseline.

Trainable on vit_h: 3,505,536 (the reduced decoder without its IoU head), as in AutoGluon's release.
"""

from __future__ import annotations

from typing import ClassVar

from methods.base import Context, SamMethod, register
from methods.sam.model import SamSegmenter


@register("decoder_only")
class DecoderOnly(SamMethod):
    """Trains the mask decoder alone, which is what every SAM method starts from."""

    title: ClassVar[str] = "Decoder-only"
    evidence: ClassVar[str] = "released code"
    paper_trainable_m: ClassVar[float | None] = 3.51
    starts_as_sam: ClassVar[bool] = True

    def added_parameters(self, context: Context) -> int:
        return 0

    def adapt(self, sam: SamSegmenter, context: Context) -> None:
        """Adds nothing."""
