"""The low-rank update, alone and in SAM's blocks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from methods import Context, create
from methods.lora import LoRALinear


@pytest.fixture
def layer() -> LoRALinear:
    torch.manual_seed(0)
    return LoRALinear(nn.Linear(20, 12), rank=3, alpha=32.0)


def test_is_the_base_layer_until_trained(layer: LoRALinear) -> None:
    x = torch.randn(5, 20)
    assert torch.equal(layer(x), layer.base(x))


def test_is_a_linear_layer_with_the_updated_weight(layer: LoRALinear) -> None:
    nn.init.normal_(layer.lora_B)
    weight = layer.base.weight + 32 / 3 * layer.lora_B @ layer.lora_A
    for shape in [(20,), (7, 20), (2, 4, 5, 20)]:
        x = torch.randn(shape)
        expected = nn.functional.linear(x, weight, layer.base.bias)
        assert torch.allclose(layer(x), expected, atol=1e-4)
        assert torch.equal(layer.forward_tokens(x), layer(x))


def test_initial_values_are_the_released_ones() -> None:
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(400, 12), rank=50)
    bound = 1 / math.sqrt(400)
    assert layer.lora_A.abs().max() <= bound
    assert layer.lora_A.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not layer.lora_B.any()


def test_layers_nest(layer: LoRALinear) -> None:
    nn.init.normal_(layer.lora_B)
    outer = LoRALinear(layer, rank=2, alpha=4.0)
    nn.init.normal_(outer.lora_B)
    x = torch.randn(6, 20)
    expected = layer(x) + 2 * x @ outer.lora_A.t() @ outer.lora_B.t()
    assert torch.allclose(outer(x), expected, atol=1e-5)
    assert torch.allclose(outer.forward_tokens(x), expected, atol=1e-5)


@pytest.mark.parametrize(("rank", "alpha"), [(3, 32.0), (6, 6.0)])
def test_only_the_qkv_projection_of_every_block_is_adapted(mini: str, rank: int, alpha: float) -> None:
    context = Context(backbone=mini, checkpoint="none", image_size=64)
    model = create("lora", {"rank": rank, "alpha": alpha}).build(context)
    adapted = {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}
    assert list(adapted) == [f"image_encoder.blocks.{i}.attn.qkv" for i in range(3)]
    for name, layer in adapted.items():
        assert (layer.lora_A.shape, layer.lora_B.shape) == ((rank, 32), (96, rank)), name
        assert layer.scaling == alpha / rank
    trained = {name for name in model.trainable() if not name.startswith("mask_decoder.")}
    assert trained == {f"{name}.lora_{matrix}" for name in adapted for matrix in "AB"}
