"""How long Conv-LoRA's experts take, fused beside explicit; docs/speed.md has the numbers.

``pytest tests/methods/test_speed_experts.py --benchmark-enable``: forward and backward of one layer's maps, experts
chosen evenly. A short run checks only that both can be timed.
"""

from __future__ import annotations

import pytest
import torch

from methods.conv_experts import ScaledConvolutions
from methods.fused_experts import FusedConvolutions

SCALES = tuple(range(1, 9))
MAPS = {"tiny, windows": (16, 8), "tiny, global": (8, 16), "vit_h, windows": (24, 14), "vit_h, global": (8, 64)}


@pytest.mark.benchmark(warmup=True)
@pytest.mark.parametrize("form", ["fused", "explicit"])
@pytest.mark.parametrize("kind", MAPS)
def test_experts(benchmark, kind: str, form: str) -> None:
    count, side = MAPS[kind]
    benchmark.group = f"experts, {count} maps of {side} x {side} ({kind})"
    torch.manual_seed(0)
    layer = FusedConvolutions(3, SCALES, grid=(side, side)) if form == "fused" else ScaledConvolutions(3, SCALES)
    maps = torch.randn(count, 3, side, side, requires_grad=True)
    chosen, weights = torch.arange(count)[:, None] % len(SCALES), torch.ones(count, 1)

    def step() -> None:
        layer.routed(maps, chosen, weights).sum().backward()

    benchmark(step)
    assert maps.grad.shape == maps.shape and layer.weight.grad.any()
