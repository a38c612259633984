"""Houlsby's adapters against segment_anything's encoder with the bottleneck's formula hooked on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from methods import Context, Model, create
from methods.adapter import Bottleneck
from methods.sam.sizes import SIZES

DECODER, TOTAL = 3_505_536, 640_670_416
SLOTS = {"after_attention": "attn", "after_mlp": "mlp"}


def on_mini(mini: str, **parameters: object) -> Model:
    return create("adapter", parameters).build(Context(backbone=mini, checkpoint="none", image_size=64))


@pytest.mark.parametrize(("rank", "added"), [(2, 409_728), (1, 245_824), (8, 1_393_152)])
def test_counts_on_vit_h(rank: int, added: int) -> None:
    with torch.device("meta"):
        model = create("adapter", {"rank": rank}).build(Context(backbone="vit_h", checkpoint="none"))
    assert model.count() == {"trainable": DECODER + added, "total": TOTAL + added}


def bottleneck(y: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """y + W_up gelu(W_down y + b_down) + b_up with the exact GELU, written out."""
    low = y @ weights["down.weight"].t() + weights["down.bias"]
    low = 0.5 * low * (1 + torch.erf(low / math.sqrt(2)))
    return y + low @ weights["up.weight"].t() + weights["up.bias"]


@pytest.mark.parametrize("rank", [2, 5])
@torch.no_grad()
def test_equals_segment_anything_with_the_formula_hooked_on(
    mini: str, batch: Callable, segment_anything: Callable, roughen: Callable, rank: int
) -> None:
    images = batch(2)[0].float() / 64 - 1
    ours = roughen(on_mini(mini, rank=rank).image_encoder, deviation=0.2)
    state, added = ours.state_dict(), {}
    for index in range(SIZES[mini].depth):
        for slot, layer in SLOTS.items():
            prefix = f"blocks.{index}.{slot}."
            names = [name for name in state if name.startswith(prefix)]
            added[f"blocks.{index}.{layer}"] = {name.removeprefix(prefix): state.pop(name) for name in names}

    theirs = segment_anything(SIZES[mini], 64).image_encoder
    theirs.load_state_dict(state)
    plain = theirs(images)
    for path, weights in added.items():
        assert {name: tuple(w.shape) for name, w in weights.items()} == {
            "down.weight": (rank, 32), "down.bias": (rank,), "up.weight": (32, rank), "up.bias": (32,),
        }  # fmt: skip
        theirs.get_submodule(path).register_forward_hook(lambda _, __, y, weights=weights: bottleneck(y, weights))
    expected = theirs(images)
    torch.testing.assert_close(ours(images).features, expected, rtol=1e-4, atol=1e-4)
    assert (expected - plain).abs().max() > 0.1


def test_starts_as_its_base_with_a_gradient_that_reaches_up_then_down() -> None:
    torch.manual_seed(0)
    layer = Bottleneck(nn.Linear(6, 400), 400, rank=50)
    down = layer.down.weight.detach()
    assert down.abs().max() <= 2e-3
    # A normal distribution cut off at two deviations keeps 0.88 of its deviation.
    assert down.std().item() == pytest.approx(0.8796e-3, rel=0.02)
    assert not any(p.any() for p in (layer.down.bias, layer.up.weight, layer.up.bias))

    x = torch.randn(7, 6)
    assert torch.equal(layer(x), layer.base(x))
    optimiser = torch.optim.SGD([*layer.up.parameters(), *layer.down.parameters()], lr=0.1)
    for reached in (False, True):
        optimiser.zero_grad()
        layer(x).square().sum().backward()
        assert layer.up.weight.grad.any() and layer.up.bias.grad.any()
        assert bool(layer.down.weight.grad.any()) is bool(layer.down.bias.grad.any()) is reached
        optimiser.step()


def test_what_already_fills_a_slot_stays_in_front(mini: str) -> None:
    sam = create("decoder_only").build(Context(backbone=mini, checkpoint="none", image_size=64))
    block = sam.image_encoder.blocks[0]
    block.after_mlp = first = nn.Tanh()
    create("adapter").adapt(sam, Context(backbone=mini))
    x = torch.randn(2, 32)
    assert block.after_mlp.base is first and torch.equal(block.after_mlp(x), x.tanh())
