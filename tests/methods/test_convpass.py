"""Convpass against segment_anything's own layers with the bypass's formula written out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pytest
import torch
from segment_anything.modeling.image_encoder import window_partition, window_unpartition
from torch import Tensor, nn

from methods import Context, Model, create
from methods.compose import SlotTaken
from methods.convpass import Bypass
from methods.dropout import KeyedDropout
from methods.sam.sizes import SIZES

DECODER, TOTAL = 3_505_536, 640_670_416


def build(backbone: str, name: str = "convpass", **parameters: object) -> Model:
    return create(name, parameters).build(Context(backbone=backbone, checkpoint="none", image_size=64))


@pytest.mark.parametrize(("bottleneck", "added"), [(8, 1_430_528), (1, 246_464), (64, 12_935_168)])
def test_counts_on_vit_h(bottleneck: int, added: int) -> None:
    with torch.device("meta"):
        method = create("convpass", {"bottleneck": bottleneck})
        model = method.build(Context(backbone="vit_h", checkpoint="none"))
    assert model.count() == {"trainable": DECODER + added, "total": TOTAL + added}
    assert method.added_parameters(Context()) == added


def act(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-1.702 * x))


def bypass(tokens: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """W_up act(conv3x3(act(W_down tokens))) on maps (B, H, W, C), the convolution as a sum over its nine taps."""
    height, width = tokens.shape[1:3]
    low = act(tokens @ weights["down.weight"].t() + weights["down.bias"])
    padded = torch.zeros(len(low), height + 2, width + 2, low.shape[-1], dtype=low.dtype)
    padded[:, 1:-1, 1:-1] = low
    mixed = weights["conv.bias"].expand(*low.shape).clone()
    for row in range(3):
        for column in range(3):
            tap = weights["conv.weight"][:, :, row, column]
            mixed += padded[:, row : row + height, column : column + width] @ tap.t()
    return act(mixed) @ weights["up.weight"].t() + weights["up.bias"]


def bypassed(block: nn.Module, x: Tensor, weights: Mapping[str, Mapping[str, Tensor]], scale: float) -> Tensor:
    """A block of segment_anything with what each bypass makes of the whole map, not of windows."""
    tokens = block.norm1(x)
    if block.window_size:
        windows, padded = window_partition(tokens, block.window_size)
        attended = window_unpartition(block.attn(windows), block.window_size, padded, x.shape[1:3])
    else:
        attended = block.attn(tokens)
    x = x + attended + scale * bypass(tokens, weights["beside_attention"])
    tokens = block.norm2(x)
    return x + block.mlp(tokens) + scale * bypass(tokens, weights["beside_mlp"])


@pytest.mark.parametrize(("bottleneck", "scale"), [(8, 1.0), (3, 0.1), (1, 10.0)])
@torch.no_grad()
def test_equals_segment_anything_with_the_formula(
    mini: str, batch: Callable, segment_anything: Callable, roughen: Callable, bottleneck: int, scale: float
) -> None:
    images = batch(2)[0].double() / 64 - 1
    ours = roughen(build(mini, bottleneck=bottleneck, scale=scale).image_encoder, deviation=0.1).double()
    state, weights = ours.state_dict(), []
    for index in range(SIZES[mini].depth):
        weights.append({})
        for slot in ("beside_attention", "beside_mlp"):
            prefix = f"blocks.{index}.{slot}."
            names = [name for name in state if name.startswith(prefix)]
            weights[index][slot] = {name.removeprefix(prefix): state.pop(name) for name in names}
            assert weights[index][slot]["conv.weight"].shape == (bottleneck, bottleneck, 3, 3)

    theirs = segment_anything(SIZES[mini], 64).image_encoder.double()
    theirs.load_state_dict(state)
    x = theirs.patch_embed(images) + theirs.pos_embed
    for block, own in zip(theirs.blocks, weights, strict=True):
        x = bypassed(block, x, own, scale)
    expected = theirs.neck(x.permute(0, 3, 1, 2))
    torch.testing.assert_close(ours(images).features, expected, rtol=1e-9, atol=1e-9)
    assert (expected - theirs(images)).abs().max() > 0.01


def test_initial_values_add_nothing_and_let_through_what_is_near() -> None:
    torch.manual_seed(0)
    layer = Bypass(400, bottleneck=50, scale=1.0, drop=KeyedDropout(0.1))
    bound = math.sqrt(6 / 450)
    assert 0.99 * bound < layer.down.weight.abs().max() <= bound
    assert layer.down.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    maps = torch.randn(1, 50, 4, 5)
    assert torch.equal(layer.conv(maps), maps)
    assert not any(p.any() for p in (layer.down.bias, layer.up.weight, layer.up.bias))

    tokens = torch.randn(1, 4, 5, 400)
    assert not layer(tokens, tokens).any()
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
    for reached in (False, True):
        optimiser.zero_grad()
        (layer(tokens, tokens) - 1).square().sum().backward()
        assert layer.up.weight.grad.any() and layer.up.bias.grad.any()
        assert bool(layer.down.weight.grad.any()) is bool(layer.conv.weight.grad.any()) is reached
        optimiser.step()


def test_wants_the_same_place_as_adaptformer_and_combines_with_the_others(mini: str) -> None:
    with pytest.raises(SlotTaken, match="'adaptformer' and 'convpass' both want the slot .*blocks.0.beside_mlp"):
        create("convpass+adaptformer")
    for other in ("vpt", "adapter", "conv_lora", "sam_adapter"):
        names = build(mini, f"convpass+{other}").trainable().keys()
        assert names == build(mini).trainable().keys() | build(mini, other).trainable().keys()
