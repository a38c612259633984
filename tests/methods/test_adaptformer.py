"""AdaptFormer against segment_anything's encoder with the bottleneck's formula hooked on."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from methods import Context, Model, create
from methods.adaptformer import ParallelBottleneck
from methods.dropout import KeyedDropout
from methods.sam.sizes import SIZES

DECODER, TOTAL = 3_505_536, 640_670_416


def build(backbone: str, **parameters: object) -> Model:
    return create("adaptformer", parameters).build(Context(backbone=backbone, checkpoint="none", image_size=64))


@pytest.mark.parametrize(("bottleneck", "added"), [(64, 5_285_888), (8, 696_576), (1, 122_912)])
def test_counts_on_vit_h(bottleneck: int, added: int) -> None:
    with torch.device("meta"):
        method = create("adaptformer", {"bottleneck": bottleneck})
        model = method.build(Context(backbone="vit_h", checkpoint="none"))
    assert model.count() == {"trainable": DECODER + added, "total": TOTAL + added}
    assert method.added_parameters(Context()) == added


@pytest.mark.parametrize(("bottleneck", "scale"), [(64, 0.1), (5, 4.0)])
@torch.no_grad()
def test_equals_segment_anything_with_the_formula_hooked_on(
    mini: str, batch: Callable, segment_anything: Callable, roughen: Callable, bottleneck: int, scale: float
) -> None:
    """What norm2 is given goes through the bottleneck and joins what the MLP returns."""
    images = batch(2)[0].double() / 64 - 1
    ours = roughen(build(mini, bottleneck=bottleneck, scale=scale).image_encoder, deviation=0.1).double()
    state = ours.state_dict()
    weights = {name: state.pop(name) for name in list(state) if ".beside_mlp." in name}
    assert len(weights) == 4 * SIZES[mini].depth
    theirs = segment_anything(SIZES[mini], 64).image_encoder.double()
    theirs.load_state_dict(state)
    plain = theirs(images)

    for index, block in enumerate(theirs.blocks):
        own = {name: weights[f"blocks.{index}.beside_mlp.{name}"] for name in ("down.weight", "up.weight")}
        biases = [weights[f"blocks.{index}.beside_mlp.{name}.bias"] for name in ("down", "up")]
        read = {}

        def before(_, inputs, read=read):
            (read["x"],) = inputs

        def joined(_, __, y, read=read, own=own, biases=biases):
            low = (read["x"] @ own["down.weight"].t() + biases[0]).clamp(min=0)
            return y + scale * (low @ own["up.weight"].t() + biases[1])

        block.norm2.register_forward_pre_hook(before)
        block.mlp.register_forward_hook(joined)
    expected = theirs(images)
    torch.testing.assert_close(ours(images).features, expected, rtol=1e-9, atol=1e-9)
    assert (expected - plain).abs().max() > 0.01


def test_initial_values_add_nothing_at_first() -> None:
    torch.manual_seed(0)
    layer = ParallelBottleneck(400, bottleneck=50, scale=0.1, drop=KeyedDropout(0.1))
    bound = 1 / math.sqrt(400)
    assert 0.99 * bound < layer.down.weight.abs().max() <= bound
    assert layer.down.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not any(p.any() for p in (layer.down.bias, layer.up.weight, layer.up.bias))
    x = torch.randn(2, 3, 3, 400)
    assert not layer(x, x).any()
    (layer(x, x) - 1).square().sum().backward()
    assert layer.up.weight.grad.any() and not layer.down.weight.grad.any()
