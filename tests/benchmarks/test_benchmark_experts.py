"""How long Conv-LoRA's experts take, fused beside explicit: one layer's maps, each scale chosen equally often."""

from __future__ import annotations

import pytest
import torch

from methods.conv_experts import ScaledConvolutions
from methods.fused_experts import FusedConvolutions

SCALES = tuple(range(1, 9))
MAPS = {"tiny, windows": (16, 8), "tiny, global": (8, 16), "vit_h, windows": (24, 14), "vit_h, global": (8, 64)}


def made(form: str, side: int) -> ScaledConvolutions:
    """A layer's experts; both forms have the same parameters."""
    torch.manual_seed(1)
    return FusedConvolutions(3, SCALES, grid=(side, side)) if form == "fused" else ScaledConvolutions(3, SCALES)


@pytest.mark.parametrize("form", ["explicit", "fused"])
@pytest.mark.parametrize("kind", MAPS)
def test_experts_forward_and_backward(compare, kind: str, form: str) -> None:
    count, side = MAPS[kind]
    maps = torch.randn(count, 3, side, side)
    chosen, weights = torch.arange(count)[:, None] % len(SCALES), torch.ones(count, 1)

    def gradient(layer: ScaledConvolutions) -> torch.Tensor:
        leaf = maps.requires_grad_(True)
        leaf.grad = None
        layer.routed(leaf, chosen, weights).square().sum().backward()
        return leaf.grad

    layer, group = made(form, side), f"experts ({kind}: {count} of {side} x {side})"
    found = compare(lambda: gradient(layer), group=group, candidate=form, reference="explicit").clone()
    expected = gradient(made("explicit", side))
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert layer.weight.grad.any()
