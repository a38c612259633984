"""SAM's mask decoder reduced to the tokens that semantic segmentation needs.

segment_anything's decoder predicts four masks for the prompts of one image. Here N mask tokens answer
for a batch of images without prompts: all start as the pre-trained token 0 and share its hypernetwork,
as in AutoGluon's release (N = 1 for binary masks). The modules are segment_anything's own.
"""

from __future__ import annotations

import torch
from segment_anything.modeling import MaskDecoder
from torch import Tensor, nn


class ReducedMaskDecoder(nn.Module):
    """N mask tokens with one hypernetwork, taken out of a complete decoder.

    The IoU head stays, frozen and unused, so that parameter counts and shares equal the paper's.

    Attributes:
        class_head: class logits of a mask token's output, with one more for "no object"; None for binary masks.

    Args:
        decoder: the decoder to take over; its modules are shared, not copied.
        num_tokens: N.
        num_classes: K with the background; 1 for binary masks, which need no class head.
    """

    def __init__(self, decoder: MaskDecoder, num_tokens: int = 1, num_classes: int = 1) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.transformer = decoder.transformer
        self.iou_token = decoder.iou_token
        first = decoder.mask_tokens.weight[:1].detach()
        self.mask_tokens = nn.Embedding.from_pretrained(first.repeat(num_tokens, 1), freeze=False)
        self.output_upscaling = decoder.output_upscaling
        self.output_hypernetworks_mlps = nn.ModuleList([decoder.output_hypernetworks_mlps[0]])
        self.iou_prediction_head = decoder.iou_prediction_head
        self.class_head = nn.Linear(first.shape[1], num_classes + 1) if num_classes > 1 else None

    def forward(self, features: Tensor, positions: Tensor, dense: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mask logits (B, N, 4h, 4w) and class logits (B, N, K + 1), None for binary masks.

        Args:
            features: image embeddings, (B, C, h, w).
            positions: their positional encoding, (1, C, h, w).
            dense: the dense prompt, (1, C, 1, 1) or (B, C, h, w).
        """
        batch = features.shape[0]
        tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).expand(batch, -1, -1)
        source = features + dense
        hidden, source = self.transformer(source, positions.expand_as(source), tokens)
        outputs = hidden[:, 1:]
        upscaled = self.output_upscaling(source.transpose(1, 2).unflatten(2, features.shape[2:]))
        masks = torch.einsum("bnc,bchw->bnhw", self.output_hypernetworks_mlps[0](outputs), upscaled)
        return masks, None if self.class_head is None else self.class_head(outputs)
