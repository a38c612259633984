"""The multi-scale convolutions against resampling matrices and scipy's convolution."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d
from scipy.special import erf
from torch import Tensor

from methods.conv_experts import ScaledConvolutions

SCALES = tuple(range(1, 9))


@pytest.fixture
def experts() -> ScaledConvolutions:
    torch.manual_seed(0)
    layer = ScaledConvolutions(3, SCALES)
    torch.nn.init.normal_(layer.bias)
    return layer


def maps(count: int = 4, height: int = 5, width: int = 7) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def literal(layer: ScaledConvolutions, index: int, image: np.ndarray, bicubic: Callable) -> np.ndarray:
    """Expert ``index`` on one map (r, H, W): matrices for the resizing, one channel pair at a time."""
    weight, bias = layer.weight[index].detach().double().numpy(), layer.bias[index].detach().double().numpy()
    height, width = image.shape[1:]
    scale = layer.scales[index]
    large = bicubic(height, scale * height) @ image @ bicubic(width, scale * width).T
    convolved = np.stack([
        sum(correlate2d(channel, kernel, mode="same") for channel, kernel in zip(large, kernels, strict=True)) + b
        for kernels, b in zip(weight, bias, strict=True)
    ])  # fmt: skip
    if layer.gelu:
        convolved = convolved * 0.5 * (1 + erf(convolved / math.sqrt(2)))
    return bicubic(scale * height, height) @ convolved @ bicubic(scale * width, width).T


@pytest.mark.parametrize("gelu", [True, False])
@pytest.mark.parametrize("index", range(8))
def test_an_expert_enlarges_convolves_and_shrinks(
    experts: ScaledConvolutions, index: int, gelu: bool, bicubic: Callable
) -> None:
    experts.gelu = gelu
    ours = experts.expert(index, maps(2)).detach().numpy()
    for image, out in zip(maps(2).double().numpy(), ours, strict=True):
        assert np.abs(out - literal(experts, index, image, bicubic)).max() < 1e-5


def test_the_order_of_scales_is_the_order_of_experts(bicubic: Callable) -> None:
    layer = ScaledConvolutions(3, (4, 2))
    assert layer.weight.shape == (2, 3, 3, 3, 3) and layer.bias.shape == (2, 3)
    for index in range(2):
        expected = literal(layer, index, maps(1)[0].double().numpy(), bicubic)
        assert np.abs(layer.expert(index, maps(1))[0].detach().numpy() - expected).max() < 1e-5


def test_initial_values_are_those_of_a_convolution_with_zero_bias() -> None:
    torch.manual_seed(0)
    layer = ScaledConvolutions(3, SCALES)
    own, torchs = layer.weight, torch.nn.Conv2d(3, 600, 3).weight
    assert own.abs().max() <= 1 / math.sqrt(27)
    assert own.std().item() == pytest.approx(torchs.std().item(), rel=0.1)
    assert own.flatten(1).unique(dim=0).shape[0] == 8
    assert not layer.bias.any()


def test_summed_is_the_sum_of_all(experts: ScaledConvolutions) -> None:
    expected = torch.stack([experts.expert(index, maps()) for index in range(8)]).sum(0)
    assert torch.allclose(experts.summed(maps()), expected, atol=1e-5)


@pytest.mark.parametrize("top_k", [1, 2, 8])
def test_routed_is_a_weighted_sum_for_each_map(experts: ScaledConvolutions, top_k: int) -> None:
    generator = torch.Generator().manual_seed(2)
    chosen = torch.stack([torch.randperm(8, generator=generator)[:top_k] for _ in range(4)])
    weights = torch.rand(4, top_k, generator=generator)
    out = experts.routed(maps(), chosen, weights)
    for index, image in enumerate(maps()):
        expected = sum(
            weight * experts.expert(expert, image[None])[0]
            for expert, weight in zip(chosen[index].tolist(), weights[index], strict=True)
        )
        assert torch.allclose(out[index], expected, atol=1e-5)


def test_experts_nobody_chose_learn_nothing(experts: ScaledConvolutions) -> None:
    chosen = torch.tensor([[0], [5], [5], [2]])
    experts.routed(maps(), chosen, torch.ones(4, 1)).square().sum().backward()
    for parameter in (experts.weight, experts.bias):
        assert parameter.grad.flatten(1).any(1).nonzero().flatten().tolist() == [0, 2, 5]


def test_weights_receive_a_gradient(experts: ScaledConvolutions) -> None:
    chosen, weights = torch.tensor([[0, 3], [5, 1]]), torch.full((2, 2), 0.5, requires_grad=True)
    experts.routed(maps(2), chosen, weights).sum().backward()
    for row, image, gradient in zip(chosen.tolist(), maps(2), weights.grad.tolist(), strict=True):
        expected = [experts.expert(expert, image[None]).sum().item() for expert in row]
        assert gradient == pytest.approx(expected, abs=1e-4)
