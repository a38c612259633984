"""SAM-Adapter (Chen et al. 2023, arXiv:2304.09148): an image's fine structure, added before every block.

The patch embedding and the high frequencies of the image are brought to ``width / scale_factor`` channels and
summed; from that sum a small layer of each block and a layer shared by all make what is added to the block's input.
Structure and initial values are those of tianrun-chen/SAM-Adapter-PyTorch, whose public configuration has a scale
factor of 32; the paper's count needs 16. Added parameters on vit_h: 475,040.

Initial additions are small but not zero, so the adapted model does not start as the frozen one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Context, register
from methods.blockwise import BlockwiseMethod
from methods.sam.model import SamSegmenter
from methods.sam.sizes import Size, size_of


def high_pass(images: Tensor, freq_nums: float) -> Tensor:
    """Magnitude of what is left of images (B, C, H, W) without a centred square of low frequencies.

    Args:
        freq_nums: the square's share of all frequencies. Its side is even, so it reaches one frequency further
            down than up; what that leaves imaginary is dropped, as in the official code.

    Returns:
        The same shape, in float32 at least: half-precision transforms exist for few sizes.
    """
    height, width = images.shape[-2:]
    half = int(math.sqrt(height * width * freq_nums) // 2)
    precise = images.to(torch.promote_types(images.dtype, torch.float32))
    spectrum = torch.fft.fftshift(torch.fft.fft2(precise, norm="forward"), dim=(-2, -1))
    top, left = max(0, height // 2 - half), max(0, width // 2 - half)
    spectrum[..., top : top + 2 * half, left : left + 2 * half] = 0
    return torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(-2, -1)), norm="forward").real.abs()


class PromptGenerator(nn.Module):
    """What SAM-Adapter adds to the input of each block; fills ``image_encoder.block_prompts``.

    Args:
        size: the backbone's dimensions.
        scale_factor: ratio of the backbone's width to the generator's.
        freq_nums: share of the frequencies that the image loses, see :func:`high_pass`.
        blocks: the last so many blocks get an addition; None: all.

    Raises:
        ValueError: ``scale_factor`` leaves no channel.
    """

    def __init__(self, size: Size, *, scale_factor: int, freq_nums: float, blocks: int | None = None) -> None:
        super().__init__()
        channels = size.width // scale_factor
        if not channels:
            raise ValueError(f"scale_factor = {scale_factor}; allowed: 1 to {size.width}, the backbone's width")
        self.freq_nums = freq_nums
        blocks = size.depth if blocks is None else blocks
        self.untouched = size.depth - blocks
        self.embedding_generator = nn.Linear(size.width, channels)
        self.prompt_generator = nn.Conv2d(3, channels, kernel_size=size.patch, stride=size.patch)
        self.lightweight_mlps = nn.ModuleList(nn.Linear(channels, channels) for _ in range(blocks))
        self.shared_mlp = nn.Linear(channels, size.width)
        for layer in (self.embedding_generator, *self.lightweight_mlps, self.shared_mlp):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        nn.init.kaiming_normal_(self.prompt_generator.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.prompt_generator.bias)

    def forward(self, images: Tensor, patches: Tensor) -> Iterator[Tensor]:
        """One addition (B, H, W, width) after the other, so that only one block's takes memory at a time.

        For blocks that get none it is the number zero.

        Args:
            images: normalised, (B, 3, S, S).
            patches: their patch embeddings without positions, (B, H, W, width).
        """
        for _ in range(self.untouched):
            yield patches.new_zeros(())
        fine = self.prompt_generator(high_pass(images, self.freq_nums)).permute(0, 2, 3, 1)
        features = fine + self.embedding_generator(patches)
        for layer in self.lightweight_mlps:
            yield self.shared_mlp(F.gelu(layer(features)))


@register("sam_adapter")
class SAMAdapter(BlockwiseMethod):
    """Prompts made from patch embeddings and high frequencies, added to the input of every block."""

    title: ClassVar[str] = "SAM-Adapter"
    evidence: ClassVar[str] = "official code"
    paper_trainable_m: ClassVar[float | None] = 3.98
    scale_factor: PositiveInt = 16
    freq_nums: float = Field(0.25, gt=0, lt=1)

    def added_parameters(self, context: Context) -> int:
        size = size_of(context.backbone)
        middle = size.width // self.scale_factor
        inputs = (size.width + 1) * middle + (3 * size.patch**2 + 1) * middle
        return inputs + self.num_blocks(context) * (middle + 1) * middle + (middle + 1) * size.width

    def adapt(self, sam: SamSegmenter, context: Context) -> None:
        sam.image_encoder.block_prompts = PromptGenerator(
            size_of(context.backbone),
            scale_factor=self.scale_factor,
            freq_nums=self.freq_nums,
            blocks=self.num_blocks(context),
        )
