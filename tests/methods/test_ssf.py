"""SSF against segment_anything's own modules with scale and shift folded into their weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from methods import Context, Model, create
from methods.conv_lora import ConvLoRALinear
from methods.sam.sizes import SIZES
from methods.ssf import ScaleShift

DECODER, TOTAL = 3_505_536, 640_670_416

BLOCK = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.lin1", "mlp.lin2")
ENCODER = ["patch_embed", *(f"blocks.{index}.{layer}" for index in range(3) for layer in BLOCK)]
NECK = [f"neck.{index}" for index in range(4)]
DECODER_MLP = [f"layers.{index}.mlp.{layer}" for index in range(2) for layer in ("lin1", "lin2")]


def on_mini(mini: str, name: str = "ssf", **parameters: object) -> Model:
    return create(name, parameters).build(Context(backbone=mini, checkpoint="none", image_size=64))


@pytest.mark.parametrize(
    ("parameters", "added"),
    [
        ({}, 912_896),
        ({"init": "identity"}, 912_896),
        ({"neck": True}, 914_944),
        ({"decoder_mlp": False}, 903_680),
        ({"decoder_mlp": False, "neck": True}, 905_728),
    ],
)
def test_counts_on_vit_h(parameters: dict[str, object], added: int) -> None:
    with torch.device("meta"):
        model = create("ssf", parameters).build(Context(backbone="vit_h", checkpoint="none"))
    assert model.count() == {"trainable": DECODER + added, "total": TOTAL + added}


def folded(adapted: nn.Module, plain: nn.Module, sites: list[str]) -> nn.Module:
    """``plain`` with the weights of ``adapted``, whose scales and shifts at ``sites`` are multiplied into them."""
    state = adapted.state_dict()
    scales = {site: (state.pop(f"{site}.scale"), state.pop(f"{site}.shift")) for site in sites}
    plain.load_state_dict({name.replace(".base.", "."): value for name, value in state.items()})
    for site, (scale, shift) in scales.items():
        layer = plain.get_submodule("patch_embed.proj" if site == "patch_embed" else site)
        bias = torch.zeros_like(shift) if layer.bias is None else layer.bias
        layer.weight = nn.Parameter(layer.weight * scale.view(-1, *[1] * (layer.weight.dim() - 1)))
        layer.bias = nn.Parameter(bias * scale + shift)
    return plain


@pytest.mark.parametrize("neck", [False, True])
@torch.no_grad()
def test_the_encoder_equals_segment_anything_with_folded_weights(
    mini: str, batch: Callable, segment_anything: Callable, roughen: Callable, neck: bool
) -> None:
    images = batch(2)[0].float() / 64 - 1
    ours = roughen(on_mini(mini, neck=neck).image_encoder, deviation=0.1)
    theirs = folded(ours, segment_anything(SIZES[mini], 64).image_encoder, ENCODER + NECK * neck)
    torch.testing.assert_close(ours(images).features, theirs(images), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_decoder_equals_segment_anything_with_folded_weights(
    mini: str, segment_anything: Callable, roughen: Callable
) -> None:
    ours = roughen(on_mini(mini).mask_decoder.transformer, deviation=0.1)
    theirs = folded(ours, segment_anything(SIZES[mini], 64).mask_decoder.transformer, DECODER_MLP)
    torch.manual_seed(0)
    inputs = torch.randn(2, 32, 4, 4), torch.randn(2, 32, 4, 4), torch.randn(2, 2, 32)
    for own, other in zip(ours(*inputs), theirs(*inputs), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


class Prompts(nn.Module):
    """Loose tokens for every window of a block."""

    def forward(self) -> Tensor:
        return torch.linspace(-2, 2, 5 * 32).view(5, 32).sin()


@torch.no_grad()
def test_loose_tokens_are_scaled_and_shifted_like_those_of_the_image(
    mini: str, batch: Callable, roughen: Callable
) -> None:
    images = batch(2)[0].float() / 64 - 1
    ours = roughen(on_mini(mini).image_encoder, deviation=0.1)
    plain = folded(ours, on_mini(mini, "decoder_only").image_encoder, ENCODER)
    without = plain(images).features
    for encoder in (ours, plain):
        for block in encoder.blocks:
            block.extra_kv = Prompts()
    torch.testing.assert_close(ours(images).features, plain(images).features, rtol=1e-4, atol=1e-4)
    assert (plain(images).features - without).abs().max() > 0.01


@torch.no_grad()
def test_around_a_layer_that_needs_a_grid(roughen: Callable) -> None:
    torch.manual_seed(0)
    inner = roughen(ConvLoRALinear(nn.Linear(8, 24)).eval(), deviation=0.5)
    layer = roughen(ScaleShift(inner, 24), deviation=0.5)
    tokens, maps = torch.randn(5, 8), torch.randn(2, 3, 3, 8)
    scale, shift = layer.scale.tolist(), layer.shift.tolist()
    for ours, base in [(layer.forward_tokens(tokens), inner.forward_tokens(tokens)), (layer(maps), inner(maps))]:
        for channel in range(24):
            expected = base[..., channel] * scale[channel] + shift[channel]
            torch.testing.assert_close(ours[..., channel], expected)


@pytest.mark.parametrize("name", ["bitfit+ssf", "ssf+vpt", "adapter+ssf"])
def test_composes(mini: str, batch: Callable, name: str) -> None:
    model = on_mini(mini, name)
    trained = {n.rpartition(".")[0] for n in model.trainable() if n.endswith(".scale")}
    assert len(trained) == len(ENCODER) + len(DECODER_MLP)
    model(batch(2)[0]).masks.sum().backward()
    assert all(p.grad is not None for n, p in model.trainable().items() if n.endswith((".scale", ".shift")))


def test_initial_values() -> None:
    torch.manual_seed(0)
    official = ScaleShift(nn.Identity(), 20_000)
    for parameter, mean in [(official.scale, 1.0), (official.shift, 0.0)]:
        assert parameter.mean().item() == pytest.approx(mean, abs=1e-3)
        assert parameter.std().item() == pytest.approx(0.02, rel=0.03)


@torch.no_grad()
def test_identity_starts_as_the_frozen_sam_and_official_does_not(mini: str, batch: Callable) -> None:
    images = batch(2)[0]
    sam = on_mini(mini, "decoder_only")(images).masks
    assert torch.equal(on_mini(mini, init="identity", neck=True)(images).masks, sam)
    assert not torch.equal(on_mini(mini)(images).masks, sam)


def test_half_precision_keeps_its_type_and_small_changes_of_scale() -> None:
    layer = ScaleShift(nn.Identity(), 64, init="identity")
    y = torch.full((64,), 1.0 + 2**-7, dtype=torch.bfloat16)
    with torch.no_grad():
        layer.scale.fill_(1 + 2**-8)  # lies halfway between two bfloat16 numbers, and is rounded to one
        layer.shift.fill_(2**-9)
    out = layer(y)
    assert out.dtype == torch.bfloat16
    assert out.float().unique().tolist() == [1.0 + 2**-6]
