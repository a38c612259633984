"""How long attention takes, in all of our ways beside segment_anything's own, which holds all scores in memory."""

from __future__ import annotations

import pytest
import torch
from segment_anything.modeling.image_encoder import Attention as Official
from torch import Tensor, nn

from methods.sam.attention import Attention

MAPS = {  # token maps, their side, channels, heads
    "tiny, windows": (16, 8, 192, 3),
    "tiny, global": (4, 16, 192, 3),
    "vit_b, windows": (4, 14, 768, 12),
    "vit_b, global at 512 px": (1, 32, 768, 12),
    "vit_h, windows at 1024 px": (25, 14, 1280, 16),
}
FORMS = ("official", "folded", "folded_unpadded", "bias", "explicit", "tiled")  # all that a CPU can do


def made(form: str, side: int, width: int, heads: int) -> nn.Module:
    """A layer with rough weights, the same in all forms, since they have the same parameters."""
    grid = (side, side)
    if form == "official":
        layer = Official(width, heads, True, True, True, grid)
    else:
        layer = Attention(width, heads, grid)
        layer.variant = form
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in sorted(layer.named_parameters()):
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return layer


def forward(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return layer(x)


def forward_and_backward(layer: nn.Module, x: Tensor) -> Tensor:
    """The gradient at the input and none at the weights, as with the frozen attention of an adapted encoder."""
    leaf = x.clone().requires_grad_()
    layer.requires_grad_(False)(leaf).square().sum().backward()
    return leaf.grad


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("work", [forward, forward_and_backward])
@pytest.mark.parametrize("kind", MAPS)
def test_attention(compare, kind: str, work, form: str) -> None:
    count, side, width, heads = MAPS[kind]
    layer, x = made(form, side, width, heads), torch.randn(count, side, side, width)
    group = f"attention, {work.__name__.replace('_', ' ')} ({kind}: {count} of {side} x {side})"
    found = compare(lambda: work(layer, x), group=group, candidate=form, reference="official")
    expected = work(made("official", side, width, heads), x)
    assert found.shape == x.shape
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
