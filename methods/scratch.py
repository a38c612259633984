"""Training from scratch: SAM's architecture with random weights, everything trained (the paper's second row).

The paper prints 641.09 M, all of SAM. Trainable here are the 640,531,840 that take part in a prediction without
prompts; the frozen rest (IoU head, prompt embeddings) would never get a gradient.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from methods.base import Context, Method, Model, register
from methods.full_finetune import FullFinetune, train_everything


@register("scratch")
class Scratch(Method):
    """Draws all weights anew for each seed, whatever checkpoint the other methods start from."""

    title: ClassVar[str] = "scratch"
    evidence: ClassVar[str] = "paper's text"
    paper_trainable_m: ClassVar[float | None] = 641.09

    def added_parameters(self, context: Context) -> int:
        return FullFinetune().added_parameters(context)

    def build(self, context: Context) -> Model:
        from methods.sam.build import build_segmenter

        sam = build_segmenter(replace(context, checkpoint="none"), random_seed=context.seed)
        train_everything(sam)
        return sam
