"""A narrow SAM, a fixed batch, and segment_anything's own model to compare with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Output, TaskLoss
from methods.sam.sizes import SIZES, Size

MINI = Size(width=32, depth=3, heads=2, global_blocks=(1,), window=3, decoder_width=32, native=96)


@pytest.fixture(scope="module")
def mini() -> Iterator[str]:
    """The name of a backbone of three narrow blocks; at 64 pixels two of them see four padded windows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "mini", MINI)
        yield "mini"


@pytest.fixture(scope="session")
def batch() -> Callable[..., tuple[Tensor, Tensor]]:
    """batch(count, side): uint8 images (B, 3, H, W) of a bright block on noise, and its masks (B, H, W)."""

    def make(count: int = 4, side: int = 64) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(5)
        images = torch.randint(0, 120, (count, 3, side, side), generator=generator, dtype=torch.uint8)
        masks = torch.zeros(count, side, side, dtype=torch.uint8)
        for index in range(count):
            top, left = (side * (index % 3)) // 6, (side * (index % 4)) // 8
            masks[index, top : top + side // 2, left : left + side // 3] = 1
            images[index, index % 3] += 130 * masks[index]
        return images, masks

    return make


@pytest.fixture(scope="session")
def task_loss() -> TaskLoss:
    """Binary cross-entropy, one value an image."""

    def loss(output: Output, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(output.masks, target, reduction="none").mean((1, 2, 3))

    return loss


@pytest.fixture(scope="session")
def roughen() -> Callable[[nn.Module], nn.Module]:
    """roughen(module): add noise to every parameter, so that none keeps a neutral initial value."""

    def add_noise(module: nn.Module, deviation: float = 0.05) -> nn.Module:
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(deviation * torch.randn(parameter.shape, generator=generator))
        return module

    return add_noise


@pytest.fixture(scope="session")
def segment_anything() -> Callable[..., Sam]:
    """segment_anything(size, image_size, mask_tokens): the package's own model of any size."""

    def build(size: Size, image_size: int, *, mask_tokens: int = 4) -> Sam:
        grid, width = size.grid(image_size), size.decoder_width
        return Sam(
            ImageEncoderViT(
                img_size=image_size, patch_size=size.patch, embed_dim=size.width, depth=size.depth,
                num_heads=size.heads, out_chans=width, norm_layer=partial(nn.LayerNorm, eps=1e-6), use_rel_pos=True,
                window_size=size.window, global_attn_indexes=size.global_blocks,
            ),
            PromptEncoder(
                embed_dim=width, image_embedding_size=(grid, grid), input_image_size=(image_size, image_size),
                mask_in_chans=16,
            ),
            MaskDecoder(
                transformer_dim=width, num_multimask_outputs=mask_tokens - 1, iou_head_hidden_dim=width,
                transformer=TwoWayTransformer(depth=2, embedding_dim=width, mlp_dim=8 * width, num_heads=8),
            ),
        ).eval()  # fmt: skip

    return build


@pytest.fixture(scope="session")
def bicubic() -> Callable[[int, int], np.ndarray]:
    """bicubic(n, m): the matrix (m, n) that resizes n samples to m.

    Keys' cubic with a = -0.75, half-pixel centres, borders repeated, no antialiasing.
    """

    def cubic(distance: float, a: float = -0.75) -> float:
        d = abs(distance)
        if d <= 1:
            return (a + 2) * d**3 - (a + 3) * d**2 + 1
        return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0

    def matrix(before: int, after: int) -> np.ndarray:
        weights = np.zeros((after, before))
        for row in range(after):
            centre = (row + 0.5) * before / after - 0.5
            for tap in range(math.floor(centre) - 1, math.floor(centre) + 3):
                weights[row, min(max(tap, 0), before - 1)] += cubic(centre - tap)
        return weights

    return matrix
