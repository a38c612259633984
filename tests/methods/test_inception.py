"""Inception inside LoRA, against branches written out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d
from scipy.special import erf
from torch import Tensor, nn

from methods import Context, create
from methods.inception import InceptionLinear
from methods.sam.encoder import partition

IMAGES, WINDOWS, HEIGHT, WIDTH, INPUTS, OUTPUTS = 2, 3, 5, 4, 6, 9


@pytest.fixture
def layer() -> InceptionLinear:
    """A layer without a neutral value."""
    torch.manual_seed(0)
    made = InceptionLinear(nn.Linear(INPUTS, OUTPUTS))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return made


def features() -> Tensor:
    return torch.randn(IMAGES, WINDOWS, HEIGHT, WIDTH, INPUTS, generator=torch.Generator().manual_seed(1))


def gelu(x: np.ndarray) -> np.ndarray:
    return x / 2 * (1 + erf(x / math.sqrt(2)))


def literal(layer: InceptionLinear, x: np.ndarray) -> np.ndarray:
    """One map's output (H, W, out) from its input (H, W, in), in float64."""
    values = {name: p.detach().double().numpy() for name, p in layer.named_parameters()}

    def convolved(maps: np.ndarray, name: str) -> np.ndarray:
        weight, bias = values[f"branches.{name}.weight"], values[f"branches.{name}.bias"]
        rows = [
            sum(correlate2d(maps[i], kernels[i], mode="same") for i in range(len(maps))) + b
            for kernels, b in zip(weight, bias, strict=True)
        ]
        return gelu(np.stack(rows))

    def pooled(maps: np.ndarray) -> np.ndarray:
        """The largest of a place and those of its eight neighbours that there are."""
        height, width = maps.shape[1:]
        return np.stack([
            [maps[:, max(0, i - 1) : i + 2, max(0, j - 1) : j + 2].max((1, 2)) for j in range(width)]
            for i in range(height)
        ]).transpose(2, 0, 1)  # fmt: skip

    z = np.moveaxis(x @ values["lora_A"].T, -1, 0)
    branches = [
        convolved(z, "point"),
        convolved(convolved(z, "reduce_3x3"), "conv_3x3"),
        convolved(convolved(z, "reduce_5x5"), "conv_5x5"),
        convolved(pooled(z), "project_pool"),
    ]
    base = x @ values["base.weight"].T + values["base.bias"]
    return base + 32 / len(z) * np.moveaxis(z + sum(branches), 0, -1) @ values["lora_B"].T


@torch.no_grad()
def test_every_map_equals_the_literal_formulation(layer: InceptionLinear) -> None:
    """Borders included: at 5 by 4 places a 5x5 kernel reaches beyond them everywhere."""
    output = layer(features()).numpy()
    for place in np.ndindex(IMAGES, WINDOWS):
        assert np.abs(output[place] - literal(layer, features()[place].double().numpy())).max() < 2e-4


@torch.no_grad()
def test_windows_do_not_reach_each_other(layer: InceptionLinear) -> None:
    x, before = features(), layer(features())
    x[1, 2] += 1
    changed = (layer(x) != before).flatten(2).any(2)
    assert changed.tolist() == [[False] * 3, [False, False, True]]
    assert torch.allclose(layer(features()[1, 2]), before[1, 2], atol=1e-5), "an image without windows"
    assert torch.allclose(layer(features()[:, 1]), before[:, 1], atol=1e-5)


def test_its_parameters_are_those_that_the_paper_counts() -> None:
    layer = InceptionLinear(nn.Linear(20, 12))
    own = {name.removeprefix("branches."): p for name, p in layer.named_parameters() if name.startswith("branches.")}
    assert {name: p.numel() for name, p in own.items() if name.endswith("weight")} == {
        "point.weight": 9, "reduce_3x3.weight": 9, "conv_3x3.weight": 81, "reduce_5x5.weight": 9,
        "conv_5x5.weight": 225, "project_pool.weight": 9,
    }  # fmt: skip
    assert sum(p.numel() for p in own.values()) == 360
    assert not any(p.any() for name, p in own.items() if name.endswith("bias")) and not layer.lora_B.any()
    assert all(p.any() for name, p in own.items() if name.endswith("weight")) and layer.lora_A.any()
    assert torch.equal(layer(torch.ones(4, 4, 20)), layer.base(torch.ones(4, 4, 20)))


@torch.no_grad()
def test_loose_tokens_take_the_low_rank_path(layer: InceptionLinear) -> None:
    tokens = torch.randn(7, INPUTS)
    expected = layer.base(tokens) + 32 / 3 * tokens @ layer.lora_A.t() @ layer.lora_B.t()
    assert torch.allclose(layer.forward_tokens(tokens), expected, atol=1e-4)
    with pytest.raises(ValueError, match=r"maps \(\.\.\., H, W, C\), not \(7, 6\)"):
        layer(tokens)


@torch.no_grad()
def test_in_sam_each_block_sees_its_own_windows(mini: str, batch: Callable, roughen: Callable) -> None:
    """With padding: four windows of 3 by 3 for a map of 4 by 4, and one map of 4 by 4 in the global block."""
    model = create("inception").build(Context(backbone=mini, checkpoint="none", image_size=64))
    seen: list[tuple[int, ...]] = []
    layers = [block.attn.qkv for block in roughen(model).image_encoder.blocks]
    for layer in layers:
        layer.branches.register_forward_hook(lambda module, given, output: seen.append(tuple(given[0].shape)))
    model(batch(2)[0])
    assert seen == [(8, 3, 3, 3), (2, 3, 4, 4), (8, 3, 3, 3)]
    x = torch.randn(2, 4, 4, 32)
    windows = layers[0](partition(x, 3))
    alone = torch.stack([layers[0](one) for one in partition(x, 3).flatten(0, 1)])
    assert torch.allclose(windows.flatten(0, 1), alone, atol=1e-5)
