"""Which biases are trained, and what training them does, against segment_anything's own encoder."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.func import functional_call

from methods import Context, create
from methods.sam.sizes import SIZES

MINI_BIASES = [
    "patch_embed.proj.bias",
    *(
        f"blocks.{index}.{layer}.bias"
        for index in range(3)
        for layer in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.lin1", "mlp.lin2")
    ),
    "neck.1.bias",
    "neck.3.bias",
]


def test_counts_on_vit_h() -> None:
    with torch.device("meta"):
        model = create("bitfit").build(Context(backbone="vit_h", checkpoint="none"))
    assert model.count() == {"trainable": 3_957_888, "total": 640_670_416}


def test_one_step_equals_segment_anything_with_its_biases_replaced(
    mini: str, batch: Callable, segment_anything: Callable, roughen: Callable
) -> None:
    """The same gradients, the same output after a step, and nothing else moved."""
    model = create("bitfit").build(Context(backbone=mini, checkpoint="none", image_size=64))
    ours = roughen(model.image_encoder)
    before = {name: p.detach().clone() for name, p in ours.named_parameters()}
    theirs = segment_anything(SIZES[mini], 64).image_encoder
    images = batch(2)[0].float() / 64 - 1

    biases = {name: before[name].clone().requires_grad_() for name in MINI_BIASES}
    features = functional_call(theirs, before | biases, (images,))
    weights = torch.linspace(-1, 1, features.numel()).view_as(features)
    gradients = torch.autograd.grad((features * weights).sum(), list(biases.values()))
    moved = {name: bias - 1e-2 * gradient for (name, bias), gradient in zip(biases.items(), gradients, strict=True)}

    optimiser = torch.optim.SGD(model.trainable().values(), lr=1e-2)
    (ours(images).features * weights).sum().backward()
    optimiser.step()

    after = dict(ours.named_parameters())
    assert {name for name, p in after.items() if p.requires_grad} == set(MINI_BIASES)
    for name, value in before.items():
        if name in moved:
            torch.testing.assert_close(after[name], moved[name], rtol=1e-4, atol=1e-5)
            assert not torch.equal(after[name], value), name
        else:
            assert torch.equal(after[name], value), name
    with torch.no_grad():
        expected = functional_call(theirs, before | moved, (images,))
        torch.testing.assert_close(ours(images).features, expected, rtol=1e-3, atol=1e-3)
        assert (expected - features).abs().max() > 0.05
