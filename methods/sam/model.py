"""The SAM that methods adapt: trainable encoder slots, a reduced decoder, no prompts."""

from __future__ import annotations

import torch
from segment_anything.modeling import PromptEncoder
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Embedding, Execution, Model, Output
from methods.randomness import hand_out
from methods.sam.decoder import ReducedMaskDecoder
from methods.sam.encoder import ImageEncoder, set_execution

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


class SamSegmenter(Model):
    """Semantic segmentation with SAM.

    As built everything is frozen but the mask decoder (its IoU head excepted): the common ground of all
    fine-tuning methods in the paper.

    Attributes:
        side: slot for a network beside the encoder: a module that takes the normalised images and the encoder's
            :class:`Embedding` and returns the features that go to the decoder, (B, C, h, w).

    Args:
        image_encoder, prompt_encoder, mask_decoder: SAM's parts.
        image_size: side of the square input and output in pixels.
        num_classes: as in :class:`methods.base.Context`; the mask decoder is made for as many.
    """

    def __init__(
        self,
        image_encoder: ImageEncoder,
        prompt_encoder: PromptEncoder,
        mask_decoder: ReducedMaskDecoder,
        *,
        image_size: int,
        num_classes: int = 1,
    ) -> None:
        super().__init__(num_classes)
        self.image_size = image_size
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self.side: nn.Module | None = None
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.mask_decoder.requires_grad_(True)
        self.mask_decoder.iou_prediction_head.requires_grad_(False)

    @property
    def encoder_constant(self) -> bool:
        """Nothing but the mask decoder is trained."""
        return all(name.startswith("mask_decoder.") for name in self.trainable())

    @property
    def backbone_needs_grad(self) -> bool:
        """Something inside the image encoder is trained."""
        return any(parameter.requires_grad for parameter in self.image_encoder.parameters())

    def set_execution(self, execution: Execution) -> None:
        """See :meth:`methods.base.Model.set_execution`: it is the encoder's blocks that are run so."""
        set_execution(self, execution)

    def encode(self, images: Tensor, keys: Tensor | None = None) -> Embedding:
        """See :meth:`methods.base.Model.encode`. Runs without a graph where no gradient needs the backbone."""
        hand_out(keys, (layer for layer in self.modules() if hasattr(layer, "random_keys")))
        images = (images - self.pixel_mean) / self.pixel_std
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.backbone_needs_grad):
            embedding = self.image_encoder(images)
        if self.side is None:
            return embedding
        return embedding._replace(features=self.side(images, embedding), taps=())

    def decode(self, embedding: Embedding) -> Output:
        """Mask logits, bilinearly enlarged from a quarter of the input's side to the input's."""
        dense = self.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1)
        low, classes = self.mask_decoder(embedding.features, self.prompt_encoder.get_dense_pe(), dense)
        size = (self.image_size, self.image_size)
        masks = F.interpolate(low.float(), size, mode="bilinear", align_corners=False)
        return Output(masks, classes, aux_losses=embedding.aux_losses, expert_counts=embedding.expert_counts)
