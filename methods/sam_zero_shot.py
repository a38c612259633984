"""SAM as it is published, without training: the row every user of SAM looks for first.

Without a prompt SAM's mask token 0 answers alone. A click on the object's most inner point and the object's box are
oracles: they are taken from the true mask, so their rows show what a perfect user or detector would get.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Context, Embedding, Execution, Method, Model, Output, register

if TYPE_CHECKING:
    import numpy as np

Prompt = Literal["none", "click", "box"]


class PromptedSam(Model):
    """segment_anything's complete decoder and prompt encoder behind our encoder; nothing is trainable.

    Args:
        parts: image encoder, prompt encoder and mask decoder under SAM's names.
        image_size: side of the square input and output.
        prompt: what the decoder is told.
    """

    def __init__(self, parts: nn.ModuleDict, *, image_size: int, prompt: Prompt) -> None:
        super().__init__()
        from methods.sam.model import PIXEL_MEAN, PIXEL_STD

        self.image_size, self.prompt = image_size, prompt
        self.image_encoder = parts["image_encoder"]
        self.prompt_encoder = parts["prompt_encoder"]
        self.mask_decoder = parts["mask_decoder"]
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)

    @property
    def encoder_constant(self) -> bool:
        return True

    @property
    def backbone_needs_grad(self) -> bool:
        return False

    def set_execution(self, execution: Execution) -> None:
        from methods.sam.encoder import set_execution

        set_execution(self, execution)

    def encode(self, images: Tensor, keys: Tensor | None = None) -> Embedding:
        return self.image_encoder((images - self.pixel_mean) / self.pixel_std)

    def decode(self, embedding: Embedding) -> Output:
        """Without a prompt."""
        return self._decode(embedding, [None] * len(embedding.features))

    def answer(self, images: Tensor, masks: Tensor) -> Output:
        """With the prompt that the true masks give."""
        found = [None if self.prompt == "none" else self._prompt(mask) for mask in masks]
        return self._decode(self.encode(images), found)

    def _prompt(self, mask: Tensor) -> Tensor | None:
        """A click (1, 2) or a box (4,) in pixels, x before y; None for a mask without foreground."""
        foreground = (mask == 1).cpu().numpy()
        if not foreground.any():
            return None
        point = innermost_point(foreground) if self.prompt == "click" else bounding_box(foreground)
        return torch.tensor(point, dtype=torch.float32, device=self.pixel_mean.device)

    def _decode(self, embedding: Embedding, prompts: list[Tensor | None]) -> Output:
        positions = self.prompt_encoder.get_dense_pe()
        masks = []
        for features, prompt in zip(embedding.features, prompts, strict=True):
            click = prompt is not None and self.prompt == "click"
            points = (prompt[None, None], torch.ones(1, 1, device=prompt.device)) if click else None
            boxes = prompt[None] if prompt is not None and not click else None
            sparse, dense = self.prompt_encoder(points=points, boxes=boxes, masks=None)
            # One click is ambiguous: SAM answers with three masks and rates them. A box is not.
            low, quality = self.mask_decoder(
                image_embeddings=features[None],
                image_pe=positions,
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=click,
            )
            masks.append(low[:, quality[0].argmax()])
        size = (self.image_size, self.image_size)
        logits = F.interpolate(torch.stack(masks).float(), size, mode="bilinear", align_corners=False)
        return Output(logits)


def innermost_point(mask: np.ndarray) -> tuple[float, float]:
    """The foreground pixel (x, y) that is farthest from the background and from the image's border.

    Pixels are counted from 0 as SAM takes them: its prompt encoder moves clicks and boxes to pixel centres itself.
    """
    import numpy as np
    from scipy.ndimage import distance_transform_edt

    distance = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(distance.argmax(), mask.shape)
    return float(column), float(row)


def bounding_box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """The box (x0, y0, x1, y1) around the foreground: its first and last columns and rows, as SAM was trained."""
    import numpy as np

    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return columns[0], rows[0], columns[-1], rows[-1]


@register("sam_zero_shot")
class SamZeroShot(Method):
    """Published SAM, untrained; ``prompt`` "click" and "box" are oracles.

    Its masks belong to no class, so there is nothing to score where there are several.
    """

    title: ClassVar[str] = "SAM, zero-shot"
    version: ClassVar[int] = 2
    evidence: ClassVar[str] = "official code"
    several_classes: ClassVar[bool] = False
    prompt: Prompt = "none"

    def caveats(self, context: Context) -> tuple[str, ...]:
        return () if self.prompt == "none" else (f"oracle: its {self.prompt} is taken from the true mask",)

    def added_parameters(self, context: Context) -> int:
        return 0

    def build(self, context: Context) -> Model:
        from methods.sam.build import build_parts

        self.refuse_unsupported(context)
        return PromptedSam(build_parts(context), image_size=context.image_size, prompt=self.prompt)
