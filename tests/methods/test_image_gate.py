"""What Conv-LoRA's gate per image averages where windows are padded: all of their places, the empty ones too.

As released the gate of a window averages its padding with it; per image it is the same average over all windows. As A
has no bias, padding is zero there, so an image's average is that of its own tokens times their share of all places: the
same factor for all images and experts (4,096 of 4,900 at 1024 pixels), which changes no choice of the largest logit.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from methods.conv_lora import ConvLoRALinear
from methods.sam.encoder import partition

SIDE, WINDOW, INPUTS, OUTPUTS = 4, 3, 6, 9
PLACES = 6 * 6  # of a map of 4 by 4 tokens in windows of 3 by 3


def make(**options: object) -> ConvLoRALinear:
    torch.manual_seed(0)
    layer = ConvLoRALinear(nn.Linear(INPUTS, OUTPUTS), gate="image", **options).eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return layer


def images() -> Tensor:
    return 3 * torch.randn(5, SIDE, SIDE, INPUTS, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("variant", ["released", "paper"])
def test_all_places_of_all_windows_count(variant: str) -> None:
    """With two experts their weights say what was averaged."""
    layer, x = make(top_k=2, variant=variant), images()
    z = x @ layer.lora_A.t()
    windows = partition(z, WINDOW).movedim(-1, 2)
    assert windows.shape == (5, 4, 3, WINDOW, WINDOW) and windows[:, 3, :, 1:].count_nonzero() == 0
    output = layer(partition(x, WINDOW))
    for image in range(5):
        best = (z[image].sum((0, 1)) / PLACES @ layer.gate).topk(2)
        mixed = sum(
            share * layer.experts.expert(int(expert), windows[image])
            for share, expert in zip(best.values.softmax(0), best.indices, strict=True)
        )
        inner = mixed + windows[image] if variant == "released" else mixed
        expected = layer.base(partition(x, WINDOW)[image]) + layer.scaling * inner.movedim(1, -1) @ layer.lora_B.t()
        assert torch.allclose(output[image], expected, atol=1e-3)
        assert layer.expert_counts[image].tolist() == [float(e in best.indices.tolist()) for e in range(8)]


@torch.no_grad()
def test_padding_changes_no_choice() -> None:
    """Of the images as one map of 4 by 4, and as padded windows."""
    layer, x = make(), images()
    layer(x)
    chosen = layer.expert_counts
    layer(partition(x, WINDOW))
    assert torch.equal(layer.expert_counts, chosen) and len(set(chosen.argmax(1).tolist())) > 1
